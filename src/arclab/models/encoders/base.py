"""What every encoder takes and gives.

Shapes: B rows, K demonstration slots, S canvas cells, N valid demonstrations of the whole batch (packed), T context tokens,
D width. Encoders work on the N packed demonstrations, so that an empty slot costs nothing and cannot leak into a result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from arclab.data.sampler import Batch


@dataclass(slots=True)
class Demonstrations:
    """The valid demonstrations of a batch, packed: inputs_NS and outputs_NS uint8 tokens, and their place (B, K) as a mask."""

    inputs_NS: Tensor
    outputs_NS: Tensor
    valid_BK: Tensor

    @classmethod
    def from_batch(cls, batch: Batch) -> Demonstrations:
        slots = torch.arange(batch.demo_inputs_BKS.shape[1], device=batch.num_demos_B.device)
        valid_BK = slots[None] < batch.num_demos_B[:, None]
        return cls(batch.demo_inputs_BKS[valid_BK], batch.demo_outputs_BKS[valid_BK], valid_BK)

    def unpack(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (B, K, ...), zeros in empty slots."""
        x_BKD = x_ND.new_zeros(*self.valid_BK.shape, *x_ND.shape[1:])
        x_BKD[self.valid_BK] = x_ND
        return x_BKD


@dataclass(slots=True)
class TaskContext:
    """tokens (B, T, D) of unit RMS; aux_losses: name -> (B,) losses to be weighted by the trainer."""

    tokens_BTD: Tensor
    aux_losses: dict[str, Tensor] = field(default_factory=dict)


class TaskEncoder(nn.Module):
    """forward(demonstrations, dtype) -> TaskContext. Every row must have at least one demonstration."""

    def forward(self, demos: Demonstrations, dtype: torch.dtype) -> TaskContext:
        raise AssertionError("an encoder defines forward")
