"""Training batches: which pairs of which puzzle make up batch i, and rendering them to tokens.

    data = build_training_data(tasks, (), config, seed)
    parts = whole(data, batch_size)                     # or data.buckets.bucketed(...): canvases of several sizes
    for cursors, batches in batch_loader(parts, start_cursors(parts, seed), ...): ...

The order is a pure function of the cursor (seed, epoch, index, batch): epochs are seeded permutations of the tasks, and
everything drawn for a batch comes from a generator keyed by (seed, batch). So a resumed run, any number of workers and
any number of ranks see the same rows. Grids are stored once; augmentation, colours and translation happen while rendering.

A RE-ARC task (rearc.py) has a stream of pairs instead of a fixed few. A batch that starts in epoch e shows its pairs e * visits
to e * visits + P - 1 (P: dataset.rearc.pairs). Each process makes those that its rows show, when they show them, and keeps them
in the places of older ones. So memory is bounded, and a visit needs about one new pair: which, follows from the cursor alone.

few_shot: every visit of a task gives one query with a set of demonstrations.
puzzle_id: every visit gives as many pairs of one augmented puzzle as still fit (the rule of the published TRM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from arclab.config.dataset_schema import DatasetConfig, QueryRule, Regime
from arclab.data.augment import ViewRule, augmentation_table
from arclab.data.codec import paint
from arclab.data.tasks import MAX_SIDE, ArcTask, Pair

IntArray = npt.NDArray[np.int64]
# Number of rows -> the first and the end of those that a rank takes.
RowsOfRank = Callable[[int], tuple[int, int]]
BLANK_PUZZLE = 0  # row 0 of a puzzle table stands for "no puzzle"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next batch starts: task number `index` of epoch `epoch`, of whose pairs `taken` were in the last batch; `batch`
    counts batches from 0."""

    seed: int
    epoch: int
    index: int
    batch: int
    taken: int = 0

    @classmethod
    def first(cls, seed: int) -> Cursor:
        return cls(seed, 0, 0, 0)


