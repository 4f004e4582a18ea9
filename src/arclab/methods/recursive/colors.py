"""Colours that share their weights (decoder.color_embedding): what a colour is to the model is an identity vector, drawn anew.

free            every colour has a vector of its own in each embedding and a row of its own in the output head (published TRM)
shared          a colour's vector is one shared vector plus a shared linear map of the colour's identity; its logit is the
                product of the state with such a vector. Encoder and decoder of a row read the same identities.
shared_nonzero  as shared, but colour 0, the background of most tasks, keeps a vector and a row of its own

Identities of a row are orthonormal: the columns of a random rotation. In training a row draws them when it enters the batch and
keeps them until it halts; together with a random order of the colours, in which the model sees its grids from then on (for what
has a place for each colour: encoder.pooling=colors). Evaluation has one fixed draw, the unit vectors, so that a result does not
depend on which rows are computed together. A puzzle table has that draw in training too: its vector of a puzzle says which
colours are meant, and could not if they were somebody else at every visit.

What is exact: permute the colours of all grids of a row and its identities along, and the logits are permuted, up to rounding
(tests/methods/recursive/test_colors.py). With encoder.pooling=colors this needs the order of the colours to go along too. What
is not: with identities that stay, other colours are other inputs. The model is equivariant in distribution, over what training
draws, and it has to learn from the draws that no direction of an identity means anything. "Symbol-Equivariant Recurrent
Reasoning Models" (arXiv 2603.02193) has a state for every colour and layers shared over them instead: exact for any colours,
at the cost of a state ten times as large. Nothing of its code is used here.
Shapes: B rows, G groups of tokens with identities of their own (rows, or demonstrations), C colours that share, V tokens (12).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arclab.config.schema import ColorEmbedding
from arclab.data.codec import FIRST_COLOR, VOCAB_SIZE
from arclab.data.sampler import Batch
from arclab.methods.recursive.layers import Embedding, truncated_normal

# Of the power of a colour's vector at the start, what tells it from other colours.
_IDENTITY_SHARE = 0.5


def first_shared(kind: ColorEmbedding) -> int:
    """The first token whose vector comes from an identity; those before it have vectors of their own."""
    return FIRST_COLOR + (1 if kind is ColorEmbedding.shared_nonzero else 0)


class SharedEmbedding(nn.Module):
    """num_tables tables of the 12 tokens, of the deviation of Embedding; within each the colours share their weights."""

    def __init__(self, kind: ColorEmbedding, width: int, num_tables: int = 1) -> None:
        super().__init__()
        first, std = first_shared(kind), 1.0 / math.sqrt(width)
        self.num_colors = VOCAB_SIZE - first
        self.own = nn.Parameter(truncated_normal((num_tables, first, width), std))
        self.color = nn.Parameter(truncated_normal((num_tables, 1, width), std * math.sqrt(1 - _IDENTITY_SHARE)))
        size = (num_tables, self.num_colors, width)
        self.from_identity = nn.Parameter(truncated_normal(size, std * math.sqrt(_IDENTITY_SHARE)))

    def tables(self, dtype: torch.dtype, identities_GCC: Tensor | None) -> Tensor:
        """(G, tables * V, D); G is 1 without identities, which then are the unit vectors."""
        if identities_GCC is None:
            colors_GTCD = (self.color + self.from_identity)[None]
        else:
            colors_GTCD = self.color + torch.einsum("gci,tid->gtcd", identities_GCC.to(self.color.dtype), self.from_identity)
        own_GTVD = self.own.expand(len(colors_GTCD), -1, -1, -1)
        return torch.cat([own_GTVD, colors_GTCD], dim=2).flatten(1, 2).to(dtype)

    def forward(self, tokens: Tensor, dtype: torch.dtype, identities_GCC: Tensor | None, group: Tensor | None = None) -> Tensor:
        """(..., D) of (...) tokens of the first table; group: which identities each token has, else G is its first axis."""
        tables = self.tables(dtype, identities_GCC)
        return F.embedding(tokens.long() + group_offset(tables, tokens, group), tables.flatten(0, 1))


def group_offset(tables_GVD: Tensor, tokens: Tensor, group: Tensor | None) -> Tensor | int:
    """What to add to tokens that look into the tables of all groups laid end to end."""
    num_groups, size = tables_GVD.shape[:2]
    if num_groups == 1:
        return 0
    if group is None:
        group = torch.arange(num_groups, device=tokens.device)
    return (size * group).view(-1, *[1] * (tokens.dim() - 1))


class TokenEmbedding(Embedding):
    """num_tables tables of the 12 tokens in one, with the interface of SharedEmbedding; it has no identities."""

    def __init__(self, width: int, num_tables: int = 1) -> None:
        super().__init__(num_tables * VOCAB_SIZE, width)

    def tables(self, dtype: torch.dtype, identities_GCC: Tensor | None) -> Tensor:
        assert identities_GCC is None
        return self.weight.to(dtype)[None]

    def forward(
        self, tokens: Tensor, dtype: torch.dtype, identities_GCC: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        assert identities_GCC is None
        return super().forward(tokens, dtype)


def token_embedding(kind: ColorEmbedding, width: int, num_tables: int = 1) -> TokenEmbedding | SharedEmbedding:
    free = kind is ColorEmbedding.free
    return TokenEmbedding(width, num_tables) if free else SharedEmbedding(kind, width, num_tables)


def draw_identities(kind: ColorEmbedding, num_rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rotations (B, C, C) with the identity of each colour as a row, and the colour (0 to 9) that each of the ten is shown as
    (B, 10))."""
    kept, num_colors = first_shared(kind) - FIRST_COLOR, VOCAB_SIZE - first_shared(kind)
    normal = torch.randn(num_rows, num_colors, num_colors, generator=noise, device=noise.device)
    rotation, triangle = torch.linalg.qr(normal)
    # The sign that makes the distribution uniform: without it the factors are those of a triangle with any diagonal.
    identities_BCC = rotation * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]
    order = torch.rand(num_rows, num_colors, generator=noise, device=noise.device).argsort(1) + kept
    return identities_BCC, torch.cat([torch.arange(kept, device=order.device).expand(num_rows, -1), order], dim=1)


def shown_as(batch: Batch, colors_BC: Tensor) -> Batch:
    """The rows with colour c of every grid replaced by colors_BC[:, c] (B, 10)."""
    kept = torch.arange(FIRST_COLOR, device=colors_BC.device).expand(len(colors_BC), -1)
    token_BV = torch.cat([kept, colors_BC + FIRST_COLOR], dim=1)

    def shown(tokens: Tensor) -> Tensor:
        return token_BV.gather(1, tokens.flatten(1).long()).view_as(tokens).to(tokens.dtype)

    return replace(
        batch, inputs_BS=shown(batch.inputs_BS), labels_BS=shown(batch.labels_BS),
        demo_inputs_BKS=shown(batch.demo_inputs_BKS), demo_outputs_BKS=shown(batch.demo_outputs_BKS),
    )  # fmt: skip
