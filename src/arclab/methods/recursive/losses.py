"""Losses of one supervision step, per row, so that a weight means the same at any batch size.

total = sum over rows of [ mean over labelled cells of stablemax cross-entropy + halt_loss_weight * BCE(halt logit, row is
exactly right) ]; the trainer divides by the global batch. Labels are always those carried with the rows.
Source: the published TRM loss head; there halt_loss_weight is 0.5 and the logarithm of stablemax is taken in fp64. Here it is
taken in fp32 as a difference of logarithms: the loss differs by less than 1e-5 (a test holds it), at a fraction of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from arclab.data.codec import FIRST_COLOR, PAD, VOCAB_SIZE


def stablemax_cross_entropy(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """(B, S) fp32 -log p(label); 0 where the label is PAD. s(x) = x + 1 for x >= 0, else 1 / (1 - x); p = s / sum s."""
    x = logits_BSV.float()
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    picked = s.gather(-1, labels_BS.long()[..., None])[..., 0]
    return torch.where(labels_BS != PAD, s.sum(-1).log() - picked.log(), 0.0)


@dataclass(slots=True)
class RowLosses:
    """Per row, each (B,): the two losses and what the metrics need. has_labels: the row has a cell to score."""

    lm: Tensor
    q_halt: Tensor
    accuracy: Tensor
    exact: Tensor
    q_halt_correct: Tensor
    has_labels: Tensor

    def total(self, halt_loss_weight: float) -> Tensor:
        return (self.lm + halt_loss_weight * self.q_halt).sum()


def has_new_colors(inputs_BS: Tensor, labels_BS: Tensor) -> Tensor:
    """(B,) whether an answer shows a colour, black left out, that its input does not.

    Where colours are permuted (black never is) such a row is right only if the demonstrations' colours reach the decoder; other
    rules can be remembered once the task is recognised.
    """

    def shows(cells_BS: Tensor) -> Tensor:
        return cells_BS.new_zeros(len(cells_BS), VOCAB_SIZE, dtype=torch.bool).scatter(1, cells_BS.long(), True)

    return (shows(labels_BS) & ~shows(inputs_BS))[:, FIRST_COLOR + 1 :].any(1)


def row_losses(logits_BSV: Tensor, q_halt_B: Tensor, labels_BS: Tensor) -> RowLosses:
    """Losses and correctness of every row against the labels that belong to it."""
    labelled_BS = labels_BS != PAD
    num_labels_B = labelled_BS.sum(-1)
    divisor_B = num_labels_B.clamp(min=1)
    correct_BS = (logits_BSV.detach().argmax(-1) == labels_BS) & labelled_BS
    num_correct_B = correct_BS.sum(-1)
    exact_B = num_correct_B == num_labels_B
    return RowLosses(
        lm=(stablemax_cross_entropy(logits_BSV, labels_BS) / divisor_B[:, None]).sum(-1),
        q_halt=F.binary_cross_entropy_with_logits(q_halt_B, exact_B.to(q_halt_B.dtype), reduction="none"),
        accuracy=num_correct_B / divisor_B,
        exact=exact_B,
        q_halt_correct=(q_halt_B >= 0) == exact_B,
        has_labels=num_labels_B > 0,
    )
