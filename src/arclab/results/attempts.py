"""What a solver gives back, and what it may spend.

The seam of the project: any method (recursive model, language model, search) turns tasks into ranked candidates, and one
evaluation scores them all. A solver may look at demonstrations and test inputs; test outputs are for its statistics only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from arclab.data.tasks import ArcTask, Grid

TestKey = tuple[str, int]  # (task id, number of the test input)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer with its votes and mean confidence. grid None: the prediction showed no grid; it is wrong by definition.
    log_likelihood: of a solver that ranks by it, the mean over views; None: not computed."""

    grid: Grid | None
    votes: int
    confidence: float
    log_likelihood: float | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """num_augmentations: views of each task that vote, beside the original. num_samples: replies drawn for each task, by
    methods that sample."""

    num_augmentations: int = 0
    num_samples: int = 1


@dataclass(frozen=True, slots=True)
class WrittenProgram:
    """A program that a method wrote for a task. votes: programs that answer as it does. demo_share: demonstrations
    reproduced."""

    source: str
    votes: int
    demo_share: float


@dataclass(slots=True)
class Attempts:
    """Ranked candidates for every test input, and the solver's own statistics (registered metric names).

    programs: task id -> those behind its candidates, best first. skipped: task id -> why it was not tried; it counts as wrong.
    not_sent: setting -> number of tasks whose replies were drawn without it, because the server takes no value of it.
    """

    candidates: dict[TestKey, list[Candidate]]
    statistics: dict[str, float] = field(default_factory=dict)
    programs: dict[str, list[WrittenProgram]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    not_sent: dict[str, int] = field(default_factory=dict)


class Solver(Protocol):
    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts: ...
