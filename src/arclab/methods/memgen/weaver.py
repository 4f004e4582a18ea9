"""The weaver: what it asks, what it has read, and how what it answers becomes embeddings of the reasoner.

    weaver = Weaver(
        WeaverSizes(prompt=8, inference=8), 64, 64, embedding_rms=0.02, query_rms=0.02, seed=0, reads_reasoner=False
    )
    queries_BND, valid_BN = weaver.queries(kind_B)
    latents_BND = weaver.to_reasoner(hidden_BND)

The weaver's language model reads embeddings of the reasoner (through to_weaver), then the queries; its last states at the
queries become latents: normalised, projected, and scaled to the size of an embedding. Where both models have one width the
projections begin as the identity. The LoRA adapter is not here: see arclab.lm.switched. Source: MemGen, arXiv 2509.24704,
with a scaled output, which the published code lacks.

Shapes: B rows, C columns read so far, W columns of a chunk, N latents, D width of the reasoner, E of the weaver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arclab.methods.memgen.insertions import INFERENCE, PROMPT

Pass = Callable[..., Tensor]  # (embeds, mask, positions, cache) -> last hidden states


@dataclass(frozen=True, slots=True)
class WeaverSizes:
    """Latents of an insertion at the end of a prompt, and inside an answer."""

    prompt: int
    inference: int

    @property
    def of_kind(self) -> dict[int, int]:
        return {PROMPT: self.prompt, INFERENCE: self.inference}


class Weaver(nn.Module):
    """seed decides all weights; nothing else is drawn. embedding_rms: root mean square of the reasoner's embeddings; the
    queries begin with the size query_rms, that of the weaver's own. reads_reasoner: the context is the reasoner's own, and
    there is nothing to project on the way in."""

    def __init__(
        self, sizes: WeaverSizes, reasoner_width: int, weaver_width: int, *, embedding_rms: float, query_rms: float, seed: int,
        reads_reasoner: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes = sizes
        generator = torch.Generator().manual_seed(seed)
        self.prompt_queries = nn.Parameter(query_rms * torch.randn(sizes.prompt, weaver_width, generator=generator))
        self.inference_queries = nn.Parameter(query_rms * torch.randn(sizes.inference, weaver_width, generator=generator))
        self.to_weaver = None if reads_reasoner else _projection(reasoner_width, weaver_width, generator)
        self.from_weaver = _projection(weaver_width, reasoner_width, generator)
        self.gain = nn.Parameter(torch.tensor(embedding_rms))

    def queries(self, kind_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, E), and which of them are real (B, N): a row whose kind has fewer has them on the right."""
        present = kind_B.unique().tolist()
        num = max((self.sizes.of_kind.get(kind, 0) for kind in present), default=0)
        queries_BNE = self.prompt_queries.new_zeros(len(kind_B), num, self.prompt_queries.shape[1])
        valid_BN = torch.zeros(len(kind_B), num, dtype=torch.bool, device=kind_B.device)
        for kind, own_NE in ((PROMPT, self.prompt_queries), (INFERENCE, self.inference_queries)):
            rows = (kind_B == kind).nonzero()[:, 0]
            if kind in present and len(own_NE):
                queries_BNE[rows, num - len(own_NE) :] = own_NE
                valid_BN[rows, num - len(own_NE) :] = True
        return queries_BNE, valid_BN

    def to_reasoner(self, hidden_BNE: Tensor) -> Tensor:
        """Latents (B, N, D): a mean square of gain**2 in each where the projection is the identity."""
        hidden_BNE = hidden_BNE.to(self.gain.dtype)
        scale_BN1 = hidden_BNE.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return self.gain * self.from_weaver(hidden_BNE * scale_BN1)


def _projection(width_in: int, width_out: int, generator: torch.Generator) -> nn.Linear:
    """The identity, or where the widths differ random orthogonal rows or columns. The bias is zero."""
    with torch.random.fork_rng(devices=[]):  # what Linear draws itself is replaced
        layer = nn.Linear(width_in, width_out)
    with torch.no_grad():
        layer.bias.zero_()
        if width_in == width_out:
            nn.init.eye_(layer.weight)
        else:
            nn.init.orthogonal_(layer.weight, generator=generator)
    return layer


class WeaverContext:
    """What the weaver has read of a batch: a cache in which every column is computed once. Queries are read and taken out
    again.

    read: the pass over the context (embeddings of the reasoner in). ask: the pass over queries. A pass that is given a cache
    adds what it reads to it."""

    def __init__(self, weaver: Weaver, read: Pass, ask: Pass, cache: Any, mask_BC: Tensor) -> None:
        self._weaver, self._read, self._ask = weaver, read, ask
        self.cache, self.mask_BC = cache, mask_BC

    def read(self, embeds_BWD: Tensor, mask_BW: Tensor, position_BW: Tensor) -> None:
        """Add columns to the context. mask_BW: False where a row has nothing."""
        self.mask_BC = torch.cat([self.mask_BC, mask_BW.long()], dim=1)
        self._read(embeds_BWD, self.mask_BC, position_BW, self.cache)

    def ask(self, kind_B: Tensor, next_position_B: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, N, D) for the rows that have a kind, and which of them are real (B, N); the context stays as it is."""
        queries_BNE, valid_BN = self._weaver.queries(kind_B)
        num = queries_BNE.shape[1]
        place_BN = torch.arange(num, device=kind_B.device) - (num - valid_BN.sum(1, keepdim=True))
        position_BN = (next_position_B[:, None] + place_BN).clamp(min=0)
        mask_BT = torch.cat([self.mask_BC, valid_BN.long()], dim=1)
        hidden_BNE = self._ask(queries_BNE, mask_BT, position_BN, self.cache)
        self.cache.crop(-num)
        return self._weaver.to_reasoner(hidden_BNE), valid_BN
