"""Set transformer (arXiv 1810.00825): demonstrations interact through induced points, then learned seeds pool the set.

Each induced block lets num_induced learned points attend to the set and the set attend back to them; no positions are used,
so the result does not depend on the order of demonstrations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arclab.config.encoder_schema import SetTransformerEncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory
from arclab.methods.recursive.encoders.blocks import QUERY_STD, SetBlock
from arclab.methods.recursive.encoders.standard import StandardEncoder
from arclab.methods.recursive.layers import truncated_normal


class InducedBlock(nn.Module):
    def __init__(self, config: SetTransformerEncoderConfig, width: int) -> None:
        super().__init__()
        self.points = nn.Parameter(truncated_normal((config.num_induced, width), QUERY_STD))
        self.gather, self.scatter = SetBlock(config, width), SetBlock(config, width)

    def forward(self, x_BMW: Tensor, mask_BM: Tensor) -> Tensor:
        points_BIW = self.points.to(x_BMW.dtype).expand(len(x_BMW), -1, -1)
        points_BIW = self.gather(points_BIW, x_BMW, mask_BM)
        return self.scatter(x_BMW, points_BIW, mask_BM.new_ones(points_BIW.shape[:2]))


class SetTransformerEncoder(StandardEncoder):
    def __init__(self, config: SetTransformerEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__(config, decoder_width, canvas)
        width = config.width or decoder_width
        self.induced_layers = nn.ModuleList(InducedBlock(config, width) for _ in range(config.induced_layers))

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        memory = super().read(demos, dtype)
        x_BMW = memory.tokens_BMD
        for layer in self.induced_layers:
            x_BMW = layer(x_BMW, memory.mask_BM)
        return Memory(x_BMW, memory.mask_BM)
