"""Merging: every rule against numbers computed by hand, ties, what each member adds, what can be reached, and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from arclab.config.compose import ConfigError
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.results.attempts import Candidate
from arclab.results.calibration import Calibration, fit_calibration
from arclab.results.ensembles import (
    Member,
    Rule,
    agreement,
    by_probability,
    by_rank,
    by_votes,
    contributions,
    merge,
    oracle_coverage,
)
from arclab.results.reading import PredictedTest, ScoredSplit

KEY = ("a", 0)


def grid(value: int) -> Grid:
    return np.full((1, 1), value, dtype=np.uint8)


def predicted(
    *candidates: tuple[int | None, int] | tuple[int | None, int, float], truth: int | None = 1, votes: int | None = None
) -> PredictedTest:
    """Candidates (value, votes, confidence) of a test input whose right grid shows truth."""
    found = tuple(Candidate(None if v is None else grid(v), n, *(rest or (0.5,))) for v, n, *rest in candidates)
    place = next((i for i, (value, *_) in enumerate(candidates) if value == truth), None)
    return PredictedTest(found, len(found), place, votes)


def member(test: PredictedTest, rule: Rule = by_votes, weight: float = 1.0, label: str = "m") -> Member:
    return Member(label, weight, {KEY: test}, rule)


def ranking(members: Sequence[Member]) -> list[tuple[int, int, float]]:
    found = merge(members).candidates[KEY]
    return [(int(c.grid[0, 0]), c.votes, round(c.confidence, 6)) for c in found if c.grid is not None]


def test_votes_are_shares_so_that_a_member_with_many_views_does_not_outvote_the_others() -> None:
    many, few = predicted((1, 60), (2, 40)), predicted((2, 3), (3, 1))
    assert ranking([member(many), member(few)]) == [(2, 43, 0.575), (1, 60, 0.3), (3, 1, 0.125)]
    assert ranking([member(many, weight=3.0), member(few)]) == [(2, 43, 0.4875), (1, 60, 0.45), (3, 1, 0.0625)]
    assert ranking([member(many, weight=5.0), member(few)])[0][0] == 1


def test_votes_of_candidates_that_are_not_kept_and_that_show_no_grid_count_among_all() -> None:
    assert ranking([member(predicted((1, 2), votes=8)), member(predicted((None, 3), (2, 1)))]) == [(1, 2, 0.125), (2, 1, 0.125)]


def test_ranks_are_reciprocal_and_know_no_votes() -> None:
    first, second = predicted((1, 99), (2, 1), (3, 1)), predicted((2, 1), (3, 1))
    assert ranking([member(first, by_rank), member(second, by_rank)]) == [(2, 2, 0.75), (1, 99, 0.5), (3, 2, round(5 / 12, 6))]


def test_equal_scores_go_to_what_more_members_have_then_to_the_higher_place() -> None:
    """2 has 1/2 from each, 1 has all of it from the first, 4 the third place of the first alone."""
    first, second = predicted((1, 2), (2, 2)), predicted((3, 2), (2, 2))
    assert [value for value, *_ in ranking([member(first), member(second)])] == [2, 1, 3]
    assert [value for value, *_ in ranking([member(second), member(first)])] == [2, 3, 1]


def test_a_calibrated_ranking_believes_the_member_whose_confidence_was_right_before() -> None:
    def split(*tests: PredictedTest) -> ScoredSplit:
        record = {"scores": {"ARC/solved@2": {"n": 0, "N": len(tests)}}, "statistics": {}}
        return ScoredSplit("x", record, {(str(n), 0): test for n, test in enumerate(tests)})

    # of the same votes: confident answers of the first were right, those of the second were wrong
    good = fit_calibration(split(*[predicted((1, 1, 0.9)), predicted((2, 1, 0.1))] * 20), "good")
    bad = fit_calibration(split(*[predicted((2, 1, 0.9)), predicted((1, 1, 0.1))] * 20), "bad")
    assert good.of_confidence > 1 and bad.of_confidence < -1 and good.num_right == bad.num_right == 20
    assert good.probability(1.0, 0.9) > 0.75 > 0.25 > bad.probability(1.0, 0.9)
    members = [member(predicted((5, 1, 0.9)), by_probability(bad)), member(predicted((6, 1, 0.9)), by_probability(good))]
    assert [value for value, *_ in ranking(members)] == [6, 5]
    assert merge(members).candidates[KEY][0].confidence == pytest.approx(good.probability(1.0, 0.9) / 2)
    with pytest.raises(ConfigError, match="0 of the 3 candidates of here are right, so there is nothing to calibrate on"):
        fit_calibration(split(*[predicted((2, 1))] * 3), "here")
    hidden = ScoredSplit("x", {"scores": {"ARC/solved@2": {"n": 0, "N": 0}}}, {KEY: predicted((2, 1))})
    with pytest.raises(ConfigError, match="hidden answers"):
        fit_calibration(hidden, "here")


def test_calibration_gives_back_the_probabilities_that_made_the_answers() -> None:
    draws = np.random.default_rng(0)
    tests = {}
    for number in range(4000):
        share, confidence = draws.integers(1, 10), float(draws.random())
        chance = 1 / (1 + math.exp(-(-3 + 4 * share / 10 + 2 * confidence)))
        tests[str(number), 0] = predicted((1 if draws.random() < chance else 2, int(share), confidence), votes=10)
    record = {"scores": {"ARC/solved@2": {"n": 0, "N": len(tests)}}}
    found = fit_calibration(ScoredSplit("x", record, tests), "here")
    assert (found.bias, found.of_share, found.of_confidence) == pytest.approx((-3, 4, 2), abs=0.4)
    assert Calibration(0.0, 0.0, 0.0, 1, 2).probability(1, 1) == 0.5


def task(name: str, *truths: int | None) -> ArcTask:
    pairs = tuple(Pair(grid(9), None if truth is None else grid(truth)) for truth in truths)
    return ArcTask(name, (Pair(grid(0), grid(1)),), pairs, "here")


def test_what_a_member_adds_is_what_is_lost_without_it() -> None:
    tasks = [task("a", 1), task("b", 1), task("c", 1, 1), task("h", None)]
    right, wrong, other = predicted((1, 1)), predicted((2, 1), (3, 1)), predicted((4, 1), (5, 1))
    hidden = predicted((2, 1), truth=None)
    keys = [("a", 0), ("b", 0), ("c", 0), ("c", 1), ("h", 0)]
    answers = {
        "x": [right, wrong, right, wrong, hidden],
        "y": [wrong, right, wrong, wrong, hidden],
        "z": [other, other, other, right, hidden],
    }
    members = [Member(label, 1.0, dict(zip(keys, tests, strict=True)), by_votes) for label, tests in answers.items()]
    coverage = oracle_coverage(tasks, members)
    assert (coverage.n, coverage.total) == (4, 4), "each right grid is somebody's, and the hidden one does not count"
    x, y, z = contributions(tasks, members)
    assert [(part.alone.n, part.alone.total) for part in (x, y, z)] == [(1.5, 3), (1, 3), (0.5, 3)]
    # In a and b the only right one has a whole share. In the second test input of c two that are wrong outvote z, and y is one.
    assert x.without.n == 1.5 and y.without.n == 2 and z.without.n == 2.5
    pairs = [(part.paired.total, part.paired.only_first, part.paired.only_second) for part in (x, y, z)]
    assert pairs == [(3, 1, 0), (3, 1, 1), (3, 0, 0)] and z.paired.p_value == 1.0
    assert agreement(members) == pytest.approx(1 / 5)
    assert oracle_coverage(tasks[3:], members).total == 0
