"""What every encoder takes and gives.

An encoder works in two stages: read() turns the demonstrations into a memory, write() turns the memory into context tokens.
Reading needs no state, so evaluation reads once per query; an encoder with its own recurrent state writes at every step.
Shapes: B rows, K demonstration slots, S canvas cells, N valid demonstrations of the whole batch (packed), M memory tokens of
a row, T context tokens, D width. Encoders work on the N packed demonstrations, so that an empty slot costs nothing and
cannot leak into a result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from arclab.data.sampler import Batch


@dataclass(slots=True)
class Demonstrations:
    """The valid demonstrations of a batch, packed: inputs_NS and outputs_NS uint8 tokens, and their place (B, K): as a mask,
    and which of the B * K slots each has. identities_NCC: of their rows' colours (see arclab.methods.recursive.colors)."""

    inputs_NS: Tensor
    outputs_NS: Tensor
    valid_BK: Tensor
    slot_N: Tensor
    identities_NCC: Tensor | None = None

    @classmethod
    def from_batch(cls, batch: Batch, identities_BCC: Tensor | None = None) -> Demonstrations:
        slots = torch.arange(batch.demo_inputs_BKS.shape[1], device=batch.num_demos_B.device)
        return cls.select(batch, slots[None] < batch.num_demos_B[:, None], identities_BCC)

    @classmethod
    def select(cls, batch: Batch, valid_BK: Tensor, identities_BCC: Tensor | None = None) -> Demonstrations:
        """Only the demonstrations in `valid_BK`, which must all be real ones."""
        # Numbers instead of the mask: every indexing with a mask would wait for the device, to learn how many there are.
        slot_N = valid_BK.flatten().nonzero()[:, 0]
        inputs_NS, outputs_NS = (
            x_BKS.flatten(0, 1).index_select(0, slot_N) for x_BKS in (batch.demo_inputs_BKS, batch.demo_outputs_BKS)
        )
        demos = cls(inputs_NS, outputs_NS, valid_BK, slot_N)
        demos.identities_NCC = None if identities_BCC is None else identities_BCC.index_select(0, demos.row_N)
        return demos

    @property
    def row_N(self) -> Tensor:
        """The row that each belongs to."""
        return self.slot_N // self.valid_BK.shape[1]

    def unpack(self, x_ND: Tensor) -> Tensor:
        """(N, ...) -> (B, K, ...), zeros in empty slots."""
        slots = x_ND.new_zeros(self.valid_BK.numel(), *x_ND.shape[1:])
        return slots.index_copy(0, self.slot_N, x_ND).unflatten(0, self.valid_BK.shape)

    def unpack_tokens(self, x_NMD: Tensor, present_NM: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, D) tokens of each demonstration and which of them count -> (tokens (B, K * M, D), mask (B, K * M))."""
        tokens_BMD = rearrange(self.unpack(x_NMD), "b k m d -> b (k m) d")
        return tokens_BMD, rearrange(self.unpack(present_NM), "b k m -> b (k m)")


@dataclass(slots=True)
class Memory:
    """What was read: tokens_BMD and a mask of the real ones (B, M), at least one a row."""

    tokens_BMD: Tensor
    mask_BM: Tensor


@dataclass(slots=True)
class TaskContext:
    """tokens (B, T, D) of unit RMS for the prefix; memory: tokens that join the decoder's own sequence, or None.

    aux_losses: name -> (B,) losses, to be weighted by the trainer. kl_B: the KL itself, without free bits. state: the encoder's
    next state, with gradient; the carry keeps a detached copy.
    """

    tokens_BTD: Tensor
    memory: Memory | None = None
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None
    kl_B: Tensor | None = None

    @property
    def summary_BTD(self) -> Tensor:
        """What differs between tasks: the context tokens, or the mean of the memory where that carries the task."""
        if self.memory is None:
            return self.tokens_BTD
        weight_BM = self.memory.mask_BM / self.memory.mask_BM.sum(1, keepdim=True)
        return torch.einsum("bm,bmd->bd", weight_BM.to(self.memory.tokens_BMD.dtype), self.memory.tokens_BMD)[:, None]


class TaskEncoder(nn.Module):
    """read(demonstrations) -> Memory; write(memory, state, noise) -> TaskContext. Every row has at least one demonstration.

    noise: generator for sampling encoders in training; None (evaluation) means the mean. memory_positions: rotary positions of
    one demonstration's tokens in the decoder's sequence, for encoders that put them there.
    """

    memory_positions: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory_positions", None, persistent=False)

    def read(self, demos: Demonstrations, dtype: torch.dtype) -> Memory:
        raise AssertionError("an encoder defines read")

    def write(self, memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        raise AssertionError("an encoder defines write")

    def forward(
        self, demos: Demonstrations, dtype: torch.dtype, state: Tensor | None = None, noise: torch.Generator | None = None
    ) -> TaskContext:
        return self.write(self.read(demos, dtype), self.state_for(demos, dtype) if state is None else state, noise)

    def start_state(self) -> Tensor | None:
        """(X, D): where a row's state begins, for an encoder with a state of its own; else None."""
        return None

    def state_for(self, demos: Demonstrations, dtype: torch.dtype) -> Tensor | None:
        """The start state for every row."""
        start = self.start_state()
        return None if start is None else start.to(dtype).expand(len(demos.valid_BK), -1, -1)
