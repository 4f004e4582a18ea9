"""What the author of a wrong program is told: about demonstrations only, and never longer than a few thousand characters.

    text = feedback(task, parsed, outcome, config)
    text = execution_report(task, outcome)           # what a program does, example by example, with a grid of its wrong cells

It knows the demonstrations' outputs, which the prompt shows anyway, and what the program answered to them. Answers to test
inputs and what was printed are not looked at, and test outputs are never touched.
"""

from __future__ import annotations

import numpy as np

from arclab.config.llm_schema import PromptConfig
from arclab.data.tasks import ArcTask, Grid
from arclab.programs.outcomes import Outcome, PairOutcome
from arclab.programs.prompts import Parsed, ParseProblem, format_grid, shape_text
from arclab.programs.sandbox.execution import Status

MAX_EXAMPLES, MAX_CELLS, MAX_GRID_CELLS, MAX_MESSAGE_CHARS = 3, 10, 150, 200

_NO_PROGRAM = {
    ParseProblem.empty: "Your reply is empty.",
    ParseProblem.no_code: "Your reply has no Python program.",
    ParseProblem.no_entry: "Your program does not define the function {entry}.",
    ParseProblem.unclosed_thinking: "Your reply ended while you were still thinking. Think less.",
    ParseProblem.unclosed_fence: "The code block of your reply is not closed, and what is in it is not a whole program.",
    ParseProblem.cut: "Your reply was too long: it was cut off before the program was complete. Be brief.",
}
_HALF_PROGRAM = {
    ParseProblem.unclosed_fence: "The code block of your reply is not closed; this is about what was in it.",
    ParseProblem.cut: "Your reply was too long and was cut off; this is about the program as far as it went.",
}
_FAILURES = {
    Status.syntax_error: "the program is not valid Python",
    Status.no_entry_point: "the program does not define what was asked for",
    Status.exception: "the program raised an exception",
    Status.bad_output: "the program did not return a grid",
    Status.timeout_cpu: "the program took too long",
    Status.timeout_wall: "the program took too long",
    Status.oom: "the program used too much memory",
    Status.killed: "the program was killed",
    Status.exited: "the program ended itself",
    Status.output_limit: "the program wrote too much",
    Status.sandbox_error: "the program could not be run",
}


def feedback(task: ArcTask, parsed: Parsed, outcome: Outcome, config: PromptConfig) -> str:
    """How many demonstrations are right, what is wrong with the first few others, or why there is no program."""
    lines = []
    if outcome.source is None:
        lines.append(_NO_PROGRAM[parsed.problem].format(entry=config.entry))
    else:
        if parsed.problem in _HALF_PROGRAM:
            lines.append(_HALF_PROGRAM[parsed.problem])
        lines.append(f"{sum(demo.is_right for demo in outcome.demos)} of {len(outcome.demos)} examples are right.")
        lines += _wrong_examples(task, outcome, config)
    if config.instructions:
        lines.append("Find the mistake, and reply with the whole corrected program in one block.")
    return "\n".join(lines)


def _wrong_examples(task: ArcTask, outcome: Outcome, config: PromptConfig) -> list[str]:
    """A paragraph for each of the first few wrong ones; those that fail alike share one."""
    examples: dict[str, list[int]] = {}
    for number, (demo, pair) in enumerate(zip(outcome.demos, task.demos, strict=True), 1):
        if not demo.is_right:
            assert pair.output is not None
            examples.setdefault(_what_is_wrong(demo, pair.output, config), []).append(number)
    shown = list(examples.items())[:MAX_EXAMPLES]
    lines = [f"Example{'s' if len(numbers) > 1 else ''} {_listed(numbers)}: {text}" for text, numbers in shown]
    num_more = sum(map(len, examples.values())) - sum(len(numbers) for _, numbers in shown)
    return [*lines, f"{num_more} more are wrong."] if num_more else lines


def execution_report(task: ArcTask, outcome: Outcome) -> str:
    """How a program does on every demonstration: right, or the shapes, or the error with its line, or which cells are wrong. Of
    a grid it shows the part that has wrong cells: "." is a right one, 4>7 is a 4 that must be a 7."""
    assert outcome.source is not None, "a program"
    lines = [f"{sum(demo.is_right for demo in outcome.demos)} of {len(outcome.demos)} examples are right."]
    for number, (demo, pair) in enumerate(zip(outcome.demos, task.demos, strict=True), 1):
        assert pair.output is not None
        lines.append(f"Example {number}: {_what_it_does(demo, pair.output)}")
    return "\n".join(lines)


def _what_it_does(demo: PairOutcome, truth: Grid) -> str:
    if demo.grid is None:
        return _failure(demo)
    if not demo.has_right_shape:
        return f"the output has the shape {shape_text(demo.grid)}, not {shape_text(truth)}."
    if demo.is_right:
        return f"right, {shape_text(truth)}."
    wrong = np.argwhere(demo.grid != truth)
    (top, left), (bottom, right) = wrong.min(0), wrong.max(0)
    rows = [
        " ".join("." if got == wanted else f"{got}>{wanted}" for got, wanted in zip(*pair, strict=True))
        for pair in zip(
            demo.grid[top : bottom + 1, left : right + 1].tolist(),
            truth[top : bottom + 1, left : right + 1].tolist(),
            strict=True,
        )
    ]
    where = f"rows {top} to {bottom}, columns {left} to {right}"
    return f"{len(wrong)} of {truth.size} cells are wrong, of {shape_text(truth)}. {where}:\n" + "\n".join(rows)


def _failure(demo: PairOutcome) -> str:
    message = " ".join(demo.message.split())[:MAX_MESSAGE_CHARS]
    return _FAILURES[demo.status] + (f": {message}" if message else "") + "."


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:MAX_CELLS])) + (", ..." if len(numbers) > MAX_CELLS else "")


def _what_is_wrong(demo: PairOutcome, truth: Grid, config: PromptConfig) -> str:
    if demo.grid is None:
        return _failure(demo)
    if not demo.has_right_shape:
        return f"the output has the shape {shape_text(demo.grid)}, not {shape_text(truth)}.{_shown(demo.grid, config)}"
    wrong = np.argwhere(demo.grid != truth)
    cells = "; ".join(
        f"({row}, {column}) is {demo.grid[row, column]}, not {truth[row, column]}" for row, column in wrong[:MAX_CELLS]
    )
    more = f"; and {len(wrong) - MAX_CELLS} more" if len(wrong) > MAX_CELLS else ""
    return (
        f"{len(wrong)} of {truth.size} cells are wrong. Cell (row, column), from 0: {cells}{more}.{_shown(demo.grid, config)}"
    )


def _shown(grid: Grid, config: PromptConfig) -> str:
    return f" It was:\n{format_grid(grid, config.grid_format)}" if grid.size <= MAX_GRID_CELLS else ""
