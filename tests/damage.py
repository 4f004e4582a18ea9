"""Damage for tests of whoever reads files: what a full disk, a flipped bit, or an editor's slip leaves behind.

    @hypothesis.given(damaged_bytes(GOOD.encode()))            # cut short, bits flipped, a piece repeated or replaced
    @hypothesis.given(damaged_json(json.loads(GOOD)))          # JSON text in which some values are of another kind, or gone
    @REPEATED                                                  # 30 examples, the same ones every time
    def test_reader(tmp_path, content): path.write_bytes(content); outcome_or_sentence(lambda: read(path), path)

A reader of a damaged file gives a value or one sentence that names the file; anything else is a bug of the reader. Each example
must write its own file: pytest makes tmp_path once for all of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")
REPEATED = settings(
    max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# One of every kind, and those that trip up code that looks only at the type. The text is half a surrogate pair.
OTHER_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "word", "\ud800", "\x00", [], [[]], [None], {}, {"": None},
)  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """content (at least one byte) cut short, with flipped bits, with a piece replaced by any bytes, or with a piece twice."""
    start, end = sorted((draw(st.integers(0, len(content) - 1)), draw(st.integers(0, len(content)))))
    kind = draw(st.sampled_from(("cut", "flip", "replace", "twice")))
    if kind == "cut":
        return content[:start]
    if kind == "replace":
        return content[:start] + draw(st.binary(max_size=8)) + content[end:]
    if kind == "twice":
        return content[:end] + content[start:]
    damaged = bytearray(content)
    for position in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        damaged[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(damaged)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of the value and of everything inside it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


@st.composite
def damaged_value(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value in which one or two values are removed, or replaced by one of OTHER_VALUES."""
    root = {"": json.loads(json.dumps(value))}
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(places(root)[1:] or [("",)]))
        node: Any = root
        for key in parents:
            node = node[key]
        if parents and draw(st.integers(0, 3)) == 0:
            del node[last]
        else:
            node[last] = copy.deepcopy(draw(st.sampled_from(OTHER_VALUES)))  # the next change may be inside it
    return root[""]


def damaged_json(value: Any) -> st.SearchStrategy[bytes]:
    """A file of the value, damaged as a value or as bytes."""
    whole = json.dumps(value).encode()
    return st.one_of(damaged_value(value).map(lambda other: json.dumps(other).encode()), damaged_bytes(whole))


def outcome_or_sentence(read: Callable[[], T], path: Path | str, *more: type[Exception]) -> T | None:
    """What read() returns, or None if it refuses with a ValueError of one line that names path. more: other errors that are no bugs."""
    try:
        return read()
    except ValueError as error:
        sentence = str(error)
        assert str(path) in sentence, f"does not name {path}: {sentence!r}"
        assert "\n" not in sentence and len(sentence) < 1000, f"is no sentence: {sentence[:2000]!r}"
        assert not isinstance(error, UnicodeError | json.JSONDecodeError), f"leaked from a library: {error!r}"
    except more:
        pass
    return None
