"""Augmentations: one of the eight dihedral views and a permutation of colours 1..9 (colour 0 stays).

    table = augmentation_table(task, num_augmentations=1000, seed=0)     # (n, 11) uint8: dihedral, then 10 colours
    Augmentation.from_row(table[5]).apply(grid)

Row 0 of a table is the identity; the others are distinct in what they do to the task. A table is a pure function of
(seed, task): every worker, rank and resumed run has the same one without storing it, and a smaller one is its beginning.
Dihedral ids (those of the official TRM data): 0 identity, 1 to 3 counter-clockwise quarter turns, 4 left-right flip,
5 up-down flip, 6 transpose, 7 anti-transpose. Translation is not here: it is drawn per pair at batch time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arclab.data.tasks import NUM_COLORS, ArcTask, Grid, Pair

NUM_DIHEDRAL = 8
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
# The official data build gives up after five tries per wanted augmentation; tasks with few colours have fewer views.
_TRIES_PER_AUGMENTATION = 5


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


def visible_colors(task: ArcTask) -> npt.NDArray[np.uint8]:
    """Colours above 0 in what a solver may see: demonstrations and test inputs, never a test output."""
    grids = [g for p in task.demos for g in (p.input, p.output) if g is not None] + [p.input for p in task.tests]
    colors = np.unique(np.concatenate([g.ravel() for g in grids]))
    return colors[colors > 0]


def augmentation_table(task: ArcTask, num_augmentations: int, seed: int) -> npt.NDArray[np.uint8]:
    """(n, 11) uint8 with 1 <= n <= num_augmentations + 1: the identity, then distinct views of the task.

    Two rows that permute the task's visible colours alike and share the dihedral view count as one.
    """
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
    return table[np.sort(first)[: num_augmentations + 1]]
