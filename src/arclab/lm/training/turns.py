"""Rollouts of several turns as rows of a forward pass: one for each turn, which reads what was said before it as plain text.

    passes = turn_passes(ids_BL, mask_BL, turn_BL, {"plan_BL": plan_BL})
    output = model(**passes.given, fused_lm_head=True)
    logprob_BC = passes.gathered(output.log_probs, C)

So the log-probabilities are those that the tokens were drawn with, where each turn began anew. A rollout of one turn is one
row, as it is. It does not pad: rows come padded on both sides.

Shapes: B rollouts, N passes, L tokens, M tokens but the first, C tokens of completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TURN = "turn_BL"  # the turn of each token (Rollout.turn_numbers), among what travels with the rows


@dataclass(frozen=True, slots=True)
class TurnPasses:
    """Rows as the model computes them: one for each turn of each row, which ends with that turn. given: what the model takes.
    rows_N: the row that each is of. turn_NL: its own turn's tokens."""

    given: dict[str, Tensor]
    rows_N: Tensor
    turn_NL: Tensor
    num_rows: int

    def gathered(self, value_NM: Tensor, num_columns: int) -> Tensor:
        """(B, num_columns) of the last columns, from values for all tokens but the first: of each token in its own turn's
        pass."""
        own_NC = self.turn_NL[:, -num_columns:]
        empty_BC = value_NM.new_zeros(self.num_rows, num_columns)
        return empty_BC.index_add(0, self.rows_N, torch.where(own_NC, value_NM[:, -num_columns:], 0.0))


def turn_passes(ids_BL: Tensor, mask_BL: Tensor, turn_BL: Tensor, extra: Mapping[str, Tensor]) -> TurnPasses:
    """See Rollout.turns. One forward pass has them all, so that ranks whose rollouts have other numbers of turns agree."""
    turns_K = torch.arange(1, max(1, int(turn_BL.max())) + 1, device=ids_BL.device)
    is_own_BKL = turn_BL[:, None] == turns_K[:, None]
    exists_BK = is_own_BKL.any(2)
    exists_BK[:, 0] = True  # a row always has a pass
    rows_N, place_N = exists_BK.nonzero(as_tuple=True)
    own_NL = is_own_BKL[rows_N, place_N]
    last_N1 = (turn_BL.shape[1] - 1 - own_NL.flip(1).long().argmax(1))[:, None]
    first_N1 = own_NL.long().argmax(1)[:, None]
    column_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    ids_NL, mask_NL = ids_BL[rows_N], mask_BL[rows_N] * (column_L <= last_N1)
    # What belongs to earlier turns is not there: only what stands from the token before the turn on.
    given = {name: value[rows_N] * (column_L >= first_N1 - 1) * (column_L <= last_N1) for name, value in extra.items()}
    labels_NL = ids_NL.masked_fill(~(own_NL & mask_NL.bool()), -100)
    given |= {"input_ids": ids_NL, "attention_mask": mask_NL, "labels": labels_NL}
    return TurnPasses(given, rows_N, own_NL, len(ids_BL))
