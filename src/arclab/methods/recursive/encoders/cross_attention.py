"""Cross-attention encoder: demonstrations attend to each other token by token before anything is compressed.

num_layers blocks within each demonstration, cross_layers blocks over the tokens of all demonstrations of a task, then learned
queries over all these tokens. Cells of one place share a rotary position in every demonstration and nothing marks the order,
so it does not matter. Costs the square of the tokens of a task.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn

from arclab.config.encoder_schema import CrossAttentionEncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.blocks import EncoderBlock, QueryStage, ToDecoder, TokenStage


class CrossAttentionEncoder(TaskEncoder):
    def __init__(self, config: CrossAttentionEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__()
        width = config.width or decoder_width
        self.token_stage = TokenStage(config, width, canvas)
        self.cross_layers = nn.ModuleList(EncoderBlock(config, width) for _ in range(config.cross_layers))
        self.set_stage = QueryStage(config, config.set_layers, config.context.num_tokens, width)
        self.to_decoder = ToDecoder(width, decoder_width)

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        x_NLW, used_NL = self.token_stage(demos, dtype)
        x_BMW, used_BM = demos.unpack_tokens(x_NLW, used_NL)
        place_L = self.token_stage.tokens.places(demos.inputs_NS)
        rope = repeat(self.token_stage.rope[:, place_L], "cs l 1 c -> cs (k l) 1 c", k=demos.valid_BK.shape[1])
        for layer in self.cross_layers:
            x_BMW = layer(x_BMW, rope, used_BM)
        return Memory(x_BMW, used_BM)

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        return TaskContext(self.to_decoder(self.set_stage(memory.tokens_BMD, memory.mask_BM)))
