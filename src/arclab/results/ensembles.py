"""Candidates of several methods merged into one ranking, and what each method adds to it. Pure functions, no files.

    members = [Member("trm", 1.0, split.predictions, by_votes), Member("programs", 2.0, other.predictions, by_votes)]
    attempts = merge(members)                                   # two or more members, the same test inputs
    parts = contributions(tasks, members)                       # with and without each member
    share = oracle_coverage(tasks, members)                     # test inputs whose right grid any member has

A candidate's score is the sum over the members that have it of weight x value, divided by the sum of all weights: 0 to 1. The
value is what the member's rule gives it (by_votes, by_rank, by_probability). Candidates that show no grid are left out; their
votes still count among all votes. Equal scores: what more members have comes first, then what stands higher with one of them.
A result keeps its ten best candidates of each test input, so no more can be merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from arclab.data.tasks import ArcTask, Grid
from arclab.results.attempts import Attempts, Candidate, TestKey
from arclab.results.calibration import Calibration, vote_share
from arclab.results.paired import PairedTest
from arclab.results.reading import PredictedTest
from arclab.results.scoring import Share, score, truth_ranks

Rule = Callable[[PredictedTest, int], float]  # value (0 to 1) of the candidate of a test input at a place, from 0
_DIGITS = 12  # sums that differ by rounding alone are equal


@dataclass(frozen=True, slots=True)
class Member:
    """A result that is merged. rule: what its candidates are worth."""

    label: str
    weight: float
    tests: Mapping[TestKey, PredictedTest]
    rule: Rule


def by_votes(test: PredictedTest, place: int) -> float:
    """Its share of all votes of the test input."""
    return vote_share(test, place)


def by_rank(test: PredictedTest, place: int) -> float:
    """1, 1/2, 1/3, ... in the member's own order."""
    return 1 / (place + 1)


def by_probability(calibration: Calibration) -> Rule:
    """The calibrated probability that it is right."""
    return lambda test, place: calibration.probability(vote_share(test, place), test.candidates[place].confidence)


@dataclass(slots=True)
class _Merged:
    """A grid with what it has gathered. best: the highest place that it has with any member, and the number of that member."""

    grid: Grid
    score: float = 0.0
    votes: int = 0
    members: set[int] = field(default_factory=set)
    best: tuple[int, int] = (2**31, 0)


def merge(members: Sequence[Member]) -> Attempts:
    """Candidates of all test inputs by score, which is their confidence; votes: those of all members together."""
    total = sum(member.weight for member in members)
    return Attempts({key: _merged(members, key, total) for key in members[0].tests})


def _merged(members: Sequence[Member], key: TestKey, total_weight: float) -> list[Candidate]:
    found: dict[tuple[tuple[int, ...], bytes], _Merged] = {}
    for number, member in enumerate(members):
        test = member.tests[key]
        for place, candidate in enumerate(test.candidates):
            if candidate.grid is None:
                continue
            entry = found.setdefault((candidate.grid.shape, candidate.grid.tobytes()), _Merged(candidate.grid))
            entry.score += member.weight * member.rule(test, place) / total_weight
            entry.votes += candidate.votes
            entry.members.add(number)
            entry.best = min(entry.best, (place, number))
    ranked = sorted(found.values(), key=lambda entry: (-round(entry.score, _DIGITS), -len(entry.members), entry.best))
    return [Candidate(entry.grid, entry.votes, min(1.0, entry.score)) for entry in ranked]


@dataclass(frozen=True, slots=True)
class Contribution:
    """ARC/pass@2 of a member alone and of the ensemble without it. paired: tasks that are solved within two attempts, by the
    whole ensemble (first) and by the one without the member (second)."""

    label: str
    alone: Share
    without: Share
    paired: PairedTest


def contributions(tasks: Sequence[ArcTask], members: Sequence[Member]) -> list[Contribution]:
    """One for each member, in their order. Tasks with hidden answers do not count."""
    whole = merge(members)
    return [
        Contribution(
            member.label,
            alone=_pass_at_2(tasks, own_attempts(member)),
            without=_pass_at_2(tasks, rest := merge([*members[:number], *members[number + 1 :]])),
            paired=_paired(tasks, whole, rest),
        )
        for number, member in enumerate(members)
    ]


def own_attempts(member: Member) -> Attempts:
    """What the member answered by itself."""
    return Attempts({key: list(test.candidates) for key, test in member.tests.items()})


def _pass_at_2(tasks: Sequence[ArcTask], attempts: Attempts) -> Share:
    return score(tasks, attempts)["ARC/pass@2"]


def _solved(tasks: Sequence[ArcTask], attempts: Attempts) -> dict[str, bool]:
    ranks = truth_ranks(tasks, attempts)
    return {id_: all(place is not None and place < 2 for place in places) for id_, places in ranks.items()}


def _paired(tasks: Sequence[ArcTask], first: Attempts, second: Attempts) -> PairedTest:
    mine, theirs = _solved(tasks, first), _solved(tasks, second)
    return PairedTest.count("tasks (solved@2)", [(mine[id_], theirs[id_]) for id_ in mine])


def oracle_coverage(tasks: Sequence[ArcTask], members: Sequence[Member]) -> Share:
    """Test inputs of which some member has the right grid among all of its candidates; of tasks whose answers are known."""
    known = [task for task in tasks if all(test.output is not None for test in task.tests)]
    keys = [(task.id, number) for task in known for number in range(len(task.tests))]
    return Share(sum(any(member.tests[key].truth_rank is not None for member in members) for key in keys), len(keys))


def agreement(members: Sequence[Member]) -> float:
    """Share of the test inputs to which all members answer the same grid first."""
    firsts = [[_first(member.tests[key]) for member in members] for key in members[0].tests]
    return sum(None not in each and len(set(each)) == 1 for each in firsts) / max(1, len(firsts))


def _first(test: PredictedTest) -> tuple[tuple[int, ...], bytes] | None:
    grid = next((candidate.grid for candidate in test.candidates if candidate.grid is not None), None)
    return None if grid is None else (grid.shape, grid.tobytes())
