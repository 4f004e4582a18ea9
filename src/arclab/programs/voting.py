"""Which answers to give when many programs disagree, and the chance that k of them hold a right one.

    groups = vote(outcomes, num_tests=len(task.tests))       # best first; the first two are the two attempts
    pass_at_k(n=16, c=3, k=2)                                # unbiased, from n programs of which c are right

Programs vote with all of their test answers together: a program is a hypothesis about the rule, and two that differ on one test
input are two hypotheses. Nothing here knows a test output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arclab.data.tasks import Grid
from arclab.programs.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class Group:
    """Programs with the same answers. answers: by test input, None where they have none. members: their indices.

    demo_share: demonstrations that the best of them reproduces. num_leaders: members that reproduce as many. source: the
    shortest of the leaders, the first among equals.
    """

    answers: tuple[Grid | None, ...]
    num_programs: int
    num_leaders: int
    demo_share: float
    source: str
    members: tuple[int, ...]


def vote(outcomes: Sequence[Outcome], num_tests: int) -> list[Group]:
    """All groups, best first: by demo_share, leaders, members, mean length of the leaders' sources, first member.

    So groups that reproduce every demonstration come before partial ones, which follow for tasks with fewer than two of those.
    Leaders are counted before members, because a crowd that fails on the demonstrations says little about a rule. A program
    without an answer to any test input is in no group; one that answers only some is in a group with those that answer the same
    ones alike.
    """
    members: dict[tuple[tuple[tuple[int, ...], bytes] | None, ...], list[int]] = {}
    for index, outcome in enumerate(outcomes):
        grids = _answers(outcome, num_tests)
        if any(grid is not None for grid in grids):
            key = tuple(None if grid is None else (grid.shape, grid.tobytes()) for grid in grids)
            members.setdefault(key, []).append(index)
    ranked = []
    for indices in members.values():
        share = max(outcomes[i].demo_share for i in indices)
        leaders = [outcomes[i].source or "" for i in indices if outcomes[i].demo_share == share]
        mean_length = sum(map(len, leaders)) / len(leaders)
        answers = _answers(outcomes[indices[0]], num_tests)
        group = Group(answers, len(indices), len(leaders), share, min(leaders, key=len), tuple(indices))
        ranked.append(((-share, -len(leaders), -len(indices), mean_length, indices[0]), group))
    return [group for _, group in sorted(ranked, key=lambda pair: pair[0])]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n programs, drawn without replacement, hold one of the c right ones: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374); a product, because the binomials themselves overflow.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k: c={c} right programs of n={n} cannot be; c must be 0 to n.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@k: k={k} must be 1 to n={n}; draw more programs or lower k.")
    miss = 1.0  # becomes 0 at i = k where fewer than k are wrong
    for i in range(n - c + 1, n + 1):
        miss *= 1 - k / i
    return 1 - miss


def _answers(outcome: Outcome, num_tests: int) -> tuple[Grid | None, ...]:
    if outcome.source is None:
        return (None,) * num_tests
    assert len(outcome.answers) == num_tests, "run it with_tests"
    return tuple(answer.grid for answer in outcome.answers)
