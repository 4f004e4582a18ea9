"""Are two runs different? Paired and unpaired comparisons of shares, by counting alone.

    result = compare_splits("a", split_a, "b", split_b)     # Paired, or a sentence why the two cannot be compared

McNemar's exact test looks only at what one run gets right and the other wrong: under the null hypothesis each such pair is
a fair coin. It needs the same tasks in both runs. No correction for several tests is made; the page says how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from arclab.results.reading import ScoredSplit, unlike
from arclab.results.scoring import Share


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value for the discordant pairs: 2 P(X <= min) for X ~ Binomial(n, 1/2), at most 1."""
    n, low = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(low + 1)) / 2**n)


def difference_interval(first: Share, second: Share) -> tuple[float, float]:
    """95 % interval of first - second for independent shares (Newcombe's hybrid of two Wilson intervals)."""
    (low_1, high_1), (low_2, high_2) = first.interval, second.interval
    p, q = first.value, second.value
    return p - q - math.hypot(p - low_1, high_2 - q), p - q + math.hypot(high_1 - p, q - low_2)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """What was counted (tasks or test inputs), how many of them, and who alone was right."""

    unit: str
    total: int
    both: int
    only_first: int
    only_second: int

    @classmethod
    def count(cls, unit: str, outcomes: Sequence[tuple[bool, bool]]) -> Self:
        """outcomes: of each item, whether the first is right and whether the second is."""
        both = outcomes.count((True, True))
        return cls(unit, len(outcomes), both, outcomes.count((True, False)), outcomes.count((False, True)))

    @property
    def discordant(self) -> int:
        return self.only_first + self.only_second

    @property
    def p_value(self) -> float:
        return mcnemar_p(self.only_first, self.only_second)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on one split. problem: why they are not comparable (then there are no tests). notes: what differs besides."""

    first: str
    second: str
    split: str
    problem: str
    tests: tuple[PairedTest, ...]
    notes: tuple[str, ...]


def compare_splits(first: str, a: ScoredSplit, second: str, b: ScoredSplit) -> Paired:
    """Exact McNemar tests on solved@2 of tasks and on test inputs right within two attempts."""
    problem = _problem(first, a, second, b)
    if problem:
        return Paired(first, second, a.split, problem, (), ())
    keys = list(a.predictions)
    tests = (
        PairedTest.count("tasks (solved@2)", [(a.solved[t], b.solved[t]) for t in a.task_ids]),
        PairedTest.count(
            "test inputs (right within 2)", [(a.predictions[k].is_right, b.predictions[k].is_right) for k in keys]
        ),
    )
    return Paired(first, second, a.split, "", tests, unlike(first, a, second, b))


def _problem(first: str, a: ScoredSplit, second: str, b: ScoredSplit) -> str:
    for label, split in ((first, a), (second, b)):
        if not split.predictions:
            return f"not comparable: {label} has no predictions.jsonl"
        if split.has_hidden_answers:
            return (
                f"not comparable: {label} has tasks with hidden answers, which predictions.jsonl does not tell from wrong ones"
            )
    digests = {split.record.get("tasks_digest") for split in (a, b)} - {None}  # absent in older records
    if len(digests) > 1 and a.predictions.keys() == b.predictions.keys():
        return "not comparable: the scored tasks have the same ids and other grids (metrics.json, tasks_digest)"
    if a.predictions.keys() == b.predictions.keys():
        return ""
    ours, theirs = set(a.task_ids), set(b.task_ids)
    if ours == theirs:
        return f"not comparable: the test inputs of the same tasks differ ({len(a.predictions)} and {len(b.predictions)})"
    return f"not comparable: the task sets differ ({len(ours)} tasks and {len(theirs)}, {len(ours & theirs)} in common)"
