"""Which rows need the colours of their demonstrations, and how training counts them."""

from __future__ import annotations

import torch

from arclab.data.codec import EOS, FIRST_COLOR, PAD
from arclab.methods.recursive.losses import RowLosses, has_new_colors
from arclab.methods.recursive.model import StepOutput
from arclab.methods.recursive.training.sums import StepSums
from arclab.runs.ranks import start_ranks


def cells(*rows: list[int | None]) -> torch.Tensor:
    """Grids of one line as tokens: a colour, or None for what lies outside (a mark of the end, then padding)."""
    return torch.tensor([[EOS if c is None else FIRST_COLOR + c for c in row] + [PAD] for row in rows], dtype=torch.uint8)


INPUTS = cells([1, 2, 3], [1, 1, 1], [1, 2, 3], [4, None, None])
ANSWERS = cells([3, 2, 1], [1, 9, 1], [0, 0, 1], [None, None, 5])


def test_new_colors_are_those_of_the_answer_alone_without_black_and_marks() -> None:
    assert has_new_colors(INPUTS, ANSWERS).tolist() == [False, True, False, True]
    assert has_new_colors(INPUTS, torch.zeros_like(ANSWERS)).tolist() == [False] * 4  # hidden answers


def test_training_counts_rows_with_new_colors_by_themselves() -> None:
    """Of the halted rows: number 1 (new colour, right), 2 and 3 (new colour, wrong). Their count is in rows, their share weighted."""
    halted_B = torch.tensor([False, True, True, True])
    exact_B = torch.tensor([True, True, True, False])
    zeros_B = torch.zeros(4)
    output = StepOutput(torch.zeros(4, 4, 12), zeros_B, ANSWERS, zeros_B, halted_B, None, None)
    losses = RowLosses(zeros_B, zeros_B, zeros_B, exact_B, exact_B, torch.ones(4, dtype=torch.bool))
    ranks = start_ranks("cpu")
    sums = StepSums(ranks.device)
    sums.add(output, INPUTS, losses, {}, weight=0.5)
    metrics = sums.take(ranks)
    assert (metrics["train/new_colors_count"], metrics["train/new_colors_exact"]) == (2, 0.5)
    assert metrics["train/count"] == 3 and abs(metrics["train/exact_accuracy"] - 2 / 3) < 1e-9
    sums.add(output, ANSWERS, losses, {})  # no row with new colours: no share of none
    assert not any("new_colors" in name for name in sums.take(ranks))
