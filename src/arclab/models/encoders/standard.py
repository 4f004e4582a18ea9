"""Standard encoder: a transformer over each demonstration, mean pooling, learned queries over the set of demonstrations.

Each demonstration is one sequence (see demo_tokens.py) on rotary positions of the 30-canvas. PAD cells are neither attended
to nor pooled. One vector per demonstration goes to T learned queries, so the order of demonstrations does not
matter. The last norm gives every context token a root mean square of 1.
Shapes: N packed demonstrations, S canvas cells, B rows, K slots, T context tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arclab.config.schema import StandardEncoderConfig
from arclab.models.encoders.base import Demonstrations, TaskContext, TaskEncoder
from arclab.models.encoders.demo_tokens import DemoTokens
from arclab.models.layers import Block, CrossAttention, Linear, SwiGLU, rms_norm, rope_tables, truncated_normal

_QUERY_STD = 0.02  # larger starts make the queries' own content drown what they read


class SetLayer(nn.Module):
    """Queries attend to the set, then a SwiGLU; post-norm."""

    def __init__(self, width: int, num_heads: int, expansion: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads)
        self.mlp = SwiGLU(width, expansion)

    def forward(self, x_BTD: Tensor, set_BKD: Tensor, key_mask_BK: Tensor) -> Tensor:
        x_BTD = rms_norm(x_BTD + self.attention(x_BTD, set_BKD, key_mask_BK))
        return rms_norm(x_BTD + self.mlp(x_BTD))


class StandardEncoder(TaskEncoder):
    rope: Tensor

    def __init__(self, config: StandardEncoderConfig, width: int, canvas: int) -> None:
        super().__init__()
        self.demo_tokens = DemoTokens(config.demo_layout, width, canvas)
        self.layers = nn.ModuleList(Block(width, config.num_heads, config.expansion) for _ in range(config.num_layers))
        self.to_set = Linear(width, width)
        self.queries = nn.Parameter(truncated_normal((config.context.num_tokens, width), _QUERY_STD))
        self.set_layers = nn.ModuleList(SetLayer(width, config.num_heads, config.expansion) for _ in range(config.set_layers))
        rope = rope_tables(self.demo_tokens.positions_L, width // config.num_heads)
        self.register_buffer("rope", rope, persistent=False)

    def forward(self, demos: Demonstrations, dtype: torch.dtype) -> TaskContext:
        demo_BKD = demos.unpack(self.encode_demos(demos.inputs_NS, demos.outputs_NS, dtype))
        x_BTD = self.queries.to(dtype).expand(len(demo_BKD), -1, -1)
        for layer in self.set_layers:
            x_BTD = layer(x_BTD, demo_BKD, demos.valid_BK)
        return TaskContext(x_BTD)

    def encode_demos(self, inputs_NS: Tensor, outputs_NS: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, D): one vector per demonstration."""
        x, used = self.demo_tokens(inputs_NS, outputs_NS, dtype)
        for layer in self.layers:
            x = layer(x, self.rope, used)
        weight = used.to(dtype) / used.sum(1, keepdim=True)
        return self.to_set((x * weight[..., None]).sum(1))
