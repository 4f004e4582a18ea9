"""A task, a program and what it does as a prompt, and the reply as a new program.

    prompt = render_edit_prompt(task, outcome, config)             # outcome: of the program, on the demonstrations
    prompt = render_edit_prompt(task, outcome, config, others)     # with other programs to take from
    edit = parse_edit(completion, outcome.source, config)          # edit.source or edit.problem; edit.thinking
    text = write_reply(thinking, source)                           # a reply as it is learned: <think>, then the program

The reply is reasoning and the whole new program. With config.edit_format=blocks it is search-and-replace blocks instead:

    <<<<<<< SEARCH
        return I
    =======
        return I[::-1]
    >>>>>>> REPLACE

The lines to find must be in the program exactly once. A prompt never has a test output. Nothing is executed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arclab.config.program_edit_schema import EditFormat, EditPromptConfig
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Completion, FinishReason, Message, Prompt
from arclab.programs.code_blocks import split_thinking
from arclab.programs.dsl import MODULE
from arclab.programs.feedback import execution_report
from arclab.programs.outcomes import Outcome
from arclab.programs.prompts import bare_pairs, parse_program, shown_pairs

NO_MATCH, NO_BLOCK = "no_match", "no_block"  # beside the problems of ParseProblem
_SEARCH, _MIDDLE, _REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"


@dataclass(frozen=True, slots=True)
class Edit:
    """source None: the reply has no new program, and problem says why. is_cut: the reply was cut off."""

    source: str | None
    problem: str
    thinking: str
    is_cut: bool


def render_edit_prompt(task: ArcTask, outcome: Outcome, config: EditPromptConfig, others: Sequence[Outcome] = ()) -> Prompt:
    """One message of the user. outcome: of the program that is there, run on the task's demonstrations. others: of programs
    that are shown beside it, for what they do better."""
    assert outcome.source is not None, "a program to edit"
    source, shown = outcome.source.strip("\n"), [_shown(task, each, config) for each in (*others, outcome)]
    if not config.instructions:
        parts = [bare_pairs(task, config)]
        for program, report in shown:
            parts += [f"# program\n{program}", *([f"# report\n{report}"] if report else [])]
        return (Message("user", "\n\n".join(parts)),)
    parts, legend = shown_pairs(task, config), ' In its grids "." is a right cell, and 4>7 is a 4 that must be a 7.'
    for number, (program, report) in enumerate(shown[:-1], 1):
        did = f"\n\nWhat it does:\n\n{report}" if report else ""
        parts.append(f"## Another program, {number}\n\n```python\n{program}\n```{did}")
    parts.append(f"## The program so far\n\n```python\n{source}\n```")
    if report := shown[-1][1]:
        parts.append(f"## What the program does\n\nIt was run on every example.{legend}\n\n{report}")
    return (Message("user", "\n\n".join([*parts, f"## Your task\n\n{_wish(source, config, len(others))}"])),)


def _shown(task: ArcTask, outcome: Outcome, config: EditPromptConfig) -> tuple[str, str]:
    """A program and its report; empty where none is wanted."""
    assert outcome.source is not None
    return outcome.source.strip("\n"), execution_report(task, outcome) if config.report else ""


def _wish(source: str, config: EditPromptConfig, num_others: int) -> str:
    form = (
        f"The grids are tuples of tuples, as {MODULE} has them. "
        if MODULE in source
        else "A grid is a list of rows, each a list of whole numbers. "
    )
    said = (
        f"Improve the program, so that {config.entry}(grid) turns every input into its output. {form}It must follow the rule "
        "and not know the answers by heart. Think first, between <think> and </think>: what is wrong, and what has to change. "
        "Say in comments of the program what its steps do. "
    )
    if num_others:
        said += "The other programs are wrong in other places: take from them what they do right. "
    if config.edit_format is EditFormat.program:
        return f"{said}Then write the whole new program in one block:\n\n```python\n...\n```"
    return (
        f"{said}Then write what has to change as blocks. The lines to find must be in the program exactly once:\n\n"
        f"{_SEARCH}\nlines of the program\n{_MIDDLE}\nwhat to put there\n{_REPLACE}"
    )


def write_reply(thinking: str, source: str) -> str:
    """A reply as models learn it, whatever the format of the prompt: reasoning, then the whole program."""
    return f"<think>\n{thinking.strip()}\n</think>\n```python\n{source.strip()}\n```"


def parse_edit(reply: Completion, parent: str, config: EditPromptConfig) -> Edit:
    """The new program of a reply, and its thinking. parent: the program that was to be edited."""
    is_cut = reply.finish_reason is FinishReason.length
    thinking, said = split_thinking(reply.whole)
    if config.edit_format is EditFormat.program:
        parsed = parse_program(reply.whole, entry=config.entry, finish_reason=reply.finish_reason)
        return Edit(parsed.source, parsed.problem.value, thinking, is_cut)
    source, problem = _replaced(parent, said)
    return Edit(source, problem, thinking, is_cut)


def _replaced(parent: str, said: str) -> tuple[str | None, str]:
    """The program with all blocks put in, one after the other, or what is wrong with the first that does not fit."""
    lines, count = parent.strip("\n").split("\n"), 0
    for wanted, new in _blocks(said):
        count += 1
        places = [
            start
            for start in range(len(lines) - len(wanted) + 1)
            if [line.rstrip() for line in lines[start : start + len(wanted)]] == wanted
        ]
        if len(places) != 1 or not any(wanted):
            return None, NO_MATCH
        lines[places[0] : places[0] + len(wanted)] = new
    return ("\n".join(lines) + "\n", "none") if count else (None, NO_BLOCK)


def _blocks(said: str) -> Iterator[tuple[list[str], list[str]]]:
    """(lines to find, lines to put there) of each whole block."""
    wanted: list[str] | None = None
    new: list[str] | None = None
    for line in said.replace("\r\n", "\n").split("\n"):
        mark = line.strip()
        if mark == _SEARCH:
            wanted, new = [], None
        elif wanted is None:
            continue
        elif new is None and mark == _MIDDLE:
            new = []
        elif new is not None and mark == _REPLACE:
            yield wanted, new
            wanted = new = None
        elif new is None:
            wanted.append(line.rstrip())
        else:
            new.append(line)
