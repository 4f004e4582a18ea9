"""A task as a prompt, and a reply as a program.

    prompt = render_prompt(task, config)                       # demonstrations and test inputs; never a test output
    parsed = parse_program(reply.text, entry="solve", finish_reason=reply.finish_reason)      # parsed.source or parsed.problem

With config.instructions=false the prompt is the bare task, for models that are trained on it: a line ">" between an input and
its output, an empty line between pairs, and a test input ends with its ">". `format_grid` is how a grid looks everywhere,
feedback included. What is code in a reply is for code_blocks.py; nothing is executed here: what a program does is the sandbox's
to find out.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum

from arclab.config.llm_schema import GridFormat, PromptConfig
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.lm.language_model import FinishReason, Message, Prompt
from arclab.programs.code_blocks import Block, Reading

_SEPARATORS = {GridFormat.spaced: " ", GridFormat.digits: "", GridFormat.pipes: "|"}
# What programs may import and are told of; the sandbox has a few more.
MODULES = ("collections", "copy", "functools", "heapq", "itertools", "math", "operator", "random", "re", "typing", "numpy")
_BUILTINS = frozenset(dir(builtins))


def format_grid(grid: Grid, grid_format: GridFormat) -> str:
    """The grid as text, one row a line (json: all in one)."""
    if grid_format is GridFormat.json:
        return json.dumps(grid.tolist())
    return "\n".join(_SEPARATORS[grid_format].join(map(str, row)) for row in grid.tolist())


def shape_text(grid: Grid) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def render_prompt(task: ArcTask, config: PromptConfig) -> Prompt:
    """One message of the user. (Not every chat template knows a system role.)"""
    ending = (
        "Think first if you like; end with the whole program, imports and helper functions included, in one "
        f"block:\n\n```python\ndef {config.entry}(grid):\n    ...\n```"
    )
    return (Message("user", task_text(task, config, ending)),)


def task_text(task: ArcTask, config: PromptConfig, ending: str) -> str:
    """The task as the user's message. ending: how the program is to be written, in the last paragraph of instructions."""
    return _instructed(task, config, ending) if config.instructions else bare_pairs(task, config)


def bare_pairs(task: ArcTask, config: PromptConfig) -> str:
    """The task without a word, for models that are trained on it."""

    def text(grid: Grid) -> str:
        return (shape_text(grid) + "\n" if config.show_shapes else "") + format_grid(grid, config.grid_format)

    parts = [f"{text(demo.input)}\n>\n{text(_answer(demo))}" for demo in task.demos]
    if config.show_tests:
        parts += [f"{text(test.input)}\n>" for test in task.tests]
    return "\n\n".join(parts)


def shown_pairs(task: ArcTask, config: PromptConfig) -> list[str]:
    """The task in paragraphs: what it is about, demonstrations, test inputs; without saying what to do."""

    def block(title: str, grid: Grid) -> str:
        shape = f" ({shape_text(grid)})" if config.show_shapes else ""
        return f"{title}{shape}:\n{format_grid(grid, config.grid_format)}"

    parts = [
        "Every example below is a pair of grids. One hidden rule turns each input into its output. Find the rule and write "
        "it as a Python program. The cells of a grid are colours, written as whole numbers 0 to 9."
    ]
    for number, demo in enumerate(task.demos, 1):
        parts.append(f"## Example {number}\n\n{block('Input', demo.input)}\n\n{block('Output', _answer(demo))}")
    if config.show_tests:
        parts += [f"## Test {number}\n\n{block('Input', test.input)}" for number, test in enumerate(task.tests, 1)]
    return parts


def _instructed(task: ArcTask, config: PromptConfig, ending: str) -> str:
    tests = " and then to the test inputs, whose outputs you are not shown" if config.show_tests else " and to new inputs"
    said = (
        f"## Your task\n\nWrite a function {config.entry}(grid). It gets a grid as a list of rows, each a list of whole "
        "numbers, and returns the output in the same form, with at most 30 rows and columns. It is applied to every "
        f"example{tests}, so it must follow the rule and not know the answers by heart. It may import {', '.join(MODULES)}. "
        + ending
    )
    return "\n\n".join([*shown_pairs(task, config), said])


def _answer(demo: Pair) -> Grid:
    assert demo.output is not None, "a demonstration has its output"
    return demo.output


