"""Building blocks shared by the decoder and the encoders: fp32 weights that are cast to the activation's dtype at use.

Shapes: B rows, L sequence, D width, H heads, C channels of a head, Q queries, K keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from arclab.config.schema import AttentionKernel
from arclab.methods.recursive.varlen import Packing, attend, dense_attention

RMS_EPS = 1e-5
ROPE_THETA = 10000.0
# Standard deviation of a unit normal truncated at +-2; dividing by it makes the true deviation the requested one.
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal(shape: tuple[int, ...], std: float) -> Tensor:
    """A normal truncated at two of its own deviations, rescaled so that the samples' deviation is `std` (as in JAX)."""
    return nn.init.trunc_normal_(torch.empty(shape), a=-2.0, b=2.0) * (std / _TRUNCATED_STD)


def rms_norm(x_BLD: Tensor) -> Tensor:
    """Unit root mean square over the last axis, without a weight, computed in fp32."""
    x = x_BLD.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS)).to(x_BLD.dtype)


class Linear(nn.Module):
    """x @ weight.T, weight (out, in) drawn with deviation 1/sqrt(in)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        num_out, num_in = self.weight.shape
        self.weight.copy_(truncated_normal((num_out, num_in), 1.0 / math.sqrt(num_in)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """A (num_tokens, D) lookup in the given dtype, drawn with deviation 1/sqrt(D)."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(truncated_normal((num_tokens, width), 1.0 / math.sqrt(width)))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(tokens.long(), self.weight.to(dtype))


def mlp_width(width: int, expansion: float) -> int:
    """Inner width of a SwiGLU: two thirds of expansion * width, rounded up to a multiple of 256."""
    return -(-round(expansion * width * 2 / 3) // 256) * 256


class SwiGLU(nn.Module):
    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = mlp_width(width, expansion)
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def rope_tables(positions_L: Tensor, head_width: int) -> Tensor:
    """(2, L, 1, C) fp32: cos and sin for rotary positions, halves paired."""
    frequency = 1.0 / ROPE_THETA ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angle = torch.outer(positions_L.float(), frequency)
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x_BLHC: Tensor, rope: Tensor) -> Tensor:
    """Rotary position embedding in fp32 (channel i is paired with channel i + C/2)."""
    x = x_BLHC.float()
    first, second = x.chunk(2, dim=-1)
    return (x * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]).to(x_BLHC.dtype)


def load_flash_attention() -> Any:
    """flash_attn_func(q, k, v) on (B, L, H, C). ValueError with the remedy if the optional package is not installed."""
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"decoder.attention=flash needs the package flash-attn, which does not import here ({error}); install it on a CUDA "
            "machine with pip install '.[flash]', or use decoder.attention=sdpa."
        ) from error
    return flash_attn_func


class SelfAttention(nn.Module):
    """Full attention with one fused projection (order q, k, v; heads contiguous) and no biases."""

    def __init__(
        self, width: int, num_heads: int, kernel: AttentionKernel = AttentionKernel.sdpa, *, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.qk_norm = num_heads, qk_norm
        self.flash = load_flash_attention() if kernel is AttentionKernel.flash else None
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x_BLD: Tensor, rope: Tensor | None, key_mask_BL: Tensor | Packing | None = None) -> Tensor:
        """key_mask_BL: True where a key may be attended to; every row needs at least one. With a packing instead, x is (T, D)
        and rope that of every token."""
        if isinstance(key_mask_BL, Packing):
            return self.out(rearrange(attend(*self._heads(x_BLD, rope), key_mask_BL), "t h c -> t (h c)"))
        q, k, v = self._heads(x_BLD, rope)
        if self.flash is not None and key_mask_BL is None:
            return self.out(rearrange(self.flash(q, k, v), "b l h c -> b l (h c)"))
        mask = None if key_mask_BL is None else key_mask_BL[:, None, None, :]
        q, k, v = (rearrange(x, "b l h c -> b h l c") for x in (q, k, v))
        return self.out(rearrange(dense_attention(q, k, v, mask), "b h l c -> b l (h c)"))

    def _heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., H, C) of (..., D)."""
        q, k, v = rearrange(self.qkv(x), "... (qkv h c) -> qkv ... h c", qkv=3, h=self.num_heads)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v


class CrossAttention(nn.Module):
    """Queries attend to a masked set of keys; no positions, so the order of the set does not matter."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x_BQD: Tensor, set_BKD: Tensor, key_mask_BK: Tensor) -> Tensor:
        q = rearrange(self.query(x_BQD), "b q (h c) -> b h q c", h=self.num_heads)
        k, v = rearrange(self.key_value(set_BKD), "b k (kv h c) -> kv b h k c", kv=2, h=self.num_heads)
        mixed = dense_attention(q, k, v, key_mask_BK[:, None, None, :])
        return self.out(rearrange(mixed, "b h q c -> b q (h c)"))


class Recomputable(nn.Module):
    """A block that defines compute(). With recompute set, a training step keeps its inputs alone, and the backward pass
    computes the rest again: the same operations on the same numbers. Nothing in a block may be random."""

    recompute = False
    compute: Callable[..., Tensor]

    def forward(self, *args: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            kept = checkpoint(self.compute, *args, use_reentrant=False, preserve_rng_state=False)
            assert isinstance(kept, Tensor)
            return kept
        return self.compute(*args)


class Block(Recomputable):
    """Post-norm transformer block: x = rms(x + attention(x)); x = rms(x + swiglu(x)).

    With num_positions set, attention is replaced by a SwiGLU over positions (the mlp_t variant), which fixes the length.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        expansion: float,
        num_positions: int | None = None,
        kernel: AttentionKernel = AttentionKernel.sdpa,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, kernel) if num_positions is None else None
        self.mlp_t = SwiGLU(num_positions, expansion) if num_positions is not None else None
        self.mlp = SwiGLU(width, expansion)

    def compute(self, x_BLD: Tensor, rope: Tensor | None, key_mask_BL: Tensor | None = None) -> Tensor:
        if self.mlp_t is not None:
            x_BDL = x_BLD.transpose(1, 2)
            x_BLD = rms_norm(x_BDL + self.mlp_t(x_BDL)).transpose(1, 2)
        else:
            assert self.attention is not None
            x_BLD = rms_norm(x_BLD + self.attention(x_BLD, rope, key_mask_BL))
        return rms_norm(x_BLD + self.mlp(x_BLD))
