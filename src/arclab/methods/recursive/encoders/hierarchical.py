"""Hierarchical encoder: tokens within a grid, grids within a task, patterns over grids.

Token level: a transformer within each grid and pooling. Grid level: grid_layers blocks over all grids of the task, each
marked as input, output or (in the layouts that join them) pair. Pattern level: learned queries. In the concat layout the
input and the output of a demonstration are grids of their own; in aligned and symmetry a demonstration is one grid.
Shapes: N packed demonstrations, S canvas cells, G grids of a demonstration (2 or 1), M tokens of a grid, W own width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from arclab.config.encoder_schema import DemoLayout, HierarchicalEncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.blocks import QUERY_STD, EncoderBlock, Pool, QueryStage, ToDecoder, TokenStage, packed
from arclab.methods.recursive.encoders.demo_tokens import DemoCells
from arclab.methods.recursive.layers import Linear, truncated_normal


class HierarchicalEncoder(TaskEncoder):
    def __init__(self, config: HierarchicalEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__()
        width = config.width or decoder_width
        self.num_grids = 2 if config.demo_layout is DemoLayout.concat else 1
        self.token_stage = TokenStage(config, width, canvas)
        self.pool = Pool(config.pooling, width, config.num_heads, config.tokens_per_demo)
        self.to_grids = Linear(width, width)
        self.role = nn.Parameter(truncated_normal((self.num_grids, 1, width), QUERY_STD))
        self.grid_layers = nn.ModuleList(EncoderBlock(config, width) for _ in range(config.grid_layers))
        self.set_stage = QueryStage(config, config.set_layers, config.context.num_tokens, width)
        self.to_decoder = ToDecoder(width, decoder_width)

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        tokens = self.token_stage.tokens
        if self.token_stage.is_varlen(demos.inputs_NS.device, dtype):
            read = self._encode_flat(tokens.cells(demos), dtype)
        else:
            read = packed(tokens, demos, lambda group: self._encode(group, dtype))
        x_BMW, mask_BM = demos.unpack_tokens(*read)
        for layer in self.grid_layers:
            x_BMW = layer(x_BMW, None, mask_BM)
        return Memory(x_BMW, mask_BM)

    def _encode(self, demos: DemoCells, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(G, M, W) and (G, M): the pooled grids of every demonstration of a group, and which tokens say anything."""
        tokens = (self.token_stage.tokens(demos, dtype), demos.used_GL, demos.cells_GLX[..., 0])
        parts = [x.chunk(self.num_grids, 1) for x in tokens]
        place_S = demos.place_L.chunk(self.num_grids)[0]  # both grids lie on the same positions
        grids, present = [], []
        for grid, (x_GSW, used_GS, cell_GS) in enumerate(zip(*parts, strict=True)):
            pooled, present_GM = self.pool(*self.token_stage.run_layers(x_GSW, used_GS, place_S), cell_GS)
            grids.append(self.to_grids(pooled) + self.role[grid].to(dtype))
            present.append(present_GM)
        return torch.cat(grids, dim=1), torch.cat(present, dim=1)

    def _encode_flat(self, demos: DemoCells, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same for all demonstrations at once, with every grid a sequence of its own."""
        pooled, present = self.pool(*self.token_stage.encode_flat(demos, dtype, num_grids=self.num_grids))
        grids = rearrange(self.to_grids(pooled), "(n g) m w -> n g m w", g=self.num_grids) + self.role.to(dtype)
        return rearrange(grids, "n g m w -> n (g m) w"), rearrange(present, "(n g) m -> n (g m)", g=self.num_grids)

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        return TaskContext(self.to_decoder(self.set_stage(memory.tokens_BMD, memory.mask_BM)))
