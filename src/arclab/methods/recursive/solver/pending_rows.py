"""Which rows an evaluation still has to predict: all of them, or as many of a task's augmentations as settle its ranking.

A row is (task, augmentation, test input). Rows wait in one queue per canvas, in the order task, augmentation, test input, so
that the test inputs of an augmented puzzle stand together. With votes=adaptive a task queues a round of augmentations, and the
next round when all rows of the last one were counted and its ranking is still open; rounds and order depend on the seed and the
task alone, so the result does not depend on batches, ranks or interruptions.
Ranks: without stopping, augmented puzzles are dealt out in turn; with stopping, whole tasks, because votes are looked at, and
so where the model is adapted to each task (by_task).
Shapes: T tasks, R rows of the whole evaluation, A augmentations of one task.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arclab.config.dataset_schema import CANVASES
from arclab.config.schema import CanvasRule, VotesRule
from arclab.data.buckets import smallest_canvas
from arclab.data.sampler import IntArray, PuzzleSpace
from arclab.methods.recursive.solver.stopping import is_settled, round_ends
from arclab.methods.recursive.solver.votes import VoteBox, top_votes
from arclab.results.attempts import TestKey

_PLACES = {VotesRule.adaptive: 2, VotesRule.adaptive_first: 1}


@dataclass(frozen=True, slots=True)
class RowTable:
    """Every row of an evaluation. keys: (task id, test number) by test input; test_R numbers them, query_R is the pair in the
    store, canvas_R the side of the canvas a row is first predicted on, first_row_T where the rows of a task begin."""

    keys: list[TestKey]
    task_R: IntArray
    augmentation_R: IntArray
    test_R: IntArray
    query_R: IntArray
    canvas_R: IntArray
    first_row_T: IntArray
    num_tests_T: IntArray

    def rows_of(self, task: int, augmentations: IntArray) -> IntArray:
        """Rows of some augmentations of a task, test inputs of the same one together."""
        num_tests = int(self.num_tests_T[task])
        return (self.first_row_T[task] + augmentations[:, None] * num_tests + np.arange(num_tests)).ravel()


def row_table(space: PuzzleSpace, max_demos: int, rule: CanvasRule) -> RowTable:
    store, num_tasks = space.store, len(space.tasks)
    num_tests_T = store.num_pairs_T - store.num_demos_T
    num_rows_T = space.num_augmentations_T * num_tests_T
    first_row_T = np.cumsum(num_rows_T) - num_rows_T
    task_R = np.repeat(np.arange(num_tasks), num_rows_T)
    augmentation_R, number_R = np.divmod(np.arange(len(task_R)) - first_row_T[task_R], num_tests_T[task_R])
    query_R = store.first_pair_T[task_R] + store.num_demos_T[task_R] + number_R
    first_test_T = np.cumsum(num_tests_T) - num_tests_T
    keys = [(task.id, number) for task in space.tasks for number in range(len(task.tests))]
    canvas_R = np.full(len(task_R), space.canvas)
    if rule is CanvasRule.bucketed:
        side_Q = np.array(
            [_shown_side(space, task, n, max_demos) for task in range(num_tasks) for n in range(num_tests_T[task])]
        )
        canvas_R = np.array([smallest_canvas(side, space.canvas) for side in side_Q])[first_test_T[task_R] + number_R]
    return RowTable(keys, task_R, augmentation_R, first_test_T[task_R] + number_R, query_R, canvas_R, first_row_T, num_tests_T)


def _shown_side(space: PuzzleSpace, task: int, number: int, max_demos: int) -> int:
    """The longest side of what a solver sees of a test input: its own grid and the demonstrations. Never of the answer."""
    shown = space.tasks[task]
    grids = [g for pair in shown.demos[:max_demos] for g in (pair.input, pair.output) if g is not None]
    return max(max(g.shape) for g in [*grids, shown.tests[number].input])


def next_canvas(canvas: int, full: int) -> int:
    """The canvas after this one."""
    return next((c for c in CANVASES if canvas < c < full), full)


class PendingRows:
    """take() rows, predict them, then finish() them (they were counted in one of `boxes`) or postpone() them to a larger
    canvas.

    done_R: rows counted before; it is kept up to date. num_rows, num_done, num_saved: of this rank, all rows, those counted,
    and those that stopping has made needless. by_task: no row waits until start_task() is called for one of `tasks`, which are
    this rank's. share_T: the tasks that are predicted here; None: all.
    """

    def __init__(
        self,
        space: PuzzleSpace,
        table: RowTable,
        boxes: Sequence[VoteBox],
        done_R: npt.NDArray[np.bool_],
        *,
        rule: VotesRule,
        seed: int,
        rank: int,
        world_size: int,
        by_task: bool = False,
        share_T: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._table, self._boxes, self._done_R = table, boxes, done_R
        self._space, self._seed = space, seed
        self._places, self._full = _PLACES.get(rule), space.canvas
        self._queues: dict[int, deque[int]] = {}
        self._order: dict[int, IntArray] = {}
        self._end: dict[int, int] = {}
        self._open: dict[int, int] = {}
        self._canvas_R = table.canvas_R.copy()
        self.num_saved = 0
        share_T = np.ones(len(space.tasks), dtype=bool) if share_T is None else share_T
        self.tasks: list[int] = np.flatnonzero(share_T)[rank::world_size].tolist()
        if self._places is None and not by_task:
            puzzle_R = space.first_augmentation_T[table.task_R] + table.augmentation_R
            mine_R = share_T[table.task_R] & (puzzle_R % world_size == rank)
            self._queue(np.flatnonzero(mine_R & ~done_R))
        else:
            mine_R = np.isin(table.task_R, self.tasks)
            for task in () if by_task else self.tasks:
                self.start_task(task)
        self.num_rows = int(mine_R.sum())
        self.num_done = int((mine_R & done_R).sum())

    def start_task(self, task: int) -> None:
        """Let the rows of a task wait that are still to be predicted; maybe there are none."""
        num_views = int(self._space.num_augmentations_T[task])
        if self._places is None:
            rows = self._table.rows_of(task, np.arange(num_views))
            self._queue(rows[~self._done_R[rows]])
        else:
            self._order[task] = visiting_order(self._space.tasks[task].id, num_views, self._seed)
            self._resume(task)

    def canvas(self) -> int | None:
        """The canvas on which most rows wait; None when all are done."""
        waiting = {canvas: len(queue) for canvas, queue in self._queues.items() if queue}
        return max(waiting, key=lambda canvas: (waiting[canvas], canvas)) if waiting else None

    def take(self, canvas: int, count: int) -> IntArray:
        """About `count` rows of this canvas; the test inputs of an augmented puzzle are not torn apart."""
        queue, rows = self._queues.get(canvas, deque()), []
        while queue and (len(rows) < count or self._same_puzzle(rows[-1], queue[0])):
            rows.append(queue.popleft())
        return np.array(rows, dtype=np.int64)

    def _same_puzzle(self, a: int, b: int) -> bool:
        t = self._table
        return bool(t.task_R[a] == t.task_R[b] and t.augmentation_R[a] == t.augmentation_R[b])

    def postpone(self, rows: IntArray) -> None:
        """Predict these again, one canvas larger."""
        self._canvas_R[rows] = [next_canvas(canvas, self._full) for canvas in self._canvas_R[rows].tolist()]
        self._queue(rows)

    def finish(self, rows: IntArray) -> None:
        """These rows have been counted."""
        self._done_R[rows] = True
        self.num_done += len(rows)
        if self._places is None:
            return
        tasks, counts = np.unique(self._table.task_R[rows], return_counts=True)
        for task, count in zip(tasks.tolist(), counts.tolist(), strict=True):
            self._open[task] -= count
            if self._open[task] == 0:
                self._advance(task)

    def _queue(self, rows: IntArray) -> None:
        for canvas in np.unique(self._canvas_R[rows]).tolist():
            self._queues.setdefault(canvas, deque()).extend(rows[self._canvas_R[rows] == canvas].tolist())

    def _resume(self, task: int) -> None:
        """Go on in the round that the rows done so far belong to; with none done, the first."""
        order = self._order[task]
        done = self._done_R[self._table.rows_of(task, order)].reshape(len(order), -1).any(axis=1)
        reached = int(np.flatnonzero(done)[-1]) + 1 if done.any() else 1
        self._start_round(task, 0, next(end for end in round_ends(len(order)) if end >= reached))
        if self._open[task] == 0:
            self._advance(task)

    def _start_round(self, task: int, start: int, end: int) -> None:
        rows = self._table.rows_of(task, np.sort(self._order[task][start:end]))
        rows = rows[~self._done_R[rows]]
        self._end[task], self._open[task] = end, len(rows)
        self._queue(rows)

    def _advance(self, task: int) -> None:
        """All rows of the rounds so far were counted: stop, or start the next round."""
        end, last = self._end[task], len(self._order[task])
        if end == last:
            return
        if self._is_settled(task, last - end):
            self.num_saved += (last - end) * int(self._table.num_tests_T[task])
            return
        self._start_round(task, end, next(e for e in round_ends(last) if e > end))

    def _is_settled(self, task: int, remaining: int) -> bool:
        assert self._places is not None
        tests = self._table.test_R[self._table.rows_of(task, np.zeros(1, dtype=np.int64))]
        keys = [self._table.keys[q] for q in tests.tolist()]
        return all(is_settled(top_votes(self._boxes, key, self._places + 1), remaining) for key in keys)


def sampled_rows(space: PuzzleSpace, table: RowTable, rule: VotesRule, seed: int) -> npt.NDArray[np.bool_]:
    """(R,): the rows that statistics of answers are taken over: all, or with stopping those of every task's first round.

    Of all the rows that stopping leaves, most would be of the tasks that were hard to settle.
    """
    if rule is VotesRule.all:
        return np.ones(len(table.task_R), dtype=bool)
    sampled_R = np.zeros(len(table.task_R), dtype=bool)
    for task, shown in enumerate(space.tasks):
        order = visiting_order(shown.id, int(space.num_augmentations_T[task]), seed)
        sampled_R[table.rows_of(task, order[: next(round_ends(len(order)))])] = True
    return sampled_R


def visiting_order(task_id: str, num_augmentations: int, seed: int) -> IntArray:
    """The original, then the other augmentations in an order drawn for this task."""
    rng = np.random.default_rng([seed, 4, zlib.crc32(task_id.encode())])
    return np.concatenate([[0], 1 + rng.permutation(num_augmentations - 1)]).astype(np.int64)
