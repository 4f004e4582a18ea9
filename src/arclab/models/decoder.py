"""The TRM network: two shared blocks that refine a low-level state z_L and a high-level state z_H.

Source: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871) and its published code; parity with that
code is tested on recorded outputs. Shapes: B rows, P prefix tokens (16), S canvas cells, L = P + S, D width, V tokens (12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arclab.config.schema import PREFIX_TOKENS, DecoderConfig, Positions
from arclab.data.codec import VOCAB_SIZE, canvas_positions
from arclab.data.tasks import MAX_SIDE
from arclab.models.layers import Block, Embedding, Linear, rope_tables, truncated_normal

# The halt logit starts at -5, so that nothing halts before the head has learned something.
_Q_BIAS = -5.0
_LEARNED_POSITION_SCALE = 0.707106781  # keeps the variance of token + position


@dataclass(slots=True)
class Latents:
    """The recurrent state: z_H and z_L, each (B, L, D)."""

    z_H: Tensor
    z_L: Tensor

    def detach(self) -> Latents:
        return Latents(self.z_H.detach(), self.z_L.detach())


class Decoder(nn.Module):
    """inputs and prefix -> logits, by recursion over Latents. Parameters are fp32; activations use `dtype`."""

    start_H: Tensor
    start_L: Tensor
    position_ids: Tensor
    rope: Tensor | None

    def __init__(self, config: DecoderConfig, canvas: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype, self.canvas = config, dtype, canvas
        width = config.width
        self.embed_tokens = Embedding(VOCAB_SIZE, width)
        self.lm_head = Linear(width, VOCAB_SIZE)
        self.q_head = nn.Linear(width, 2)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, _Q_BIAS)
        length = PREFIX_TOKENS + canvas**2 if config.mlp_t else None
        self.layers = nn.ModuleList(
            Block(width, config.num_heads, config.expansion, length, config.attention) for _ in range(config.num_layers)
        )
        positions = torch.cat([torch.arange(PREFIX_TOKENS), PREFIX_TOKENS + torch.from_numpy(canvas_positions(canvas))])
        self.register_buffer("position_ids", positions, persistent=False)
        uses_rope = config.positions is Positions.rope
        self.register_buffer("rope", rope_tables(positions, width // config.num_heads) if uses_rope else None, persistent=False)
        uses_table = config.positions is Positions.learned
        self.position_table = Embedding(PREFIX_TOKENS + MAX_SIDE**2, width) if uses_table else None
        self.register_buffer("start_H", truncated_normal((width,), 1.0))
        self.register_buffer("start_L", truncated_normal((width,), 1.0))

    @property
    def length(self) -> int:
        return len(self.position_ids)

    def start(self, num_rows: int) -> Latents:
        """Fresh latents for num_rows rows."""
        shape = (num_rows, self.length, -1)
        return Latents(self.start_H.to(self.dtype).expand(shape).clone(), self.start_L.to(self.dtype).expand(shape).clone())

    def reset(self, latents: Latents, where_B: Tensor) -> Latents:
        """Latents with the rows in `where_B` set to the start states."""
        where = where_B[:, None, None]
        return Latents(
            torch.where(where, self.start_H.to(self.dtype), latents.z_H),
            torch.where(where, self.start_L.to(self.dtype), latents.z_L),
        )

    def embed(self, inputs_BS: Tensor, prefix_BPD: Tensor) -> Tensor:
        """The scaled input sequence (B, L, D) that is injected at every update."""
        x_BLD = torch.cat([prefix_BPD.to(self.dtype), self.embed_tokens(inputs_BS, self.dtype)], dim=1)
        if self.position_table is not None:
            x_BLD = _LEARNED_POSITION_SCALE * (x_BLD + self.position_table(self.position_ids, self.dtype))
        return x_BLD * math.sqrt(self.config.width)

    def _update(self, state_BLD: Tensor, injection_BLD: Tensor) -> Tensor:
        x_BLD = state_BLD + injection_BLD
        for layer in self.layers:
            x_BLD = layer(x_BLD, self.rope)
        return x_BLD

    def _cycle(self, latents: Latents, x_BLD: Tensor) -> Latents:
        z_H, z_L = latents.z_H, latents.z_L
        for _ in range(self.config.l_cycles):
            z_L = self._update(z_L, z_H + x_BLD)
        return Latents(self._update(z_H, z_L), z_L)

    def forward(self, latents: Latents, inputs_BS: Tensor, prefix_BPD: Tensor) -> tuple[Latents, Tensor, Tensor]:
        """One supervision step: new latents (with gradient), logits (B, S, V) and halt logits (B,) in fp32.

        Only the last of the h_cycles carries gradient.
        """
        x_BLD = self.embed(inputs_BS, prefix_BPD)
        with torch.no_grad():
            for _ in range(self.config.h_cycles - 1):
                latents = self._cycle(latents, x_BLD)
        latents = self._cycle(latents, x_BLD)
        logits_BSV = self.lm_head(latents.z_H)[:, PREFIX_TOKENS:]
        q_halt_B = self.q_head(latents.z_H[:, 0].float())[:, 0]
        return latents, logits_BSV, q_halt_B
