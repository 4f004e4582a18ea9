"""TRM and ETRM as a solver: predict every test input under every augmentation, undo the augmentation, vote.

    RecursiveSolver(model, ranks, canvas=30, seed=0, batch_size=256, max_demos=10).solve(tasks, Budget(1000))

Votes are those of the published TRM: one vote per augmented copy, grouped by identical grid, ranked by (votes, mean sigmoid
of the halt logit). What costs less than that, and what it changes: `halting` (rows end at a positive halt logit), `votes`
(a task's augmentations end when its ranking is settled) and `canvas_rule` (rows on the smallest canvas that holds what is
shown; see config.schema). What costs more: `ranking` (candidates ranked by their probabilities under all views, see product.py)
and `samples` (a row votes with the surest of several noisy predictions, see samples.py). Rows are refined in continuous batches
(continuous_batching.py) and demonstrations are encoded once per augmented puzzle and canvas. Counting starts anew with every
call of solve, or where an evaluation with the same `store` was killed. Shapes: B rows (task, augmentation, test input), P
augmented puzzles, S canvas cells, R all rows of the evaluation.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import AbstractContextManager, closing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from arclab.config.dataset_schema import CANVASES
from arclab.config.schema import CanvasRule, EvalHalting, Ranking, VotesRule
from arclab.data.augment import ViewRule
from arclab.data.sampler import BatchPlan, IntArray, PuzzleSpace
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.solver.continuous_batching import FinishedRows, ReadyRows, run_rows
from arclab.methods.recursive.solver.pending_rows import PendingRows, RowTable, row_table, sampled_rows
from arclab.methods.recursive.solver.product import Shortlists
from arclab.methods.recursive.solver.reader import ModelReader, Puzzles, Reader
from arclab.methods.recursive.solver.samples import Take, surest, with_samples
from arclab.methods.recursive.solver.store import Tally, VoteStore
from arclab.methods.recursive.solver.votes import restore_grids, shown_sides
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
_SECONDS = "timing/solve_s"  # so that they are kept with the votes
_PLACES = {name: place for place, name in enumerate((*_OF_LABELLED, "all.labelled", *_OF_ALL, _SECONDS))}
# What a row adds by itself: all sums up to its steps; only those before depend on its answer.
_ROW_SUMS = slice(0, _PLACES["all.steps"] + 1)
_ANSWER_SUMS = slice(0, _PLACES["all.steps"])


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of solve: its rows, what this process counted and what was counted before it, and what is still to be done.

    sampled_R: the rows that statistics of answers are taken over. shortlists: of the second pass, which asks every view about
    the candidates of the first one; None: it is the first.
    """

    space: PuzzleSpace
    table: RowTable
    sampled_R: npt.NDArray[np.bool_]
    tally: Tally
    earlier: Tally | None
    pending: PendingRows
    bar: tqdm
    shortlists: Shortlists | None = None


