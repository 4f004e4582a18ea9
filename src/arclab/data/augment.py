"""Augmentations: one of the eight dihedral views and a permutation of colours 1..9 (colour 0 stays).

    table = augmentation_table(task, num_augmentations=1000, seed=0)     # (n, 11) uint8: dihedral, then 10 colours
    Augmentation.from_row(table[5]).apply(grid)

Row 0 of a table is the identity; no two rows show the same task (see ViewRule). A table is a pure function of
(seed, task): every worker, rank and resumed run has the same one without storing it, and a smaller one is its beginning.
Dihedral ids (those of the official TRM data): 0 identity, 1 to 3 counter-clockwise quarter turns, 4 left-right flip,
5 up-down flip, 6 transpose, 7 anti-transpose. Translation is not here: it is drawn for every pair whenever a batch shows it
(the published data build draws it once for each view of a task).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from arclab.data.tasks import NUM_COLORS, ArcTask, Grid, Pair

NUM_DIHEDRAL = 8
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
# The official data build gives up after five tries per wanted augmentation; tasks with few colours have fewer views.
_TRIES_PER_AUGMENTATION = 5


class ViewRule(Enum):
    """Which rows of an augmentation table count as the same view of a task.

    content: those that show the same pairs, whatever their order (the rule of the published data build, which also looks at
    test outputs; they are hidden here). action: those with the same dihedral view and the same permutation of the task's
    colours; a symmetric task then has some views several times. Runs that were started before content was the rule keep action.
    """

    content = "content"
    action = "action"


def dihedral(grid: Grid, index: int) -> Grid:
    """View `index` (0..7) of an (H, W) grid."""
    if index < 4:
        return np.rot90(grid, index)
    if index == 4:
        return np.fliplr(grid)
    if index == 5:
        return np.flipud(grid)
    return grid.T if index == 6 else np.fliplr(np.rot90(grid))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`dihedral` in 0..7 and `colors` (10,) uint8 with colors[old] = new."""

    dihedral: int
    colors: npt.NDArray[np.uint8]

    @classmethod
    def from_row(cls, row: npt.NDArray[np.uint8]) -> Augmentation:
        return cls(int(row[0]), row[1:])

    def apply_grid(self, grid: Grid) -> Grid:
        return np.ascontiguousarray(dihedral(self.colors[grid], self.dihedral))

    def invert(self, grid: Grid) -> Grid:
        """The grid that apply_grid turned into this one."""
        inverse = np.empty(NUM_COLORS, dtype=np.uint8)
        inverse[self.colors] = np.arange(NUM_COLORS, dtype=np.uint8)
        return np.ascontiguousarray(inverse[dihedral(grid, DIHEDRAL_INVERSE[self.dihedral])])

    def apply(self, task: ArcTask) -> ArcTask:
        """The same view of every grid of the task."""
        return ArcTask(task.id, tuple(map(self._pair, task.demos)), tuple(map(self._pair, task.tests)), task.source)

    def _pair(self, pair: Pair) -> Pair:
        return Pair(self.apply_grid(pair.input), None if pair.output is None else self.apply_grid(pair.output))


def task_rng(seed: int, task_id: str) -> np.random.Generator:
    """A generator that depends on the seed and the task's id only (crc32: the same on every machine)."""
    return np.random.default_rng([seed, zlib.crc32(task_id.encode())])


def visible_pairs(task: ArcTask) -> list[tuple[Grid, ...]]:
    """What a solver may see, pair by pair: demonstrations and test inputs, never a test output."""
    demos = [(p.input,) if p.output is None else (p.input, p.output) for p in task.demos]
    return [*demos, *((p.input,) for p in task.tests)]


def visible_colors(task: ArcTask) -> npt.NDArray[np.uint8]:
    """Colours above 0 in what a solver may see."""
    colors = np.unique(np.concatenate([grid.ravel() for pair in visible_pairs(task) for grid in pair]))
    return colors[colors > 0]


