"""Run the tests of a function on a reply, in the sandbox: what a program for a described function is worth.

    outcomes = run_tests(sandbox, [(reply, tests), ...])     # in order, all at once; outcomes[0].is_right
    why = why_not_usable(tests)                              # "" if the sandbox can run them

The tests import their function from the module solution. A reply may call it otherwise: then its own entry function, which is
the last one that no other function calls, is renamed in its syntax tree. Every test function is a call of its own, so that a
crash costs one test; the reply is right if all pass. pytest.raises, pytest.approx and pytest.mark.parametrize are there.

Tests and reply run in one process, so a reply that looks for the tests can find them. What it cannot do is return objects that
say of themselves that they are equal to everything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arclab.lm.language_model import FinishReason
from arclab.programs.code_blocks import Reading
from arclab.programs.prompts import parse_program
from arclab.programs.sandbox.child import PRELOADED
from arclab.programs.sandbox.execution import Execution, Status
from arclab.programs.sandbox.pool import Sandbox

_ENTRY = "run_test_number"
_MODULE = "solution"  # that tests import from
_MODULES = {name.split(".")[0] for name in PRELOADED} | {"os", "sys", "builtins", "numpy", "pytest", "__future__", _MODULE}
_PYTEST = {"raises", "approx", "mark"}
_MOST_TESTS = 200
_HARNESS = """
import sys, types, math, unittest
def _pytest():
    module = types.ModuleType("pytest")
    class raises:
        def __init__(self, kinds, match=None):
            self.kinds, self.match, self.value = kinds, match, None
        def __enter__(self):
            return self
        def __exit__(self, kind, error, trace):
            import re
            assert kind is not None and issubclass(kind, self.kinds), "nothing of that kind was raised"
            assert self.match is None or re.search(self.match, str(error))
            self.value = error
            return True
    class approx:
        def __init__(self, wanted, rel=1e-6, abs=1e-12):
            self.wanted, self.rel, self.abs = wanted, rel or 0.0, abs or 0.0
        def __eq__(self, other):
            if isinstance(self.wanted, (list, tuple)):
                pairs = zip(self.wanted, other)
                return len(self.wanted) == len(other) and all(self._near(a, b) for a, b in pairs)
            return self._near(self.wanted, other)
        def _near(self, a, b):
            return a == b or math.isclose(a, b, rel_tol=self.rel, abs_tol=self.abs)
    class Mark:
        def parametrize(self, names, values, ids=None):
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
            def mark(test):
                test.cases = [
                    {**dict(zip(names, value if len(names) > 1 else (value,))), **more}
                    for value in values for more in getattr(test, "cases", [{}])
                ]
                return test
            return mark
        def __getattr__(self, name):
            return lambda *given, **more: given[0] if given and callable(given[0]) else (lambda test: test)
    module.raises, module.approx, module.mark = raises, approx, Mark()
    return module
def _plain(value):
    own = type(value)
    assert own.__module__ != "solution" or not {"__eq__", "__ne__"} & set(vars(own)), "it compares itself"
    if own in (list, tuple, set, frozenset, dict):
        for each in value:
            _plain(each)
    if own is dict:
        for each in value.values():
            _plain(each)
    return value
def _checked(function):
    def call(*given, **more):
        return _plain(function(*given, **more))
    return call
_solution = types.ModuleType("solution")
sys.modules["solution"], sys.modules["pytest"] = _solution, _pytest()
exec(compile(SOLUTION, "<program>", "exec"), _solution.__dict__)
for _name in WANTED:
    if isinstance(getattr(_solution, _name, None), types.FunctionType):
        setattr(_solution, _name, _checked(getattr(_solution, _name)))
_tests = types.ModuleType("tests")
exec(compile(TESTS, "<tests>", "exec"), _tests.__dict__)
def run_test_number(grid):
    names = NAMES[grid[0][0]]
    if len(names) == 1:
        test = getattr(_tests, names[0])
    else:
        kind = getattr(_tests, names[0])
        own = kind(names[1]) if issubclass(kind, unittest.TestCase) else kind()
        getattr(own, "setUp", getattr(own, "setup_method", lambda: None))()
        test = getattr(own, names[1])
    for case in getattr(test, "cases", [{}]):
        test(**case)
    return [[1]]
