"""evaluation.ranking=product: candidates ranked by what every view thinks of them, not only of its own first choice.

    lists = Shortlists(box, table.keys)                          # the grids with most votes of every test input
    lists.count(scores, table, rows_B, augmentations_B, logits_BSV, canvas)         # for every row that is predicted again
    lists.ranked(box, scores, key)                               # candidates, the highest product of probabilities first

A view's probability of a candidate is that of its tokens: the candidate is shown as the view would show it, and the
log-probabilities of its cells and end marks are added up (the distribution is the one that the model was trained with, see
losses.py). Sums over the views of a test input are compared, so all of them are computed on one canvas. A first pass has to
finish before it is known which grids are candidates, so rows are predicted twice; kept logits would take 10 kB a row and more
(900 cells x 12 tokens), for all views of a test input and on every rank. Shapes: B rows, Q test inputs, G grids on all lists, S
cells, V tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arclab.data.buckets import smallest_canvas
from arclab.data.codec import paint
from arclab.data.tasks import MAX_SIDE
from arclab.methods.recursive.losses import stablemax_cross_entropy
from arclab.methods.recursive.solver.pending_rows import RowTable
from arclab.methods.recursive.solver.votes import GridKey, VoteBox, grid_of
from arclab.results.attempts import Candidate, TestKey

IntArray = npt.NDArray[np.int64]
MAX_CANDIDATES = 16  # of a test input: the others keep their places behind them
# Log-probabilities are summed in whole numbers of 2^-20, so that no order of batches, ranks and resumed parts changes a sum.
_UNIT = 2.0**-20


class Shortlists:
    """The candidates that views are asked about: at most MAX_CANDIDATES of a test input, those with most votes. Where only one
    grid was predicted there is nothing to rank, and no list."""

    def __init__(self, box: VoteBox, keys: Sequence[TestKey]) -> None:
        lists = [box.grids(key)[:MAX_CANDIDATES] for key in keys]
        self._grids: list[list[GridKey]] = [grids if len(grids) > 1 else [] for grids in lists]
        self.num_Q = np.array([len(grids) for grids in self._grids])
        self._first_Q = np.cumsum(self.num_Q) - self.num_Q
        shown = [grid for key in self._grids for grid in map(grid_of, key) if grid is not None]
        self._cells_G = np.zeros((len(shown), MAX_SIDE, MAX_SIDE), dtype=np.uint8)
        for cells, grid in zip(self._cells_G, shown, strict=True):
            cells[: grid.shape[0], : grid.shape[1]] = grid
        self._heights_G = np.array([grid.shape[0] for grid in shown], dtype=np.int64)
        self._widths_G = np.array([grid.shape[1] for grid in shown], dtype=np.int64)

    @property
    def digest(self) -> str:
        """Names the lists: sums for other candidates are of no use."""
        return hashlib.sha256(repr(self._grids).encode()).hexdigest()[:16]

    def on_one_canvas(self, table: RowTable, full: int) -> RowTable:
        """The table with all rows of a test input on the canvas that has room for its candidates."""
        sides = np.maximum(self._heights_G, self._widths_G)
        parts = [sides[first : first + num] for first, num in zip(self._first_Q, self.num_Q, strict=True)]
        canvas_Q = np.array([smallest_canvas(int(part.max(initial=0)), full) for part in parts])
        return replace(table, canvas_R=np.maximum(table.canvas_R, canvas_Q[table.test_R]))

    def count(
        self, scores: VoteBox, table: RowTable, rows_B: IntArray, augmentations_B: npt.NDArray[np.uint8], logits_BSV: Tensor,
        canvas: int,
    ) -> None:  # fmt: skip
        """Add the log-probabilities of every row's candidates, [rows, sum in units] for each grid. augmentations_B (B, 11)."""
        test_B = table.test_R[rows_B]
        for place in range(int(self.num_Q[test_B].max(initial=0))):
            (has_B,) = np.nonzero(self.num_Q[test_B] > place)
            tokens = np.zeros((len(has_B), canvas * canvas), dtype=np.uint8)
            offsets = np.zeros((len(has_B), 2), dtype=np.int64)
            grid_ids = self._first_Q[test_B[has_B]] + place
            paint(self._cells_G, self._heights_G, self._widths_G, grid_ids, augmentations_B[has_B], offsets, canvas, tokens)
            logits = logits_BSV[torch.from_numpy(has_B).to(logits_BSV.device)]
            loss = stablemax_cross_entropy(logits, torch.from_numpy(tokens).to(logits.device)).sum(-1)
            units = np.rint(-loss.cpu().double().numpy() / _UNIT).astype(np.int64)
            for test, unit in zip(test_B[has_B].tolist(), units.tolist(), strict=True):
                scores.add(table.keys[test], self._grids[test][place], 1, unit)

    def ranked(self, box: VoteBox, scores: VoteBox, key: TestKey) -> list[Candidate]:
        """Those of the list by their sums, equal ones by votes; then the others by votes. log_likelihood: mean over rows."""
        found = scores.counts.get(key, {})
        order = box.grids(key, with_none=True)
        order.sort(key=lambda grid: -found[grid][1] if grid in found else float("inf"))
        candidates = {grid: box.candidate(key, grid) for grid in order}
        means = {grid: units * _UNIT / rows for grid, (rows, units) in found.items()}
        return [replace(candidate, log_likelihood=means.get(grid)) for grid, candidate in candidates.items()]
