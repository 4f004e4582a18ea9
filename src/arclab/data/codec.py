"""Grid <-> tokens. The one place that knows the token rules.

Tokens: 0 PAD, 1 EOS, 2..11 colours 0..9. An (h, w) grid lies on a square canvas at an offset; EOS marks the row just
below it (columns of the grid) and the column just right of it (rows of the grid) where the canvas has them; the corner
stays PAD. A label token 0 (PAD) is ignored by the loss. Positions are always those of the 30-canvas (row * 30 + column),
so one set of weights serves every canvas.

paint() renders many grids at once with their augmentation and offset; it is compiled by numba because it is the whole
cost of feeding a GPU. decode() is the official crop: the largest all-colour rectangle at the top-left corner.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from arclab.data.tasks import MAX_SIDE, Grid

log = logging.getLogger(__name__)

PAD, EOS, FIRST_COLOR = 0, 1, 2
VOCAB_SIZE = 12


def canvas_positions(canvas: int) -> npt.NDArray[np.int64]:
    """(canvas * canvas,) index of each cell on the 30-canvas."""
    rows, columns = np.divmod(np.arange(canvas * canvas), canvas)
    return rows * MAX_SIDE + columns


def encode(grid: Grid, canvas: int, row: int = 0, column: int = 0) -> npt.NDArray[np.uint8]:
    """(canvas * canvas,) tokens of one grid at the offset. ValueError if it does not fit."""
    height, width = grid.shape
    if row + height > canvas or column + width > canvas:
        raise ValueError(
            f"a {height}x{width} grid at offset ({row}, {column}) does not fit on a canvas of side {canvas}; use a larger "
            "dataset.canvas."
        )
    tokens = np.zeros((canvas, canvas), dtype=np.uint8)
    tokens[row : row + height, column : column + width] = grid + FIRST_COLOR
    if row + height < canvas:
        tokens[row + height, column : column + width] = EOS
    if column + width < canvas:
        tokens[row : row + height, column + width] = EOS
    return tokens.ravel()


def decode(tokens: npt.NDArray[np.uint8], canvas: int) -> Grid | None:
    """The grid that `tokens` (canvas * canvas,) shows, or None if its top-left cell is no colour."""
    is_color = tokens.reshape(canvas, canvas) >= FIRST_COLOR
    run_lengths = np.cumprod(is_color, axis=1).sum(axis=1)  # colours from the left edge, per row
    if run_lengths[0] == 0:
        return None
    widths = np.arange(1, run_lengths[0] + 1)
    heights = np.cumprod(run_lengths[:, None] >= widths[None], axis=0).sum(axis=0)
    # On a tie the widest: the published crop goes down row by row and keeps the first of the largest rectangles.
    best = len(widths) - 1 - int(np.argmax((heights * widths)[::-1]))
    return tokens.reshape(canvas, canvas)[: heights[best], : widths[best]] - FIRST_COLOR


def decode_anywhere(tokens: npt.NDArray[np.uint8], canvas: int) -> Grid | None:
    """As decode, for a translated grid: the canvas is first cut to start at the first row and column with a colour."""
    grid = tokens.reshape(canvas, canvas)
    rows, columns = np.nonzero(grid >= FIRST_COLOR)
    if len(rows) == 0:
        return None
    moved = np.zeros_like(grid)
    cut = grid[rows.min() :, columns.min() :]
    moved[: cut.shape[0], : cut.shape[1]] = cut
    return decode(moved.ravel(), canvas)


def _compiled(function: Callable[..., None]) -> Any:
    """Compiled by numba and kept on disk; where no folder can be written (a read-only install and home), compiled anew by every
    process."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        log.warning(
            "numba finds no folder that it can write its cache to, so every process compiles %s anew (some seconds); set "
            "NUMBA_CACHE_DIR to "
            "such a folder", function.__name__,
        )  # fmt: skip
        return numba.njit(nogil=True)(function)


@_compiled
def paint(
    cells: npt.NDArray[np.uint8],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    grid_ids: npt.NDArray[np.int64],
    augmentations: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    canvas: int,
    out: npt.NDArray[np.uint8],
) -> None:
    """Render grid grid_ids[n] of the store `cells` (G, 30, 30) into out[n] (N, canvas * canvas), which must be zeroed.

    augmentations (N, 11): dihedral and colours; offsets (N, 2): row and column. A negative grid id leaves its row blank.
    The caller has checked that every grid fits.
    """
    for n in range(grid_ids.shape[0]):
        g = grid_ids[n]
        if g < 0:
            continue
        source, view, row, column = cells[g], augmentations[n, 0], offsets[n, 0], offsets[n, 1]
        h, w = heights[g], widths[g]
        transposed = view == 1 or view == 3 or view == 6 or view == 7
        new_h, new_w = (w, h) if transposed else (h, w)
        for i in range(new_h):
            start = (row + i) * canvas + column
            for j in range(new_w):
                if view == 0:
                    color = source[i, j]
                elif view == 1:
                    color = source[j, w - 1 - i]
                elif view == 2:
                    color = source[h - 1 - i, w - 1 - j]
                elif view == 3:
                    color = source[h - 1 - j, i]
                elif view == 4:
                    color = source[i, w - 1 - j]
                elif view == 5:
                    color = source[h - 1 - i, j]
                elif view == 6:
                    color = source[j, i]
                else:
                    color = source[h - 1 - j, w - 1 - i]
                out[n, start + j] = augmentations[n, 1 + color] + 2
            if column + new_w < canvas:
                out[n, start + new_w] = 1
        if row + new_h < canvas:
            start = (row + new_h) * canvas + column
            for j in range(new_w):
                out[n, start + j] = 1