def relabelled(*grids: Grid) -> bytes:
    """The same bytes for grids that differ only by a change of colours (0 included); different otherwise."""
    flat = np.concatenate([grid.ravel() for grid in grids])
    colors, position = np.unique(flat, return_index=True)
    order = np.empty(256, dtype=np.uint8)
    order[colors[np.argsort(position)]] = np.arange(len(colors))
    return bytes(side for grid in grids for side in grid.shape) + order[flat].tobytes()


def augmentation_table(
    task: ArcTask, num_augmentations: int, seed: int, rule: ViewRule = ViewRule.content
) -> npt.NDArray[np.uint8]:
    """(n, 11) uint8 with 1 <= n <= num_augmentations + 1: the identity, then views of the task that differ by the rule."""
    identity = np.concatenate([[0], np.arange(NUM_COLORS)]).astype(np.uint8)[None]
    if num_augmentations == 0:
        return identity
    rng = task_rng(seed, task.id)
    tries = num_augmentations * _TRIES_PER_AUGMENTATION
    table = np.zeros((tries + 1, 1 + NUM_COLORS), dtype=np.uint8)
    table[0] = identity
    draws = rng.random((tries, NUM_COLORS))  # drawn row by row: a smaller table is the beginning of a larger one
    table[1:, 0] = draws[:, 0] * NUM_DIHEDRAL
    table[1:, 2:] = 1 + draws[:, 1:].argsort(axis=1)
    keys = table[:, 0].astype(np.int64)
    for color in visible_colors(task):
        keys = keys * NUM_COLORS + table[:, 1 + color]
    _, first = np.unique(keys, return_index=True)
    table = table[np.sort(first)]
    if rule is ViewRule.content and _may_repeat(task):
        return table[_first_of_each_content(task, table, num_augmentations + 1)]
    return table[: num_augmentations + 1]


def _may_repeat(task: ArcTask) -> bool:
    """Could two different actions show the same pairs? Never, unless a view shows the pairs as they are but for colours, or two
    pairs are the same but for colours (then a change of colours may exchange them). Far cheaper than looking at every row."""
    pairs = visible_pairs(task)
    plain = sorted(relabelled(*pair) for pair in pairs)
    if len(set(plain)) < len(plain):
        return True
    known = set(plain)
    return any(
        all(relabelled(*(dihedral(grid, view) for grid in pair)) in known for pair in pairs) for view in range(1, NUM_DIHEDRAL)
    )


def _first_of_each_content(task: ArcTask, table: npt.NDArray[np.uint8], count: int) -> list[int]:
    """Numbers of the first `count` rows that show something new."""
    pairs = visible_pairs(task)
    views = [_flat_pairs([tuple(dihedral(grid, view) for grid in pair) for pair in pairs]) for view in range(NUM_DIHEDRAL)]
    seen: set[tuple[bytes, ...]] = set()
    kept: list[int] = []
    for number, row in enumerate(table):
        cells, parts = views[row[0]]
        shown = row[1:][cells]
        content = tuple(sorted(shape + shown[part].tobytes() for shape, part in parts))
        if content not in seen:
            seen.add(content)
            kept.append(number)
            if len(kept) == count:
                break
    return kept


def _flat_pairs(pairs: Sequence[Iterable[Grid]]) -> tuple[npt.NDArray[np.uint8], list[tuple[bytes, slice]]]:
    """The cells of all pairs one after the other, and of each pair the sides of its grids and the place of its cells."""
    grids = [tuple(pair) for pair in pairs]
    cells = [np.concatenate([grid.ravel() for grid in pair]) for pair in grids]
    ends = np.cumsum([len(part) for part in cells])
    parts = [slice(int(end) - len(part), int(end)) for end, part in zip(ends, cells, strict=True)]
    shapes = [bytes(side for grid in pair for side in grid.shape) for pair in grids]
    return np.concatenate(cells), list(zip(shapes, parts, strict=True))
