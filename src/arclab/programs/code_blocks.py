"""The Python code in a reply: what stands between fences, and text that is code as a whole. Thinking is left out.

    reading = Reading(text, is_program)         # reading.blocks, reading.bare(); is_program: whether a syntax tree is a program

Fences and thinking tags are also characters that a program may hold in a string or a comment, so where the code up to the first
fence or tag is no Python, later ones are tried: the syntax tree decides. A reply may be anything. It is read line by line,
without regular expressions that try again, and what is parsed has a limit for a whole reply. Nothing is executed.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

# A longer program is not parsed here: parsing takes up to a thousand times its size in memory.
_MAX_CODE_CHARS = 100_000
_MAX_IMPORT_DOTS = 1000  # import a.b.c...: memory grows with the square of the dots
# Of all the code that is parsed for one reply, and what each attempt counts beside its length.
_MAX_PARSED_CHARS, _ATTEMPT_CHARS = 300_000, 500
_MAX_UNCERTAIN_ENDS = 20  # of a block, that are passed by in search of a better one
_BARE_STARTS = ("def ", "import ", "from ", "class ", "@", "#")
_OPEN, _CLOSE = "<think>", "</think>"
_BREAKS = re.compile(r"\n|</?think>")


@dataclass(frozen=True, slots=True)
class Block:
    """Code. tree None: it is no Python, or (was_parsed False) too long or too deep to be looked at. ends_in_string: within a
    string of several lines, which is all that can hold a line that looks like a fence."""

    code: str
    is_closed: bool
    tree: ast.Module | None
    was_parsed: bool
    ends_in_string: bool = False


class CodeParser:
    """ast.parse for all the code of one reply. num_parsed_chars: the work so far."""

    def __init__(self) -> None:
        self.num_parsed_chars = 0

    def block(self, code: str, *, is_closed: bool) -> Block:
        code = _dedented(code)
        cost = len(code) + _ATTEMPT_CHARS
        if len(code) > _MAX_CODE_CHARS or self.num_parsed_chars + cost > _MAX_PARSED_CHARS or _has_long_import(code):
            return Block(code, is_closed, None, was_parsed=False)
        self.num_parsed_chars += cost
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are the program's own business
            try:
                return Block(code, is_closed, ast.parse(code), was_parsed=True)
            except (SyntaxError, ValueError) as error:
                return Block(code, is_closed, None, was_parsed=True, ends_in_string="unterminated triple-quoted" in str(error))
            except (RecursionError, MemoryError, OverflowError):
                return Block(code, is_closed, None, was_parsed=False)


@dataclass(frozen=True, slots=True)
class _Row:
    """A line, or what of a line is before, between or behind thinking tags, or such a tag. start: its place in the text."""

    start: int
    text: str

    @property
    def is_tag(self) -> bool:
        return self.text in (_OPEN, _CLOSE)


@dataclass(frozen=True, slots=True)
class _End:
    """Where a block may end. stop: of its code, in the text. next_row: where reading goes on. is_certain: if the code up to
    here is Python, then this is the end. (What stands at the end of a line of code may be in a comment.)"""

    stop: int
    next_row: int
    is_closed: bool
    is_certain: bool


class Reading:
    """A reply without its thinking. blocks: the Python in fences, in order. is_empty: nothing was said outside of thinking.
    ends_in_thinking: it stops before its thinking does."""

    def __init__(self, text: str, is_program: Callable[[ast.Module], bool]) -> None:
        self.parser = CodeParser()
        self.blocks: list[Block] = []
        self._text, self._is_program, self._rows = text, is_program, list(_rows(text))
        self._spoken: list[str] = []  # rows outside of thinking
        self.ends_in_thinking = self._read()
        self.is_empty = not "".join(self._spoken).strip()

    def bare(self) -> Block:
        """The text up to the first fence, if it starts like a program; else a block without code. Closed: a fence follows."""
        end = next((i for i, text in enumerate(self._spoken) if _fence(text)), len(self._spoken))
        code = "\n".join(self._spoken[:end]).strip()
        return self.parser.block(code if code.startswith(_BARE_STARTS) else "", is_closed=end < len(self._spoken))

    def between_fences(self) -> list[Block]:
        """What else stands between two neighbouring fences: for replies with one fence too many, whose blocks are the wrong
        ones."""
        fences = [(i, found[1]) for i, text in enumerate(self._spoken) if (found := _fence(text))]
        codes = [
            _dedented("\n".join(self._spoken[start + 1 : end]))
            for (start, language), (end, _) in pairwise(fences)
            if _is_python(language)
        ]
        known = {block.code for block in self.blocks}
        return [self.parser.block(code, is_closed=True) for code in codes if code not in known]

    def _read(self) -> bool:
        """Whether it ends in thinking."""
        rows, at, has_thought, is_start = self._rows, 0, False, True
        while at < len(rows):
            text = rows[at].text
            if text == _OPEN:
                has_thought = True
                at = next((i for i in range(at, len(rows)) if rows[i].text == _CLOSE), len(rows))
                if at == len(rows):
                    return True
            elif text == _CLOSE:
                if not has_thought:  # it ends what the prompt had opened; a later one ends nothing
                    self.blocks, self._spoken = [], []
                at, has_thought, is_start = at + 1, True, True
            elif opening := _fence(text) or _late_fence(text):
                behind = self._take_block(at, *opening)
                self._spoken += [row.text for row in rows[at:behind]]
                at, is_start = behind, False
            else:
                behind = self._take_bare(at) if is_start else None
                if behind is None:
                    self._spoken.append(text)
                at, is_start = behind or at + 1, is_start and not text.strip()
        return False

    def _take_block(self, at: int, marks: str, language: str) -> int:
        """The row behind the block that row `at` opens."""
        if not _is_python(language):
            return self._behind_other(at, marks)
        block, behind = self._python(at, marks)
        self.blocks.append(block)
        return behind

    def _python(self, at: int, marks: str) -> tuple[Block, int]:
        """The block that row `at` opens, and the row behind it: up to the first end at which it is Python, else up to the
        first."""
        start = self._rows[at + 1].start if at + 1 < len(self._rows) else len(self._text)
        first: tuple[Block, _End] | _End | None = None
        num_uncertain = 0
        for end in self._ends(at, marks):
            if not end.is_certain:
                first, num_uncertain = first or end, num_uncertain + 1
                if num_uncertain > _MAX_UNCERTAIN_ENDS:
                    break
                continue
            block = self.parser.block(self._text[start : end.stop], is_closed=end.is_closed)
            if block.tree is not None:
                return block, end.next_row
            first = first or (block, end)
            if not block.ends_in_string:
                break
        assert first is not None, "the end of the text is an end"
        if isinstance(first, _End):
            first = self.parser.block(self._text[start : first.stop], is_closed=first.is_closed), first
        return first[0], first[1].next_row

    def _ends(self, at: int, marks: str) -> Iterator[_End]:
        """As in CommonMark, but forgiving: a closing fence may stand at the end of a line of code or before text, and an
        opening fence of Python ends an open block."""
        for number in range(at + 1, len(self._rows)):
            row = self._rows[number]
            if row.is_tag:
                yield _End(row.start, number, is_closed=False, is_certain=False)
            elif found := _fence(row.text):
                if found[1] and _is_python(found[1]):
                    yield _End(row.start, number, is_closed=False, is_certain=True)
                elif found[0].startswith(marks):
                    yield _End(row.start, number + 1, is_closed=True, is_certain=True)
            elif row.text.rstrip().endswith(marks) and row.text.count(marks) == 1:
                yield _End(row.start + row.text.index(marks), number + 1, is_closed=True, is_certain=False)
        yield _End(len(self._text), len(self._rows), is_closed=False, is_certain=True)

    def _behind_other(self, at: int, marks: str) -> int:
        """The row behind a block in another language: its closing fence, or what ends it without one."""
        for number in range(at + 1, len(self._rows)):
            if self._rows[number].is_tag:
                return number
            if found := _fence(self._rows[number].text):
                if found[1] and _is_python(found[1]):
                    return number
                if found[0].startswith(marks) and not found[1]:
                    return number + 1
        return len(self._rows)

    def _take_bare(self, at: int) -> int | None:
        """The row behind the program that begins with row `at` without a fence; None if there is none."""
        if not self._rows[at].text.lstrip().startswith(_BARE_STARTS):
            return None
        block, behind = self._python(at - 1, "```")
        if block.tree is None or not self._is_program(block.tree):
            return None
        self._spoken += [block.code, "```"] if block.is_closed else [block.code]
        return behind


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, what is said after it) of a reply with one piece of thinking; a reply that does not end its thinking says
    nothing. Reading is more careful, and leaves thinking out wherever it is."""
    before, mark, after = text.rpartition(_CLOSE)
    if not mark:
        said, mark, thinking = text.partition(_OPEN)
        return thinking.strip(), "" if mark else said
    return before.partition(_OPEN)[2].strip() if _OPEN in before else before.strip(), after


