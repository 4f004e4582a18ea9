"""How a run is told to end: by a signal to any of its ranks, or by the file PREEMPT in its folder.

    stop = StopRequest(run, ranks, signals)
    votes = stop.vote(step)            # before the step, in which votes are summed over ranks as gradients are
    if stop.is_agreed(votes): ...      # after the sum; the same answer on every rank
    if stop.is_seen: ...               # without ranks that wait for each other: each looks for itself

It saves nothing: the loop does, or whoever raises ToldToEnd.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from arclab.runs.folder import RunDir
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

# Reading a vote waits for the device; on CUDA that is done at every tenth step only.
_STEPS_BETWEEN_VOTES = {"cpu": 1, "cuda": 10}


_SECONDS_BETWEEN_LOOKS = 0.5  # at the file, which may lie on a network


class ToldToEnd(Exception):
    """The run was told to end, and what it has done is kept. The message says how far it is."""


class StopRequest:
    def __init__(self, run: RunDir, ranks: Ranks, signals: StopSignals | None) -> None:
        self._run, self._ranks, self._signals = run, ranks, signals
        self._looked_at, self._is_seen = 0.0, False
        self._every = _STEPS_BETWEEN_VOTES[ranks.device.type]

    @property
    def is_asked(self) -> bool:
        """Was this rank asked? The file is looked up by rank 0 alone."""
        is_signalled = self._signals is not None and self._signals.number is not None
        return is_signalled or (self._ranks.is_main and self._run.is_told)

    @property
    def is_seen(self) -> bool:
        """Does this rank see that the run is told to end? Every rank may ask as often as it likes."""
        if self._signals is not None and self._signals.number is not None:
            self._is_seen = True
        if not self._is_seen and time.monotonic() - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._is_seen, self._looked_at = self._run.is_told, time.monotonic()
        return self._is_seen

    def vote(self, step: int) -> list[Tensor]:
        """What to sum over ranks in this step, as its gradients are: nothing where nobody will look at it."""
        if step % self._every:
            return []
        return [torch.full((1,), float(self.is_asked), device=self._ranks.device)]

    @staticmethod
    def is_agreed(votes: list[Tensor]) -> bool:
        return any(vote.item() > 0 for vote in votes)
