"""Dihedral views and colour permutations of grids that are already tokens, on the device where they are.

    views_NSV = dihedral_views(tokens_NS, canvas)
    tokens_NS = recolored(views_NSV[..., 3], colors_NC, canvas)

The same views as arclab.data.augment draws at batch time, for what needs a second view of a batch: the symmetry layout and
the contrastive loss. Views keep the grid's corner on the canvas; what leaves the canvas is cropped.
Shapes: N grids, S canvas cells (C x C), V views (8).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from arclab.data.codec import EOS, FIRST_COLOR, PAD


def dihedral_views(tokens_NS: Tensor, canvas: int) -> Tensor:
    """(N, S, 8) uint8: the grid on the canvas under each view, turned within its bounding box, at the same corner.

    View 0 is the canvas as it is, EOS included; the others show colours only.
    """
    grid = rearrange(tokens_NS, "n (y x) -> n y x", y=canvas)
    is_color = grid >= FIRST_COLOR
    top, height = _extent(is_color.any(2))
    left, width = _extent(is_color.any(1))
    i = torch.arange(canvas, device=grid.device)[None, :, None] - top[:, None, None]
    j = torch.arange(canvas, device=grid.device)[None, None, :] - left[:, None, None]
    h, w = height[:, None, None] - 1, width[:, None, None] - 1
    # Where cell (i, j) of the view comes from in the grid; same ids as arclab.data.augment.
    sources = [(j, w - i), (h - i, w - j), (h - j, i), (i, w - j), (h - i, j), (j, i), (h - j, w - i)]
    views = [tokens_NS]
    for row, column in sources:
        row, column = torch.broadcast_tensors(row, column)
        inside = (row >= 0) & (row <= h) & (column >= 0) & (column <= w) & (i >= 0) & (j >= 0)
        index = ((row + top[:, None, None]) * canvas + column + left[:, None, None]).clamp(0, canvas**2 - 1)
        picked = tokens_NS.gather(1, rearrange(torch.where(inside, index, 0), "n y x -> n (y x)"))
        views.append(torch.where(rearrange(inside, "n y x -> n (y x)"), picked, PAD))
    return torch.stack(views, dim=-1)


def corner_cells(small: int, canvas: int, device: torch.device | None = None) -> Tensor:
    """(small * small,) index of each cell of a smaller canvas on a larger one, whose top-left corner it is."""
    along = torch.arange(small, device=device)
    return (along[:, None] * canvas + along).flatten()


def _extent(any_NC: Tensor) -> tuple[Tensor, Tensor]:
    """First index and number of True entries of each row (grids have no gaps)."""
    return any_NC.int().argmax(1), any_NC.sum(1)


def recolored(tokens_NS: Tensor, colors_NC: Tensor, canvas: int) -> Tensor:
    """The grids with colour c replaced by colors_NC[:, c] (N, 10), and EOS around them anew, where the canvas has room."""
    is_color_NS = tokens_NS >= FIRST_COLOR
    color_NS = (tokens_NS.long() - FIRST_COLOR).clamp(min=0)
    shown_NS = torch.where(is_color_NS, colors_NC.long().gather(1, color_NS) + FIRST_COLOR, PAD)
    return torch.where(_border(is_color_NS, canvas), EOS, shown_NS).to(tokens_NS.dtype)


def _border(is_color_NS: Tensor, canvas: int) -> Tensor:
    """(N, S): the row just below each grid and the column just right of it, without their corner."""
    grid = rearrange(is_color_NS, "n (y x) -> n y x", y=canvas)
    top, height = _extent(grid.any(2))
    left, width = _extent(grid.any(1))
    cells = torch.arange(canvas, device=grid.device)
    i, j = cells[:, None] - top[:, None, None], cells[None, :] - left[:, None, None]
    h, w = height[:, None, None], width[:, None, None]
    return (((i == h) & (j >= 0) & (j < w)) | ((j == w) & (i >= 0) & (i < h))).flatten(1)
