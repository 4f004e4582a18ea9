"""Intervals of trials that come in groups: as wide as the groups make them, not the trials."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.results.bootstrap import clustered_interval


def test_trials_that_are_alike_within_a_task_count_once() -> None:
    """Ten tasks of which half succeed always: as if each had one trial."""
    single = [[1.0]] * 5 + [[0.0]] * 5
    many = [[1.0] * 50] * 5 + [[0.0] * 50] * 5
    assert clustered_interval(single, 0) == clustered_interval(many, 0) == (pytest.approx(0.2), pytest.approx(0.8))
    rng = np.random.default_rng(0)
    mixed = clustered_interval([rng.permutation([1.0] * 25 + [0.0] * 25).tolist() for _ in range(10)], 0)
    assert mixed == (0.5, 0.5), "every task has the same share"


def test_it_holds_the_mean_of_trials_and_depends_on_the_seed_alone() -> None:
    groups = [[1.0, 0.0], [1.0, 1.0, 1.0], [0.0], [0.0, 1.0], []]
    interval = clustered_interval(groups, 3)
    assert interval is not None and interval == clustered_interval(groups, 3)
    assert interval[0] < 5 / 8 < interval[1] and interval[0] >= 0 and interval[1] <= 1


def test_one_task_has_no_interval() -> None:
    assert clustered_interval([[1.0, 0.0], []], 0) is None and clustered_interval([], 0) is None