def _rows(text: str) -> Iterator[_Row]:
    start = 0
    for found in _BREAKS.finditer(text):
        yield _Row(start, text[start : found.start()])
        if found[0] != "\n":
            yield _Row(found.start(), found[0])
        start = found.end()
    yield _Row(start, text[start:])


def _fence(line: str) -> tuple[str, str] | None:
    """Marks and language if the line is a fence."""
    text = line.strip(" \t")
    for mark in "`~":
        rest = text.lstrip(mark)
        marks = text[: len(text) - len(rest)]
        if len(marks) >= 3 and not (mark == "`" and mark in rest):
            return marks, rest.strip(" \t")
    return None


def _late_fence(line: str) -> tuple[str, str] | None:
    """Marks and language of a fence behind other text on its line: it names Python."""
    before, mark, language = line.rpartition("`")
    language = language.strip(" \t")
    marks = mark + before[len(before.rstrip("`")) :]
    is_python = language.lower().startswith("py") and language.replace("_", "a").isalnum()
    return (marks, language) if len(marks) >= 3 and is_python else None


def _is_python(language: str) -> bool:
    """The words behind a fence: none, python, py, Python3, {.python}, python title=..."""
    return not language or language.lstrip("{. ").lower().startswith("py")


def _dedented(code: str) -> str:
    """Without empty lines around it, and without the white space that all of its lines begin with. Nothing else changes."""
    code = code.strip("\n")
    return textwrap.dedent(code).strip("\n") if code.startswith((" ", "\t")) else code


def _has_long_import(code: str) -> bool:
    lines = code.replace("\\\n", "").split("\n") if code.count(".") > _MAX_IMPORT_DOTS else []
    return any(line.count(".") > _MAX_IMPORT_DOTS and ("import" in line or "from" in line) for line in lines)
