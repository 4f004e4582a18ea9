"""The TRM network: two shared blocks that refine a low-level state z_L and a high-level state z_H.

Source: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871) and its published code; parity with that
code is tested on recorded outputs. The canvas is that of the inputs, at most the one given at the start; positions are those of
the 30-canvas on every canvas, so one set of weights serves all. Shapes: B rows, P prefix tokens (16), S canvas cells, L = P +
S, D width, V tokens (12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn

from arclab.config.encoder_schema import PREFIX_TOKENS
from arclab.config.schema import ColorEmbedding, DecoderConfig, Positions
from arclab.data.codec import VOCAB_SIZE, canvas_positions
from arclab.data.tasks import MAX_SIDE
from arclab.methods.recursive.colors import SharedEmbedding, token_embedding
from arclab.methods.recursive.encoders.base import Memory
from arclab.methods.recursive.layers import Block, Embedding, Linear, rope_tables, truncated_normal
from arclab.methods.recursive.token_views import corner_cells

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
    """inputs and prefix -> logits, by recursion over Latents. Parameters are fp32; activations use `dtype`, except for the halt
    head, which computes in fp32 (published: in `dtype`)."""

    start_H: Tensor
    start_L: Tensor
    position_ids: Tensor
    rope: Tensor | None
    memory_rope: Tensor | None

    def __init__(self, config: DecoderConfig, canvas: int, dtype: torch.dtype, memory_positions: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.dtype, self.canvas = config, dtype, canvas
        width = config.width
        self.embed_tokens = token_embedding(config.color_embedding, width)
        is_free = config.color_embedding is ColorEmbedding.free
        self.lm_head = Linear(width, VOCAB_SIZE) if is_free else SharedEmbedding(config.color_embedding, width)
        self.q_head = nn.Linear(width, 2)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, _Q_BIAS)
        length = PREFIX_TOKENS + canvas**2 if config.mlp_t else None
        self.layers = nn.ModuleList(
            Block(width, config.num_heads, config.expansion, length, config.attention) for _ in range(config.num_layers)
        )
        positions = torch.cat([torch.arange(PREFIX_TOKENS), PREFIX_TOKENS + torch.as_tensor(canvas_positions(canvas))])
        self.register_buffer("position_ids", positions, persistent=False)
        uses_rope = config.positions is Positions.rope
        self.register_buffer("rope", rope_tables(positions, width // config.num_heads) if uses_rope else None, persistent=False)
        memory_rope = None
        if memory_positions is not None:  # after the canvas, so that no demonstration cell shares a query cell's position
            memory_rope = rope_tables(PREFIX_TOKENS + MAX_SIDE**2 + memory_positions, width // config.num_heads)
        self.register_buffer("memory_rope", memory_rope, persistent=False)
        uses_table = config.positions is Positions.learned
        self.position_table = Embedding(PREFIX_TOKENS + MAX_SIDE**2, width) if uses_table else None
        self.register_buffer("start_H", truncated_normal((width,), 1.0))
        self.register_buffer("start_L", truncated_normal((width,), 1.0))

    def start(self, num_rows: int, num_cells: int, num_demos: int = 0) -> Latents:
        """Fresh latents for num_rows rows on a canvas of num_cells, with the tokens of num_demos demonstrations behind it."""
        shape = (num_rows, PREFIX_TOKENS + num_cells + num_demos * len(self._memory_places(num_cells)), -1)
        return Latents(self.start_H.to(self.dtype).expand(shape).clone(), self.start_L.to(self.dtype).expand(shape).clone())

    def reset(self, latents: Latents, where_B: Tensor) -> Latents:
        """Latents with the rows in `where_B` set to the start states."""
        where = where_B[:, None, None]
        return Latents(
            torch.where(where, self.start_H.to(self.dtype), latents.z_H),
            torch.where(where, self.start_L.to(self.dtype), latents.z_L),
        )

    def _places(self, num_cells: int) -> Tensor:
        """(L,): where the prefix and the cells of a canvas stand in this decoder's tables."""
        cells = corner_cells(math.isqrt(num_cells), self.canvas, self.position_ids.device)
        return torch.cat([torch.arange(PREFIX_TOKENS, device=cells.device), PREFIX_TOKENS + cells])

    def _memory_places(self, num_cells: int) -> Tensor:
        """Where the tokens of a demonstration on a canvas stand in memory_rope: one or two grids; none without a memory."""
        if self.memory_rope is None:
            return self.position_ids[:0]
        cells = corner_cells(math.isqrt(num_cells), self.canvas, self.position_ids.device)
        num_grids = self.memory_rope.shape[1] // self.canvas**2
        return torch.cat([grid * self.canvas**2 + cells for grid in range(num_grids)])

    def embed(self, inputs_BS: Tensor, prefix_BPD: Tensor, identities_BCC: Tensor | None = None) -> Tensor:
        """The scaled input sequence (B, L, D) that is injected at every update."""
        x_BLD = torch.cat([prefix_BPD.to(self.dtype), self.embed_tokens(inputs_BS, self.dtype, identities_BCC)], dim=1)
        if self.position_table is not None:
            x_BLD = _LEARNED_POSITION_SCALE * (
                x_BLD + self.position_table(self.position_ids[self._places(inputs_BS.shape[1])], self.dtype)
            )
        return x_BLD * math.sqrt(self.config.width)

    def _attention(self, num_cells: int, memory: Memory | None) -> tuple[Tensor | None, Tensor | None]:
        """Rotary table and key mask for the canvas and the memory behind it."""
        places = self._places(num_cells)
        rope = self.rope if self.rope is None or len(places) == len(self.position_ids) else self.rope[:, places]
        if memory is None:
            return rope, None
        assert rope is not None and self.memory_rope is not None
        memory_rope = self.memory_rope[:, self._memory_places(num_cells)]
        num_demos = memory.mask_BM.shape[1] // memory_rope.shape[1]
        rope = torch.cat([rope, repeat(memory_rope, "cs l 1 c -> cs (k l) 1 c", k=num_demos)], dim=1)
        own = memory.mask_BM.new_ones(len(memory.mask_BM), len(places))
        return rope, torch.cat([own, memory.mask_BM], dim=1)

    def _update(self, state_BLD: Tensor, injection_BLD: Tensor, rope: Tensor | None, mask_BL: Tensor | None) -> Tensor:
        x_BLD = state_BLD + injection_BLD
        for layer in self.layers:
            x_BLD = layer(x_BLD, rope, mask_BL)
        return x_BLD

    def _cycle(self, latents: Latents, x_BLD: Tensor, rope: Tensor | None, mask_BL: Tensor | None) -> Latents:
        z_H, z_L = latents.z_H, latents.z_L
        for _ in range(self.config.l_cycles):
            z_L = self._update(z_L, z_H + x_BLD, rope, mask_BL)
        return Latents(self._update(z_H, z_L, rope, mask_BL), z_L)

    def logits(self, z_BLD: Tensor, identities_BCC: Tensor | None) -> Tensor:
        """(B, L, V) of the last states of a sequence."""
        if isinstance(self.lm_head, Linear):
            return self.lm_head(z_BLD)
        return z_BLD @ self.lm_head.tables(z_BLD.dtype, identities_BCC).transpose(1, 2)

    def forward(
        self, latents: Latents, inputs_BS: Tensor, prefix_BPD: Tensor, memory: Memory | None = None,
        identities_BCC: Tensor | None = None,
    ) -> tuple[Latents, Tensor, Tensor]:  # fmt: skip
        """One supervision step: new latents (with gradient), logits (B, S, V) and halt logits (B,) in fp32.

        memory: tokens of unit RMS that stand behind the canvas. identities_BCC: of colours that share their weights (see
        arclab.methods.recursive.colors), else None. Only the last of the h_cycles carries gradient.
        """
        x_BLD = self.embed(inputs_BS, prefix_BPD, identities_BCC)
        if memory is not None:
            x_BLD = torch.cat([x_BLD, memory.tokens_BMD.to(self.dtype)], dim=1)
        num_cells = inputs_BS.shape[1]
        rope, mask_BL = self._attention(num_cells, memory)
        with torch.no_grad():
            for _ in range(self.config.h_cycles - 1):
                latents = self._cycle(latents, x_BLD, rope, mask_BL)
        latents = self._cycle(latents, x_BLD, rope, mask_BL)
        logits_BSV = self.logits(latents.z_H, identities_BCC)[:, PREFIX_TOKENS : PREFIX_TOKENS + num_cells]
        q_halt_B = self.q_head(latents.z_H[:, 0].float())[:, 0]
        return latents, logits_BSV, q_halt_B
