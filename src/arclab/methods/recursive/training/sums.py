"""Sums of train/* numerators between two rows of metrics, kept on the device: reading them is the only synchronisation."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor

from arclab.methods.recursive.auxiliary import AUXILIARY
from arclab.methods.recursive.losses import RowLosses, has_new_colors
from arclab.methods.recursive.model import StepOutput
from arclab.methods.recursive.search.inner_steps import INNER_LOSSES
from arclab.runs.ranks import Ranks

# Losses that a run may have or not.
_OPTIONAL = (*AUXILIARY, *INNER_LOSSES)
# How many rows there were; all other sums are weighted.
_COUNTS = ("train/count", "train/new_colors_count")
# Means over the rows that halted with an answer to compare with.
_OVER_HALTED = ("train/accuracy", "train/exact_accuracy", "train/q_halt_accuracy", "train/steps", "train/forced_halt_share")
# Means over all rows, halted or not.
_OVER_ROWS = ("train/lm_loss", "train/q_halt_loss", *(f"train/{name}_loss" for name in _OPTIONAL))
_NEW_COLORS_EXACT = "train/new_colors_exact"
_DIVISORS = ("halted", "rows", "new_colors")
_NAMES = (*_COUNTS, *_OVER_HALTED, *_OVER_ROWS, _NEW_COLORS_EXACT, *_DIVISORS)


class StepSums:
    """add() after every micro-batch, take() for a row of metrics."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self._auxiliary: Set[str] = set()

    def add(
        self, output: StepOutput, inputs_BS: Tensor, losses: RowLosses, auxiliary: dict[str, Tensor], weight: float = 1.0
    ) -> None:
        """auxiliary: (B,) optional losses by name. weight: of a row in the loss. Small canvases get more rows than their share
        of the tasks, which count the less."""
        halted_B = output.halted_B & losses.has_labels
        new_colors_B = halted_B & has_new_colors(inputs_BS, output.labels_BS)
        # A row that halts against its halt logit was halted by the limit.
        forced_B = output.q_halt_B.detach() <= 0
        over_halted = (losses.accuracy, losses.exact, losses.q_halt_correct, output.steps_B, forced_B)
        none = halted_B.new_zeros(())
        losses_by_name = {
            "train/lm_loss": losses.lm.detach().sum(),
            "train/q_halt_loss": losses.q_halt.detach().sum(),
            **{f"train/{name}_loss": auxiliary[name].detach().sum() if name in auxiliary else none for name in _OPTIONAL},
        }
        named = {
            "train/count": halted_B.sum(),
            "train/new_colors_count": new_colors_B.sum(),
            _NEW_COLORS_EXACT: (new_colors_B & losses.exact).sum(),
            **{name: torch.where(halted_B, x, 0).sum() for name, x in zip(_OVER_HALTED, over_halted, strict=True)},
            **losses_by_name,
            "halted": halted_B.sum(),
            "rows": torch.full((), len(halted_B), device=halted_B.device),  # filled there: nothing to copy
            "new_colors": new_colors_B.sum(),
        }
        stacked = torch.stack([named[name].double() for name in _NAMES])
        stacked[len(_COUNTS) :] *= weight
        self._sums += stacked
        self._auxiliary = auxiliary.keys()

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Metrics over all ranks, then start again. Shares are left out while no row has halted."""
        ranks.sum_([self._sums])
        sums = dict(zip(_NAMES, self._sums.tolist(), strict=True))
        self._sums.zero_()
        metrics = {"train/count": sums["train/count"]}
        if sums["new_colors"] > 0:
            metrics["train/new_colors_count"] = sums["train/new_colors_count"]
            metrics[_NEW_COLORS_EXACT] = sums[_NEW_COLORS_EXACT] / sums["new_colors"]
        if sums["halted"] > 0:
            metrics |= {name: sums[name] / sums["halted"] for name in _OVER_HALTED}
        unused = {f"train/{name}_loss" for name in _OPTIONAL} - {f"train/{name}_loss" for name in self._auxiliary}
        return metrics | {name: sums[name] / sums["rows"] for name in _OVER_ROWS if name not in unused}
