"""How one demonstration becomes a token sequence: the first stage of every encoder.

concat    input cells, then output cells (the published form); 2S tokens.
aligned   the input and the output cell of one position in one token, a difference grid; S tokens.
symmetry  the input cell and, with one embedding table per view, the output cell that stands at the same position under each
          of the eight dihedral views of the output; S tokens. A flip or rotation is then visible within single tokens. Views
          are turned within the output's own bounding box and keep its corner; what leaves the canvas is cropped.
PAD cells carry no information: `used` says which tokens may be attended to and pooled. So a demonstration costs what its own
grids need: packed() sorts demonstrations by the smallest canvas that holds their used cells, and each group is encoded on
that canvas. The result is that of the padded form; positions are always those of the 30-canvas.
Shapes: N packed demonstrations, G of them in a group, S canvas cells (C x C), L tokens of a demonstration, X tokens that are
summed into one, V views (8), D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from arclab.config.dataset_schema import CANVASES
from arclab.config.encoder_schema import DemoLayout
from arclab.config.schema import ColorEmbedding
from arclab.data.augment import NUM_DIHEDRAL
from arclab.data.codec import PAD, VOCAB_SIZE, canvas_positions
from arclab.data.tasks import MAX_SIDE
from arclab.methods.recursive.colors import group_offset, token_embedding
from arclab.methods.recursive.encoders.base import Demonstrations
from arclab.methods.recursive.layers import Embedding
from arclab.methods.recursive.token_views import corner_cells, dihedral_views

# Of the power of a token that joins both grids, what the input cell gets; the views of the output share the rest.
_INPUT_SHARE = 0.5


@dataclass(slots=True)
class DemoCells:
    """Demonstrations on one canvas, before embedding: cells_GLX tokens that are summed at each of the L places, used_GL, which
    places of the encoder's full canvas these are (place_L), and the identities of their colours where those share weights."""

    cells_GLX: Tensor
    used_GL: Tensor
    place_L: Tensor
    identities_GCC: Tensor | None = None


