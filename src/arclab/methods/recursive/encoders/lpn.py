"""The encoder of Latent Program Networks (arXiv 2411.08706), at its own width (128), plain and variational.

Per demonstration: colour embedding plus learned row, column and channel (input, output) embeddings, a CLS token, pre-norm
blocks with LayerNorm without weights and a SiLU MLP of four times the width, no biases; the CLS vector after a last LayerNorm.
lpn: the mean over demonstrations, then a linear map to T tokens. lpn_variational: each demonstration gives mu and log
variance of latent_dim values, is sampled, and the samples are averaged. Deviations: PAD cells are masked, and the tokens
that leave have unit RMS, as those of every encoder here.
Shapes: N packed demonstrations, L tokens, B rows, K slots, T context tokens, D decoder width, W own width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from arclab.config.encoder_schema import LpnEncoderConfig, LpnVariationalEncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.blocks import QUERY_STD, Gaussian, kl_to_unit_normal, mean_over, packed
from arclab.methods.recursive.encoders.demo_tokens import DemoCells, DemoTokens
from arclab.methods.recursive.layers import Linear, Recomputable, SelfAttention, rms_norm, truncated_normal

_MLP_FACTOR = 4


class LpnBlock(Recomputable):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads)
        self.up, self.down = Linear(width, _MLP_FACTOR * width), Linear(_MLP_FACTOR * width, width)

    def compute(self, x_NLW: Tensor, used_NL: Tensor) -> Tensor:
        x_NLW = x_NLW + self.attention(layer_norm(x_NLW), None, used_NL)
        return x_NLW + self.down(F.silu(self.up(layer_norm(x_NLW))))


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:]).to(x.dtype)


class LpnEncoder(TaskEncoder):
    def __init__(self, config: LpnEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__()
        width = config.width or decoder_width
        self.tokens = DemoTokens(config.demo_layout, width, canvas, table_positions=True)
        self.cls = nn.Parameter(truncated_normal((width,), QUERY_STD))
        self.layers = nn.ModuleList(LpnBlock(width, config.num_heads) for _ in range(config.num_layers))
        self.num_tokens = config.context.num_tokens
        self.to_context = Linear(self.task_width(config, width), self.num_tokens * decoder_width)

    def task_width(self, config: LpnEncoderConfig, width: int) -> int:
        return width

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        read = packed(self.tokens, demos, lambda group: self._encode(group, dtype))
        return Memory(*demos.unpack_tokens(*read))

    def _encode(self, demos: DemoCells, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(G, 1, W) and (G, 1): the CLS vector of every demonstration of a group."""
        x_GLW, used_GL = self.tokens(demos, dtype), demos.used_GL
        x_GLW = torch.cat([self.cls.to(dtype).expand(len(x_GLW), 1, -1), x_GLW], dim=1)
        used_GL = torch.cat([used_GL.new_ones(len(used_GL), 1), used_GL], dim=1)
        for layer in self.layers:
            x_GLW = layer(x_GLW, used_GL)
        return layer_norm(x_GLW[:, :1]), used_GL[:, :1]

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        return TaskContext(self._tokens(mean_over(memory.tokens_BMD, memory.mask_BM)))

    def _tokens(self, task_BW: Tensor) -> Tensor:
        return rms_norm(rearrange(self.to_context(task_BW), "b (t d) -> b t d", t=self.num_tokens))


class LpnVariationalEncoder(LpnEncoder):
    def __init__(self, config: LpnVariationalEncoderConfig, decoder_width: int, canvas: int) -> None:
        super().__init__(config, decoder_width, canvas)
        self.free_bits = config.kl.free_bits
        self.latent = Gaussian(config.width or decoder_width, config.latent_dim)

    def task_width(self, config: LpnEncoderConfig, width: int) -> int:
        assert isinstance(config, LpnVariationalEncoderConfig)
        return config.latent_dim

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        z_BKZ, mu_BKZ, logvar_BKZ = self.latent(memory.tokens_BMD, noise)
        loss_BK = kl_to_unit_normal(mu_BKZ, logvar_BKZ, self.free_bits)
        kl_BK = kl_to_unit_normal(mu_BKZ.detach(), logvar_BKZ.detach(), 0.0)
        return TaskContext(
            self._tokens(mean_over(z_BKZ, memory.mask_BM)),
            aux_losses={"kl": mean_over(loss_BK, memory.mask_BM)},
            kl_B=mean_over(kl_BK, memory.mask_BM),
        )
