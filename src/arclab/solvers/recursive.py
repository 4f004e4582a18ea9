"""TRM and ETRM as a solver: predict every test input under every augmentation, undo the augmentation, vote.

Votes are those of the published TRM: one vote per augmented copy, grouped by identical grid, ranked by (votes, mean sigmoid
of the halt logit). Counting starts anew with every call of solve. Rows are shared out over ranks and the counts added up.
Shapes: R rows (task, augmentation, test input), S canvas cells.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arclab.data.augment import Augmentation
from arclab.data.codec import decode
from arclab.data.sampler import Batch, Plan, PuzzleSpace
from arclab.data.tasks import ArcTask
from arclab.models.losses import row_losses
from arclab.models.recursive import RecursiveModel
from arclab.ranks import Ranks
from arclab.solvers.base import Attempts, Budget, VoteBox

_SUMS = ("all.accuracy", "all.exact_accuracy", "all.q_halt_accuracy", "all.lm_loss", "all.q_halt_loss", "all.steps")


class RecursiveSolver:
    """puzzle_rows: task id -> first row of the task in a trained puzzle table (TRM); None for an encoder (ETRM)."""

    def __init__(
        self, model: RecursiveModel, ranks: Ranks, *, canvas: int, seed: int, batch_size: int, max_demos: int,
        puzzle_rows: dict[str, int] | None = None, show_progress: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.ranks = model, ranks
        self.canvas, self.seed, self.batch_size, self.max_demos = canvas, seed, batch_size, max_demos
        self.puzzle_rows, self.show_progress = puzzle_rows, show_progress

    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts:
        """Ranked candidates for every test input; statistics are the all.* metrics where test outputs are known."""
        space = PuzzleSpace(tasks, budget.num_augmentations, self.seed, self.canvas)
        plan = self._plan(space)
        rows = range(self.ranks.rank, len(plan.task_B), self.ranks.world_size)
        box, sums, start_time = VoteBox(), np.zeros(len(_SUMS) + 2), time.monotonic()
        bar = tqdm(total=len(rows), desc="evaluating", unit="grid", disable=not (self.show_progress and self.ranks.is_main),
                   mininterval=0.5 if sys.stderr.isatty() else 20.0)  # fmt: skip
        for start in range(0, len(rows), self.batch_size):
            part = _take(plan, np.array(rows[start : start + self.batch_size]))
            sums += self._predict(space, part, box)
            bar.update(len(part.task_B))
        bar.close()
        return self._combine(tasks, box, sums, time.monotonic() - start_time)

    def _plan(self, space: PuzzleSpace) -> Plan:
        """One row for every (task, augmentation, test input), all demonstrations in file order, nothing translated."""
        store, rows = space.store, []
        for t in range(len(space.tasks)):
            tests = range(int(store.num_demos_T[t]), int(store.num_pairs_T[t]))
            rows += [(t, a, store.first_pair_T[t] + p) for a in range(space.num_augmentations_T[t]) for p in tests]
        task_B, augmentation_B, query_B = np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()
        slots = np.arange(min(self.max_demos, int(store.num_demos_T.max())) if self.puzzle_rows is None else 0)[None]
        demos_BK = np.where(slots < store.num_demos_T[task_B][:, None], store.first_pair_T[task_B][:, None] + slots, -1)
        offsets = np.zeros((len(task_B), 1 + slots.shape[1], 2), dtype=np.int64)
        return Plan(task_B, augmentation_B, query_B, demos_BK, offsets)

    def _predict(self, space: PuzzleSpace, plan: Plan, box: VoteBox) -> np.ndarray:
        """Vote for one batch of rows; returns sums of the all.* numerators, the labelled rows and the undecodable ones."""
        batch = space.render(plan, with_puzzle_ids=False)
        if self.puzzle_rows is not None:
            first = np.array([self.puzzle_rows[space.tasks[t].id] for t in plan.task_B])
            batch.puzzle_id_B = torch.from_numpy(first + plan.augmentation_B)
        batch = batch.to(self.ranks.device)
        logits_BSV, q_halt_B = self.model.predict(batch)
        tokens_BS = logits_BSV.argmax(-1).to(torch.uint8).cpu().numpy()
        confidence_B = q_halt_B.float().sigmoid().cpu().tolist()
        undecodable = 0
        for i, tokens in enumerate(tokens_BS):
            t = int(plan.task_B[i])
            grid = decode(tokens, self.canvas)
            undecodable += grid is None
            if grid is not None:
                row = space.table[space.first_augmentation_T[t] + plan.augmentation_B[i]]
                grid = Augmentation.from_row(row).invert(grid)
            number = int(plan.query_B[i] - space.store.first_pair_T[t] - space.store.num_demos_T[t])
            box.add((space.tasks[t].id, number), grid, confidence_B[i])
        return np.array([*self._statistics(logits_BSV, q_halt_B, batch), undecodable])

    def _statistics(self, logits_BSV: Tensor, q_halt_B: Tensor, batch: Batch) -> list[float]:
        losses = row_losses(logits_BSV, q_halt_B, batch.labels_BS)
        keep = losses.has_labels
        values = [losses.accuracy, losses.exact, losses.q_halt_correct, losses.lm, losses.q_halt]
        sums = [float(v[keep].double().sum()) for v in values]
        count = int(keep.sum())
        return [*sums, float(count * self.model.halting.halt_max_steps), count]

    def _combine(self, tasks: Sequence[ArcTask], box: VoteBox, sums: np.ndarray, seconds: float) -> Attempts:
        parts = self.ranks.gather_objects((box, sums))
        total = VoteBox()
        total.merge(part for part, _ in parts)
        *numerators, count, undecodable = np.sum([s for _, s in parts], axis=0)
        statistics = {name: value / count for name, value in zip(_SUMS, numerators, strict=True)} if count else {}
        num_rows = sum(c.votes for t in tasks for n in range(len(t.tests)) for c in total.ranked((t.id, n)))
        statistics |= {"all.count": float(num_rows), "ARC/undecodable": undecodable / num_rows}
        statistics["timing/eval_samples_per_s"] = num_rows / max(seconds, 1e-9)
        return Attempts({(t.id, n): total.ranked((t.id, n)) for t in tasks for n in range(len(t.tests))}, statistics)


def _take(plan: Plan, rows: np.ndarray) -> Plan:
    return Plan(plan.task_B[rows], plan.augmentation_B[rows], plan.query_B[rows], plan.demos_BK[rows], plan.offsets_BP2[rows])
