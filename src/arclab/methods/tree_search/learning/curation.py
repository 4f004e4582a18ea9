"""Which programs are worth learning, and in which form: pure functions from solutions to fewer, shorter ones.

    texts = without_idle_steps(programs, steps, answers)          # steps that change no output are dropped, to a fixpoint
    kept, taken = curated(solutions, steps, config.curate)        # taken: {filter: programs that it took}

Filters in their order: wrong (hidden test outputs), copies (equal up to names and layout), long (than max_length_ratio times
the shortest of the task), then a funnel: the best by mean Q, of these the shortest, of these those that differ most. Ties go to
the first. Nothing here runs a program: who calls gives a function that does.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from arclab.config.tree_learning_schema import CurateConfig
from arclab.methods.tree_search.learning.records import Solution
from arclab.methods.tree_search.steps import Steps

# (task id, program, is it unfinished) -> what it answers for the inputs of its task; of an unfinished one whether it runs.
# None: it fails.
Answers = Callable[[Sequence[tuple[str, str, bool]]], Sequence[Hashable | None]]
_FILTERS = ("wrong", "copies", "long", "worse", "longer", "similar")
_IGNORED = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)


def split_steps(written: str, steps: Steps) -> list[str]:
    """The texts of the steps behind the opening, marks included; the last one may have none."""
    assert written.startswith(steps.opening), written[:100]
    pieces = written.removeprefix(steps.opening).split(steps.step_end)
    texts = [piece + steps.step_end for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])
    return texts or [""]


def joined(texts: Sequence[str], steps: Steps) -> str:
    """The reply of these steps. The program ends after the last one, whichever that is."""
    *before, last = texts
    if last.endswith(steps.step_end):
        last = last.removesuffix(steps.step_end) + steps.program_end
    return steps.opening + "".join(before) + last


def without_idle_steps(programs: Sequence[tuple[str, str]], steps: Steps, answers: Answers) -> list[str]:
    """programs: (task id, as written). Each without the steps that change none of its outputs, the last ones first, until none
    can go. What is left runs step by step as before: every prefix is checked. A program that does not answer stays as it is."""
    texts = [split_steps(written, steps) for _, written in programs]
    before = answers([(task, steps.source(written), False) for task, written in programs])
    open_ = [number for number, found in enumerate(before) if found is not None]
    while open_:
        tries = [(number, step) for number in open_ for step in reversed(range(len(texts[number]))) if len(texts[number]) > 1]
        sources = [steps.source(joined(_without(texts[number], step), steps)) for number, step in tries]
        found = answers([(programs[number][0], source, False) for (number, _), source in zip(tries, sources, strict=True)])
        same = [pair for pair, each in zip(tries, found, strict=True) if each is not None and each == before[pair[0]]]
        valid = _valid(same, programs, texts, steps, answers)
        chosen = dict(reversed(valid))  # the last step of each that can go
        for number, step in chosen.items():
            texts[number] = _without(texts[number], step)
        open_ = sorted(chosen)
    return [
        written if len(texts[number]) == len(split_steps(written, steps)) else joined(texts[number], steps)
        for number, (_, written) in enumerate(programs)
    ]


def _without(texts: Sequence[str], step: int) -> list[str]:
    return [*texts[:step], *texts[step + 1 :]]


def _valid(
    tries: Sequence[tuple[int, int]], programs: Sequence[tuple[str, str]], texts: Sequence[Sequence[str]], steps: Steps,
    answers: Answers,
) -> list[tuple[int, int]]:  # fmt: skip
    """The tries all of whose prefixes run."""
    asked, owner = list[tuple[str, str, bool]](), list[tuple[int, int]]()
    for number, step in tries:
        left = _without(texts[number], step)
        for end in range(1, len(left)):
            source = steps.prefix(steps.source(steps.opening + "".join(left[:end])))
            asked.append((programs[number][0], source, True))
            owner.append((number, step))
    broken = {pair for pair, found in zip(owner, answers(asked), strict=True) if found is None}
    return [pair for pair in tries if pair not in broken]


def curated(solutions: Sequence[Solution], steps: Steps, config: CurateConfig) -> tuple[list[Solution], dict[str, int]]:
    """The programs that are left, by task in the order of the solutions, and how many each filter took."""
    taken: dict[str, int] = dict.fromkeys(_FILTERS, 0)
    by_task: dict[str, list[Solution]] = defaultdict(list)
    for solution in solutions:
        by_task[solution.task].append(solution)
    kept: list[Solution] = []
    for group in by_task.values():
        for name, chosen in _filters(steps, config):
            left = chosen(group)
            taken[name] += len(group) - len(left)
            group = left
        kept += group
    return kept, taken


def _filters(steps: Steps, config: CurateConfig) -> list[tuple[str, Callable[[list[Solution]], list[Solution]]]]:
    return [
        ("wrong", lambda group: [solution for solution in group if solution.right]),
        ("copies", lambda group: without_copies(group, steps)),
        ("long", lambda group: without_long(group, steps, config.max_length_ratio)),
        ("worse", lambda group: sorted(group, key=lambda each: -each.mean_q)[: config.num_best]),
        ("longer", lambda group: sorted(group, key=lambda each: length_of(steps.source(each.written)))[: config.num_short]),
        ("similar", lambda group: most_different(group, steps, config.num_kept)),
    ]


def without_copies(group: Sequence[Solution], steps: Steps) -> list[Solution]:
    """Of programs that are one another's copies that of the best mean Q, in its place."""
    best: dict[str, Solution] = {}
    for solution in group:
        key = normalised(steps.source(solution.written))
        if key not in best or solution.mean_q > best[key].mean_q:
            best[key] = solution
    chosen = {id(solution) for solution in best.values()}
    return [solution for solution in group if id(solution) in chosen]


