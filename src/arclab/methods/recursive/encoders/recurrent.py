"""Encoders with a state of their own, refined at every supervision step and kept in the carry.

recurrent: T state tokens; each step they attend to the demonstrations (set_layers blocks) and become the context.
recurrent_trm: a high- and a low-level state of T tokens each, refined as the decoder refines its own: h_cycles x (l_cycles
updates of the low one with the demonstrations injected, one of the high one), only the last cycle with gradient.
The context is the new state itself, so its gradient reaches every weight; the carry stores a detached copy, and nothing is
mixed with old states. A halted row starts again: recurrent from a learned state, recurrent_trm from a fixed random one.
Shapes: B rows, M memory tokens, T context tokens, W own width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arclab.config.encoder_schema import RecurrentEncoderConfig, RecurrentTrmEncoderConfig
from arclab.methods.recursive.encoders.base import Memory, TaskContext
from arclab.methods.recursive.encoders.blocks import QUERY_STD, EncoderBlock, SetBlock, ToDecoder, color_starts
from arclab.methods.recursive.encoders.standard import PoolingEncoder, StandardEncoder
from arclab.methods.recursive.layers import Linear, rms_norm, rope_tables, truncated_normal


class RecurrentEncoder(PoolingEncoder):
    def __init__(self, config: RecurrentEncoderConfig, decoder_width: int, canvas: int) -> None:
        width = config.width or decoder_width
        super().__init__(config, width, canvas)
        self.config = config
        self.start = nn.Parameter(torch.empty(config.context.num_tokens, width))
        self._draw_start()
        layers = nn.ModuleList(SetBlock(config, width) for _ in range(config.set_layers))
        self.to_decoder = ToDecoder(width, decoder_width)
        # A second time, behind to_decoder: recorded runs drew these weights here, and a seed must give what it gave then.
        self._draw_start()
        self.layers = layers
        for part in layers.modules():
            if isinstance(part, Linear):
                part.reset_parameters()

    @torch.no_grad()
    def _draw_start(self) -> None:
        self.start.copy_(truncated_normal(tuple(self.start.shape), QUERY_STD))

    def start_state(self) -> Tensor:
        return self.start

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        assert state is not None
        x_BTW = color_starts(self.config, state, memory.tokens_BMD, memory.mask_BM)
        for layer in self.layers:
            x_BTW = layer(x_BTW, memory.tokens_BMD, memory.mask_BM)
        x_BTW = rms_norm(x_BTW)
        return TaskContext(self.to_decoder(x_BTW), state=x_BTW)


class RecurrentTrmEncoder(StandardEncoder):
    rope: Tensor
    start: Tensor

    def __init__(self, config: RecurrentTrmEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__(config, decoder_width, canvas)
        width, num_tokens = config.width or decoder_width, config.context.num_tokens
        self.h_cycles, self.l_cycles, self.num_tokens = config.h_cycles, config.l_cycles, num_tokens
        # Fixed, as the decoder's start states: cycles without gradient stand between it and the context.
        self.register_buffer("start", truncated_normal((2 * num_tokens, width), 1.0))
        # Added at every update: without it many cycles of attention make all tokens one.
        self.token = nn.Parameter(truncated_normal((num_tokens, width), 1.0))
        self.layers = nn.ModuleList(EncoderBlock(config, width) for _ in range(config.cycle_layers))
        rope = rope_tables(torch.arange(num_tokens), width // config.num_heads)
        self.register_buffer("rope", rope, persistent=False)

    def start_state(self) -> Tensor:
        return self.start

    def _update(self, state_BTW: Tensor, injection_BTW: Tensor) -> Tensor:
        x_BTW = state_BTW + injection_BTW + self.token.to(state_BTW.dtype)
        for layer in self.layers:
            x_BTW = layer(x_BTW, self.rope, None)
        return rms_norm(x_BTW)

    def _cycle(self, high: Tensor, low: Tensor, demos_BTW: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.l_cycles):
            low = self._update(low, high + demos_BTW)
        return self._update(high, low), low

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        assert state is not None
        demos_BTW = self.set_stage(memory.tokens_BMD, memory.mask_BM)
        high, low = state.chunk(2, dim=1)
        with torch.no_grad():
            for _ in range(self.h_cycles - 1):
                high, low = self._cycle(high, low, demos_BTW)
        high, low = self._cycle(high, low, demos_BTW)
        return TaskContext(self.to_decoder(high), state=torch.cat([high, low], dim=1))
