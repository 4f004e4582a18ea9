"""Any text is a reply: reading it never fails, takes bounded work, and changes nothing of a program."""

from __future__ import annotations

import ast
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arclab.lm.language_model import FinishReason
from arclab.programs.code_blocks import CodeParser, Reading
from arclab.programs.prompts import Parsed, ParseProblem, parse_program

FEW = settings(max_examples=120, derandomize=True, deadline=None)
MARKS = (
    "```", "```python\n", "~~~\n", "````", "`", "<think>", "</think>", "\n", " ", "\t", '"""', "'''", "def solve(I):\n    return I\n", "def solve(",
    "    ", "# ", "x = 1\n", "from a import solve\n", "so ```py\n", "```text\n", "x```\n", "\r", "\r\n", "\x0c", "\0", "\ud800", "\u2028", "\ufeff", "(", "\\\n",
)  # fmt: skip
CHARACTERS = st.characters(codec=None)  # lone surrogates, too
REPLIES = st.lists(st.sampled_from(MARKS) | st.text(CHARACTERS, max_size=5), max_size=25).map("".join)


def parse(reply: str, finish: FinishReason = FinishReason.stop) -> Parsed:
    return parse_program(reply, entry="solve", finish_reason=finish)


@FEW
@given(REPLIES, st.sampled_from(FinishReason))
def test_any_text_is_a_reply_and_a_program_is_a_part_of_it(reply: str, finish: FinishReason) -> None:
    parsed = parse(reply, finish)
    assert (parsed.source is not None) or parsed.problem is not ParseProblem.none
    at, lines = 0, reply.replace("\r\n", "\n").replace("\r", "\n")
    for line in (parsed.source or "").split("\n"):  # in this order; nothing is made up
        at = lines.index(line.strip(), at) + len(line.strip())


COMMENTS = st.lists(st.sampled_from(["\t", "  ", "x", "`y`", "'z'", "\u2028", "\x0c", "\xa0", "1. "]), max_size=8).map("".join)
PROSE = REPLIES.map(lambda text: text.replace("`", "-")).filter(
    lambda text: not any(word in text for word in ("~~~", "think>", "def ", "import "))
)


@FEW
@given(COMMENTS, PROSE, PROSE)
def test_a_program_in_a_fence_comes_out_as_it_went_in(comment: str, before: str, behind: str) -> None:
    code = f'def solve(I):\n    """Doc.{comment}\n   \n    """\n    return I  # {comment}.\n\n\ndef more():\n\tpass  '
    for fence in ("```", "~~~~"):
        assert parse(f"{before}\n{fence}python\n{code}\n{fence}\n{behind}") == Parsed(code, ParseProblem.none)


HOSTILE = (  # how it begins, and what is repeated
    ("", "```" + " " * 3000 + "```"), ("", "```" + " \t" * 3000 + "py `"), ("", "`" * 30_000 + " "), ("", "<think>"), ("", "</think>"), ("", "<think></think>"),
    ("", "```python\n"), ("", "~~~\n"), ("", "```python\ndef solve("), ("", '```python\n"""\n'), ("", "late ```python\n</think>\n"),
    ("", "def solve(I):\n</think>\n"), ('```python\n"""\n', "```\n"), ("def solve(I):\n", "'''\n```\n"), ("", "late ```python\nx```\n"), ("", "```python\ndef a(): return b\n```\n"), ("# ", "</think># "),
    ("```python\n", "x\n"), ("```python\n", "(" * 90 + "1 2" + ")" * 90 + "\n"), ("```python\ndef solve(I): return ", "-"), ("```python\nx = ", "[" * 99),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_work_is_bounded_whatever_the_reply(number: int) -> None:
    """A reply is kept on disk: one that takes hours would take them again at every start."""
    start, unit = HOSTILE[number]
    text = start + unit * (60_000 // len(unit))
    begun = time.process_time()
    parse(text)
    reading = Reading(text, lambda tree: True)
    reading.bare(), reading.between_fences()
    assert reading.parser.num_parsed_chars < 6 * len(text)
    assert time.process_time() - begun < 6  # below one, but for a busy machine


def test_a_long_dotted_import_is_not_parsed() -> None:
    """Its memory grows with the square of its length: a gigabyte for 60 thousand characters."""
    for code in ("import " + "a." * 5000 + "a", "from " + "a.\\\n" * 5000 + "a import b", "x = 1; import a" + " . a" * 5000):
        assert not CodeParser().block(code, is_closed=True).was_parsed
    block = CodeParser().block("x = [\n" + "1.5,\n" * 5000 + "]\nimport a.b.c", is_closed=True)
    assert isinstance(block.tree, ast.Module)


def test_a_reply_is_parsed_up_to_a_limit_and_then_judged_by_its_def() -> None:
    long = "```python\n#" + "x" * 50_000 + "\n```\n"
    last = "def solve(I):\n    return (I)"
    assert parse(long * 8 + f"```python\n{last}\n```") == Parsed(last, ParseProblem.none)


def test_a_later_end_is_looked_for_only_within_a_string() -> None:
    """Many blocks, each with a docstring and a mistake, cost one look each: the last one's helpers are still known."""
    broken = '```python\ndef solve(I):\n    """Doc."""\n    return (\n```\n' + "Again:\n" * 50
    parsed = parse(
        broken * 300 + "```python\ndef flip(I):\n    return I\n```\n```python\ndef solve(I):\n    return flip(I)\n```"
    )
    assert parsed.source == "def flip(I):\n    return I\n\ndef solve(I):\n    return flip(I)"
