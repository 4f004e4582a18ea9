"""Questions that a task asks of itself: one of its demonstrations is the query, the others are shown.

    questions = leave_one_out(demonstrations)        # of a batch of puzzles, every demonstration once
    questions.data, questions.shown_NK               # demonstrations in their slots, and which of them are shown
    questions.compact()                              # a Batch as training has it: the shown ones in front

A puzzle with one demonstration has none to leave out: its question shows that one too (questions.is_shared_N).
Shapes: P puzzles, K demonstration slots, N questions of all puzzles, in the order puzzle, demonstration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arclab.data.sampler import Batch


@dataclass(slots=True)
class Questions:
    """data: N rows with the held-out pair as query and all demonstrations in the slots of their puzzle. puzzle_N: whose
    question it is; held_out_N: which demonstration is asked. shown_NK: which are shown."""

    data: Batch
    puzzle_N: Tensor
    held_out_N: Tensor
    shown_NK: Tensor

    @property
    def is_shared_N(self) -> Tensor:
        """Is the asked demonstration among the shown ones?"""
        return self.shown_NK.gather(1, self.held_out_N[:, None])[:, 0]

    def compact(self) -> Batch:
        """Only the shown demonstrations, in their order, from the first slot on; blank behind them."""
        order_NK = (~self.shown_NK).int().argsort(dim=1, stable=True)
        shown_NK = self.shown_NK.gather(1, order_NK)

        def moved(grids_NKS: Tensor) -> Tensor:
            index_NKS = order_NK[..., None].expand_as(grids_NKS)
            return torch.where(shown_NK[..., None], grids_NKS.gather(1, index_NKS), 0)

        return replace(
            self.data,
            demo_inputs_BKS=moved(self.data.demo_inputs_BKS),
            demo_outputs_BKS=moved(self.data.demo_outputs_BKS),
            num_demos_B=shown_NK.sum(1).to(self.data.num_demos_B.dtype),
        )


def leave_one_out(demonstrations: Batch, *, shared: bool = False) -> Questions:
    """demonstrations: P rows, whose own queries are not read. shared: nothing is left out, the asked demonstration is shown
    too."""
    num_slots = demonstrations.demo_inputs_BKS.shape[1]
    slots = torch.arange(num_slots, device=demonstrations.num_demos_B.device)
    real_PK = slots[None] < demonstrations.num_demos_B[:, None]
    puzzle_N, held_out_N = real_PK.nonzero().unbind(1)
    rows = demonstrations.map(lambda x: x[puzzle_N])
    numbers = torch.arange(len(puzzle_N), device=puzzle_N.device)
    data = replace(
        rows,
        inputs_BS=rows.demo_inputs_BKS[numbers, held_out_N],
        labels_BS=rows.demo_outputs_BKS[numbers, held_out_N],
    )
    shown_NK = real_PK[puzzle_N]
    if not shared:
        shown_NK = shown_NK & ((slots[None] != held_out_N[:, None]) | (rows.num_demos_B == 1)[:, None])
    return Questions(data, puzzle_N, held_out_N, shown_NK)
