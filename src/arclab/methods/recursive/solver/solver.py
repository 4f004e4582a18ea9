"""TRM and ETRM as a solver: predict every test input under every augmentation, undo the augmentation, vote.

    RecursiveSolver(model, ranks, canvas=30, seed=0, batch_size=256, max_demos=10).solve(tasks, Budget(1000))

Votes are those of the published TRM: one vote per augmented copy, grouped by identical grid, ranked by (votes, mean sigmoid
of the halt logit). What costs less than that, and what it changes: `halting` (rows end at a positive halt logit), `votes`
(a task's augmentations end when its ranking is settled) and `canvas_rule` (rows on the smallest canvas that holds what is
shown; see config.schema). Rows are refined in continuous batches (continuous_batching.py) and demonstrations are encoded once
per augmented puzzle and canvas. Counting starts anew with every call of solve, or where an evaluation with the same `store` was
killed. Shapes: B rows (task, augmentation, test input), P augmented puzzles, S canvas cells, R all rows of the evaluation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from arclab.config.dataset_schema import CANVASES
from arclab.config.schema import CanvasRule, EvalHalting, VotesRule
from arclab.data.augment import ViewRule
from arclab.data.sampler import BatchPlan, PuzzleSpace
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.solver.continuous_batching import FinishedRows, ReadyRows, run_rows
from arclab.methods.recursive.solver.pending_rows import PendingRows, RowTable, row_table, sampled_rows
from arclab.methods.recursive.solver.reader import ModelReader, Puzzles, Reader
from arclab.methods.recursive.solver.store import Tally, VoteStore
from arclab.methods.recursive.solver.votes import VoteBox, restore_grids, shown_sides
from arclab.methods.recursive.token_views import corner_cells
from arclab.results.attempts import Attempts, Budget
from arclab.runs.console import progress_bar
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks

log = logging.getLogger(__name__)
PerTask = Callable[[ArcTask], AbstractContextManager[object]]
# The sums of a tally, by place: over sampled rows with known answers, the number of those rows, and over all rows. Behind them
# stand those of the reader's facts, over all rows.
_OF_LABELLED = ("all.accuracy", "all.exact_accuracy", "all.q_halt_accuracy", "all.lm_loss", "all.q_halt_loss")
_OF_ALL = ("all.steps", "ARC/undecodable", "eval/rerun_share")
_PLACES = {name: place for place, name in enumerate((*_OF_LABELLED, "all.labelled", *_OF_ALL))}
# What a row adds by itself: all sums up to its steps; only those before depend on its answer.
_ROW_SUMS = slice(0, _PLACES["all.steps"] + 1)
_ANSWER_SUMS = slice(0, _PLACES["all.steps"])


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of solve: its rows, what this process counted and what was counted before it, and what is still to be done.

    sampled_R: the rows that statistics of answers are taken over.
    """

    space: PuzzleSpace
    table: RowTable
    sampled_R: npt.NDArray[np.bool_]
    tally: Tally
    earlier: Tally | None
    pending: PendingRows
    bar: tqdm


