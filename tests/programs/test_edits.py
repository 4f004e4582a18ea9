"""What a model is shown of a program that it is to improve, and what its reply is read as."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.config.llm_schema import GridFormat
from arclab.config.program_edit_schema import EditFormat, EditPromptConfig
from arclab.data.tasks import ArcTask, Pair
from arclab.lm.language_model import Completion, FinishReason
from arclab.programs.code_blocks import split_thinking
from arclab.programs.edits import NO_BLOCK, NO_MATCH, parse_edit, render_edit_prompt, write_reply
from arclab.programs.feedback import execution_report
from arclab.programs.outcomes import Outcome, compare
from arclab.programs.sandbox.execution import GridResult, Status

TRUTH = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
SECRET = np.full((2, 2), 9, np.uint8)
TASK = ArcTask("t", (Pair(TRUTH.T, TRUTH),) * 4, (Pair(np.full((2, 2), 8, np.uint8), SECRET),), "test")
PARENT = "def solve(I):\n    J = I\n    return J\n"


def config(**fields: object) -> EditPromptConfig:
    base = {
        "grid_format": GridFormat.spaced, "instructions": True, "show_tests": True, "show_shapes": True, "entry": "solve",
        "edit_format": EditFormat.program, "report": True,
    }  # fmt: skip
    return EditPromptConfig(**{**base, **fields})  # type: ignore[arg-type]


def outcome() -> Outcome:
    wrong = TRUTH.copy()
    wrong[1, 1:] = 0, 1
    answers = (
        GridResult(Status.ok, TRUTH),
        GridResult(Status.ok, wrong),
        GridResult(Status.ok, TRUTH[:2]),
        GridResult(Status.exception, None, "KeyError: 7 (line 2)"),
    )
    return Outcome(PARENT, tuple(compare(each, TRUTH) for each in answers), (GridResult(Status.ok, SECRET),), 0.0)


def test_a_report_says_for_each_example_what_is_wrong_and_where() -> None:
    assert execution_report(TASK, outcome()).split("\n") == [
        "1 of 4 examples are right.",
        "Example 1: right, 3x3.",
        "Example 2: 2 of 9 cells are wrong, of 3x3. rows 1 to 1, columns 1 to 2:",
        "0>5 1>6",
        "Example 3: the output has the shape 2x3, not 3x3.",
        "Example 4: the program raised an exception: KeyError: 7 (line 2).",
    ]


@pytest.mark.parametrize("instructions", [True, False])
def test_a_prompt_has_the_task_the_program_and_the_report_and_no_test_output(instructions: bool) -> None:
    (message,) = render_edit_prompt(TASK, outcome(), config(instructions=instructions))
    text = message.content
    assert PARENT.strip() in text and "0>5 1>6" in text and "8 8\n8 8" in text and "9 9" not in text
    assert text.index("1 4 7") < text.index("def solve") < text.index("examples are right")
    (silent,) = render_edit_prompt(TASK, outcome(), config(instructions=instructions, report=False))
    assert "examples are right" not in silent.content and PARENT.strip() in silent.content
    (blocks,) = render_edit_prompt(TASK, outcome(), config(instructions=instructions, edit_format=EditFormat.blocks))
    assert ("<<<<<<< SEARCH" in blocks.content) is instructions


def said(text: str, reason: FinishReason = FinishReason.stop, opened: str = "") -> Completion:
    return Completion(text, reason, 10, None, opened)


def test_a_reply_is_read_after_its_thinking() -> None:
    draft = "```python\ndef solve(I):\n    return 'draft'\n```"
    final = "def solve(I):\n    # turned\n    return I[::-1]"
    for reply in (
        said(f"<think>try\n{draft}\n</think>\n```python\n{final}\n```"),
        said(f"try\n{draft}</think>{final}", opened="<think>\n"),
        said(write_reply(f"try\n{draft}", final)),
    ):
        edit = parse_edit(reply, PARENT, config())
        assert edit.source == final and edit.problem == "none" and edit.thinking == f"try\n{draft}" and not edit.is_cut
    cut = parse_edit(said(f"<think>try\n{draft}", FinishReason.length), PARENT, config())
    assert cut.source is None and cut.problem == "unclosed_thinking" and cut.is_cut and cut.thinking == f"try\n{draft}"
    assert split_thinking("no thinking") == ("", "no thinking")


def test_blocks_are_put_where_their_lines_are_once() -> None:
    blocks = config(edit_format=EditFormat.blocks)

    def block(old: str, new: str) -> str:
        return f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n"

    both = parse_edit(
        said(
            "<think>"
            + block("    J = I", "")
            + "</think>"
            + block("    J = I", "    J = I[::-1]  # up")
            + "so\n"
            + block("    return J", "    K = J\n    return K")
        ),
        PARENT,
        blocks,
    )
    assert both.source == "def solve(I):\n    J = I[::-1]  # up\n    K = J\n    return K\n" and both.problem == "none"
    twice = PARENT + "    return J\n"
    for text, parent, problem in (
        (block("    J = 5", "x"), PARENT, NO_MATCH), (block("    return J", "x"), twice, NO_MATCH), (block("", "x"), PARENT, NO_MATCH),
        ("def solve(I): return I", PARENT, NO_BLOCK), (block("    J = I", "x").replace(">>>>>>>", ">>>"), PARENT, NO_BLOCK),
    ):  # fmt: skip
        edit = parse_edit(said(text), parent, blocks)
        assert edit.source is None and edit.problem == problem, text