class DemoTokens(nn.Module):
    """positions_L: rotary positions of the tokens, those of the 30-canvas (outputs after the inputs in concat).

    With table_positions, learned row, column and channel (input or output) embeddings are added instead, for encoders
    without rotary attention.
    """

    positions_L: Tensor

    def __init__(self, layout: DemoLayout, width: int, canvas: int, *, table_positions: bool = False) -> None:
        super().__init__()
        self.layout, self.width, self.canvas = layout, width, canvas
        self._embed_colors(ColorEmbedding.free)
        cells = torch.as_tensor(canvas_positions(canvas))
        positions = torch.cat([cells, MAX_SIDE**2 + cells]) if layout is DemoLayout.concat else cells
        self.register_buffer("positions_L", positions, persistent=False)
        self.place = (
            nn.ModuleList([Embedding(MAX_SIDE, width), Embedding(MAX_SIDE, width), Embedding(2, width)])
            if table_positions
            else None
        )
        self.canvases = (*(c for c in CANVASES if c < canvas), canvas)

    def _embed_colors(self, kind: ColorEmbedding) -> None:
        num_tables = NUM_DIHEDRAL if self.layout is DemoLayout.symmetry else 1
        self.embed_input = token_embedding(kind, self.width)
        self.embed_output = token_embedding(kind, self.width, num_tables)

    def share_colors(self, kind: ColorEmbedding) -> None:
        """New embeddings, in which colours share their weights."""
        assert kind is not ColorEmbedding.free
        self._embed_colors(kind)

    def cells(self, demos: Demonstrations) -> DemoCells:
        """The tokens of whole demonstrations; their canvas may be smaller than the encoder's."""
        inputs_NS, outputs_NS = demos.inputs_NS, demos.outputs_NS
        canvas = math.isqrt(inputs_NS.shape[1])
        if self.layout is DemoLayout.concat:
            cells = torch.cat([inputs_NS, outputs_NS], dim=1)[..., None]
        elif self.layout is DemoLayout.aligned:
            cells = torch.stack([inputs_NS, outputs_NS], dim=-1)
        else:
            cells = torch.cat([inputs_NS[..., None], dihedral_views(outputs_NS, canvas)], dim=-1)
        return DemoCells(cells, (cells != PAD).any(-1), self.places(inputs_NS), demos.identities_NCC)

    def places(self, inputs_NS: Tensor) -> Tensor:
        """(L,): where the tokens of demonstrations on this canvas stand among those on the encoder's."""
        return self.corner(math.isqrt(inputs_NS.shape[1]), self.canvas, inputs_NS.device)

    def side(self, num_tokens: int) -> int:
        """The side of the canvas on which a demonstration has this many tokens."""
        return math.isqrt(num_tokens // (2 if self.layout is DemoLayout.concat else 1))

    def corner(self, side: int, canvas: int, device: torch.device) -> Tensor:
        """Which tokens of a demonstration on a canvas are those of the smaller canvas in its corner."""
        cells = corner_cells(side, canvas, device)
        return torch.cat([cells, canvas**2 + cells]) if self.layout is DemoLayout.concat else cells

    def packed(self, demos: DemoCells) -> Iterator[tuple[Tensor, DemoCells]]:
        """(which demonstrations, their cells on the smallest canvas that holds them) for every canvas that occurs."""
        num_grids = 2 if self.layout is DemoLayout.concat else 1
        canvas = self.side(demos.used_GL.shape[1])
        smaller = [c for c in self.canvases if c < canvas]
        used = rearrange(demos.used_GL, "g (n y x) -> g n y x", n=num_grids, y=canvas).any(1)
        along = torch.arange(1, canvas + 1, device=used.device)
        side_N = torch.maximum((used.any(2) * along).amax(1), (used.any(1) * along).amax(1))
        # How many need each canvas is all that the host asks the device for.
        class_N = sum((side_N > side for side in smaller), torch.zeros_like(side_N))
        sizes = torch.stack([(class_N == number).sum() for number in range(len(smaller) + 1)]).tolist()
        for side, rows_G in zip([*smaller, canvas], class_N.argsort(stable=True).split(sizes), strict=True):
            if len(rows_G) == 0:
                continue
            if side == canvas and len(rows_G) == len(class_N):
                yield rows_G, demos
                continue
            kept = self.corner(side, canvas, used.device)
            identities = None if demos.identities_GCC is None else demos.identities_GCC[rows_G]
            yield (
                rows_G,
                DemoCells(demos.cells_GLX[rows_G][:, kept], demos.used_GL[rows_G][:, kept], demos.place_L[kept], identities),
            )

    def forward(self, demos: DemoCells, dtype: torch.dtype) -> Tensor:
        """(G, L, D) tokens of about unit variance."""
        cells, identities = demos.cells_GLX, demos.identities_GCC
        if self.layout is DemoLayout.concat:
            x_in, x_out = cells[..., 0].chunk(2, dim=1)
            tokens = torch.cat([self.embed_input(x_in, dtype, identities), self.embed_output(x_out, dtype, identities)], dim=1)
        else:
            tokens = self._embed_joined(cells, dtype, identities)
        tokens = tokens * math.sqrt(self.width)
        return tokens if self.place is None else tokens + self._embed_places(demos.place_L, dtype)

    def flat(
        self, cells_TX: Tensor, place_T: Tensor, demo_T: Tensor, identities_NCC: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """(T, D): the same tokens one by one, each from its place among those of a demonstration, and from which of them."""
        assert self.place is None
        if self.layout is DemoLayout.concat:
            tables = [table.tables(dtype, identities_NCC) for table in (self.embed_input, self.embed_output)]
            both = torch.cat(tables, dim=1)
            cell_T = cells_TX[:, 0].long() + VOCAB_SIZE * (place_T >= self.canvas**2)
            tokens = F.embedding(cell_T + group_offset(both, cell_T, demo_T), both.flatten(0, 1))
        else:
            tokens = self._embed_joined(cells_TX, dtype, identities_NCC, demo_T)
        return tokens * math.sqrt(self.width)

    def _embed_joined(
        self, cells: Tensor, dtype: torch.dtype, identities_GCC: Tensor | None, group: Tensor | None = None
    ) -> Tensor:
        """(..., D) of (..., X): input and output cells in one token. identities_GCC, group: see SharedEmbedding."""
        shares = _INPUT_SHARE, (1 - _INPUT_SHARE) / (cells.shape[-1] - 1)
        tokens = math.sqrt(shares[0]) * self.embed_input(cells[..., 0], dtype, identities_GCC, group)
        return tokens + math.sqrt(shares[1]) * self._embed_outputs(cells[..., 1:], dtype, identities_GCC, group)

    def _embed_outputs(self, cells: Tensor, dtype: torch.dtype, identities_GCC: Tensor | None, group: Tensor | None) -> Tensor:
        """(..., D) of (..., V): the sum over views, each with its own table."""
        num_views = cells.shape[-1]
        if num_views == 1:
            return self.embed_output(cells[..., 0], dtype, identities_GCC, group)
        tables = self.embed_output.tables(dtype, identities_GCC)
        shifted = cells.long() + VOCAB_SIZE * torch.arange(num_views, device=cells.device) + group_offset(tables, cells, group)
        summed = F.embedding_bag(shifted.flatten(0, -2), tables.flatten(0, 1), mode="sum")
        return summed.view(*cells.shape[:-1], -1)

    def _embed_places(self, place_L: Tensor, dtype: torch.dtype) -> Tensor:
        """(L, D): row, column and channel embeddings of every token."""
        assert self.place is not None
        positions_L = self.positions_L[place_L]
        cells = positions_L % MAX_SIDE**2
        parts = (cells // MAX_SIDE, cells % MAX_SIDE, positions_L // MAX_SIDE**2)
        return sum((table(index, dtype) for table, index in zip(self.place, parts, strict=True)), torch.zeros(())) * math.sqrt(
            self.width
        )
