"""Counting predictions: tokens of a whole batch -> grids -> augmentations undone -> votes per distinct grid.

    restored = restore_grids(tokens_BS, augmentations, canvas)     # everything in numpy, no loop over rows or cells
    box = VoteBox()
    box.count(keys, test_B, restored, confidence_B)
    box.ranked(key)                                                 # candidates, most votes first

Equal grids are found by comparing whole rows of bytes, so two grids never share votes by accident. Sums of confidences are
whole numbers: they do not depend on the order in which batches, ranks or a resumed evaluation add them up.
Shapes: B rows, S canvas cells, C side of the canvas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arclab.data.augment import DIHEDRAL_INVERSE
from arclab.data.codec import FIRST_COLOR
from arclab.data.tasks import Grid
from arclab.results.attempts import Candidate, TestKey

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
GridKey = tuple[int, int, bytes] | None  # height, width, cells; None: no grid

OUTSIDE = 255  # fills the canvas around a restored grid
# Confidences are summed in units of 2^-53, of which every fp64 number from 0.5 to 1 is a whole number (sure models differ in
# these last digits), and a batch of 1023 rows stays below 2^63.
_UNIT = 2.0**-53
_MAX_ROWS = 1023
# How view v reads its source, in the order of augment.dihedral: are i and j exchanged, is the row or the column mirrored?
_EXCHANGED = np.array([False, True, False, True, False, False, True, True])
_ROW_MIRRORED = np.array([False, False, True, True, False, True, False, True])
_COLUMN_MIRRORED = np.array([False, True, True, False, True, False, False, True])


@dataclass(frozen=True, slots=True)
class RestoredGrids:
    """One grid a row: cells_BS with OUTSIDE around the grid, and its sides; 0 x 0 where the prediction shows none."""

    cells_BS: ByteArray
    heights_B: IntArray
    widths_B: IntArray


def shown_sides(tokens_BS: ByteArray, canvas: int) -> tuple[IntArray, IntArray]:
    """Height and width of the grid that decode() finds in each row; 0, 0 where it finds none."""
    is_color = tokens_BS.reshape(-1, canvas, canvas) >= FIRST_COLOR
    # Colours from the left edge: the place of the first cell that is none.
    runs_BC = np.where(is_color.all(axis=2), canvas, is_color.argmin(axis=2))
    reach_BC = np.minimum.accumulate(runs_BC, axis=1)  # the widest rectangle that goes down to this row
    widths = np.arange(1, canvas + 1)
    heights_BC = (reach_BC[:, :, None] >= widths).sum(axis=1)
    best_B = canvas - 1 - (heights_BC * widths)[:, ::-1].argmax(axis=1)  # on a tie the widest, as decode
    heights_B = heights_BC[np.arange(len(best_B)), best_B]
    return heights_B, np.where(heights_B > 0, best_B + 1, 0)


def restore_grids(tokens_BS: ByteArray, augmentations: ByteArray, canvas: int) -> RestoredGrids:
    """The grids shown, each with its augmentation (dihedral, ten colours) undone."""
    heights_B, widths_B = shown_sides(tokens_BS, canvas)
    view_B = np.array(DIHEDRAL_INVERSE)[augmentations[:, 0]]
    exchanged = _EXCHANGED[view_B]
    new_heights_B, new_widths_B = np.where(exchanged, widths_B, heights_B), np.where(exchanged, heights_B, widths_B)
    i, j = np.arange(canvas, dtype=np.int32)[None, :, None], np.arange(canvas, dtype=np.int32)[None, None, :]
    h, w = heights_B.astype(np.int32)[:, None, None], widths_B.astype(np.int32)[:, None, None]
    turned = exchanged[:, None, None]
    row, column = np.where(turned, j, i), np.where(turned, i, j)
    row = np.where(_ROW_MIRRORED[view_B][:, None, None], h - 1 - row, row)
    column = np.where(_COLUMN_MIRRORED[view_B][:, None, None], w - 1 - column, column)
    inside = (i < new_heights_B[:, None, None]) & (j < new_widths_B[:, None, None])
    source = np.where(inside, row * canvas + column, 0).reshape(len(tokens_BS), -1)
    number_B1 = np.arange(len(tokens_BS), dtype=np.int32)[:, None]
    shown_BS = tokens_BS.ravel()[number_B1 * canvas**2 + source]
    originals = np.pad(augmentations[:, 1:].argsort(axis=1).astype(np.uint8), ((0, 0), (FIRST_COLOR, 0)))  # by token
    cells_BS = originals.ravel()[number_B1 * originals.shape[1] + shown_BS]
    cells_BS[~inside.reshape(len(tokens_BS), -1)] = OUTSIDE
    return RestoredGrids(cells_BS, new_heights_B, new_widths_B)


def grid_of(key: GridKey) -> Grid | None:
    return None if key is None else np.frombuffer(key[2], dtype=np.uint8).reshape(key[0], key[1])


def confidence_units(confidence: npt.ArrayLike) -> IntArray:
    return np.rint(np.asarray(confidence, dtype=np.float64) / _UNIT).astype(np.int64)


class VoteBox:
    """Predictions per test input: [votes, sum of confidences in units] per distinct grid. Boxes add up in any order."""

    def __init__(self) -> None:
        self.counts: defaultdict[TestKey, dict[GridKey, list[int]]] = defaultdict(dict)

    def add(self, key: TestKey, grid: GridKey, votes: int, units: int) -> None:
        entry = self.counts[key].setdefault(grid, [0, 0])
        entry[0] += votes
        entry[1] += units

    def count(self, keys: Sequence[TestKey], test_B: IntArray, grids: RestoredGrids, confidence_B: npt.ArrayLike) -> None:
        """One vote for each row; row b belongs to test input keys[test_B[b]]."""
        units_B = confidence_units(confidence_B)
        for start in range(0, len(test_B), _MAX_ROWS):
            part = slice(start, start + _MAX_ROWS)
            self._count(keys, test_B[part], RestoredGrids(grids.cells_BS[part], grids.heights_B[part], grids.widths_B[part]),
                        units_B[part])  # fmt: skip

    def _count(self, keys: Sequence[TestKey], test_B: IntArray, grids: RestoredGrids, units_B: IntArray) -> None:
        owner = test_B.astype(np.int64)[:, None].view(np.uint8)
        content = np.ascontiguousarray(np.concatenate([owner, grids.cells_BS], axis=1))
        whole_rows = content.view(np.dtype((np.void, content.shape[1])))[:, 0]
        _, first, group_B, votes = np.unique(whole_rows, return_index=True, return_inverse=True, return_counts=True)
        units = np.zeros(len(first), dtype=np.int64)
        np.add.at(units, group_B.reshape(-1), units_B)
        side = int(np.sqrt(grids.cells_BS.shape[1]))
        for b, number, total in zip(first.tolist(), votes.tolist(), units.tolist(), strict=True):
            height, width = int(grids.heights_B[b]), int(grids.widths_B[b])
            cells = grids.cells_BS[b].reshape(side, side)[:height, :width].tobytes()
            self.add(keys[int(test_B[b])], (height, width, cells) if height else None, number, total)

    def merge(self, others: Iterable[VoteBox]) -> None:
        for other in others:
            for key, grids in other.counts.items():
                for grid, (votes, units) in grids.items():
                    self.add(key, grid, votes, units)

    def grids(self, key: TestKey, *, with_none: bool = False) -> list[GridKey]:
        """Most votes first, then the higher mean confidence; what is still tied is ordered by content, not by chance."""
        entries = sorted(self.counts[key].items(), key=lambda e: (-e[1][0], -e[1][1], e[0] is None, e[0] or ()))
        return [grid for grid, _ in entries if with_none or grid is not None]

    def candidate(self, key: TestKey, grid: GridKey) -> Candidate:
        votes, units = self.counts[key][grid]
        return Candidate(grid_of(grid), votes, units * _UNIT / votes)

    def ranked(self, key: TestKey) -> list[Candidate]:
        """In the order of grids()."""
        return [self.candidate(key, grid) for grid in self.grids(key, with_none=True)]


def top_votes(boxes: Iterable[VoteBox], key: TestKey, places: int) -> list[int]:
    """Votes of the first `places` candidates over all boxes, most first; 0 for a place that nobody holds."""
    total: defaultdict[GridKey, int] = defaultdict(int)
    for box in boxes:
        for grid, (votes, _) in box.counts.get(key, {}).items():
            total[grid] += votes
    best = sorted(total.values(), reverse=True)[:places]
    return best + [0] * (places - len(best))
