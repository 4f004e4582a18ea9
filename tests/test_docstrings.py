"""The usage lines of module docstrings are calls that the module's functions and classes would take."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import ROOT

SOURCES = sorted(path for path in (ROOT / "src" / "arclab").rglob("*.py") if path.stem != "__main__")


def usage_calls(docstring: str) -> Iterator[ast.Call]:
    """The calls in those lines of the docstring that are Python, without their comments."""
    for line in docstring.splitlines()[1:]:
        code = line.strip()
        if "(" not in code:
            continue
        code = code.rstrip().removesuffix("...").rstrip()
        for attempt in (code, f"{code} pass", code.split(" -> ")[0]):
            try:
                tree = ast.parse(attempt)
            except SyntaxError:
                continue
            yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))
            break


def target_of(module: ModuleType, call: ast.Call) -> Any:
    """What the call calls, if the module defines it: a function, a class, or a method of a class that is named."""
    if isinstance(call.func, ast.Name):
        found = getattr(module, call.func.id, None)
        return found if getattr(found, "__module__", "") == module.__name__ else None
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        owner = getattr(module, call.func.value.id, None)
        if inspect.isclass(owner) and owner.__module__ == module.__name__:
            return getattr(owner, call.func.attr)
    return None


def broken_usages(path: Path) -> Iterator[str]:
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    docstring = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    calls = list(usage_calls(docstring))
    if not calls:
        return
    module = importlib.import_module(name)
    for call in calls:
        target = target_of(module, call)
        if target is None or any(isinstance(argument, ast.Starred) for argument in call.args):
            continue
        arguments = [None for argument in call.args if not (isinstance(argument, ast.Constant) and argument.value is ...)]
        is_elided = len(arguments) < len(call.args) or any(keyword.arg is None for keyword in call.keywords)
        signature = inspect.signature(target)
        try:
            bind = signature.bind_partial if is_elided else signature.bind
            bind(*arguments, **{keyword.arg: None for keyword in call.keywords if keyword.arg})
        except TypeError as error:
            yield f"{path.relative_to(ROOT)}: {ast.unparse(call)}: {error}"


def test_usage_lines_bind_to_signatures() -> None:
    broken = [sentence for path in SOURCES for sentence in broken_usages(path)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "line", ["    f(1)", "    x = f(1, key=2)      # why", "    with f(1) as x:", "    for x in f(1): ...", "    f(1) -> int"]
)
def test_usages_are_found(line: str) -> None:
    assert [ast.unparse(call.func) for call in usage_calls(f"Title.\n\n{line}\n")] == ["f"]
