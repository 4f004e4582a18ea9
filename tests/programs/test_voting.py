"""Votes of programs: whole hypotheses, those that explain the demonstrations first; pass@k against counting."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from arclab.data.tasks import Grid
from arclab.programs.outcomes import Outcome, compare
from arclab.programs.sandbox.execution import GridResult, Status
from arclab.programs.voting import pass_at_k, vote
from arclab.solvers.answers import candidates

A, B, C, D = (np.full((2, side), side, np.uint8) for side in (1, 2, 3, 4))
TRUTH = np.zeros((2, 2), np.uint8)


def program(*answers: Grid | None, right: int = 2, of: int = 2, length: int = 10) -> Outcome:
    """A program that reproduces `right` of `of` demonstrations and answers the tests so."""
    demos = tuple(compare(GridResult(Status.ok, TRUTH if i < right else TRUTH + 1), TRUTH) for i in range(of))
    results = tuple(GridResult(Status.exception) if grid is None else GridResult(Status.ok, grid.copy()) for grid in answers)
    return Outcome("x" * length, demos, results, 0.0)


NO_CODE = Outcome(None, (), (), 0.0)


def members(outcomes: list[Outcome], num_tests: int = 1) -> list[tuple[int, ...]]:
    return [group.members for group in vote(outcomes, num_tests)]


def test_groups_are_whole_hypotheses() -> None:
    """A grid-wise vote would give (A, C), which no program says."""
    outcomes = [program(A, C), program(A, D), program(B, C), program(A, D), program(B, C, length=11)]
    groups = vote(outcomes, 2)
    assert [group.members for group in groups] == [(1, 3), (2, 4), (0,)]
    assert [None if grid is None else grid.tolist() for grid in groups[0].answers] == [A.tolist(), D.tolist()]
    assert (groups[0].num_programs, groups[0].demo_share, groups[1].source) == (2, 1.0, "x" * 10)
    same_bytes = [program(np.zeros((2, 3), np.uint8)), program(np.zeros((3, 2), np.uint8))]
    assert len(vote(same_bytes, 1)) == 2


def test_order() -> None:
    crowd = [program(A, right=1)] * 5
    assert members([*crowd, program(B)]) == [(5,), (0, 1, 2, 3, 4)], "all demonstrations right beats any crowd"
    assert members([program(A), program(B), program(B)]) == [(1, 2), (0,)], "then votes"
    assert members([*crowd, program(A), program(B), program(B)]) == [(6, 7), (0, 1, 2, 3, 4, 5)], (
        "of those that explain as much"
    )
    assert members([program(B), *crowd, program(A)]) == [(1, 2, 3, 4, 5, 6), (0,)], "the others settle a tie"
    assert members([program(A, length=12), program(B, length=11)]) == [(1,), (0,)], "then the shorter one"
    assert members([program(B), program(A)]) == [(0,), (1,)] and members([program(A), program(B)]) == [(0,), (1,)], (
        "then the first"
    )
    partial = [program(A, right=1, of=3), program(B, right=2, of=3), program(C, right=0, of=3), program(C, right=0, of=3)]
    assert members(partial) == [(1,), (0,), (2, 3)]


def test_order_does_not_depend_on_order() -> None:
    outcomes = [program(g, right=r, length=n) for n, (g, r) in enumerate(itertools.product((A, B, C, D), (0, 1, 2)), 5)]
    outcomes += outcomes[:5]
    wanted = [(g.answers[0], g.num_programs, g.demo_share, g.source) for g in vote(outcomes, 1)]
    for seed in range(5):
        random.Random(seed).shuffle(outcomes)
        got = [(g.answers[0], g.num_programs, g.demo_share, g.source) for g in vote(outcomes, 1)]
        assert all(np.array_equal(w[0], g[0]) and w[1:] == g[1:] for w, g in zip(wanted, got, strict=True))  # pyright: ignore[reportArgumentType]


def test_who_answers_nothing_has_no_vote() -> None:
    assert vote([], 1) == [] and members([NO_CODE, program(None), program(A, right=0)]) == [(2,)]
    outcomes = [program(None, A), program(B, None), NO_CODE, program(None, A), program(None, None)]
    assert members(outcomes, 2) == [(0, 3), (1,)]
    assert [grid is None for grid in vote(outcomes, 2)[0].answers] == [True, False]


def test_two_attempts() -> None:
    def chosen(outcomes: list[Outcome], num_tests: int = 1) -> list[list[int]]:
        ranked = candidates(vote(outcomes, num_tests), num_tests)
        return [[c.grid.shape[1] for c in places[:2] if c.grid is not None] for places in ranked]

    solvers, partial = [program(A), program(A), program(B)], [program(C, right=1)] * 9
    assert chosen([*solvers, *partial]) == [[1, 2]]
    assert chosen([program(A), *partial, program(D, right=0)]) == [[1, 3]], "partial solvers fill the second place"
    assert chosen([NO_CODE, program(None)]) == [[]] and chosen([program(A)]) == [[1]]
    # The two best agree on the first input, and the best does not answer the second.
    mixed = [program(A, None), program(A, None), program(A, B), program(C, D, right=1)]
    assert chosen(mixed, 2) == [[1, 3], [2, 4]]
    shared = candidates(vote(mixed, 2), 2)[0][0]
    assert (shared.votes, shared.confidence) == (3, 1.0), "groups that agree on an input add up"


def test_pass_at_k_counts_draws() -> None:
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(any(i < c for i in draw) for draw in draws) / len(draws))


def test_pass_at_k_is_stable_and_refuses_nonsense() -> None:
    assert pass_at_k(100_000, 1, 1000) == pytest.approx(0.01) and pass_at_k(100_000, 0, 5) == 0 and pass_at_k(5, 5, 1) == 1
    assert pass_at_k(4, 2, 3) == 1 and pass_at_k(100, 97, 3) == pytest.approx(1 - 1 / 161_700)
    for n, c, k in ((3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(n, c, k)