class RecursiveSolver:
    """puzzle_rows: task id -> first row of the task in a trained puzzle table (TRM); None for an encoder (ETRM). view_rule: the
    one that the table was made by, so that augmentation n of a task is row first + n.

    reader: what turns a task's demonstrations into what the decoder reads; None: the model alone. per_task: a block in which
    alone the rows of a task may be predicted; then tasks take turns, and those that are done are not entered.

    share: the ids of the tasks that are predicted here, of a shard; None: all. The others get no candidates.

    store: keeps the votes of an unfinished call of solve, written every save_every_s seconds and at the end. progress: hears
    how many tasks' worth of rows are predicted, and may end it; reader and per_task may too, by ToldToEnd.
    """

    def __init__(
        self, model: RecursiveModel, ranks: Ranks, *, canvas: int, seed: int, batch_size: int, max_demos: int,
        puzzle_rows: dict[str, int] | None = None, show_progress: bool = False, halting: EvalHalting = EvalHalting.all_steps,
        votes: VotesRule = VotesRule.all, canvas_rule: CanvasRule = CanvasRule.full, store: VoteStore | None = None,
        save_every_s: float = 60.0, view_rule: ViewRule = ViewRule.content, progress: WorkProgress | None = None,
        ranking: Ranking = Ranking.count, samples: int = 1, carry_noise: float = 0.0,
        reader: Reader | None = None, per_task: PerTask | None = None, share: Set[str] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.ranks = model, ranks
        self.canvas, self.seed, self.batch_size, self.max_demos = canvas, seed, batch_size, max_demos
        self.show_progress = show_progress
        self.halting, self.votes, self.canvas_rule = halting, votes, canvas_rule
        self.store, self.save_every_s, self.view_rule, self.progress = store, save_every_s, view_rule, progress
        self.ranking, self.samples, self.carry_noise = ranking, samples, carry_noise
        self.reader = reader or ModelReader(model, max_demos, puzzle_rows, ranks.device)
        self.per_task, self.share = per_task, share

    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts:
        """Ranked candidates for every test input; statistics are the all.* metrics where test outputs are known. ToldToEnd, on
        every rank and with the votes kept, if the progress says so on any of them."""
        job = self._job(tasks, budget)
        start = time.monotonic()
        self._work(job, self.store)
        seconds = time.monotonic() - start
        total = self._total(job)
        attempts = self._combine(job, total, seconds)
        if self.ranking is Ranking.product:
            lists = Shortlists(total.box, job.table.keys)
            # Of shards every one has lists of its own; they follow from votes that the key of the store names.
            is_part = self.share is not None or (self.store is not None and self.store.has_shards)
            store = None if self.store is None else self.store.beside("the second pass" if is_part else lists.digest)
            second = self._second_pass(job, lists, total, store)
            self._work(second, store)
            scores = self._total(second)
            attempts.candidates = {key: lists.ranked(total.box, scores.box, key) for key in job.table.keys}
            attempts.statistics["eval/second_pass_share"] = float(scores.done_R.sum() / total.done_R.sum())
            attempts.statistics[_SECONDS] += float(scores.sums[_PLACES[_SECONDS]])
        return attempts

    def _work(self, job: _Job, store: VoteStore | None) -> None:
        """Predict and count all rows of a pass."""
        count = self._count if job.shortlists is None else self._score
        start = saved = time.monotonic()
        is_finished = True
        try:
            with closing(self._landings(job)) as landings:
                for finished, canvas in landings:
                    count(job, finished, canvas)
                    job.tally.sums[_PLACES[_SECONDS]] = time.monotonic() - start
                    if store is not None and time.monotonic() - saved >= self.save_every_s:
                        store.save(self.ranks.rank, job.table.keys, job.tally)
                        saved = time.monotonic()
                    if self._is_told(job):
                        is_finished = False
                        break
        except ToldToEnd:  # while a task was adapted to: what was counted before is kept
            is_finished = False
        job.bar.close()
        if store is not None:
            store.save(self.ranks.rank, job.table.keys, job.tally)
        self._require_all_finished(job, is_finished)

    def _is_told(self, job: _Job) -> bool:
        """Reports how far this rank is, the others taken to be as far. Only who keeps votes is asked to end."""
        if self.progress is None or self.store is None:
            return False
        share = (job.pending.num_done - job.pending.num_saved) / max(1, job.pending.num_rows - job.pending.num_saved)
        if self.ranking is Ranking.product:  # two passes
            share = (share + (job.shortlists is not None)) / 2
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
        tally = self._new_tally(table)
        earlier = self._counted_before(table, self.store)
        boxes = [tally.box] if earlier is None else [tally.box, earlier.box]
        done_R = tally.done_R.copy() if earlier is None else earlier.done_R.copy()
        pending = PendingRows(space, table, boxes, done_R, rule=self.votes, seed=self.seed, rank=self.ranks.rank,
                        world_size=self.ranks.world_size, by_task=self.per_task is not None,
                        share_T=self._share(space))  # fmt: skip
        if earlier is not None and self.ranks.is_main:
            log.info("going on: %d of %d predictions were made before", done_R.sum(), len(done_R))
        bar = self._bar("evaluating", pending.num_rows - pending.num_saved, pending.num_done)
        return _Job(space, table, sampled_rows(space, table, self.votes, self.seed), tally, earlier, pending, bar)

    def _second_pass(self, job: _Job, lists: Shortlists, first: Tally, store: VoteStore | None) -> _Job:
        """Every view that voted, once more, to be asked about the candidates of its test input."""
        table = lists.on_one_canvas(job.table, self.canvas)
        wanted_R = first.done_R & (lists.num_Q > 0)[table.test_R]
        tally, earlier = self._new_tally(table), self._counted_before(table, store)
        left_R = wanted_R if earlier is None else wanted_R & ~earlier.done_R
        pending = PendingRows(job.space, table, [], ~left_R, rule=VotesRule.all, seed=self.seed, rank=self.ranks.rank,
                        world_size=self.ranks.world_size, by_task=self.per_task is not None,
                        share_T=self._share(job.space))  # fmt: skip
        bar = self._bar("ranking", pending.num_rows - pending.num_done, 0)
        return replace(job, table=table, tally=tally, earlier=earlier, pending=pending, bar=bar, shortlists=lists)

    def _share(self, space: PuzzleSpace) -> npt.NDArray[np.bool_] | None:
        share = self.share
        return None if share is None else np.array([task.id in share for task in space.tasks])

    def _new_tally(self, table: RowTable) -> Tally:
        return Tally(np.zeros(len(table.task_R), dtype=bool), np.zeros(len(_PLACES) + len(self.reader.facts)))

    def _bar(self, title: str, total: int, initial: int) -> tqdm:
        is_hidden = not (self.show_progress and self.ranks.is_main)
        return progress_bar(total=total, initial=initial, desc=title, unit="grid", disable=is_hidden)

    def _counted_before(self, table: RowTable, store: VoteStore | None) -> Tally | None:
        """What a killed evaluation left in the store, on every rank."""
        if store is None:
            return None
        loaded = store.load(table.keys) if self.ranks.is_main else None
        earlier, generation = self.ranks.gather_objects((loaded, store.generation))[0]
        store.join(generation)
        return earlier

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
            take: Take = partial(self._ready, job, small)
            if self.carry_noise > 0:
                take = with_samples(take, self.samples, self.carry_noise, partial(self._noise_seed, job))
            landings = run_rows(self.model, take, self.batch_size, early=is_early)
            for finished in landings if self.carry_noise == 0 else surest(landings, self.samples):
                yield finished, canvas

    def _noise_seed(self, job: _Job, row: int, sample: int) -> int:
        """Of a sample of a row: by its task, view and test input, whatever else is evaluated."""
        table = job.table
        task_id, number = table.keys[table.test_R[row]]
        words = [self.seed, 5, zlib.crc32(task_id.encode()), number, int(table.augmentation_R[row]), sample]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)

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
        grids = restore_grids(tokens_BS[counted_B], _augmentations(space, table, rows_B), canvas)
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

    def _score(self, job: _Job, finished: FinishedRows, canvas: int) -> None:
        """Second pass: what rows think of all candidates."""
        assert job.shortlists is not None
        rows_B, augmentations = finished.rows_B, _augmentations(job.space, job.table, finished.rows_B)
        job.shortlists.count(job.tally.box, job.table, rows_B, augmentations, finished.logits_BSV, canvas)
        job.tally.done_R[rows_B] = True
        job.pending.finish(rows_B)
        job.bar.update(len(rows_B))

    def _total(self, job: _Job) -> Tally:
        """What all ranks have counted, now and before; on every rank."""
        total = self._new_tally(job.table)
        for part in [*self.ranks.gather_objects(job.tally), *([] if job.earlier is None else [job.earlier])]:
            total.merge(part)
        return total

    def _combine(self, job: _Job, total: Tally, seconds: float) -> Attempts:
        sums, num_rows, count = total.sums, int(total.done_R.sum()), total.sums[_PLACES["all.labelled"]]
        now = num_rows - (0 if job.earlier is None else int(job.earlier.done_R.sum()))
        statistics = {name: sums[_PLACES[name]] / count for name in _OF_LABELLED} if count else {}
        statistics |= {name: sums[_PLACES[name]] / num_rows for name in _OF_ALL}
        statistics |= {name: sums[len(_PLACES) + place] / num_rows for place, name in enumerate(self.reader.facts)}
        statistics |= {
            "all.count": float(num_rows),
            "all.labelled": float(count),
            "eval/rows_share": num_rows / len(job.table.task_R),
        }
        statistics["timing/eval_samples_per_s"] = now / max(seconds, 1e-9)
        statistics[_SECONDS] = float(sums[_PLACES[_SECONDS]])
        return Attempts({key: total.box.ranked(key) for key in job.table.keys}, statistics)


def _augmentations(space: PuzzleSpace, table: RowTable, rows_B: IntArray) -> np.ndarray:
    """(B, 11): of each row."""
    return space.table[space.first_augmentation_T[table.task_R[rows_B]] + table.augmentation_R[rows_B]]


def _numerators(finished: FinishedRows) -> np.ndarray:
    """(B, N): what each row adds to the sums of _ROW_SUMS, in their order."""
    losses = row_losses(finished.logits_BSV, finished.q_halt_B, finished.labels_BS)
    known_B = losses.has_labels.double()
    values = [losses.accuracy, losses.exact, losses.q_halt_correct, losses.lm, losses.q_halt]
    columns = [torch.where(losses.has_labels, value.double(), 0.0) for value in values]
    return np.column_stack([torch.stack([*columns, known_B], dim=1).cpu().numpy(), finished.steps_B])