@dataclass(slots=True)
class Batch:
    """B rows on canvas cells S, with up to K demonstrations each. Tokens are uint8; label 0 is ignored by the loss.

    task_id_B: position in the task list; puzzle_id_B: row of the puzzle table (BLANK_PUZZLE where it does not apply);
    inputs_BS, labels_BS; demo_inputs_BKS, demo_outputs_BKS (blank beyond num_demos_B).
    """

    task_id_B: torch.Tensor
    puzzle_id_B: torch.Tensor
    inputs_BS: torch.Tensor
    labels_BS: torch.Tensor
    demo_inputs_BKS: torch.Tensor
    demo_outputs_BKS: torch.Tensor
    num_demos_B: torch.Tensor

    def map(self, function) -> Batch:
        return Batch(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In page-locked memory, from which a GPU copies while the host goes on; called by the data loader."""
        return self.map(torch.Tensor.pin_memory)

    def rows(self, start: int, stop: int) -> Batch:
        return self.map(lambda t: t[start:stop])

    def __len__(self) -> int:
        return len(self.task_id_B)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What each row of a batch shows, before rendering: pairs are numbers into the store, -1 is an empty slot.

    rows: task_B, augmentation_B, query_B, demos_BK; offsets_P2 per pair slot with the query first: (B, 1 + K, 2).
    """

    task_B: IntArray
    augmentation_B: IntArray
    query_B: IntArray
    demos_BK: IntArray
    offsets_BP2: IntArray

    def rows(self, start: int, stop: int) -> BatchPlan:
        return BatchPlan(*(getattr(self, f.name)[start:stop] for f in fields(self)))


class GridStore:
    """All grids of a task list once, padded to 30 x 30, with the pairs of task t at first_pair_T[t] onwards.

    Grid 2p is the input of pair p and 2p + 1 its output; a hidden output has height 0.

    pool: places that a task with a stream gets; 0: none, its first pairs are all there is. Pair n of a stream stands in place
    n % pool, where show() puts it. num_pairs_T: pairs (or places) of each task; num_shown_T: how many of them a visit may show.
    """

    def __init__(self, tasks: Sequence[ArcTask], pool: int = 0) -> None:
        self.streams = {t: task.stream for t, task in enumerate(tasks) if pool and task.stream is not None}
        self.pool = pool
        self.num_demos_T = np.array([len(task.demos) for task in tasks], dtype=np.int64)
        self.num_shown_T = np.array([len(task.pairs) for task in tasks], dtype=np.int64)
        self.num_pairs_T = np.array([pool if t in self.streams else len(task.pairs) for t, task in enumerate(tasks)], np.int64)
        self.first_pair_T = np.concatenate([[0], np.cumsum(self.num_pairs_T)])[:-1]
        num_pairs = int(self.num_pairs_T.sum())
        self.cells = np.zeros((2 * num_pairs, MAX_SIDE, MAX_SIDE), dtype=np.uint8)
        self.heights = np.zeros(2 * num_pairs, dtype=np.int64)
        self.widths = np.zeros(2 * num_pairs, dtype=np.int64)
        self._number_P = np.full(num_pairs if self.streams else 0, -1, dtype=np.int64)
        for t, task in enumerate(tasks):
            for number, pair in enumerate(task.pairs if t not in self.streams else ()):
                self._put(int(self.first_pair_T[t]) + number, pair)

    def _put(self, place: int, pair: Pair) -> None:
        for index, grid in ((2 * place, pair.input), (2 * place + 1, pair.output)):
            if grid is not None:
                height, width = grid.shape
                self.cells[index, :height, :width] = grid
                self.heights[index], self.widths[index] = height, width

    def show(self, task: int, places: IntArray, oldest: int) -> None:
        """See to it that these places of a task with a stream hold its pairs `oldest` to oldest + pool - 1."""
        stream, first = self.streams[task], int(self.first_pair_T[task])
        for place in places.tolist():
            number = oldest + (place - first - oldest) % self.pool
            if self._number_P[place] != number:
                self._put(place, stream.pair(number))
                self._number_P[place] = number

    def pair_extent(self, pairs: IntArray) -> tuple[IntArray, IntArray]:
        """Largest height and width over input and output of each pair, before any dihedral view."""
        return (
            np.maximum(self.heights[2 * pairs], self.heights[2 * pairs + 1]),
            np.maximum(self.widths[2 * pairs], self.widths[2 * pairs + 1]),
        )


class PuzzleSpace:
    """Tasks x augmentations: the grid store, the augmentation tables and the numbering of augmented puzzles (1 upwards)."""

    def __init__(
        self, tasks: Sequence[ArcTask], num_augmentations: int, seed: int, canvas: int, rule: ViewRule = ViewRule.content,
        pool: int = 0,
    ) -> None:  # fmt: skip
        self.tasks = tuple(tasks)
        self.canvas, self.rule = canvas, rule
        self.store = GridStore(self.tasks, pool)
        tables = [augmentation_table(task, num_augmentations, seed, rule) for task in self.tasks]
        self.table = np.concatenate(tables) if tables else np.zeros((0, 11), dtype=np.uint8)
        self.num_augmentations_T = np.array([len(table) for table in tables], dtype=np.int64)
        self.first_augmentation_T = np.concatenate([[0], np.cumsum(self.num_augmentations_T)])[:-1]

    @property
    def num_puzzles(self) -> int:
        """Rows a puzzle table needs, the blank one included."""
        return 1 + len(self.table)

    def views_of(self, task: int) -> npt.NDArray[np.uint8]:
        """The augmentation table of one task."""
        first = self.first_augmentation_T[task]
        return self.table[first : first + self.num_augmentations_T[task]]

    def puzzle_ids(self, task_B: IntArray, augmentation_B: IntArray) -> IntArray:
        return 1 + self.first_augmentation_T[task_B] + augmentation_B

    def render(self, plan: BatchPlan, *, with_puzzle_ids: bool, canvas: int | None = None) -> Batch:
        """Tokens for every row of a plan, on a canvas that must hold them (the space's own unless another is given)."""
        canvas = canvas or self.canvas
        rows, num_demos = plan.demos_BK.shape
        augmentation = self.table[self.first_augmentation_T[plan.task_B] + plan.augmentation_B]
        query_offsets = np.ascontiguousarray(plan.offsets_BP2[:, 0])
        demo_slots = plan.demos_BK.ravel()
        demo_augmentation = np.repeat(augmentation, num_demos, axis=0)
        demo_offsets = np.ascontiguousarray(plan.offsets_BP2[:, 1:]).reshape(-1, 2)
        puzzle_id_B = self.puzzle_ids(plan.task_B, plan.augmentation_B) if with_puzzle_ids else np.zeros(rows, np.int64)
        demo_shape = (rows, num_demos, canvas**2)
        return Batch(
            task_id_B=torch.from_numpy(plan.task_B.copy()),
            puzzle_id_B=torch.from_numpy(puzzle_id_B),
            inputs_BS=self._paint(2 * plan.query_B, augmentation, query_offsets, canvas),
            labels_BS=self._paint(2 * plan.query_B + 1, augmentation, query_offsets, canvas),
            demo_inputs_BKS=self._paint(2 * demo_slots, demo_augmentation, demo_offsets, canvas).view(demo_shape),
            demo_outputs_BKS=self._paint(2 * demo_slots + 1, demo_augmentation, demo_offsets, canvas).view(demo_shape),
            num_demos_B=torch.from_numpy((plan.demos_BK >= 0).sum(axis=1)),
        )

    def _paint(self, grid_ids: IntArray, augmentations: npt.NDArray[np.uint8], offsets: IntArray, canvas: int) -> torch.Tensor:
        out = np.zeros((len(grid_ids), canvas**2), dtype=np.uint8)
        store = self.store
        paint(store.cells, store.heights, store.widths, grid_ids, augmentations, offsets, canvas, out)
        return torch.from_numpy(out)


class _Visit(NamedTuple):
    """puzzle_id: pairs first..first + count of a task's pairs in the order of this epoch."""

    task: int
    epoch: int
    first: int
    count: int


@lru_cache(maxsize=64)
def _epoch_order(seed: int, epoch: int, num_tasks: int) -> IntArray:
    return np.random.default_rng([seed, 1, epoch]).permutation(num_tasks)


class TrainingData:
    """Batches for one run. trainable_T: how many pairs of each task may be learned from (all, or its demonstrations)."""

    def __init__(self, space: PuzzleSpace, config: DatasetConfig, trainable_T: IntArray) -> None:
        self.space = space
        self.trainable_T = trainable_T
        self.canvas = space.canvas
        self.visits_T = np.array([task.visits for task in space.tasks], dtype=np.int64)
        self.members_M = np.repeat(np.arange(len(space.tasks)), self.visits_T)
        self._is_part = False
        self.is_few_shot = config.regime is Regime.few_shot
        self.query_rule = config.query_rule
        self.translate = config.translate
        widest = int((space.store.num_shown_T - 1).max())
        self.max_demos = min(config.max_demos, widest) if self.is_few_shot else 0

    def only(self, members_M: IntArray, canvas: int) -> TrainingData:
        """The same data restricted to some tasks, on a canvas that holds all their pairs."""
        part = copy(self)
        part.members_M, part.canvas = np.repeat(members_M, self.visits_T[members_M]), canvas
        part._is_part = len(members_M) < len(self.space.tasks)
        return part

    def next_cursor(self, cursor: Cursor, batch_size: int) -> Cursor:
        """The cursor after the batch that starts at `cursor`."""
        consumed, taken = batch_size, 0
        if not self.is_few_shot:
            visits = self._visits(cursor, batch_size)
            consumed, last = len(visits), visits[-1]
            given = last.first + last.count
            if self._is_part and given < self.trainable_T[last.task]:
                consumed, taken = consumed - 1, given
        position = cursor.epoch * len(self.members_M) + cursor.index + consumed
        epoch, index = divmod(position, len(self.members_M))
        return Cursor(cursor.seed, epoch, index, cursor.batch + 1, taken)

    def _task_stream(self, cursor: Cursor) -> Iterator[tuple[int, int]]:
        """Tasks, each with the epoch that it is visited in."""
        epoch, index, count = cursor.epoch, cursor.index, len(self.members_M)
        while True:
            for task in self.members_M[_epoch_order(cursor.seed, epoch, count)[index:]].tolist():
                yield task, epoch
            epoch, index = epoch + 1, 0

    def _visits(self, cursor: Cursor, batch_size: int) -> list[_Visit]:
        """puzzle_id: the tasks of this batch with the pairs that each gives; the last one gives what fits. As published, its
        other pairs wait for the next epoch. The small batches of a part would cut tasks with many pairs too often: there the
        next one goes on with them."""
        visits, free, first = [], batch_size, cursor.taken
        for task, epoch in self._task_stream(cursor):
            count = min(int(self.trainable_T[task]) - first, free)
            visits.append(_Visit(task, epoch, first, count))
            free, first = free - count, 0
            if free == 0:
                return visits
        raise AssertionError("the task stream is endless")

    def _pairs_of(self, visit: _Visit, seed: int, rng: np.random.Generator) -> IntArray:
        """The pairs of a visit. In a part their order is that of the epoch, because another batch may go on with it."""
        if self._is_part:
            rng = np.random.default_rng([seed, 3, visit.epoch, visit.task])
        count = self.space.store.pool if visit.task in self.space.store.streams else self.trainable_T[visit.task]
        return rng.permutation(count)[visit.first : visit.first + visit.count]

    def plan(self, cursor: Cursor, batch_size: int, start: int = 0, stop: int | None = None) -> BatchPlan:
        """Rows start..stop of the batch at `cursor`: a pure function of its arguments. The store then holds their pairs."""
        rng = np.random.default_rng([cursor.seed, 2, cursor.batch, *([self.canvas] if self._is_part else [])])
        choose = self._choose_few_shot if self.is_few_shot else self._choose_puzzle_id
        task_B, augmentation_B, query_B, demos_BK = choose(cursor, batch_size, rng)
        pairs_BP = np.concatenate([query_B[:, None], demos_BK], axis=1)
        draws_BP3 = rng.random((*pairs_BP.shape, 3))
        rows = slice(start, stop)  # pairs are made for the rows of this rank alone
        self._show(task_B[rows], pairs_BP[rows], cursor.epoch)
        offsets_BP2 = self._offsets(pairs_BP[rows], task_B[rows], augmentation_B[rows], draws_BP3[rows])
        return BatchPlan(task_B[rows], augmentation_B[rows], query_B[rows], demos_BK[rows], offsets_BP2)

    def _show(self, task_B: IntArray, pairs_BP: IntArray, epoch: int) -> None:
        for task, places in zip(task_B.tolist() if self.space.store.streams else (), pairs_BP, strict=False):
            if task in self.space.store.streams:
                self.space.store.show(task, places[places >= 0], epoch * int(self.visits_T[task]))

    def _choose_few_shot(
        self, cursor: Cursor, batch_size: int, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Task, augmentation, query and demonstrations of each row."""
        stream = self._task_stream(cursor)
        task_B = np.array([next(stream)[0] for _ in range(batch_size)], dtype=np.int64)
        store = self.space.store
        num_pairs_B, num_shown_B, num_demos_B = store.num_pairs_T[task_B], store.num_shown_T[task_B], store.num_demos_T[task_B]
        augmentation_B = (rng.random(batch_size) * self.space.num_augmentations_T[task_B]).astype(np.int64)
        slots = np.arange(int(store.num_pairs_T.max()))[None]
        if self.query_rule is QueryRule.any_pair:
            query_B = (rng.random(batch_size) * num_pairs_B).astype(np.int64)
            order = rng.random((batch_size, slots.shape[1]))
            order[(slots >= num_pairs_B[:, None]) | (slots == query_B[:, None])] = np.inf
            size_B = 1 + (rng.random(batch_size) * np.minimum(num_shown_B - 1, self.max_demos)).astype(np.int64)
        else:  # the published rule: test pairs are queries, demonstrations come in file order
            query_B = num_demos_B + (rng.random(batch_size) * (num_pairs_B - num_demos_B)).astype(np.int64)
            order = np.where(slots < num_demos_B[:, None], slots.astype(np.float64), np.inf)
            size_B = np.minimum(num_demos_B, self.max_demos)
            self._choose_from_streams(task_B, query_B, order, rng)
        demos_BK = order.argsort(axis=1, kind="stable")[:, : self.max_demos]
        first_B = store.first_pair_T[task_B]
        demos_BK = np.where(np.arange(self.max_demos)[None] < size_B[:, None], demos_BK + first_B[:, None], -1)
        return task_B, augmentation_B, query_B + first_B, demos_BK

    def _choose_from_streams(self, task_B: IntArray, query_B: IntArray, order: np.ndarray, rng: np.random.Generator) -> None:
        """query_rule=test_pairs: all pairs of a stream are alike, so that any of them may be the query (in place)."""
        streams = np.array(sorted(self.space.store.streams), dtype=np.int64)
        rows = np.flatnonzero(np.isin(task_B, streams))
        if len(rows):
            drawn = rng.random((len(rows), self.space.store.pool)).argsort(axis=1)
            query_B[rows] = drawn[:, 0]
            order[rows] = np.inf
            order[rows[:, None], drawn[:, 1:]] = np.arange(drawn.shape[1] - 1)

    def _choose_puzzle_id(
        self, cursor: Cursor, batch_size: int, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Task, augmentation and query of each row, and no demonstrations."""
        visits = self._visits(cursor, batch_size)
        tasks, counts = [v.task for v in visits], [v.count for v in visits]
        task_B = np.repeat(np.array(tasks, dtype=np.int64), counts)
        augmentation_V = (rng.random(len(tasks)) * self.space.num_augmentations_T[tasks]).astype(np.int64)
        query_B = np.concatenate([self._pairs_of(visit, cursor.seed, rng) for visit in visits])
        query_B = query_B + self.space.store.first_pair_T[task_B]
        return task_B, np.repeat(augmentation_V, counts), query_B, np.zeros((batch_size, 0), dtype=np.int64)

    def _offsets(self, pairs_BP: IntArray, task_B: IntArray, augmentation_B: IntArray, draws: np.ndarray) -> IntArray:
        """One random place per pair for its input and output alike, from draws (B, P, 3) in 0..1; of n pairs that are trained
        on, one in n stays in the corner.

        Drawn at every visit; the published data build draws once which pair of a view stays, and where the others go."""
        if not self.translate:
            return np.zeros((*pairs_BP.shape, 2), dtype=np.int64)
        height, width = self.space.store.pair_extent(np.maximum(pairs_BP, 0))
        view_B = self.space.table[self.space.first_augmentation_T[task_B] + augmentation_B, 0]
        transposed = np.isin(view_B, (1, 3, 6, 7))[:, None]
        room = self.canvas - np.stack([np.where(transposed, width, height), np.where(transposed, height, width)], axis=-1)
        moved = draws[..., 0] >= 1.0 / self.trainable_T[task_B][:, None]
        return np.where(moved[..., None], (draws[..., 1:] * (room + 1)).astype(np.int64), 0)

    def batch(self, cursor: Cursor, batch_size: int, start: int, stop: int) -> Batch:
        """Rows start..stop of the batch of batch_size rows at `cursor`."""
        plan = self.plan(cursor, batch_size, start, stop)
        return self.space.render(plan, with_puzzle_ids=not self.is_few_shot, canvas=self.canvas)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows start..start + num_rows of every batch, drawn from data of their own. weight: of these rows in the loss."""

    data: TrainingData
    start: int
    num_rows: int
    weight: float


def whole(data: TrainingData, batch_size: int) -> tuple[Part, ...]:
    """All rows of a batch from all tasks, on one canvas."""
    return (Part(data, 0, batch_size, 1.0),)


Cursors = tuple[Cursor, ...]


def start_cursors(parts: Sequence[Part], seed: int) -> Cursors:
    return tuple(Cursor.first(seed) for _ in parts)


def next_cursors(parts: Sequence[Part], cursors: Cursors) -> Cursors:
    return tuple(part.data.next_cursor(cursor, part.num_rows) for part, cursor in zip(parts, cursors, strict=True))


class _CursorStream(torch.utils.data.Sampler[Cursors]):
    def __init__(self, parts: Sequence[Part], start: Cursors, num_batches: int) -> None:
        self.parts, self.start, self.num_batches = parts, start, num_batches

    def __iter__(self) -> Iterator[Cursors]:
        cursors = self.start
        for _ in range(self.num_batches):
            yield cursors
            cursors = next_cursors(self.parts, cursors)


class _BatchDataset(torch.utils.data.Dataset[tuple[Cursors, list[Batch]]]):
    def __init__(self, parts: Sequence[Part], share: RowsOfRank) -> None:
        self.parts, self.share = parts, share

    def __getitem__(self, cursors: Cursors) -> tuple[Cursors, list[Batch]]:
        pairs = zip(self.parts, cursors, strict=True)
        batches = [part.data.batch(cursor, part.num_rows, *self.share(part.num_rows)) for part, cursor in pairs]
        return next_cursors(self.parts, cursors), batches


def batch_loader(
    parts: Sequence[Part],
    start: Cursors,
    share: RowsOfRank,
    *,
    num_batches: int,
    num_workers: int,
    pin_memory: bool = False,
    worker_init: Callable[[int], None] | None = None,
) -> torch.utils.data.DataLoader[tuple[Cursors, list[Batch]]]:
    """Iterates (cursors after the batch, this rank's rows of each part). The order does not depend on num_workers.

    worker_init: called with its number in each worker process.
    """
    return torch.utils.data.DataLoader(
        _BatchDataset(parts, share),
        sampler=_CursorStream(parts, start, num_batches),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=worker_init,
        persistent_workers=False,
        pin_memory=pin_memory,
    )


def build_training_data(
    tasks: Sequence[ArcTask], demo_only_tasks: Sequence[ArcTask], config: DatasetConfig, seed: int,
    rule: ViewRule = ViewRule.content,
) -> TrainingData:  # fmt: skip
    """Training data of a run. demo_only_tasks: scored tasks whose demonstrations are trained on (puzzle_id only)."""
    assert not demo_only_tasks or config.regime is Regime.puzzle_id
    tasks = [*tasks, *demo_only_tasks]
    space = PuzzleSpace(tasks, config.num_augmentations, seed, config.canvas, rule, config.rearc.pairs)
    trainable_T = space.store.num_shown_T.copy()
    if demo_only_tasks:
        trainable_T[-len(demo_only_tasks) :] = space.store.num_demos_T[-len(demo_only_tasks) :]
    return TrainingData(space, config, trainable_T)
