"""A task as a prompt, and a reply as a program.

    prompt = render_prompt(task, config)                       # demonstrations and test inputs; never a test output
    parsed = parse_program(reply.text, entry="solve", finish_reason=reply.finish_reason)      # parsed.source or parsed.problem

With config.instructions=false the prompt is the bare task, for models that are trained on it: a line ">" between an input and its
output, an empty line between pairs, and a test input ends with its ">". `format_grid` is how a grid looks everywhere, feedback
included. Replies are only looked at (ast.parse), never executed; what a program does is the sandbox's to find out.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from arclab.config.llm_schema import GridFormat, PromptConfig
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.llm.language_model import FinishReason, Message, Prompt

_SEPARATORS = {GridFormat.spaced: " ", GridFormat.digits: "", GridFormat.pipes: "|"}
# What programs may import and are told of; the sandbox has a few more.
MODULES = ("collections", "copy", "functools", "heapq", "itertools", "math", "operator", "random", "re", "typing", "numpy")
_MAX_LOOK_CHARS = 100_000  # a longer program is not parsed here, because parsing takes a hundred times its size in memory
_BARE_STARTS = ("def ", "import ", "from ", "class ", "@", "#")
_BUILTINS = frozenset(dir(builtins))
_FENCE = re.compile(r"^[ \t]*(?:(`{3,})[ \t]*([^`]*?)|(~{3,})[ \t]*(.*?))[ \t]*$")
_LATE_FENCE = re.compile(r"(`{3,})[ \t]*(py\w*)[ \t]*$", re.IGNORECASE)  # behind other text on its line, with its language
_THINKING = re.compile(r"(</?think>)")


def format_grid(grid: Grid, grid_format: GridFormat) -> str:
    """The grid as text, one row a line (json: all in one)."""
    if grid_format is GridFormat.json:
        return json.dumps(grid.tolist())
    return "\n".join(_SEPARATORS[grid_format].join(map(str, row)) for row in grid.tolist())


def shape_text(grid: Grid) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def render_prompt(task: ArcTask, config: PromptConfig) -> Prompt:
    """One message of the user. (Not every chat template knows a system role.)"""
    return (Message("user", _instructed(task, config) if config.instructions else _bare(task, config)),)


def _bare(task: ArcTask, config: PromptConfig) -> str:
    def text(grid: Grid) -> str:
        return (shape_text(grid) + "\n" if config.show_shapes else "") + format_grid(grid, config.grid_format)

    parts = [f"{text(demo.input)}\n>\n{text(_answer(demo))}" for demo in task.demos]
    if config.show_tests:
        parts += [f"{text(test.input)}\n>" for test in task.tests]
    return "\n\n".join(parts)


def _instructed(task: ArcTask, config: PromptConfig) -> str:
    def block(title: str, grid: Grid) -> str:
        shape = f" ({shape_text(grid)})" if config.show_shapes else ""
        return f"{title}{shape}:\n{format_grid(grid, config.grid_format)}"

    parts = [
        "Every example below is a pair of grids. One hidden rule turns each input into its output. Find the rule and write it as a Python "
        "program. The cells of a grid are colours, written as whole numbers 0 to 9."
    ]
    for number, demo in enumerate(task.demos, 1):
        parts.append(f"## Example {number}\n\n{block('Input', demo.input)}\n\n{block('Output', _answer(demo))}")
    if config.show_tests:
        parts += [f"## Test {number}\n\n{block('Input', test.input)}" for number, test in enumerate(task.tests, 1)]
    tests = " and then to the test inputs, whose outputs you are not shown" if config.show_tests else " and to new inputs"
    parts.append(
        f"## Your task\n\nWrite a function {config.entry}(grid). It gets a grid as a list of rows, each a list of whole numbers, and returns the "
        f"output in the same form, with at most 30 rows and columns. It is applied to every example{tests}, so it must follow the rule and "
        f"not know the answers by heart. It may import {', '.join(MODULES)}. Think first if you like; end "
        "with the whole program, imports and helper functions included, in one block:\n\n"
        f"```python\ndef {config.entry}(grid):\n    ...\n```"
    )
    return "\n\n".join(parts)


def _answer(demo: Pair) -> Grid:
    assert demo.output is not None, "a demonstration has its output"
    return demo.output


class ParseProblem(Enum):
    """What is wrong with a reply. unclosed_fence and cut may come with a program all the same.

    empty: nothing but white space. no_code: no block and no bare code. no_entry: code, but nothing defines the function asked for.
    unclosed_thinking: it ended before its thinking did. unclosed_fence: the block is not closed, although the model ended its turn.
    cut: the reply ran into max_new_tokens, in its program or before it.
    """

    none = "none"
    empty = "empty"
    no_code = "no_code"
    no_entry = "no_entry"
    unclosed_thinking = "unclosed_thinking"
    unclosed_fence = "unclosed_fence"
    cut = "cut"


@dataclass(frozen=True, slots=True)
class Parsed:
    """source None: the reply has no program. A source may still have syntax errors; the sandbox says where."""

    source: str | None
    problem: ParseProblem


@dataclass(frozen=True, slots=True)
class _Block:
    """Code between fences. tree None: it cannot be parsed."""

    code: str
    is_closed: bool
    tree: ast.Module | None


def parse_program(reply: str, *, entry: str, finish_reason: FinishReason) -> Parsed:
    """The last program of the reply, thinking left out.

    That is the last closed block that defines the entry function, or an unclosed one behind it if it parses and defines it (but a
    cut reply's closed program goes before its cut one). Blocks in other languages are no code. Where it uses names that it does not
    define, the earlier blocks that do are put before it whole: models like to send helpers first. Without any program in a block,
    text that starts like Python, parses up to the first fence and defines the entry function is one.
    """
    is_cut = finish_reason is FinishReason.length
    text = _without_thinking(reply.replace("\r\n", "\n").replace("\r", "\n"))
    if text is None:
        return Parsed(None, ParseProblem.unclosed_thinking)
    blocks = [_Block(code, is_closed, _look(code)) for code, is_closed in _fenced(text)]
    if (chosen := _chosen(blocks, entry, is_cut)) is not None:
        problem = ParseProblem.none if blocks[chosen].is_closed else ParseProblem.cut if is_cut else ParseProblem.unclosed_fence
        return Parsed(_with_helpers(blocks[: chosen + 1]), problem)
    bare, followed = _bare_code(text)
    tree = _look(bare) if bare else None
    if tree is not None and entry in _top_names(tree):
        return Parsed(bare, ParseProblem.cut if is_cut and not followed else ParseProblem.none)
    if is_cut:
        return Parsed(None, ParseProblem.cut)
    if not text.strip():
        return Parsed(None, ParseProblem.empty)
    if any(not block.is_closed and _defines(block, entry) for block in blocks):
        return Parsed(None, ParseProblem.unclosed_fence)
    has_code = (tree is not None and tree.body) or any(block.code.strip() for block in blocks)
    return Parsed(None, ParseProblem.no_entry if has_code else ParseProblem.no_code)


def _chosen(blocks: list[_Block], entry: str, is_cut: bool) -> int | None:
    """Which block is the program."""
    closed = [i for i, block in enumerate(blocks) if block.is_closed and _defines(block, entry)]
    unclosed = [i for i, block in enumerate(blocks) if not block.is_closed and block.tree and entry in _top_names(block.tree)]
    if is_cut and closed:
        return closed[-1]
    return max(closed + unclosed, default=None)


def _without_thinking(text: str) -> str | None:
    """What was said outside of <think>...</think>; None if it ends inside. A </think> alone ends what the prompt had opened."""
    kept: list[str] = []
    is_thinking = False
    for piece in _THINKING.split(text):
        if piece == "<think>":
            is_thinking = True
        elif piece == "</think>":
            if not is_thinking:
                kept.clear()
            is_thinking = False
        elif not is_thinking:
            kept.append(piece)
    return None if is_thinking else "\n".join(kept)


def _fenced(text: str) -> Iterator[tuple[str, bool]]:
    """The Python blocks of the text and whether each is closed. As in CommonMark, but forgiving: an opening fence may stand behind
    text, a closing one at the end of a line of code or before text, and an opening fence inside an open block ends that."""
    lines: list[str] | None = None
    fence, is_python = "", False
    for line in text.split("\n"):
        found = _fence(line)
        if lines is None:
            opening = found or _late_fence(line)
            if opening:
                fence, language = opening
                lines, is_python = [], _is_python(language)
            continue
        if found and found[1] and _is_python(found[1]):
            if is_python:
                yield _dedented(lines), False
            lines, fence, is_python = [], found[0], True
        elif found and found[0].startswith(fence) and (is_python or not found[1]):
            if is_python:
                yield _dedented(lines), True
            lines = None
        elif is_python and line.rstrip().endswith(fence) and line.count(fence) == 1:
            yield _dedented([*lines, line.rstrip()[: -len(fence)]]), True
            lines = None
        else:
            lines.append(line)
    if lines is not None and is_python:
        yield _dedented(lines), False


def _fence(line: str) -> tuple[str, str] | None:
    """Marks and language if the line is a fence."""
    found = _FENCE.match(line)
    return (found[1] or found[3], found[2] or found[4] or "") if found else None


def _late_fence(line: str) -> tuple[str, str] | None:
    found = _LATE_FENCE.search(line)
    return (found[1], found[2]) if found else None


def _is_python(language: str) -> bool:
    """The words behind a fence: none, python, py, Python3, {.python}, python title=..."""
    return not language or language.lstrip("{. ").lower().startswith("py")


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _bare_code(text: str) -> tuple[str, bool]:
    """The text up to its first fence if it starts like a program, and whether a fence follows."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if _fence(line)), len(lines))
    code = "\n".join(lines[:end]).strip()
    return (code if code.startswith(_BARE_STARTS) else ""), end < len(lines)


def _look(code: str) -> ast.Module | None:
    """The parsed code; None if it is no Python, or too long or too deep to look at."""
    if len(code) > _MAX_LOOK_CHARS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes are the program's own business
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return None


def _defines(block: _Block, entry: str) -> bool:
    """Whether the block is meant to define the function; one that cannot be parsed says so by its def."""
    if block.tree is not None:
        return entry in _top_names(block.tree)
    return re.search(rf"^(async[ \t]+)?def[ \t]+{re.escape(entry)}[ \t]*\(", block.code, re.MULTILINE) is not None


def _top_names(tree: ast.Module) -> set[str]:
    """Names that the module binds, inside of if, for, while, with and try too, but not inside of functions and classes."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        names.update(_bound(node))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return names


def _bound(node: ast.AST) -> Iterable[str]:
    """Names that this node binds by itself."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [(alias.asname or alias.name).split(".")[0] for alias in aliases]
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            return (name,)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return (name,)
    return ()


def _missing_names(tree: ast.Module) -> set[str]:
    """Names that are read and bound nowhere: a helper, an import, or a mistake."""
    nodes = list(ast.walk(tree))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - _BUILTINS - {name for node in nodes for name in _bound(node)}


def _with_helpers(blocks: list[_Block]) -> str:
    """The last block, and before it those earlier ones that bind a name which is missing from there on."""
    *earlier, last = blocks
    parts, missing = [last.code], _missing_names(last.tree) if last.tree else set()
    for block in reversed(earlier):
        bound = _top_names(block.tree) if block.tree else set()
        if bound & missing:
            assert block.tree is not None
            parts.insert(0, block.code)
            missing = (missing - bound) | _missing_names(block.tree)
    return "\n\n".join(parts)
