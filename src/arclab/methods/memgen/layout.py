"""Where the tokens and latents of a batch stand once memory is in it: index arithmetic, no model.

    layout = Layout(plan_BL, mask_BL, num_latents={PROMPT: 8, INFERENCE: 8})
    for event in layout.events: ...            # the first insertion of every row, then the second, ...
    hidden_BLD = layout.aligned(hidden_BTD)    # the state that predicts the token after each token

A row of L tokens with k insertions takes L + k n columns. Padding may stand on either side.

Shapes: B rows, L tokens (padding included), T columns, W columns of a chunk, N latents of an event, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from arclab.methods.memgen.insertions import NONE


@dataclass(frozen=True, slots=True)
class Event:
    """The insertions of one round, at most one in a row. kind_B: NONE where a row has none. columns_BW, chunk_mask_BW: what
    stands before it and after the row's last event, on the right of the chunk. latent_columns_BN, latent_mask_BN: where its
    latents go, also on the right."""

    kind_B: Tensor
    columns_BW: Tensor
    chunk_mask_BW: Tensor
    latent_columns_BN: Tensor
    latent_mask_BN: Tensor


class Layout:
    """mask_BT: which columns hold something. position_BT: the position of each, padding 0. columns_BL: where tokens stand."""

    def __init__(self, plan_BL: Tensor, mask_BL: Tensor, num_latents: Mapping[int, int]) -> None:
        B, L = plan_BL.shape
        sizes = torch.tensor([num_latents.get(kind, 0) for kind in range(3)], device=plan_BL.device)
        self._plan_BL = torch.where(mask_BL.bool(), plan_BL, NONE)
        size_BL = sizes[self._plan_BL]
        before_BL = size_BL.cumsum(1) - size_BL
        self.columns_BL = torch.arange(L, device=plan_BL.device) + before_BL
        num_columns = L + int(size_BL.sum(1).max()) if B else L
        self._predicting_BL = self.columns_BL + size_BL
        total_B1 = size_BL.sum(1, keepdim=True)
        self.mask_BT = torch.zeros(B, num_columns, dtype=torch.long, device=plan_BL.device)
        self.mask_BT.scatter_(1, self.columns_BL, mask_BL.long())
        place_T = torch.arange(num_columns, device=plan_BL.device)
        token_BT = torch.zeros_like(self.mask_BT).scatter_(1, self.columns_BL, 1)
        self.mask_BT |= ((token_BT == 0) & (place_T < L + total_B1)).long()  # what is no token, inside the row, is a latent
        self.position_BT = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        self.events = self._events(sizes)

    def _events(self, sizes: Tensor) -> list[Event]:
        inserts_BL = self._plan_BL != NONE
        number_BL = inserts_BL.cumsum(1)
        rounds, (B, _) = int(inserts_BL.sum(1).max()) if inserts_BL.numel() else 0, inserts_BL.shape
        start_B = torch.zeros(B, dtype=torch.long, device=inserts_BL.device)
        found = []
        for number in range(1, rounds + 1):
            at_BL = inserts_BL & (number_BL == number)
            has_B, token_B = at_BL.any(1), at_BL.long().argmax(1)
            rows_B = torch.arange(B, device=at_BL.device)
            kind_B = torch.where(has_B, self._plan_BL[rows_B, token_B], NONE)
            end_B = torch.where(has_B, self.columns_BL[rows_B, token_B] + 1, start_B)
            found.append(self._event(kind_B, start_B, end_B, sizes[kind_B]))
            start_B = end_B
        return found

    def _event(self, kind_B: Tensor, start_B: Tensor, end_B: Tensor, size_B: Tensor) -> Event:
        chunk_BW, is_chunk_BW = _right_aligned(start_B, end_B)
        latent_BN, is_latent_BN = _right_aligned(end_B, end_B + size_B)
        held_BW = is_chunk_BW & self.mask_BT.gather(1, chunk_BW).bool()  # padding on the left is no context
        return Event(kind_B, chunk_BW, held_BW, latent_BN, is_latent_BN)

    def scattered(self, embeds_BLD: Tensor) -> Tensor:
        """Token embeddings at their columns (B, T, D), zero elsewhere."""
        B, _, D = embeds_BLD.shape
        empty_BTD = embeds_BLD.new_zeros(B, self.mask_BT.shape[1], D)
        return empty_BTD.scatter(1, self.columns_BL[..., None].expand_as(embeds_BLD), embeds_BLD)

    def inserted(self, embeds_BTD: Tensor, event: Event, latents_BND: Tensor) -> Tensor:
        """The embeddings with an event's latents at their columns."""
        rows, places = event.latent_mask_BN.nonzero(as_tuple=True)
        columns = event.latent_columns_BN[rows, places]
        return embeds_BTD.index_put((rows, columns), latents_BND[rows, places].to(embeds_BTD.dtype))

    def own(self, hidden_BTD: Tensor) -> Tensor:
        """(B, L, D): for each token its own state, which no latent after it has changed."""
        return hidden_BTD.gather(1, self.columns_BL[..., None].expand(-1, -1, hidden_BTD.shape[-1]))

    def aligned(self, hidden_BTD: Tensor) -> Tensor:
        """(B, L, D): for each token the state that predicts the next one, which is that of the last latent after it, or its
        own."""
        index_BLD = self._predicting_BL[..., None].expand(-1, -1, hidden_BTD.shape[-1])
        return hidden_BTD.gather(1, index_BLD)


def _right_aligned(start_B: Tensor, end_B: Tensor) -> tuple[Tensor, Tensor]:
    """The columns start..end-1 of each row, padded on the left (with column 0) to the longest of them, and which are real."""
    width_B = end_B - start_B
    longest = int(width_B.max())
    offset_W = torch.arange(longest, device=start_B.device) - longest
    columns_BW = end_B[:, None] + offset_W
    is_real_BW = columns_BW >= start_B[:, None]
    return torch.where(is_real_BW, columns_BW, 0), is_real_BW