"""


@dataclass(frozen=True, slots=True)
class TestOutcome:
    """source: what was run; None: the reply has no function. message: why the first test that failed did."""

    __test__ = False  # for pytest

    source: str | None
    num_passed: int
    num_tests: int
    message: str

    @property
    def is_right(self) -> bool:
        return self.num_passed == self.num_tests > 0


def run_tests(sandbox: Sandbox, jobs: Sequence[tuple[str, str]]) -> list[TestOutcome]:
    """jobs: (reply, tests), which must be usable. Equal ones run once."""
    prepared = {job: _prepared(*job) for job in dict.fromkeys(jobs)}
    executions = {job: _execution(source, job[1]) for job, source in prepared.items() if source is not None}
    results = dict(zip(executions, sandbox.run(list(executions.values())), strict=True))
    found: list[TestOutcome] = []
    for job in jobs:
        source, num_tests = prepared[job], len(_tests_of(ast.parse(job[1])))
        if job not in results:
            found.append(TestOutcome(None, 0, num_tests, "the reply has no function"))
            continue
        grids = results[job].grids
        failed = [grid for grid in grids if grid.status is not Status.ok or grid.grid is None or grid.grid[0, 0] != 1]
        message = "" if not failed else f"{failed[0].status.name}: {failed[0].message}"
        found.append(TestOutcome(source, len(grids) - len(failed), num_tests, message))
    return found


def why_not_usable(tests: str) -> str:
    """The end of the sentence "its row was dropped: ..."; empty if the sandbox can run them."""
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError):
        return "their tests are no Python"
    if not wanted_names(tree):
        return f"their tests import no function from {_MODULE}"
    if not 0 < len(_tests_of(tree)) <= _MOST_TESTS:
        return f"they have no test function, or more than {_MOST_TESTS}"
    if set(_imported(tree)) - _MODULES:
        return "their tests import what the sandbox does not have"
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest"}
    needs = [test for test in _tests_of(tree) if _needs_fixture(_definition(tree, test), is_method=len(test) > 1)]
    if used - _PYTEST or needs:
        return "their tests need parts of pytest that are not there"
    return ""


def wanted_names(tree: ast.Module) -> list[str]:
    """What tests import from the solution; the first is its entry function."""
    return [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == _MODULE
        for alias in node.names
        if alias.name != "*"
    ]


def program_of(reply: str, wanted: str) -> str | None:
    """The reply's program with its entry function under the name that the tests call; None: it has no function."""
    parsed = parse_program(reply, entry=wanted, finish_reason=FinishReason.stop)
    if parsed.source is not None:
        return parsed.source
    reading = Reading(reply, lambda tree: bool(_functions(tree)))
    trees = [block.tree for block in (reading.bare(), *reading.blocks) if block.tree is not None and _functions(block.tree)]
    if not trees:
        return None
    name = _entry(trees[-1])
    source = parse_program(reply, entry=name, finish_reason=FinishReason.stop).source
    return None if source is None else renamed(source, name, wanted)


def renamed(source: str, name: str, wanted: str) -> str:
    """The program with a function under another name, its calls of itself included. A program that has the other name already,
    for something else, gets a second name for the function instead."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return source
    if any(getattr(node, field, None) == wanted for node in ast.walk(tree) for field in ("id", "arg", "name", "asname")):
        return f"{source}\n{wanted} = {name}\n"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name:
            node.id = wanted
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node in tree.body and node.name == name:
            node.name = wanted
        elif isinstance(node, ast.Global | ast.Nonlocal):
            node.names = [wanted if each == name else each for each in node.names]
    return ast.unparse(tree)


def _prepared(reply: str, tests: str) -> str | None:
    return program_of(reply, wanted_names(ast.parse(tests))[0])


def _execution(source: str, tests: str) -> Execution:
    tree = ast.parse(tests)
    given = {"SOLUTION": source, "TESTS": tests, "NAMES": _tests_of(tree), "WANTED": wanted_names(tree)}
    head = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    inputs = tuple(np.full((1, 1), number, np.uint8) for number in range(len(given["NAMES"])))
    return Execution(f"{head}\n{_HARNESS}", inputs, entry=_ENTRY)


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _entry(tree: ast.Module) -> str:
    """The last function that no other one calls."""
    functions = _functions(tree)
    called = {
        node.id
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id != function.name
    }
    return [function.name for function in functions if function.name not in called or function is functions[-1]][-1]


def _tests_of(tree: ast.Module) -> list[tuple[str, ...]]:
    """("test_a",) for a function, ("TestB", "test_c") for a method."""
    found: list[tuple[str, ...]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            found.append((node.name,))
        elif isinstance(node, ast.ClassDef):
            found += [(node.name, each.name) for each in _methods(node) if each.name.startswith("test")]
    return found


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (each for each in node.body if isinstance(each, ast.FunctionDef))


def _definition(tree: ast.Module, test: tuple[str, ...]) -> ast.FunctionDef:
    body: Sequence[ast.stmt] = tree.body
    for name in test[:-1]:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name).body
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == test[-1])


def _needs_fixture(function: ast.FunctionDef, *, is_method: bool) -> bool:
    has_cases = any("parametrize" in ast.unparse(each) for each in function.decorator_list)
    return len(function.args.args) > int(is_method) and not has_cases


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
