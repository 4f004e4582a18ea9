"""The latent of a search: what an encoder hands to the decoder, and an offset that is added to it.

    start = encoder_latent(model, demonstrations, shown_BK)      # before anything is searched
    reading = start.reading(model, offset)                       # what the decoder reads

It is the context tokens, before the adapter's gain, of every kind of encoder. Beside them
in_context              the tokens of the demonstrations that stand in the decoder's own sequence, which carry the task there
recurrent, recurrent_trm    nothing: they write other context tokens at every supervision step, and the offset is added to
                        each of these (the state itself would not do: the last cycle alone carries gradient in recurrent_trm)
Variational encoders are searched behind their latent vector, whose mean they use here as in any evaluation.
An offset is fp32 and in units of the root mean square of what it is added to. Shapes: B rows, T context tokens, M memory
tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arclab.data.sampler import Batch
from arclab.methods.recursive.encoders import Demonstrations, Memory
from arclab.methods.recursive.model import Reading, RecursiveModel


@dataclass(slots=True)
class Offset:
    """tokens_BTD for the context tokens; memory_BMD for the memory tokens, where there are any."""

    tokens_BTD: Tensor
    memory_BMD: Tensor | None = None

    @property
    def parts(self) -> list[Tensor]:
        return [self.tokens_BTD] if self.memory_BMD is None else [self.tokens_BTD, self.memory_BMD]

    @classmethod
    def of(cls, parts: list[Tensor]) -> Offset:
        return cls(*parts)

    def rows(self, index_R: Tensor) -> Offset:
        return Offset.of([part[index_R] for part in self.parts])


@dataclass(slots=True)
class Latent:
    """tokens_BTD: context tokens (of an encoder with a state: those of its first step); memory: what stands in the decoder's
    sequence; source: what an encoder with a state writes from, (memory, state), else None. unit_B and memory_unit_B: the root
    mean square of their numbers. identities_BCC: of the rows' colours (see model.Carry); None in evaluation."""

    num_demos: int
    tokens_BTD: Tensor
    memory: Memory | None
    source: tuple[Memory, Tensor] | None
    unit_B: Tensor
    memory_unit_B: Tensor | None
    identities_BCC: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens_BTD)

    def rows(self, index_R: Tensor) -> Latent:
        memory = self.memory and _rows(self.memory, index_R)
        source = None if self.source is None else (_rows(self.source[0], index_R), self.source[1][index_R])
        unit = None if self.memory_unit_B is None else self.memory_unit_B[index_R]
        identities = None if self.identities_BCC is None else self.identities_BCC[index_R]
        return Latent(self.num_demos, self.tokens_BTD[index_R], memory, source, self.unit_B[index_R], unit, identities)

    def offset(self) -> Offset:
        """Zeros."""
        memory = None if self.memory is None else torch.zeros_like(self.memory.tokens_BMD, dtype=torch.float32)
        return Offset(torch.zeros_like(self.tokens_BTD, dtype=torch.float32), memory)

    def replaced(self, other: Offset) -> Latent:
        """Of the same size, but these numbers, in its units, in the place of what was read; nothing is read at later steps."""
        memory = self.memory
        if memory is not None:
            assert other.memory_BMD is not None and self.memory_unit_B is not None
            memory = Memory(_scaled(other.memory_BMD, self.memory_unit_B).to(memory.tokens_BMD.dtype), memory.mask_BM)
        tokens = _scaled(other.tokens_BTD, self.unit_B).to(self.tokens_BTD.dtype)
        return replace(self, tokens_BTD=tokens, memory=memory, source=None)

    def reading(self, model: RecursiveModel, offset: Offset, like: Latent) -> Reading:
        """What the decoder reads of these rows moved by the offset, in the units of `like`."""
        identities = self.identities_BCC
        if self.source is not None:
            memory, state = self.source
            moved_BTD = _scaled(offset.tokens_BTD, like.unit_B)
            return Reading(self.num_demos, memory=memory, state_BXD=state, offset_BTD=moved_BTD, identities_BCC=identities)
        tokens_BTD, memory = moved_by(model, self.tokens_BTD, self.memory, offset, like)
        assert model.adapter is not None
        prefix_BPD = model.adapter(tokens_BTD)
        return Reading(self.num_demos, prefix_BPD=prefix_BPD, memory=memory, identities_BCC=identities)


def moved_by(
    model: RecursiveModel, tokens_BTD: Tensor, memory: Memory | None, offset: Offset, like: Latent
) -> tuple[Tensor, Memory | None]:
    """Context tokens, and tokens in the decoder's sequence where there are any, moved by the offset in the units of `like`."""
    if memory is not None:
        assert offset.memory_BMD is not None and like.memory_unit_B is not None
        moved_BMD = model.moved(memory.tokens_BMD, _scaled(offset.memory_BMD, like.memory_unit_B))
        memory = Memory(moved_BMD, memory.mask_BM)
    return model.moved(tokens_BTD, _scaled(offset.tokens_BTD, like.unit_B)), memory


def _rows(memory: Memory, index_R: Tensor) -> Memory:
    return Memory(memory.tokens_BMD[index_R], memory.mask_BM[index_R])


def _scaled(x_BTD: Tensor, unit_B: Tensor) -> Tensor:
    return x_BTD * unit_B[:, None, None]


@torch.no_grad()
def encoder_latent(model: RecursiveModel, data: Batch, shown_BK: Tensor, identities_BCC: Tensor | None = None) -> Latent:
    """Of rows of demonstrations, of which those in shown_BK are read."""
    encoder, dtype = model.encoder, model.decoder.dtype
    assert encoder is not None
    demos = Demonstrations.select(data, shown_BK, identities_BCC)
    read, state = encoder.read(demos, dtype), encoder.state_for(demos, dtype)
    context = encoder.write(read, state, None)
    memory, tokens_BTD = context.memory, context.tokens_BTD
    memory_unit_B = None
    if memory is not None:
        count_B = memory.mask_BM.sum(1) * memory.tokens_BMD.shape[2]
        squares_BMD = memory.tokens_BMD.float().square() * memory.mask_BM[..., None]
        memory_unit_B = (squares_BMD.sum((1, 2)) / count_B).sqrt()
    num_demos = data.demo_inputs_BKS.shape[1] if encoder.memory_positions is not None else 0
    unit_B = tokens_BTD.float().square().mean((1, 2)).sqrt()
    source = None if state is None else (read, state)
    return Latent(num_demos, tokens_BTD, memory, source, unit_B, memory_unit_B, identities_BCC)


def whole_latent(model: RecursiveModel, data: Batch, identities_BCC: Tensor | None = None) -> Latent:
    """Of rows of which every demonstration is read."""
    slots = torch.arange(data.demo_inputs_BKS.shape[1], device=data.num_demos_B.device)
    return encoder_latent(model, data, slots[None] < data.num_demos_B[:, None], identities_BCC)
