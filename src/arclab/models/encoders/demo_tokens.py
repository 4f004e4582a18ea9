"""How one demonstration becomes a token sequence: the first stage of every encoder.

concat   input cells, then output cells (the published form); 2S tokens.
aligned  the input and the output cell of one position in one token, a difference grid; S tokens.
PAD cells carry no information: `used` says which tokens may be attended to and pooled.
Shapes: N packed demonstrations, S canvas cells, L tokens of a demonstration, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from arclab.config.schema import DemoLayout
from arclab.data.codec import PAD, VOCAB_SIZE, canvas_positions
from arclab.data.tasks import MAX_SIDE
from arclab.models.layers import Embedding


class DemoTokens(nn.Module):
    """positions_L: rotary positions of the tokens, those of the 30-canvas (outputs after the inputs in concat)."""

    positions_L: Tensor

    def __init__(self, layout: DemoLayout, width: int, canvas: int) -> None:
        super().__init__()
        self.layout, self.width = layout, width
        self.embed_input = Embedding(VOCAB_SIZE, width)
        self.embed_output = Embedding(VOCAB_SIZE, width)
        cells = torch.from_numpy(canvas_positions(canvas))
        positions = torch.cat([cells, MAX_SIDE**2 + cells]) if layout is DemoLayout.concat else cells
        self.register_buffer("positions_L", positions, persistent=False)

    def forward(self, inputs_NS: Tensor, outputs_NS: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(tokens (N, L, D) of about unit variance, used (N, L) bool with at least one True a row)."""
        x_in, x_out = self.embed_input(inputs_NS, dtype), self.embed_output(outputs_NS, dtype)
        if self.layout is DemoLayout.concat:
            tokens, used = torch.cat([x_in, x_out], dim=1), torch.cat([inputs_NS, outputs_NS], dim=1) != PAD
        else:
            tokens, used = (x_in + x_out) * math.sqrt(0.5), (inputs_NS != PAD) | (outputs_NS != PAD)
        return tokens * math.sqrt(self.width), used
