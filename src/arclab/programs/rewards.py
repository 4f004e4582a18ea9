"""What a program is worth: pure functions of its outcome on the demonstrations.

    reward(RewardKind.smooth, outcome).value                                  # 0 to 1; .components are metrics to log
    training_reward(RewardKind.binary, task, outcome, split=SplitName.evaluation)
    edit_reward(task, child, parent, config, Effort(1, 250)).value            # of an edit: what it is worth, less its parent
    score_tests(task, outcome)                                                # for reports only, never part of a reward

Every kind is a mean over demonstrations, so that tasks with many of them count as others do. Test outputs are out of reach here
except through training_reward(use_tests=True), which refuses tasks that are not trained on. It runs nothing: see programs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from arclab.config.program_edit_schema import CountedCells, EditRewardConfig
from arclab.config.schema import SplitName
from arclab.data.tasks import ArcTask, Pair
from arclab.programs.outcomes import Outcome, PairOutcome, compare
from arclab.programs.sandbox.execution import Status

SYNTAX, SHAPE, CELLS, POWER = 0.1, 0.1, 0.7, 10  # and what is left to 1 for a program that is right everywhere
MAX_COST, COST_CHARS = 0.02, 10_000


class RewardKind(Enum):
    """binary: 1 if every demonstration is reproduced, else 0.

    percent_correct: 1 likewise, else half of the share of right cells (none where the shape is wrong): partial credit never
    comes near a solution. smooth: for each demonstration 0.1 for a program that compiles, 0.1 for the right shape and 0.7
    (share of right cells)^10, which is steep at the last cells; 1 for a program that is right everywhere, less a cost of at
    most 0.02 for its length. delta: smooth, less that of the parent program; from -1 to 1.

    Only programs that are right everywhere pay for their length. If wrong ones did, a short crash could beat a long answer of
    the right shape, and no program at all would beat a syntax error, which teaches silence.
    """

    binary = "binary"
    percent_correct = "percent_correct"
    smooth = "smooth"
    delta = "delta"


@dataclass(frozen=True, slots=True)
class Reward:
    """components: metrics by name, all of them for every kind.

    reward/program is what the program is worth by itself; reward/value differs from it only for delta.
    """

    value: float
    components: dict[str, float]

    @property
    def program(self) -> float:
        return self.components["reward/program"]


def reward(kind: RewardKind, outcome: Outcome, parent: Outcome | None = None) -> Reward:
    """parent: the program that this one was made from, for delta; None: made from nothing, which is worth 0 as no code is."""
    program = _program_value(kind, outcome)
    value = program - _program_value(kind, parent) if kind is RewardKind.delta and parent is not None else program
    return Reward(value, _components(outcome, value, program, cost(outcome)))


def _components(outcome: Outcome, value: float, program: float, paid: float) -> dict[str, float]:
    demos = outcome.demos
    return {
        "reward/value": value,
        "reward/program": program,
        "reward/code": float(outcome.source is not None),
        "reward/syntax": _mean([compiles(demo) for demo in demos]),
        "reward/runs": _mean([demo.status is Status.ok for demo in demos]),
        "reward/shape": _mean([demo.has_right_shape for demo in demos]),
        "reward/cells": _mean([demo.cell_share for demo in demos]),
        "reward/right": outcome.demo_share,
        "reward/solved": float(solves(outcome)),
        "reward/cost": paid,
    }


def training_reward(
    kind: RewardKind,
    task: ArcTask,
    outcome: Outcome,
    *,
    split: SplitName,
    use_tests: bool = False,
    parent: Outcome | None = None,
) -> Reward:
    """The reward that weights may be trained on: demonstrations only; use_tests: a training task's test pairs count as such,
    too.

    ValueError: test pairs of another split, or with hidden answers.
    """
    check_use_tests(task, split, use_tests)
    if use_tests:
        outcome, parent = _with_tests(task, outcome), None if parent is None else _with_tests(task, parent)
    return reward(kind, outcome, parent)


def check_use_tests(task: ArcTask, split: SplitName, use_tests: bool) -> None:
    """ValueError, in one sentence, if the test pairs of this task may not be part of a reward."""
    if use_tests and split is not SplitName.train:
        raise ValueError(
            f"use_tests=True needs split=train, but task {task.id} is of split={split.value}: a reward must not know the "
            "answers that its policy is scored by; set use_tests=False."
        )
    if use_tests and any(test.output is None for test in task.tests):
        raise ValueError(f"use_tests=True needs the test outputs of task {task.id}, which are hidden; set use_tests=False.")


@dataclass(frozen=True, slots=True)
class Effort:
    """What an edit took: executions of programs by its author, and tokens of thinking."""

    executions: int
    thinking_tokens: int


NO_EFFORT = Effort(0, 0)


def edit_reward(
    task: ArcTask, outcome: Outcome, parent: Outcome, config: EditRewardConfig, effort: Effort, *,
    split: SplitName = SplitName.train,
) -> Reward:  # fmt: skip
    """What a program is worth, less what the one that it was made from is worth. The effort is the child's; at an equal one the
    order is that of RewardKind: no code, a program that does not compile, one that does, the right shape, right cells.

    ValueError: config.use_tests, and test pairs of another split or with hidden answers.
    """
    check_use_tests(task, split, config.use_tests)
    program, before = edit_value(task, outcome, config), edit_value(task, parent, config)
    paid = config.per_execution * effort.executions + config.per_thinking_token * effort.thinking_tokens
    demos, pairs = _judged_pairs(task, outcome, config.use_tests)
    value = program - paid - before
    return Reward(
        value,
        _components(outcome, value, program - paid, paid)
        | {
            "edits/parent_value": before,
            "edits/changed_cells": _mean([changed_share(*each) for each in zip(demos, pairs, strict=True)]),
        },
    )


def edit_value(task: ArcTask, outcome: Outcome, config: EditRewardConfig) -> float:
    """What a program is worth before costs, 0 to 1.2: mean over demonstrations (and over test pairs, if config.use_tests)."""
    demos, pairs = _judged_pairs(task, outcome, config.use_tests)
    shares = [
        changed_share(demo, pair) if config.cells is CountedCells.changed else demo.cell_share
        for demo, pair in zip(demos, pairs, strict=True)
    ]
    return _mean(
        [
            SYNTAX * compiles(demo) + SHAPE * demo.has_right_shape + share**POWER
            for demo, share in zip(demos, shares, strict=True)
        ]
    )


def _judged_pairs(task: ArcTask, outcome: Outcome, use_tests: bool) -> tuple[Sequence[PairOutcome], Sequence[Pair]]:
    if outcome.source is None:
        return (), ()
    return (_with_tests(task, outcome).demos, task.pairs) if use_tests else (outcome.demos, task.demos)


def changed_share(demo: PairOutcome, pair: Pair) -> float:
    """The share of right cells over those that change: where the right output, or the program's, is not the input's colour, so
    that a program that spoils another cell pays for it. All cells where input and output differ in shape."""
    assert pair.output is not None
    if demo.grid is None or not demo.has_right_shape or pair.input.shape != pair.output.shape:
        return demo.cell_share
    counted = (pair.output != pair.input) | (demo.grid != pair.input)
    return float(np.mean((demo.grid == pair.output)[counted])) if counted.any() else 1.0


def score_tests(task: ArcTask, outcome: Outcome) -> bool | None:
    """Whether every test input is answered right; None where an answer is hidden. For reports."""
    if any(test.output is None for test in task.tests):
        return None
    if outcome.source is None:
        return False
    return all(pair.is_right for pair in _test_pairs(task.tests, outcome))


def compiles(demo: PairOutcome) -> bool:
    return demo.status is not Status.syntax_error


def solves(outcome: Outcome) -> bool:
    """Whether every demonstration is reproduced."""
    return outcome.is_right


def cost(outcome: Outcome) -> float:
    """What a right program pays (kinds smooth and delta): for characters, which are the same on every machine; seconds are
    not."""
    return MAX_COST * min(1.0, len(outcome.source or "") / COST_CHARS) if solves(outcome) else 0.0


def _program_value(kind: RewardKind, outcome: Outcome) -> float:
    if kind is RewardKind.binary:
        return float(solves(outcome))
    if kind is RewardKind.percent_correct:
        return 1.0 if solves(outcome) else 0.5 * _mean([demo.cell_share for demo in outcome.demos])
    if solves(outcome):
        return 1.0 - cost(outcome)
    return _mean([SYNTAX * compiles(d) + SHAPE * d.has_right_shape + CELLS * d.cell_share**POWER for d in outcome.demos])


def _mean(values: Sequence[float]) -> float:
    """0 without demonstrations: there was no code."""
    return sum(values) / len(values) if values else 0.0


def _test_pairs(tests: Sequence[Pair], outcome: Outcome) -> list[PairOutcome]:
    assert len(outcome.answers) == len(tests), "run it with_tests"
    pairs = []
    for answer, test in zip(outcome.answers, tests, strict=True):
        assert test.output is not None
        pairs.append(compare(answer, test.output))
    return pairs


def _with_tests(task: ArcTask, outcome: Outcome) -> Outcome:
    """The outcome with test pairs among its demonstrations."""
    if outcome.source is None:
        return outcome
    return replace(outcome, demos=(*outcome.demos, *_test_pairs(task.tests, outcome)))
