"""JSON objects with known keys, their types checked: a damaged record is one sentence that names the file, never a TypeError later.

    holder = read_record(path, Holder)                       # a dataclass of str, int, float, bool, Literal, None and lists
    require_types(status, {"step": int}, path)               # the same for a plain dictionary

Keys that the dataclass does not have are left out (a newer version wrote them), and those with a default may be missing (an older one did).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from arclab.files import REMEDY, DamagedFile, read_object

Record = TypeVar("Record")


def read_record(path: Path, schema: type[Record], *, remedy: str = REMEDY) -> Record:
    """The record in a JSON file. DamagedFile if a key is missing or its value is of another type."""
    return as_record(read_object(path, remedy=remedy), schema, path, remedy=remedy)


def as_record(found: Mapping[str, Any], schema: type[Record], path: Path, *, remedy: str = REMEDY) -> Record:
    """The same of an object that is read already; path: where it is from, for the message."""
    hints = get_type_hints(schema)
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    needed = {name: hints[name] for name, field in known.items() if field.default is MISSING or name in found}
    require_types(found, needed, path, remedy=remedy)
    return schema(**{name: found[name] for name in needed})


def require_types(
    record: Mapping[str, Any], hints: Mapping[str, Any], path: Path, *, line: int | None = None, remedy: str = REMEDY
) -> None:
    """DamagedFile unless the record has every key of `hints` with a value of that type."""
    if missing := [name for name in hints if name not in record]:
        raise DamagedFile(path, f"it does not say {', '.join(missing)}", line=line, remedy=remedy)
    for name, hint in hints.items():
        if not fits(record[name], hint):
            raise DamagedFile(path, f"{name} cannot be {_short(record[name])}", line=line, remedy=remedy)


def fits(value: Any, hint: Any) -> bool:
    """Is a value from JSON of this type? true is no number, and a float is finite."""
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is list:
        return type(value) is list and all(fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
