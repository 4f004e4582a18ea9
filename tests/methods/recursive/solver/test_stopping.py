"""The sequential test: its formula, its error rate, and what settles a ranking."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.methods.recursive.solver.stopping import ODDS, is_settled, outvotes, round_ends


def ratio(ahead: int, behind: int) -> float:
    """The definition, integrated numerically."""
    p = np.linspace(0.5, 1, 200_001)
    return float(np.trapezoid(2 * (2 * p) ** ahead * (2 * (1 - p)) ** behind, p))


@pytest.mark.parametrize(
    ("ahead", "behind"), [(12, 0), (13, 0), (20, 2), (30, 8), (60, 25), (60, 26), (200, 130), (5, 5), (3, 9)]
)
def test_the_formula_is_the_integral(ahead: int, behind: int) -> None:
    assert outvotes(ahead, behind) == (ahead > behind and ratio(ahead, behind) > ODDS)


def test_thirteen_to_none_is_the_least() -> None:
    assert outvotes(13, 0) and not outvotes(12, 0) and not outvotes(13, 1)


def test_a_tie_is_wrongly_settled_less_than_once_in_a_thousand() -> None:
    """Two equal candidates, 400 votes, a look after every vote: either of them is settled on in less than 2 of 1000 votes."""
    rng, looks = np.random.default_rng(0), 400
    beaten, behind = np.zeros(looks + 1, dtype=np.int64), 0  # a votes beat every number of votes below beaten[a]
    for ahead in range(looks + 1):
        while outvotes(ahead, behind):
            behind += 1
        beaten[ahead] = behind
    first = np.cumsum(rng.random((4000, looks)) < 0.5, axis=1)
    second = np.arange(1, looks + 1) - first
    wrong = ((second < beaten[first]) | (first < beaten[second])).any(axis=1)
    assert wrong.mean() < 0.003


def test_what_settles_a_ranking() -> None:
    assert is_settled([30, 5], 1000) and not is_settled([30, 25], 1000)
    assert is_settled([30, 25], 4) and not is_settled([30, 25], 5)  # five more votes can make a tie
    assert not is_settled([100, 20, 18], 500) and is_settled([100, 20, 2], 500)
    assert not is_settled([100, 20, 20], 500) and not is_settled([50, 50, 0], 10)
    assert not is_settled([16, 0, 0], 985) and is_settled([16, 0], 985)  # nobody holds the second place yet


def test_rounds_end_with_the_last_augmentation() -> None:
    assert list(round_ends(1)) == [1] and list(round_ends(16)) == [16] and list(round_ends(40)) == [16, 24, 36, 40]
    assert list(round_ends(1001))[-1] == 1001 and len(list(round_ends(1001))) < 14
