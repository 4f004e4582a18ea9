"""Programs written from a toy task's rule answer every pair of it, in every family."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.data.sources import load_source
from arclab.data.synthetic import FAMILIES
from arclab.programs.toy import STEPS_ROOT, solution, solution_steps


@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_of_a_rule_answers_all_pairs(family: str) -> None:
    tasks = load_source(f"toy:{family}?tasks=150&side=5&colors=4&palette=6&demos=3&tests=2")
    assert len({task.rule for task in tasks}) > 6
    for task in tasks:
        namespace: dict[str, object] = {}
        exec(solution(task), namespace)  # our own text
        solve = namespace["solve"]
        assert callable(solve)
        for pair in task.pairs:
            assert pair.output is not None and np.array_equal(solve(pair.input.tolist()), pair.output), (
                task.rule,
                solution(task),
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_its_steps_do_the_same_and_run_as_far_as_they_go(family: str) -> None:
    for task in load_source(f"toy:{family}?tasks=20&side=5&colors=4&palette=6&demos=2&tests=1"):
        steps = solution_steps(task)
        for end in range(len(steps) + 1):
            namespace: dict[str, object] = {}
            exec(STEPS_ROOT + "".join(f"\n    {line}" for line in steps[:end]), namespace)  # our own text
            solve = namespace["solve"]
            assert callable(solve)
            answers = [solve(pair.input.tolist()) for pair in task.pairs]
            if end < len(steps):
                assert answers == [None] * len(answers)
            else:
                assert all(
                    np.array_equal(answer, pair.output)
                    for answer, pair in zip(answers, task.pairs, strict=True)
                    if pair.output is not None
                )


def test_a_task_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="has no rule to write a program from"):
        solution(load_source("conceptarc")[0])
