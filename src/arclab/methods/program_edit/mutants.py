"""Programs that are wrong in a known way: seeded changes of a program that is right.

    mutant = mutate(source, num_changes=2, rng=Random(0))        # Mutant(source, ("constant: ...", "line: ...")), or None
    mutants = worse_mutants(sandbox, task, source, "solve", value, count=8, max_changes=3, seed=0)

Changes of the syntax tree: a constant, a colour wherever it stands, the order of two arguments, a line left out, a primitive of
arc_dsl (or a builtin) for another one of the same type. A mutant is kept if it runs on every demonstration and is worth less
than the program it was made from. The number of changes is how far it is from right. Test outputs are not looked at.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

from arclab.data.tasks import NUM_COLORS, ArcTask
from arclab.programs.dsl import MODULE, PRIMITIVES
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.sandbox.execution import Status
from arclab.programs.sandbox.pool import Sandbox

_DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_VECTORS = (
    "ORIGIN", "UNITY", "DOWN", "RIGHT", "UP", "LEFT", "NEG_UNITY", "UP_RIGHT", "DOWN_LEFT", "ZERO_BY_TWO", "TWO_BY_ZERO",
    "TWO_BY_TWO", "THREE_BY_THREE",
)  # fmt: skip
_CONSTANTS = (_DIGITS, ("NEG_TWO", "NEG_ONE", "ONE", "TWO"), ("F", "T"), _VECTORS)
_BUILTINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_TRIES = 10  # candidates for each mutant that is asked for


class Change(Enum):
    constant = "constant"
    color = "color"
    arguments = "arguments"
    line = "line"
    primitive = "primitive"


@dataclass(frozen=True, slots=True)
class Mutant:
    """changes: what was done, one after the other."""

    source: str
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Possible:
    """A change that can be made to a tree. make: changes the tree in place, and says how."""

    kind: Change
    make: Callable[[Random], str]


def mutate(source: str, num_changes: int, rng: Random) -> Mutant | None:
    """The program with so many changes; None: it does not parse, or nothing of it can be changed. A kind of change is drawn
    first, then a place."""
    tree = _tree(source)
    before, changes = None if tree is None else ast.unparse(tree), list[str]()
    for _ in range(num_changes):
        possible = [] if tree is None else list(_possible(tree, MODULE in source))
        if tree is None or not possible:
            return None
        kind = rng.choice(sorted({each.kind.value for each in possible}))
        chosen = rng.choice([each for each in possible if each.kind.value == kind])
        changes.append(f"{kind}: {chosen.make(rng)}")
        tree = _tree(ast.unparse(tree))  # the next change sees it as it is read
    after = None if tree is None else ast.unparse(tree)
    return None if after is None or after == before else Mutant(after + "\n", tuple(changes))


def _tree(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def _possible(tree: ast.Module, uses_dsl: bool) -> Iterator[_Possible]:
    """All changes that can be made to this tree, one of them."""
    colors: dict[int, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            yield _Possible(Change.constant, lambda rng, node=node: _other_number(node, rng))
            if type(node.value) is int and 0 <= node.value < NUM_COLORS:
                colors.setdefault(node.value, []).append(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if uses_dsl and any(node.id in group for group in _CONSTANTS):
                yield _Possible(Change.constant, lambda rng, node=node: _other_name(node, rng))
                if node.id in _DIGITS:
                    colors.setdefault(_DIGITS.index(node.id), []).append(node)
            elif others := _same_type(node.id, uses_dsl):
                yield _Possible(Change.primitive, lambda rng, node=node, others=others: _renamed(node, rng.choice(others)))
        elif isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args):
            if len({ast.dump(argument) for argument in node.args}) > 1:
                yield _Possible(Change.arguments, lambda rng, node=node: _swapped(node, rng))
        elif isinstance(node, ast.FunctionDef):
            yield from _lines(node)
    for color, nodes in colors.items():
        yield _Possible(Change.color, lambda rng, color=color, nodes=nodes: _recolored(color, nodes, rng))


def _other_number(node: ast.Constant, rng: Random) -> str:
    before = node.value
    assert isinstance(before, int)
    near = [before - 1, before + 1, *range(NUM_COLORS)]
    node.value = not before if isinstance(before, bool) else rng.choice([n for n in near if n != before and n >= 0])
    return f"{before} became {node.value}"


def _other_name(node: ast.Name, rng: Random) -> str:
    return _renamed(node, rng.choice([name for group in _CONSTANTS if node.id in group for name in group if name != node.id]))


def _renamed(node: ast.Name, name: str) -> str:
    before, node.id = node.id, name
    return f"{before} became {name}"


def _recolored(color: int, nodes: list[ast.AST], rng: Random) -> str:
    after = rng.choice([c for c in range(NUM_COLORS) if c != color])
    for node in nodes:
        if isinstance(node, ast.Constant):
            node.value = after
        elif isinstance(node, ast.Name):
            node.id = _DIGITS[after]
    return f"colour {color} became {after} everywhere"


def _swapped(call: ast.Call, rng: Random) -> str:
    places = range(len(call.args))
    first, second = rng.choice(
        [(i, j) for i in places for j in places if i < j and ast.dump(call.args[i]) != ast.dump(call.args[j])]
    )
    before = ast.unparse(call)
    call.args[first], call.args[second] = call.args[second], call.args[first]
    return f"{before} became {ast.unparse(call)}"


def _same_type(name: str, uses_dsl: bool) -> list[str]:
    """Other functions that take and give the same types."""
    if uses_dsl and (primitive := PRIMITIVES.get(name)) is not None:
        return [
            other.name
            for other in PRIMITIVES.values()
            if other.name != name
            and other.result == primitive.result
            and [type_ for _, type_ in other.parameters] == [type_ for _, type_ in primitive.parameters]
        ]
    return [_BUILTINS[name]] if name in _BUILTINS else []


def _lines(function: ast.FunctionDef) -> Iterator[_Possible]:
    """Assignments that can go: what they bind is bound before, or can be had from a name that they read."""
    bound = {argument.arg for argument in function.args.args}
    for statement in function.body[:-1]:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                read = [n.id for n in ast.walk(value) if isinstance(n, ast.Name) and n.id in bound]
                if name in bound or read:
                    stands_for = name if name in bound else read[0]
                    yield _Possible(
                        Change.line,
                        lambda _, s=statement, name=name, stands_for=stands_for: _dropped(function, s, name, stands_for),
                    )
                bound.add(name)


def _dropped(function: ast.FunctionDef, statement: ast.stmt, name: str, stands_for: str) -> str:
    before = ast.unparse(statement)
    function.body.remove(statement)
    if name != stands_for:
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id == name:
                node.id = stands_for
    return f"{before} was left out"


def worse_mutants(
    sandbox: Sandbox, task: ArcTask, source: str, entry: str, value: Callable[[Outcome], float], *, count: int,
    max_changes: int, seed: int,
) -> list[tuple[Mutant, Outcome]]:  # fmt: skip
    """At most `count` different mutants that run on every demonstration and are worth less than the program itself, in order of
    their changes, with what they answered (tests included). value: of an outcome. The same seed gives the same ones."""
    if count == 0:
        return []
    candidates: dict[str, Mutant] = {}
    for number in range(_TRIES * count):
        mutant = mutate(source, 1 + number % max_changes, Random(f"{seed}/{task.id}/{number}"))
        if mutant is not None:
            candidates.setdefault(mutant.source, mutant)
    runs = [ProgramRun(task, each, entry, with_tests=True) for each in (source, *candidates)]
    whole, *outcomes = run_jobs(sandbox, runs)
    kept = [
        (mutant, outcome)
        for mutant, outcome in zip(candidates.values(), outcomes, strict=True)
        if all(demo.status is Status.ok for demo in outcome.demos) and value(outcome) < value(whole)
    ]
    by_changes = [[each for each in kept if len(each[0].changes) == n] for n in range(1, max_changes + 1)]
    dealt = [group[turn] for turn in range(len(kept)) for group in by_changes if turn < len(group)]
    return sorted(dealt[:count], key=lambda each: len(each[0].changes))
