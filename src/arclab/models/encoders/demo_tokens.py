"""How one demonstration becomes a token sequence: the first stage of every encoder.

concat    input cells, then output cells (the published form); 2S tokens.
aligned   the input and the output cell of one position in one token, a difference grid; S tokens.
symmetry  the input cell and, with one embedding table per view, the output cell that stands at the same position under each
          of the eight dihedral views of the output; S tokens. A flip or rotation is then visible within single tokens. Views
          are turned within the output's own bounding box and keep its corner; what leaves the canvas is cropped.
PAD cells carry no information: `used` says which tokens may be attended to and pooled.
Shapes: N packed demonstrations, S canvas cells (C x C), L tokens of a demonstration, V views (8), D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arclab.config.encoder_schema import DemoLayout
from arclab.data.augment import NUM_DIHEDRAL
from arclab.data.codec import PAD, VOCAB_SIZE, canvas_positions
from arclab.data.tasks import MAX_SIDE
from arclab.models.layers import Embedding
from arclab.models.token_views import dihedral_views


class DemoTokens(nn.Module):
    """positions_L: rotary positions of the tokens, those of the 30-canvas (outputs after the inputs in concat).

    With table_positions, learned row, column and channel (input or output) embeddings are added instead, for encoders
    without rotary attention.
    """

    positions_L: Tensor

    def __init__(self, layout: DemoLayout, width: int, canvas: int, *, table_positions: bool = False) -> None:
        super().__init__()
        self.layout, self.width, self.canvas = layout, width, canvas
        self.embed_input = Embedding(VOCAB_SIZE, width)
        num_tables = NUM_DIHEDRAL if layout is DemoLayout.symmetry else 1
        self.embed_output = Embedding(num_tables * VOCAB_SIZE, width)
        cells = torch.from_numpy(canvas_positions(canvas))
        positions = torch.cat([cells, MAX_SIDE**2 + cells]) if layout is DemoLayout.concat else cells
        self.register_buffer("positions_L", positions, persistent=False)
        self.place = (
            nn.ModuleList([Embedding(MAX_SIDE, width), Embedding(MAX_SIDE, width), Embedding(2, width)])
            if table_positions
            else None
        )

    def forward(self, inputs_NS: Tensor, outputs_NS: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(tokens (N, L, D) of about unit variance, used (N, L) bool with at least one True a row)."""
        x_in = self.embed_input(inputs_NS, dtype)
        if self.layout is DemoLayout.concat:
            tokens = torch.cat([x_in, self.embed_output(outputs_NS, dtype)], dim=1)
            used = torch.cat([inputs_NS, outputs_NS], dim=1) != PAD
        elif self.layout is DemoLayout.aligned:
            tokens = (x_in + self.embed_output(outputs_NS, dtype)) * math.sqrt(0.5)
            used = (inputs_NS != PAD) | (outputs_NS != PAD)
        else:
            views_NSV = dihedral_views(outputs_NS, self.canvas)
            tokens = (x_in + self._embed_views(views_NSV, dtype)) * math.sqrt(1 / (1 + NUM_DIHEDRAL))
            used = (inputs_NS != PAD) | (views_NSV != PAD).any(-1)
        tokens = tokens * math.sqrt(self.width)
        return (tokens if self.place is None else tokens + self._places(dtype)), used

    def _embed_views(self, views_NSV: Tensor, dtype: torch.dtype) -> Tensor:
        shifted = views_NSV.long() + VOCAB_SIZE * torch.arange(NUM_DIHEDRAL, device=views_NSV.device)
        weight = self.embed_output.weight.to(dtype)
        summed = F.embedding_bag(shifted.flatten(0, 1), weight, mode="sum")
        return summed.view(*views_NSV.shape[:2], -1)

    def _places(self, dtype: torch.dtype) -> Tensor:
        """(L, D): row, column and channel embeddings of every token."""
        assert self.place is not None
        cells = self.positions_L % MAX_SIDE**2
        parts = (cells // MAX_SIDE, cells % MAX_SIDE, self.positions_L // MAX_SIDE**2)
        return sum((table(index, dtype) for table, index in zip(self.place, parts, strict=True)), torch.zeros(())) * math.sqrt(
            self.width
        )