class ParseProblem(Enum):
    """What is wrong with a reply. unclosed_fence and cut may come with a program all the same.

    empty: nothing but white space. no_code: no block and no bare code. no_entry: code, but nothing defines the function asked
    for. unclosed_thinking: it ended before its thinking did. unclosed_fence: the block is not closed, although the model ended
    its turn. cut: the reply ran into max_new_tokens, in its program or before it.
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


class _Defines(IntEnum):
    """How a block defines the entry function; what it only imports it does not define. broken: its def is in what is no Python.
    stub: its body is empty. whole: by a def or an assignment; also by a def in what was too long to be parsed."""

    no = 0
    broken = 1
    stub = 2
    whole = 3


def parse_program(reply: str, *, entry: str, finish_reason: FinishReason) -> Parsed:
    """The last program of the reply, thinking left out.

    That is the last closed block that defines the entry function, or an unclosed one behind it if it parses and defines it (but
    a cut reply's closed program goes before its cut one); what parses goes before what does not, and a function with a body
    before one without. Blocks in other languages are no code. Where it uses names that it does not define, the earlier blocks
    that do are put before it whole: models like to send helpers first. Without any program in a block, text that starts like
    Python, parses up to the first fence and defines the entry function is one, then what else stands between two fences. For
    all this the work is bounded, whatever the reply: see code_blocks.py.
    """
    is_cut = finish_reason is FinishReason.length
    reading = Reading(reply.replace("\r\n", "\n").replace("\r", "\n"), lambda tree: _in_tree(tree, entry) > _Defines.no)
    blocks = reading.blocks
    if (chosen := _chosen(blocks, entry, is_cut)) is not None:
        problem = ParseProblem.none if blocks[chosen].is_closed else ParseProblem.cut if is_cut else ParseProblem.unclosed_fence
        return Parsed(_with_helpers(blocks[: chosen + 1]), problem)
    bare = reading.bare()
    if bare.tree is not None and _defines(bare, entry):
        is_whole = bare.is_closed or reading.ends_in_thinking or not is_cut
        return Parsed(bare.code, ParseProblem.none if is_whole else ParseProblem.cut)
    between = [block for block in reading.between_fences() if block.tree is not None]
    if (chosen := _chosen(between, entry, is_cut)) is not None:
        return Parsed(_with_helpers(between[: chosen + 1]), ParseProblem.none)
    return Parsed(None, _why_none(reading, bare, entry, is_cut))


def _why_none(reading: Reading, bare: Block, entry: str, is_cut: bool) -> ParseProblem:
    if reading.ends_in_thinking:
        return ParseProblem.unclosed_thinking
    if is_cut:
        return ParseProblem.cut
    if reading.is_empty:
        return ParseProblem.empty
    if any(not block.is_closed and _defines(block, entry) for block in reading.blocks):
        return ParseProblem.unclosed_fence
    has_code = (bare.tree is not None and bare.tree.body) or any(block.code.strip() for block in reading.blocks)
    return ParseProblem.no_entry if has_code else ParseProblem.no_code


def _chosen(blocks: list[Block], entry: str, is_cut: bool) -> int | None:
    """Which block is the program."""
    found = [
        (defines, block.is_closed or not is_cut, number)
        for number, block in enumerate(blocks)
        if (defines := _defines(block, entry)) and (block.is_closed or block.tree is not None)
    ]
    return max(found)[-1] if found else None


def _defines(block: Block, entry: str) -> _Defines:
    if block.tree is not None:
        return _in_tree(block.tree, entry)
    if not re.search(rf"^(async[ \t]+)?def[ \t]+{re.escape(entry)}[ \t]*\(", block.code, re.MULTILINE):
        return _Defines.no
    return _Defines.broken if block.was_parsed else _Defines.whole


def _in_tree(tree: ast.Module, entry: str) -> _Defines:
    """How the module defines the function; by the best of its statements."""
    best = _Defines.no
    for node in _top_nodes(tree):
        match node:
            case ast.FunctionDef(name=name, body=body) | ast.AsyncFunctionDef(name=name, body=body) if name == entry:
                best = max(best, _Defines.stub if all(map(_says_nothing, body)) else _Defines.whole)
            case ast.ClassDef(name=name) if name == entry:
                best = _Defines.whole
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value) | ast.NamedExpr(value=value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(entry in _stored(target) for target in targets) and _may_be_function(value, entry):
                    best = _Defines.whole
    return best


def _says_nothing(statement: ast.stmt) -> bool:
    """pass, ..., a docstring, raise NotImplementedError."""
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def _stored(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _may_be_function(value: ast.expr, entry: str) -> bool:
    """Not for solve = [[1]] and solve = solve(grid)."""
    kinds = (
        ast.Lambda | ast.Name | ast.Attribute | ast.Call | ast.IfExp | ast.Subscript | ast.BoolOp | ast.NamedExpr | ast.Tuple
    )
    return isinstance(value, kinds) and not any(isinstance(node, ast.Name) and node.id == entry for node in ast.walk(value))


def _top_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes of the module, inside of if, for, while, with and try too, but not inside of functions and classes."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def _top_names(tree: ast.Module) -> set[str]:
    """Names that the module binds."""
    return {name for node in _top_nodes(tree) for name in _bound(node)}


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


def _with_helpers(blocks: list[Block]) -> str:
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
