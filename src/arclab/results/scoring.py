"""pass@k, solved@k and their intervals. Denominators are the tasks that were scored, and are always shown.

pass@k (the published TRM evaluator): a test input counts if the right grid is among its first k candidates; a task's score
is the share of its test inputs; the result is the mean over tasks. solved@k: every test input of the task is right within k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arclab.data.tasks import ArcTask
from arclab.metrics.names import PASS_KS, SOLVED_KS
from arclab.results.attempts import Attempts, Candidate

NEW_COLORS = "ARC/new_colors_pass@1"
_BLACK = 0  # the background, which no view recolours
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """n of N with a 95 % Wilson interval. n may be fractional (a task with one of two test inputs right counts 0.5)."""

    n: float
    total: int

    @property
    def value(self) -> float:
        return self.n / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.n, self.total)

    def __str__(self) -> str:
        if not self.total:
            return "not scored"
        low, high = self.interval
        return f"{self.n:g}/{self.total} = {100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def wilson(n: float, total: int) -> tuple[float, float]:
    """95 % Wilson score interval for n successes of total; (0, 1) if there were no trials."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = n / total, _Z95**2
    center = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, center - half), min(1.0, center + half)


def rank_of_truth(candidates: Sequence[Candidate], truth: np.ndarray) -> int | None:
    """0-based place of the right grid among the candidates, or None."""
    for place, candidate in enumerate(candidates):
        if candidate.grid is not None and np.array_equal(candidate.grid, truth):
            return place
    return None


def truth_ranks(tasks: Sequence[ArcTask], attempts: Attempts) -> dict[str, list[int | None]]:
    """Task id -> place of the right grid for each test input. Tasks with a hidden test output are left out."""
    ranks = {}
    for task in tasks:
        outputs = [test.output for test in task.tests]
        if all(output is not None for output in outputs):
            ranks[task.id] = [rank_of_truth(attempts.candidates[task.id, i], o) for i, o in enumerate(outputs) if o is not None]
    return ranks


def new_color_tests(task: ArcTask) -> list[int]:
    """Numbers of the test inputs whose answers show a colour other than black that they do not: demonstrations must tell it."""
    return [
        number
        for number, test in enumerate(task.tests)
        if test.output is not None and set(np.unique(test.output)) - set(np.unique(test.input)) - {_BLACK}
    ]


def score(tasks: Sequence[ArcTask], attempts: Attempts) -> dict[str, Share]:
    """ARC/pass@k and ARC/solved@k over the tasks whose answers are known; ARC/new_colors_pass@1 where there are such tasks."""
    ranks = truth_ranks(tasks, attempts)

    def hits(places: list[int | None], k: int) -> list[bool]:
        return [place is not None and place < k for place in places]

    shares = {f"ARC/pass@{k}": Share(sum(sum(hits(p, k)) / len(p) for p in ranks.values()), len(ranks)) for k in PASS_KS}
    shares |= {f"ARC/solved@{k}": Share(sum(all(hits(p, k)) for p in ranks.values()), len(ranks)) for k in SOLVED_KS}
    places = [[ranks[task.id][i] for i in new_color_tests(task)] for task in tasks if task.id in ranks]
    new = [hits(p, 1) for p in places if p]
    if new:
        shares[NEW_COLORS] = Share(sum(sum(right) / len(right) for right in new), len(new))
    return shares


def idle_scores(names: Sequence[str], most_candidates: int, most_tests: int) -> dict[str, str]:
    """Scores that equal another one whatever was answered: score -> the one that it equals.

    most_candidates: of any test input; pass@k cannot change beyond it. most_tests: of any task; with one test input a task,
    solved@k is pass@k. ARC/pass@2 always stays.
    """
    idle: dict[str, str] = {}
    by_k = {k: f"ARC/pass@{k}" for k in PASS_KS}
    last = next((k for k in PASS_KS if k >= max(2, most_candidates)), PASS_KS[-1])
    idle |= {by_k[k]: by_k[last] for k in PASS_KS if k > last}
    if most_tests == 1:
        idle |= {f"ARC/solved@{k}": by_k[k] for k in SOLVED_KS}
    return {name: same for name, same in idle.items() if name in names and same in names}
