"""JSON objects as dataclasses: a damaged record is one sentence that names the file, never a TypeError later.

    holder = read_record(path, Holder)        # a dataclass of str, int, float, bool, Literal, None and lists

Keys that the dataclass does not have are left out (a newer version wrote them), and those with a default may be missing (an
older one did). Plain dictionaries: arclab.files.require_kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from arclab.files import REMEDY, read_object, require_kinds

Record = TypeVar("Record")


def read_record(path: Path, schema: type[Record], *, remedy: str = REMEDY) -> Record:
    """The record in a JSON file. DamagedFile if a key is missing or its value is of another type."""
    return as_record(read_object(path, remedy=remedy), schema, path, remedy=remedy)


def as_record(found: Mapping[str, Any], schema: type[Record], path: Path, *, remedy: str = REMEDY) -> Record:
    """The same of an object that is read already; path: where it is from, for the message."""
    hints = get_type_hints(schema)
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    needed = {name: hints[name] for name, field in known.items() if field.default is MISSING or name in found}
    require_kinds(found, needed, path, remedy=remedy)
    return schema(**{name: found[name] for name in needed})
