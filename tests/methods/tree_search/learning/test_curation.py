"""Curation by hand: what is dropped, in which order, and that an idle step is one whose absence nobody can see."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from arclab.config.tree_learning_schema import CurateConfig
from arclab.methods.tree_search.learning.curation import (
    cleaned,
    curated,
    distance,
    joined,
    length_of,
    normalised,
    split_steps,
    what_took_it,
    without_idle_steps,
)
from arclab.methods.tree_search.learning.records import Solution
from arclab.methods.tree_search.steps import Steps

STEPS = Steps(program_begin="", root="def solve(I):", step_end="#;", program_end="#.")
FUNNEL = CurateConfig(max_length_ratio=2.0, num_best=4, num_short=3, num_kept=2, generated_inputs=0)
INPUTS = [np.array([[1, 2], [3, 4]]).tolist(), [[0, 5, 0]]]


def program(*lines: str) -> str:
    *before, last = lines
    return STEPS.opening + "".join(f"\n    {line} #;" for line in before) + f"\n    {last} #."


def solution(*lines: str, q: float = 1.0, right: bool = True, task: str = "t", tag: str = "0.0.0") -> Solution:
    return Solution(task, tag, 0, "plain", "", program(*lines), right, q, [q], [1.0], 9)


def run(asked: Sequence[tuple[str, str, bool]]) -> list[Hashable | None]:
    """In this process: the programs of this file are harmless."""
    found: list[Hashable | None] = []
    for _, source, is_prefix in asked:
        space: dict[str, Any] = {}
        try:
            exec(source, space)
            answers = [space["solve"]([list(row) for row in grid]) for grid in INPUTS[: 1 if is_prefix else None]]
        except (SyntaxError, NameError, IndexError, TypeError):
            found.append(None)
            continue
        found.append(() if is_prefix else repr(answers))
    return found


def clean(*lines: str) -> str:
    return without_idle_steps([("t", program(*lines))], STEPS, run)[0]


def test_steps_are_cut_and_put_together_again() -> None:
    written = program("a = 1", "b = 2", "return I")
    assert split_steps(written, STEPS) == ["\n    a = 1 #;", "\n    b = 2 #;", "\n    return I #."]
    assert joined(split_steps(written, STEPS), STEPS) == written
    assert joined(split_steps(written, STEPS)[:2], STEPS).endswith("b = 2 #.")  # the program ends where its last step does


def test_steps_that_change_nothing_go_to_a_fixpoint() -> None:
    flip = ("J = I[::-1]", "return J")
    assert clean(*flip) == program(*flip)
    assert clean("x = 3", *flip) == program(*flip)
    # y = x fails without x: x can go only once y is gone, which is a pass later.
    assert clean("x = 3", "y = x", *flip) == program(*flip)
    # Two steps that undo each other stay: each of them alone changes the output.
    assert clean("I = I[::-1]", "I = I[::-1]", "return I") == program("I = I[::-1]", "I = I[::-1]", "return I")
    # Dead code behind the return: the program ends with the return.
    assert clean("return I", "I = 1") == program("return I")
    # What changes one of several inputs stays.
    assert clean("I[0][0] = 1", "return I") == program("I[0][0] = 1", "return I")
    assert clean("return 1 / nothing") == program("return 1 / nothing")  # does not answer: left alone


def test_no_prefix_may_break() -> None:
    """Without `J = I` the whole would run just as well, but the step after it would not run alone."""
    lines = ("J = I", "K = J if I else 0", "J = I[::-1]", "K = 1", "return J")
    left = split_steps(clean(*lines), STEPS)
    for end in range(1, len(left)):
        assert run([("t", STEPS.prefix(STEPS.source(STEPS.opening + "".join(left[:end]))), True)]) != [None]
    assert clean(*lines) == program("J = I[::-1]", "return J")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("def solve(grid):\n    x = grid  # a\n    return x", True),
        ('def solve(grid):\n    """Says."""\n\n    x = (grid)\n    return x', True),
        ("def solve(I):\n    J = I\n    return I", False),
        ("def solve(I):\n    J = sorted(I)\n    return J", False),
        ("def other(I):\n    J = I\n    return J", False),
        ("def solve(", False),
    ],
)
def test_programs_are_equal_up_to_names_and_layout(other: str, same: bool) -> None:
    assert (normalised("def solve(I):\n    J = I\n    return J") == normalised(other)) == same


def test_lengths_and_distances_leave_comments_out() -> None:
    assert length_of("x = '#' # why\n") == 3
    assert distance("x = 1 # a", "x = 1 # b") == 0 and distance("x", "y") == 1
    assert distance("a b", "a c") == pytest.approx(1 - 1 / 3)


def test_the_funnel_by_hand() -> None:
    group = [
        solution("return 0", right=False),
        solution("return I", q=0.2),
        solution("J = I", "return J", q=0.9, tag="kept"),
        solution("K = I", "return K", q=0.5),  # a copy of the one before, of a lower Q
        solution("return I[0:] + I[:0] + I[:0] + I[:0] + I[:0]", q=1.0),  # more than twice as long
        solution("return list(I)", q=0.8),
        solution("return [*I]", q=0.7),
        solution("return I[:]", q=0.1),
    ]
    kept, taken = curated(group, STEPS, FUNNEL)
    assert taken == {"wrong": 1, "copies": 1, "long": 1, "worse": 1, "longer": 1, "similar": 1}
    # Best four by Q: kept, list, [*I], I. Shortest three: I, list(I), [*I] or J (lengths 2+.., see below). Two that differ most.
    lengths = [length_of(STEPS.source(each.written)) for each in kept]
    assert lengths[0] == min(lengths) and STEPS.source(kept[0].written).strip().endswith("return I") and len(kept) == 2


def test_cleaning_takes_right_ones_once_and_an_empty_result_says_why() -> None:
    group = [solution("x = 1", "return I"), solution("y = 2", "return I"), solution("return 0", right=False)]
    left = cleaned(group, STEPS, run)
    assert [each.written for each in left] == [program("return I")] * 2  # copies of each other only now
    assert curated(left, STEPS, FUNNEL)[1]["copies"] == 1
    kept, taken = curated([solution("return 0", right=False)], STEPS, FUNNEL)
    assert kept == [] and what_took_it(taken, 1) == "1 wrong on hidden test outputs"
    assert "none that reproduces" in what_took_it({}, 0)
