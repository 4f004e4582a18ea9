"""Sequences of different lengths laid end to end, and attention within each of them: no cell is spent on padding.

    packing = Packing.of(used_NL)                  # which of N x L cells are tokens
    x_TD = x_NLD.flatten(0, 1)[packing.cell_T]     # all tokens, sequence after sequence
    mixed_THC = attend(q_THC, k_THC, v_THC, packing)

On a GPU attention is torch.nn.attention.varlen (half precision only); on a CPU it is torch's dense one, sequence by sequence:
the reference, right in fp32. Shapes: N sequences, L cells of each, T tokens of all of them, P tokens of the longest, H heads, C
channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from arclab.config.encoder_schema import DemoAttention

_HALF = (torch.bfloat16, torch.float16)
# What the kernel takes: heads of up to 256 channels in steps of 8, on GPUs since Ampere.
_MAX_CHANNELS, _CHANNEL_STEP, _MIN_CAPABILITY = 256, 8, (8, 0)


@dataclass(slots=True)
class Packing:
    """starts_N: (N + 1,) int32, where each sequence begins, with T at the end. longest: P. cell_T: which of the N * L cells a
    token is; slot_T: which of the N * P cells of padded()."""

    starts_N: Tensor
    longest: int
    cell_T: Tensor
    slot_T: Tensor

    @classmethod
    def of(cls, used_NL: Tensor) -> Packing:
        """Costs one synchronisation with the device: how many tokens there are."""
        length_N, used = used_NL.sum(1), used_NL.flatten()
        total, longest = torch.stack([length_N.sum(), length_N.amax()]).tolist()
        # As nonzero(), which would wait for the device once more: unused cells all go to a place behind the tokens.
        place = torch.where(used, used.cumsum(0) - 1, total)
        cells = torch.arange(len(used), device=used.device)
        cell_T = cells.new_empty(total + 1).scatter_(0, place, cells)[:total]
        end_N = length_N.cumsum(0)
        row_T = cell_T // used_NL.shape[1]
        slot_T = torch.arange(total, device=used.device) - (end_N - length_N)[row_T] + row_T * longest
        return cls(F.pad(end_N, (1, 0)).to(torch.int32), longest, cell_T, slot_T)

    def padded(self, x_T: Tensor) -> Tensor:
        """(T, ...) -> (N, P, ...), every sequence from the front of its row, zeros behind it."""
        num_rows = len(self.starts_N) - 1
        cells = x_T.new_zeros(num_rows * self.longest, *x_T.shape[1:])
        return cells.index_copy(0, self.slot_T, x_T).unflatten(0, (num_rows, self.longest))

    def used(self) -> Tensor:
        """(N, P): which cells of padded() are tokens."""
        return torch.arange(self.longest, device=self.starts_N.device) < self.starts_N.diff()[:, None]


def attend(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, packing: Packing) -> Tensor:
    """(T, H, C): every token attends to all tokens of its own sequence."""
    if not q_THC.is_cuda:
        return attend_one_by_one(q_THC, k_THC, v_THC, packing)
    from torch.nn.attention.varlen import varlen_attn

    # The kernel wants rows of one stride: q and k are new tensors after rotation, v is a view into the fused projection.
    starts, longest = packing.starts_N, packing.longest
    mixed = varlen_attn(q_THC.contiguous(), k_THC.contiguous(), v_THC.contiguous(), starts, starts, longest, longest)
    assert isinstance(mixed, Tensor)
    return mixed


def dense_attention(q_BHQC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's attention. On a CPU in fp32 whatever it is given: the backward of its half-precision kernel is about ten times
    slower there."""
    dtype = q_BHQC.dtype
    if q_BHQC.is_cpu and dtype is not torch.float32:
        q_BHQC, k_BHKC, v_BHKC = q_BHQC.float(), k_BHKC.float(), v_BHKC.float()
    return F.scaled_dot_product_attention(q_BHQC, k_BHKC, v_BHKC, attn_mask=mask).to(dtype)


def attend_one_by_one(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, packing: Packing) -> Tensor:
    lengths = packing.starts_N.diff().tolist()
    parts = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q_THC, k_THC, v_THC)), strict=True)
    return torch.cat([dense_attention(q[None], k[None], v[None])[0] for q, k, v in parts], dim=1).transpose(0, 1)


def is_varlen(choice: DemoAttention, device: torch.device, dtype: torch.dtype, num_channels: int) -> bool:
    """Whether demonstrations are laid end to end. ValueError where that was asked for and the GPU's kernel cannot do it."""
    if choice is DemoAttention.dense or device.type == "cpu":
        return choice is DemoAttention.varlen
    fits = num_channels <= _MAX_CHANNELS and num_channels % _CHANNEL_STEP == 0
    can = fits and dtype in _HALF and torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY
    if choice is DemoAttention.varlen and not can:
        raise ValueError(
            f"encoder.demo_attention=varlen needs trainer.precision=bf16, heads of up to {_MAX_CHANNELS} channels in steps of "
            f"{_CHANNEL_STEP} and a GPU of capability 8.0, but got {dtype}, {num_channels} channels and "
            f"{torch.cuda.get_device_name(device)}; use auto or dense."
        )
    return can
