"""How all ranks of a run agree to end at the same step: a signal to any of them, or the file PREEMPT in the run folder.

    stop = StopRequest(run, ranks, signals)
    votes = stop.vote(step)            # before the step, in which votes are summed over ranks as gradients are
    if stop.is_agreed(votes): ...      # after the sum; the same answer on every rank

It saves nothing; the loop does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arclab.runs.folder import RunDir
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

# Reading a vote waits for the device; on CUDA that is done at every tenth step only.
_STEPS_BETWEEN_VOTES = {"cpu": 1, "cuda": 10}


class StopRequest:
    def __init__(self, run: RunDir, ranks: Ranks, signals: StopSignals | None) -> None:
        self._run, self._ranks, self._signals = run, ranks, signals
        self._every = _STEPS_BETWEEN_VOTES[ranks.device.type]

    @property
    def is_asked(self) -> bool:
        """Was this rank asked? The file is looked up by rank 0 alone."""
        is_signalled = self._signals is not None and self._signals.number is not None
        return is_signalled or (self._ranks.is_main and self._run.preempt.exists())

    def vote(self, step: int) -> list[Tensor]:
        """What to sum over ranks in this step, as its gradients are: nothing where nobody will look at it."""
        if step % self._every:
            return []
        return [torch.full((1,), float(self.is_asked), device=self._ranks.device)]

    @staticmethod
    def is_agreed(votes: list[Tensor]) -> bool:
        return any(vote.item() > 0 for vote in votes)
