"""What the configuration of every run has, whatever its method: what runs/ and launch/ may ask for.

A root configuration is a dataclass of its method; these protocols say which keys it owes.
"""

from __future__ import annotations

from typing import Protocol

MIN_PROFILED_STEPS = 6  # trainer.profile records some steps after others: see arclab.runs.profile


class Cadence(Protocol):
    """trainer.*: how long a run is, and how often it logs, is judged, scored and saved. In steps of its trainer; 0: never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    health_every: int
    stop_when_unhealthy: bool