class RecursiveSolver:
    """puzzle_rows: task id -> first row of the task in a trained puzzle table (TRM); None for an encoder (ETRM). view_rule: the
    one that the table was made by, so that augmentation n of a task is row first + n.

    reader: what turns a task's demonstrations into what the decoder reads; None: the model alone. per_task: a block in which
    alone the rows of a task may be predicted; then tasks take turns, and those that are done are not entered.

    store: keeps the votes of an unfinished call of solve, written every save_every_s seconds and at the end. progress: hears
    how many tasks' worth of rows are predicted, and may end it.
    """

    def __init__(
        self, model: RecursiveModel, ranks: Ranks, *, canvas: int, seed: int, batch_size: int, max_demos: int,
        puzzle_rows: dict[str, int] | None = None, show_progress: bool = False, halting: EvalHalting = EvalHalting.all_steps,
        votes: VotesRule = VotesRule.all, canvas_rule: CanvasRule = CanvasRule.full, store: VoteStore | None = None,
        save_every_s: float = 60.0, view_rule: ViewRule = ViewRule.content, progress: WorkProgress | None = None,
        reader: Reader | None = None, per_task: PerTask | None = None,
    ) -> None:  # fmt: skip
        self.model, self.ranks = model, ranks
        self.canvas, self.seed, self.batch_size, self.max_demos = canvas, seed, batch_size, max_demos
        self.show_progress = show_progress
        self.halting, self.votes, self.canvas_rule = halting, votes, canvas_rule
        self.store, self.save_every_s, self.view_rule, self.progress = store, save_every_s, view_rule, progress
        self.reader = reader or ModelReader(model, max_demos, puzzle_rows, ranks.device)
        self.per_task = per_task

    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts:
        """Ranked candidates for every test input; statistics are the all.* metrics where test outputs are known. ToldToEnd, on
        every rank and with the votes kept, if the progress says so on any of them."""
        job = self._job(tasks, budget)
        start = saved = time.monotonic()
        is_finished = True
        with closing(self._landings(job)) as landings:
            for finished, canvas in landings:
                self._count(job, finished, canvas)
                if self.store is not None and time.monotonic() - saved >= self.save_every_s:
                    self.store.save(self.ranks.rank, job.table.keys, job.tally)
                    saved = time.monotonic()
                if self._is_told(job):
                    is_finished = False
                    break
        job.bar.close()
        seconds = time.monotonic() - start
        if self.store is not None:
            self.store.save(self.ranks.rank, job.table.keys, job.tally)
        self._require_all_finished(job, is_finished)
        return self._combine(job, seconds)

    def _is_told(self, job: _Job) -> bool:
        """Reports how far this rank is, the others taken to be as far. Only who keeps votes is asked to end."""
        if self.progress is None or self.store is None:
            return False
        share = (job.pending.num_done - job.pending.num_saved) / max(1, job.pending.num_rows - job.pending.num_saved)
        self.progress.report(int(share * self.progress.num_steps))
        return self.progress.is_told

    def _require_all_finished(self, job: _Job, is_finished: bool) -> None:
        if self.progress is None:
            return
        parts = self.ranks.gather_objects((int(job.tally.done_R.sum()), is_finished))
        if not all(is_whole for _, is_whole in parts):
            num_done = sum(count for count, _ in parts) + (0 if job.earlier is None else int(job.earlier.done_R.sum()))
            raise ToldToEnd(f"{num_done} of {len(job.table.task_R)} predictions are kept")

    def _job(self, tasks: Sequence[ArcTask], budget: Budget) -> _Job:
        space = PuzzleSpace(tasks, budget.num_augmentations, self.seed, self.canvas, self.view_rule)
        table = row_table(space, self.max_demos, self.canvas_rule)
        num_sums = len(_PLACES) + len(self.reader.facts)
        tally, earlier = Tally(np.zeros(len(table.task_R), dtype=bool), np.zeros(num_sums)), None
        if self.store is not None:
            loaded = self.store.load(table.keys) if self.ranks.is_main else None
            earlier, generation = self.ranks.gather_objects((loaded, self.store.generation))[0]
            self.store.join(generation)
        boxes = [tally.box] if earlier is None else [tally.box, earlier.box]
        done_R = tally.done_R.copy() if earlier is None else earlier.done_R.copy()
        pending = PendingRows(space, table, boxes, done_R, rule=self.votes, seed=self.seed, rank=self.ranks.rank,
                        world_size=self.ranks.world_size, by_task=self.per_task is not None)  # fmt: skip
        if earlier is not None and self.ranks.is_main:
            log.info("going on: %d of %d predictions were made before", done_R.sum(), len(done_R))
        bar = progress_bar(
            total=pending.num_rows - pending.num_saved, initial=pending.num_done, desc="evaluating", unit="grid",
            disable=not (self.show_progress and self.ranks.is_main),
        )  # fmt: skip
        return _Job(space, table, sampled_rows(space, table, self.votes, self.seed), tally, earlier, pending, bar)

    def _landings(self, job: _Job) -> Generator[tuple[FinishedRows, int], None, None]:
        """Ended rows with their canvas, of one task after the other where each needs a block of its own."""
        if self.per_task is None:
            yield from self._predicted(job)
            return
        for task in job.pending.tasks:
            job.pending.start_task(task)
            if job.pending.canvas() is not None:
                with self.per_task(job.space.tasks[task]):
                    yield from self._predicted(job)

    def _predicted(self, job: _Job) -> Iterator[tuple[FinishedRows, int]]:
        """Rows that wait, one canvas after the other until nothing waits on any."""
        while (canvas := job.pending.canvas()) is not None:
            small = copy(job.space)  # the same grids and augmentations, rendered on another canvas
            small.canvas = canvas
            is_early = self.halting is EvalHalting.early
            for finished in run_rows(self.model, partial(self._ready, job, small), self.batch_size, early=is_early):
                yield finished, canvas

    def _ready(self, job: _Job, small: PuzzleSpace) -> ReadyRows | None:
        """The next rows of this canvas, their demonstrations read once per augmented puzzle; None if no row waits."""
        rows_B, table = job.pending.take(small.canvas, self.batch_size), job.table
        if len(rows_B) == 0:
            return None
        task_B, augmentation_B = table.task_R[rows_B], table.augmentation_R[rows_B]
        _, first_P, puzzle_B = np.unique(job.space.puzzle_ids(task_B, augmentation_B), return_index=True, return_inverse=True)
        nothing_P2 = np.zeros((len(rows_B), 1, 2), dtype=np.int64)
        queries = BatchPlan(
            task_B, augmentation_B, table.query_R[rows_B], np.zeros((len(rows_B), 0), dtype=np.int64), nothing_P2
        )
        shown = job.space.render(queries, with_puzzle_ids=False)
        # Also labels are cut, not rendered, to the smaller canvas: an answer may be too large for it.
        cells = corner_cells(small.canvas, self.canvas)
        device = self.ranks.device
        reading = self.reader.read(Puzzles(small, task_B[first_P], augmentation_B[first_P]))
        return ReadyRows(
            rows_B, shown.inputs_BS[:, cells].to(device), shown.labels_BS[:, cells].to(device), reading,
            torch.from_numpy(puzzle_B.reshape(-1)).to(device),
        )  # fmt: skip

    def _count(self, job: _Job, finished: FinishedRows, canvas: int) -> None:
        """Votes and statistics of ended rows; those that may not have had the room are predicted again instead."""
        tokens_BS = finished.logits_BSV.argmax(-1).to(torch.uint8).cpu().numpy()
        sums_BN = _numerators(finished)
        counted_B = np.ones(len(tokens_BS), dtype=bool)
        if canvas < self.canvas:
            heights_B, widths_B = shown_sides(tokens_BS, canvas)
            counted_B = (heights_B > 0) & (heights_B < canvas) & (widths_B < canvas)
            job.pending.postpone(finished.rows_B[~counted_B])
        rows_B, table, space = finished.rows_B[counted_B], job.table, job.space
        if len(rows_B) == 0:
            return
        augmentations = space.table[space.first_augmentation_T[table.task_R[rows_B]] + table.augmentation_R[rows_B]]
        grids = restore_grids(tokens_BS[counted_B], augmentations, canvas)
        # In fp64, as published: in fp32 every logit above 17 is exactly 1. On the host, because not every device has fp64.
        confidence_B = finished.q_halt_B.cpu().double().sigmoid().numpy()[counted_B]
        job.tally.box.count(table.keys, table.test_R[rows_B], grids, confidence_B)
        sums_BN = sums_BN[counted_B]
        sums_BN[:, _ANSWER_SUMS] *= job.sampled_R[rows_B, None]
        job.tally.sums[_ROW_SUMS] += sums_BN.sum(axis=0)
        job.tally.sums[_PLACES["ARC/undecodable"]] += int((grids.heights_B == 0).sum())
        # Of counted rows only: a row that was postponed before a kill starts again on its first canvas.
        job.tally.sums[_PLACES["eval/rerun_share"]] += int(
            (np.searchsorted(CANVASES, canvas) - np.searchsorted(CANVASES, table.canvas_R[rows_B])).sum()
        )
        if finished.facts_BF is not None:
            job.tally.sums[len(_PLACES) :] += finished.facts_BF.double().cpu().numpy()[counted_B].sum(axis=0)
        job.tally.done_R[rows_B] = True
        job.pending.finish(rows_B)
        job.bar.total = job.pending.num_rows - job.pending.num_saved
        job.bar.update(len(rows_B))

    def _combine(self, job: _Job, seconds: float) -> Attempts:
        parts = self.ranks.gather_objects(job.tally)
        now = sum(int(part.done_R.sum()) for part in parts)
        parts += [] if job.earlier is None else [job.earlier]
        total = VoteBox()
        total.merge(part.box for part in parts)
        sums = np.sum([part.sums for part in parts], axis=0)
        num_rows, count = sum(int(part.done_R.sum()) for part in parts), sums[_PLACES["all.labelled"]]
        statistics = {name: sums[_PLACES[name]] / count for name in _OF_LABELLED} if count else {}
        statistics |= {name: sums[_PLACES[name]] / num_rows for name in _OF_ALL}
        statistics |= {name: sums[len(_PLACES) + place] / num_rows for place, name in enumerate(self.reader.facts)}
        statistics |= {
            "all.count": float(num_rows),
            "all.labelled": float(count),
            "eval/rows_share": num_rows / len(job.table.task_R),
        }
        statistics["timing/eval_samples_per_s"] = now / max(seconds, 1e-9)
        return Attempts({key: total.ranked(key) for key in job.table.keys}, statistics)


def _numerators(finished: FinishedRows) -> np.ndarray:
    """(B, N): what each row adds to the sums of _ROW_SUMS, in their order."""
    losses = row_losses(finished.logits_BSV, finished.q_halt_B, finished.labels_BS)
    known_B = losses.has_labels.double()
    values = [losses.accuracy, losses.exact, losses.q_halt_correct, losses.lm, losses.q_halt]
    columns = [torch.where(losses.has_labels, value.double(), 0.0) for value in values]
    return np.column_stack([torch.stack([*columns, known_B], dim=1).cpu().numpy(), finished.steps_B])