def without_long(group: Sequence[Solution], steps: Steps, ratio: float) -> list[Solution]:
    lengths = [length_of(steps.source(solution.written)) for solution in group]
    return [solution for solution, length in zip(group, lengths, strict=True) if length <= ratio * min(lengths)]


def most_different(group: Sequence[Solution], steps: Steps, count: int) -> list[Solution]:
    """The shortest (the first one), then again and again that one whose nearest chosen one is farthest away."""
    left = list(group)
    chosen = [left.pop(0)] if left else []
    while left and len(chosen) < count:
        gaps = [min(distance(steps.source(each.written), steps.source(other.written)) for other in chosen) for each in left]
        chosen.append(left.pop(max(range(len(left)), key=lambda number: gaps[number])))
    return chosen


def distance(first: str, second: str) -> float:
    """1 - Jaccard similarity of the sets of tokens, comments left out."""
    one, two = frozenset(tokens_of(first)), frozenset(tokens_of(second))
    return 1 - len(one & two) / len(one | two) if one | two else 0.0


def length_of(source: str) -> int:
    """Tokens of Python, comments and layout left out."""
    return len(tokens_of(source))


@cache
def tokens_of(source: str) -> tuple[str, ...]:
    """Of a program that cannot be split into tokens its words."""
    try:
        return tuple(
            each.string for each in tokenize.generate_tokens(io.StringIO(source).readline) if each.type not in _IGNORED
        )
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return tuple(source.split())


@cache
def normalised(source: str) -> str:
    """Equal for programs that differ in comments, layout, docstrings and the names that they give alone."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return source
    names = _own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = names.get(node.arg, node.arg)
        elif isinstance(node, ast.FunctionDef | ast.Module):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
    return ast.dump(tree, annotate_fields=False)


def _own_names(tree: ast.Module) -> Mapping[str, str]:
    """A number for each name that the program binds by assignment or as an argument, in the order of the text. Names of
    functions and of modules stay."""
    bound = [
        (node.lineno, node.col_offset, node.arg if isinstance(node, ast.arg) else node.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    ]
    found: dict[str, str] = {}
    for _, _, name in sorted(bound):
        found.setdefault(name, f"_{len(found)}")
    return found


def cleaned(solutions: Sequence[Solution], steps: Steps, answers: Answers) -> list[Solution]:
    """The right ones, each once, without idle steps."""
    by_task: dict[str, list[Solution]] = defaultdict(list)
    for solution in solutions:
        if solution.right:
            by_task[solution.task].append(solution)
    left = [solution for group in by_task.values() for solution in without_copies(group, steps)]
    texts = without_idle_steps([(solution.task, solution.written) for solution in left], steps, answers)
    return [replace(solution, written=text) for solution, text in zip(left, texts, strict=True)]


def what_took_it(taken: Mapping[str, int], num_given: int) -> str:
    """For the end of a sentence: which filter took how many."""
    if num_given == 0:
        return "there was none that reproduces the demonstrations"
    meanings = {
        "wrong": "wrong on hidden test outputs", "copies": "copies of others", "long": "too long", "worse": "of a lower Q",
        "longer": "longer than others", "similar": "like others",
    }  # fmt: skip
    return ", ".join(f"{count} {meanings[name]}" for name, count in taken.items() if count)
