"""Tables of keys: the other value that is tried for each, and what it changes.

    TABLE = {
        "trainer.keep_last": (1, "kept"),                                # exactly this kind of thing changes, and nothing else
        "trainer.profile": (True, "runs/test_profile.py::test_..."),     # another test, below tests/, shows what it does
    }

A test describes what there is with the base value and with the other one as {kind: anything that can be compared}, and
`differences` says which kinds differ. `effect` says which ones a row promises.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from arclab.config.compose import known_keys

TESTS = Path(__file__).parents[1]
Table = Mapping[str, tuple[Any, str]]
Parts = dict[str, Any]


def leaves(schema: type) -> set[str]:
    """The keys of a schema that have a value of their own."""
    known = set(known_keys(schema))
    return {key for key in known if not any(other.startswith(f"{key}.") for other in known)}


def is_reference(what: str) -> bool:
    return "::" in what


def shown_here(table: Table) -> list[str]:
    return [key for key, (_, what) in table.items() if not is_reference(what)]


def effect(what: str, follows: Mapping[str, str]) -> set[str]:
    """The kinds that a row promises, with those that cannot but change with them. follows: {kind: the kinds behind it}."""
    kinds, found = what.split(), set[str]()
    while kinds:
        kind = kinds.pop()
        found.add(kind)
        kinds += follows.get(kind, "").split()
    return found


def differences(before: Parts, after: Parts) -> set[str]:
    assert before.keys() == after.keys()
    return {kind for kind, value in before.items() if value != after[kind]}


def require_a_row_for_each(keys: set[str], *tables: Table) -> None:
    rows = set().union(*tables)
    assert not keys - rows, f"keys without a row that says what they change: {sorted(keys - rows)}"
    assert not rows - keys, f"rows of keys that there are not: {sorted(rows - keys)}"


def require_the_named_tests(table: Table) -> None:
    for key, (_, what) in table.items():
        if is_reference(what):
            file, _, name = what.partition("::")
            assert (TESTS / file).is_file() and name in _tests_of(file), f"{key}: tests/{what} is not there"


@cache
def _tests_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
