"""Variational encoders: one sampled vector z per task between the context and the decoder.

The context of the standard (or hybrid) encoder is averaged over its tokens to mu and log variance; z is sampled in training
and is mu in evaluation; a linear map turns z into T tokens of unit RMS. Aux loss "kl": KL to a unit normal per row.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from arclab.config.encoder_schema import HybridVariationalEncoderConfig, VariationalEncoderConfig
from arclab.methods.recursive.encoders.base import Memory, TaskContext
from arclab.methods.recursive.encoders.blocks import Gaussian, kl_to_unit_normal
from arclab.methods.recursive.encoders.standard import StandardEncoder
from arclab.methods.recursive.layers import Linear, rms_norm


class VariationalEncoder(StandardEncoder):
    """For both kinds: the configuration decides between pooling and a CLS token."""

    def __init__(
        self, config: VariationalEncoderConfig | HybridVariationalEncoderConfig, decoder_width: int, canvas: int
    ) -> None:
        super().__init__(config, decoder_width, canvas)
        self.free_bits = config.kl.free_bits
        self.num_tokens = config.context.num_tokens
        self.latent = Gaussian(decoder_width, config.latent_dim)
        self.from_latent = Linear(config.latent_dim, self.num_tokens * decoder_width)

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        tokens_BTD = super().write(memory, state, noise).tokens_BTD
        z_BZ, mu_BZ, logvar_BZ = self.latent(rms_norm(tokens_BTD.mean(1)), noise)
        tokens_BTD = rearrange(self.from_latent(z_BZ), "b (t d) -> b t d", t=self.num_tokens)
        kl_B = kl_to_unit_normal(mu_BZ.detach(), logvar_BZ.detach(), 0.0)
        losses = {"kl": kl_to_unit_normal(mu_BZ, logvar_BZ, self.free_bits)}
        return TaskContext(rms_norm(tokens_BTD), aux_losses=losses, kl_B=kl_B)
