"""What a solver gives back, and what it may spend.

The seam of the project: any method (recursive model, language model, search) turns tasks into ranked candidates, and one
evaluation scores them all. A solver may look at demonstrations and test inputs; test outputs are for its statistics only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from arclab.data.tasks import ArcTask, Grid

TestKey = tuple[str, int]  # (task id, number of the test input)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer with its votes and mean confidence. grid None: the prediction showed no grid; it is wrong by definition."""

    grid: Grid | None
    votes: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Budget:
    """num_augmentations: views of each task that vote, beside the original."""

    num_augmentations: int


@dataclass(slots=True)
class Attempts:
    """Ranked candidates for every test input, and the solver's own statistics (registered metric names)."""

    candidates: dict[TestKey, list[Candidate]]
    statistics: dict[str, float] = field(default_factory=dict)


class Solver(Protocol):
    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts: ...


GridKey = tuple[int, int, bytes] | None


def grid_key(grid: Grid | None) -> GridKey:
    """Equal for equal grids; hashable and small enough to be sent between ranks."""
    return None if grid is None else (*grid.shape, grid.tobytes())


class VoteBox:
    """Counts predictions per test input: (votes, sum of confidences) per distinct grid. Boxes of several ranks add up."""

    def __init__(self) -> None:
        self.counts: defaultdict[TestKey, dict[GridKey, list[float]]] = defaultdict(dict)

    def add(self, key: TestKey, grid: Grid | None, confidence: float) -> None:
        entry = self.counts[key].setdefault(grid_key(grid), [0, 0.0])
        entry[0] += 1
        entry[1] += confidence

    def merge(self, others: Iterable[VoteBox]) -> None:
        for other in others:
            for key, grids in other.counts.items():
                for grid, (votes, confidence) in grids.items():
                    entry = self.counts[key].setdefault(grid, [0, 0.0])
                    entry[0] += votes
                    entry[1] += confidence

    def ranked(self, key: TestKey) -> list[Candidate]:
        """Most votes first, then the higher mean confidence; what is still tied is ordered by content, not by chance."""
        candidates = [(grid, int(votes), total / votes) for grid, (votes, total) in self.counts[key].items()]
        candidates.sort(key=lambda c: (-c[1], -c[2], c[0] is None, c[0] or ()))
        return [Candidate(_grid_of(grid), votes, confidence) for grid, votes, confidence in candidates]


def _grid_of(key: GridKey) -> Grid | None:
    import numpy as np

    return None if key is None else np.frombuffer(key[2], dtype=np.uint8).reshape(key[0], key[1])
