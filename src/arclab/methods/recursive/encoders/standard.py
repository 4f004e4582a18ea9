"""Standard encoder: a transformer over each demonstration, pooling, learned queries over the set of demonstrations.

PAD cells are neither attended to nor pooled. Each demonstration keeps tokens_per_demo vectors, which go to T learned queries;
there are no positions in the set, so the order of demonstrations does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arclab.config.encoder_schema import StandardEncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.blocks import DemoStage, QueryStage, ToDecoder


class PoolingEncoder(TaskEncoder):
    """Reads each demonstration to a few pooled tokens; what is written from them is for a subclass to say."""

    def __init__(self, config: StandardEncoderConfig, width: int, canvas: int) -> None:
        """width: the encoder's own."""
        super().__init__()
        self.demo_stage = DemoStage(config, width, canvas)

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        return Memory(*demos.unpack_tokens(*self.demo_stage(demos, dtype)))


class StandardEncoder(PoolingEncoder):
    def __init__(self, config: StandardEncoderConfig, decoder_width: int, canvas: int) -> None:
        width = config.width or decoder_width
        super().__init__(config, width, canvas)
        self.set_stage = QueryStage(config, config.set_layers, config.context.num_tokens, width)
        self.to_decoder = ToDecoder(width, decoder_width)

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        return TaskContext(self.to_decoder(self.set_stage(memory.tokens_BMD, memory.mask_BM)))
