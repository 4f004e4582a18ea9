"""Rewards rise with what a program gets right, whatever its length, and know nothing of test outputs unless they may."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from arclab.config.program_edit_schema import CountedCells, EditRewardConfig
from arclab.config.schema import SplitName
from arclab.data.tasks import ArcTask, Pair
from arclab.metrics.names import REGISTRY
from arclab.programs.outcomes import Outcome, PairOutcome, compare
from arclab.programs.rewards import (
    MAX_COST,
    NO_EFFORT,
    POWER,
    Effort,
    RewardKind,
    edit_reward,
    reward,
    score_tests,
    training_reward,
)
from arclab.programs.sandbox.execution import GridResult, Status

GRID = np.arange(30, dtype=np.uint8).reshape(5, 6) % 10


def wrong_by(cells: int) -> GridResult:
    grid = GRID.copy()
    grid.flat[:cells] = (grid.flat[:cells] + 1) % 10
    return GridResult(Status.ok, grid)


# From bad to good; all that one demonstration can do.
LEVELS = [
    [GridResult(Status.syntax_error, None, "SyntaxError")],
    [GridResult(status) for status in Status if status not in (Status.ok, Status.syntax_error)],
    [GridResult(Status.ok, GRID.T), GridResult(Status.ok, GRID[:4])],
    *[[wrong_by(cells)] for cells in (30, 20, 10, 2, 1)],
    [GridResult(Status.ok, GRID)],
]
RIGHT = len(LEVELS) - 1


def outcome_of(levels: tuple[int, ...], length: int = 500, rng: random.Random | None = None) -> Outcome:
    rng = rng or random.Random(0)
    return Outcome("x" * length, tuple(compare(rng.choice(LEVELS[level]), GRID) for level in levels), (), 0.0)


NO_CODE = Outcome(None, (), (), 0.0)
KINDS = list(RewardKind)


@pytest.mark.parametrize("kind", KINDS)
def test_value_rises_with_every_demonstration(kind: RewardKind) -> None:
    """All mixtures of one to three demonstrations, and random ones of up to twelve."""
    rng = random.Random(1)
    mixtures = [levels for size in (1, 2, 3) for levels in itertools.product(range(len(LEVELS)), repeat=size)]
    mixtures += [tuple(rng.randrange(len(LEVELS)) for _ in range(rng.randint(4, 12))) for _ in range(100)]
    mixtures += [(RIGHT,) * 11 + (level,) for level in range(len(LEVELS))]
    for levels in mixtures:
        value = reward(kind, outcome_of(levels, rng=rng)).value
        assert reward(kind, NO_CODE).value <= value <= 1
        for at in range(len(levels)):
            if levels[at] < RIGHT:
                better = (*levels[:at], levels[at] + 1, *levels[at + 1 :])
                assert reward(kind, outcome_of(better, length=1, rng=rng)).value >= value - 1e-12, (levels, better)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_in_order_whatever_the_length(kind: RewardKind) -> None:
    """A long program of a better level is never worth less than a short one of a worse level."""
    for low, high in itertools.combinations(range(len(LEVELS)), 2):
        for demos in (1, 3, 10):
            values = [
                reward(kind, outcome_of((low,) * demos, length=1)).value,
                reward(kind, outcome_of((high,) * demos, length=10**6)).value,
            ]
            assert values[0] <= values[1]
            if kind in (RewardKind.smooth, RewardKind.delta):
                assert values[0] < values[1] or (low, high) == (1, 2)  # an error and a wrong shape are worth the same


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_demos", [1, 2, 10, 30])
def test_right_everywhere_is_the_most(kind: RewardKind, num_demos: int) -> None:
    """Also at any length, and next to a single wrong cell of the largest grid."""
    big = np.zeros((30, 30), np.uint8)
    nearly = big.copy()
    nearly[3, 4] = 1
    right, almost = compare(GridResult(Status.ok, big), big), compare(GridResult(Status.ok, nearly), big)
    best = reward(kind, Outcome("x" * 10**6, (right,) * num_demos, (), 9.0)).value
    other = reward(kind, Outcome("x", (*(right,) * (num_demos - 1), almost), (), 0.0)).value
    assert best > other + 0.05 and best >= 1 - MAX_COST


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_mean(kind: RewardKind) -> None:
    """Not a sum, and no demonstration stands for all: a task with more of them pays the same."""
    for level in range(len(LEVELS)):
        values = {round(reward(kind, outcome_of((level,) * demos)).value, 12) for demos in (1, 2, 7)}
        assert len(values) == 1
    if kind is not RewardKind.binary:
        orders = {round(reward(kind, outcome_of(order)).value, 12) for order in itertools.permutations((0, 4, RIGHT))}
        assert len(orders) == 1 and orders != {0.0}


def test_kinds_by_hand() -> None:
    half = outcome_of((RIGHT, 3 + 2))  # one demonstration right, one with two thirds of its cells
    assert reward(RewardKind.binary, half).value == 0 and reward(RewardKind.binary, outcome_of((RIGHT, RIGHT))).value == 1
    assert reward(RewardKind.percent_correct, half).value == pytest.approx(0.5 * (1 + 2 / 3) / 2)
    assert reward(RewardKind.smooth, half).value == pytest.approx((0.9 + 0.2 + 0.7 * (2 / 3) ** 10) / 2)
    assert reward(RewardKind.smooth, outcome_of((0, 0))).value == 0
    assert reward(RewardKind.smooth, outcome_of((1, 1))).value == pytest.approx(0.1)
    assert reward(RewardKind.smooth, outcome_of((RIGHT,), length=5000)).value == pytest.approx(0.99)
    assert (
        reward(RewardKind.smooth, outcome_of((RIGHT,), length=1)).value > reward(RewardKind.smooth, outcome_of((RIGHT,))).value
    )
    slow = replace(half, cpu_s=99.0)
    assert all(reward(kind, slow) == reward(kind, half) for kind in KINDS)


def test_delta_is_against_the_parent() -> None:
    worse, better = outcome_of((2, 3)), outcome_of((2, RIGHT))
    for parent, child in ((worse, better), (better, worse), (better, better), (NO_CODE, better), (None, better)):
        got = reward(RewardKind.delta, child, parent)
        own = reward(RewardKind.smooth, child).value
        assert (
            got.value == pytest.approx(own - (reward(RewardKind.smooth, parent).value if parent else 0)) and got.program == own
        )
    assert reward(RewardKind.smooth, better, worse) == reward(RewardKind.smooth, better)
    assert reward(RewardKind.delta, worse, better).value < 0 < reward(RewardKind.delta, better, worse).value


def test_components_are_all_there_and_registered() -> None:
    names = {name for name in REGISTRY if name.startswith("reward/")}
    for kind in KINDS:
        for outcome in (NO_CODE, outcome_of((0, 0)), outcome_of((1, RIGHT)), outcome_of((RIGHT, RIGHT))):
            got = reward(kind, outcome, NO_CODE)
            assert got.components.keys() == names and got.components["reward/value"] == got.value
            assert all(type(value) is float for value in got.components.values())
    parts = reward(RewardKind.binary, outcome_of((1, 2, 5, RIGHT))).components
    wanted = {"code": 1, "syntax": 1, "runs": 3 / 4, "shape": 2 / 4, "cells": (2 / 3 + 1) / 4, "right": 1 / 4, "solved": 0, "cost": 0, "value": 0, "program": 0}  # fmt: skip
    assert parts == pytest.approx({f"reward/{name}": value for name, value in wanted.items()})
    assert reward(RewardKind.binary, outcome_of((0,))).components["reward/syntax"] == 0
    assert reward(RewardKind.smooth, outcome_of((RIGHT,))).components["reward/cost"] > 0


TASK = ArcTask("t", (Pair(GRID, GRID),) * 2, (Pair(GRID, GRID.T), Pair(GRID, GRID)), "here")
HIDDEN = replace(TASK, tests=(Pair(GRID, None), TASK.tests[1]))


def answered(*answers: np.ndarray) -> Outcome:
    right = compare(GridResult(Status.ok, GRID), GRID)
    return Outcome("x", (right, right), tuple(GridResult(Status.ok, grid) for grid in answers), 0.0)


def test_tests_are_scored_apart() -> None:
    assert score_tests(TASK, answered(GRID.T, GRID)) is True
    assert score_tests(TASK, answered(GRID.T, GRID.T)) is False
    assert score_tests(TASK, NO_CODE) is False
    assert score_tests(HIDDEN, answered(GRID.T, GRID)) is None and score_tests(HIDDEN, NO_CODE) is None
    crash = replace(answered(GRID.T, GRID), answers=(GridResult(Status.exception), GridResult(Status.ok, GRID)))
    assert score_tests(TASK, crash) is False


def test_training_reward_sees_tests_only_of_training_tasks() -> None:
    right, wrong = answered(GRID.T, GRID), answered(GRID.T, GRID.T)
    for kind in KINDS:
        for split in SplitName:
            assert training_reward(kind, TASK, right, split=split) == training_reward(kind, TASK, wrong, split=split) == reward(kind, right)  # fmt: skip
        used = [training_reward(kind, TASK, o, split=SplitName.train, use_tests=True).value for o in (right, wrong, NO_CODE)]
        assert used[0] == reward(kind, right).value > used[1] >= used[2] == 0
    for split in (SplitName.validation, SplitName.evaluation):
        with pytest.raises(ValueError, match=rf"use_tests=True needs split=train.*split={split.value}.*set use_tests=False\.$"):
            training_reward(RewardKind.binary, TASK, right, split=split, use_tests=True)
    with pytest.raises(ValueError, match="hidden"):
        training_reward(RewardKind.binary, HIDDEN, right, split=SplitName.train, use_tests=True)


def test_one_demonstration_of_every_level() -> None:
    """The levels above are what they are called."""
    pairs: list[PairOutcome] = [compare(level[0], GRID) for level in LEVELS]
    assert [pair.is_right for pair in pairs] == [False] * RIGHT + [True]
    assert [pair.has_right_shape for pair in pairs] == [False] * 3 + [True] * (RIGHT - 2)


def edit_config(**fields: object) -> EditRewardConfig:
    base = {"per_execution": 0.0, "per_thinking_token": 0.0, "cells": CountedCells.all, "use_tests": False}
    return EditRewardConfig(**{**base, **fields})  # type: ignore[arg-type]


def task_of(demos: int, given: np.ndarray = GRID) -> ArcTask:
    return ArcTask("t", (Pair(given, GRID),) * demos, (Pair(GRID, GRID),), "test")


@pytest.mark.parametrize("cells", list(CountedCells))
def test_an_edit_is_worth_what_the_document_says(cells: CountedCells) -> None:
    """0.1 syntax + 0.1 shape + p^10, mean over examples, less what the parent is worth; the costs come off."""
    config = edit_config(cells=cells)
    for level, wanted in ((0, 0.0), (1, 0.1), (2, 0.1), (3, 0.2), (RIGHT, 1.2)):
        for demos in (1, 5):  # however many examples there are
            found = edit_reward(task_of(demos, GRID.T), outcome_of((level,) * demos), NO_CODE, config, NO_EFFORT)
            assert found.value == found.program == pytest.approx(wanted)
    task, parent, child = task_of(2, GRID.T), outcome_of((1, RIGHT - 2)), outcome_of((RIGHT, RIGHT - 1))
    for share, wanted in ((0.99, 0.904), (0.95, 0.599), (0.9, 0.349), (0.8, 0.107), (0.5, 0.001)):
        assert share**POWER == pytest.approx(wanted, abs=5e-4)
    before, after = (0.1 + 0.2 + (28 / 30) ** 10) / 2, (1.2 + 0.2 + (29 / 30) ** 10) / 2
    earned = edit_reward(task, child, parent, config, NO_EFFORT)
    assert earned.value == pytest.approx(after - before) and earned.components["edits/parent_value"] == pytest.approx(before)
    costly = edit_reward(
        task, child, parent, edit_config(cells=cells, per_execution=0.01, per_thinking_token=1e-4), Effort(3, 200)
    )
    assert costly.value == pytest.approx(after - before - 0.05) and costly.components["reward/cost"] == pytest.approx(0.05)
    assert edit_reward(task, parent, parent, config, Effort(1, 100)).value == 0.0
    assert edit_reward(task, NO_CODE, parent, config, NO_EFFORT).value == pytest.approx(-before)
    assert costly.components.keys() <= REGISTRY.keys()


def test_a_better_program_is_a_better_edit_at_equal_effort() -> None:
    """Also after an example whose shape is wrong: nothing is left over from one example to the next."""
    config, effort = edit_config(per_execution=0.02, per_thinking_token=1e-4), Effort(2, 300)
    values = [
        edit_reward(task_of(2), outcome_of((level, 2)), outcome_of((1, 1)), config, effort).value
        for level in range(len(LEVELS))
    ]
    assert values == sorted(values) and len(set(values)) == len(values) - 1  # an error and a wrong shape are worth the same
    alone = [
        edit_reward(task_of(2), outcome_of(levels), NO_CODE, config, NO_EFFORT).value for levels in ((RIGHT, 2), (2, RIGHT))
    ]
    assert alone[0] == pytest.approx(alone[1]) == pytest.approx((1.2 + 0.1) / 2)


def test_changed_cells_alone_count_where_asked() -> None:
    """A program that changes nothing, and one that spoils as many cells as it puts right."""
    given = GRID.copy()
    given.flat[:3] = (given.flat[:3] + 1) % 10
    spoilt = GRID.copy()
    spoilt.flat[-3:] = (spoilt.flat[-3:] + 1) % 10

    def worth(answer: np.ndarray, cells: CountedCells) -> float:
        outcome = Outcome("x", (compare(GridResult(Status.ok, answer), GRID),), (), 0.0)
        return edit_reward(task_of(1, given), outcome, NO_CODE, edit_config(cells=cells), NO_EFFORT).value

    assert worth(given, CountedCells.all) == pytest.approx(0.2 + 0.9**10)
    assert worth(given, CountedCells.changed) == pytest.approx(0.2)
    assert worth(spoilt, CountedCells.changed) == pytest.approx(0.2 + 0.5**10)
    assert worth(GRID, CountedCells.changed) == pytest.approx(1.2) == worth(GRID, CountedCells.all)


def test_tests_count_in_an_edit_only_where_they_may() -> None:
    right = replace(outcome_of((RIGHT,)), answers=(GridResult(Status.ok, GRID.T),))
    task, config = task_of(1), edit_config(use_tests=True)
    assert edit_reward(task, right, NO_CODE, config, NO_EFFORT).value == pytest.approx((1.2 + 0.1) / 2)
    with pytest.raises(ValueError, match="use_tests=True needs split=train"):
        edit_reward(task, right, NO_CODE, config, NO_EFFORT, split=SplitName.evaluation)
