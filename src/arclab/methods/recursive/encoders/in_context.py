"""No compression: the tokens of all demonstrations stand in the decoder's own sequence. The upper baseline.

What other encoders lose by squeezing a task into a few tokens, this one keeps; its cost grows with the demonstrations. The
sixteen prefix tokens hold a learned, task-independent context. With num_layers 0 the demonstration tokens are plain embeddings.
In the decoder, demonstration cells have rotary positions of their own (after the canvas), the same for every demonstration.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arclab.config.encoder_schema import InContextEncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.blocks import ToDecoder, TokenStage
from arclab.methods.recursive.layers import rms_norm, truncated_normal


class InContextEncoder(TaskEncoder):
    def __init__(self, config: InContextEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__()
        width = config.width or decoder_width
        self.token_stage = TokenStage(config, width, canvas)
        self.to_decoder = ToDecoder(width, decoder_width)
        self.prefix = nn.Parameter(truncated_normal((config.context.num_tokens, decoder_width), 1.0))
        self.memory_positions = self.token_stage.tokens.positions_L

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        x_NLW, used_NL = self.token_stage(demos, dtype)
        return Memory(*demos.unpack_tokens(rms_norm(self.to_decoder(x_NLW)), used_NL))

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        tokens_BTD = rms_norm(self.prefix).to(memory.tokens_BMD.dtype).expand(len(memory.tokens_BMD), -1, -1)
        return TaskContext(tokens_BTD, memory=memory)
