"""Hierarchical encoder: tokens within a grid, grids within a task, patterns over grids.

Token level: a transformer within each grid and pooling. Grid level: grid_layers blocks over all grids of the task, each
marked as input, output or (in the layouts that join them) pair. Pattern level: learned queries. In the concat layout the
input and the output of a demonstration are grids of their own; in aligned and symmetry a demonstration is one grid.
Shapes: N packed demonstrations, S canvas cells, G grids of a demonstration (2 or 1), M tokens of a grid, W own width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arclab.config.encoder_schema import DemoLayout, HierarchicalEncoderConfig
from arclab.models.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.models.encoders.blocks import EncoderBlock, Pool, QueryStage, ToDecoder, TokenStage
from arclab.models.layers import Linear, truncated_normal


class HierarchicalEncoder(TaskEncoder):
    def __init__(self, config: HierarchicalEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__()
        width = config.width or decoder_width
        self.num_grids = 2 if config.demo_layout is DemoLayout.concat else 1
        self.token_stage = TokenStage(config, width, canvas)
        self.pool = Pool(config.pooling, width, config.num_heads, config.tokens_per_demo)
        self.to_grids = Linear(width, width)
        self.role = nn.Parameter(truncated_normal((self.num_grids, 1, width), 1.0))
        self.grid_layers = nn.ModuleList(EncoderBlock(config, width) for _ in range(config.grid_layers))
        self.set_stage = QueryStage(config, config.set_layers, config.context.num_tokens, width)
        self.to_decoder = ToDecoder(width, decoder_width)

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        tokens_NLW, used_NL = self.token_stage.tokens(demos.inputs_NS, demos.outputs_NS, dtype)
        grids = []
        for grid, (x_NSW, used_NS) in enumerate(
            zip(tokens_NLW.chunk(self.num_grids, 1), used_NL.chunk(self.num_grids, 1), strict=True)
        ):
            rope = self.token_stage.rope[:, : x_NSW.shape[1]]  # both grids lie on the same positions
            for layer in self.token_stage.layers:
                x_NSW = layer(x_NSW, rope, used_NS)
            grids.append(self.to_grids(self.pool(x_NSW, used_NS)) + self.role[grid].to(dtype))
        x_BMW, mask_BM = demos.unpack_tokens(torch.cat(grids, dim=1))
        for layer in self.grid_layers:
            x_BMW = layer(x_BMW, None, mask_BM)
        return Memory(x_BMW, mask_BM)

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        return TaskContext(self.to_decoder(self.set_stage(memory.tokens_BMD, memory.mask_BM)))
