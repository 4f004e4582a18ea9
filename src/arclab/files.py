"""Reading and writing small files: whole or not at all, and an error names the file, the line and what to do.

    write_atomically(path, text)          # the old or the new content, never a part of it
    read_json(path)                       # any JSON value
    read_object(path, {"step": int})      # a JSON object that has these keys, with values of these kinds
    read_record(path, Holder)             # the same as a dataclass of str, int, float, bool, Literal, None and lists
    read_lines(path)                      # the objects of a JSONL file; a line that a kill cut short is left out
    with naming(path): file.write(...)    # an OSError that does not say which file it is about now does

DamagedFile is a ValueError, so that an entry script prints it as one sentence. An OSError (no permission, full disk) keeps its
kind on the way up and becomes a sentence there: see sentence_for. It does not know what a file means beyond that.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import GenericAlias, MappingProxyType, NoneType, TracebackType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

REMEDY = "restore it, or remove it"
LINE_REMEDY = "correct that line, or remove it"
# What a value in a file can be: int, float (also a whole number), str, bool, list, dict, a list or object whose values are of
# one kind (list[str], dict[str, float]), or several of these (float | None).
Kind = type | UnionType | GenericAlias
Record = TypeVar("Record")
_STEP = re.compile(r"step_[0-9]{8,}")

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "your quota is used up; free some space and run the same command again",
    errno.EFBIG: "files may not be that large here; raise the limit (ulimit -f), or choose another folder",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
    errno.EACCES: "check its permissions, or choose another folder",
    errno.EPERM: "check its permissions, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "it was moved or removed; put it back, or check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "it is there already; remove it, or choose another name",
    errno.ENOTEMPTY: "it is there already; remove it, or choose another name",
    errno.ELOOP: "its links go round in a circle; correct them",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close some programs and run the same command again",
    errno.EIO: "the disk reports an error; check it, and run the same command again",
    errno.ESTALE: "the network file system has lost it; mount it again",
    errno.ETIMEDOUT: "the network file system does not answer; run the same command again when it does",
}
_MAX_INT = 2**63  # whole numbers beyond it are no counts, and overflow wherever they go
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


class DamagedFile(ValueError):
    """A file that cannot be read as what it should be. The message names it, the line, and the remedy."""

    def __init__(self, path: Path | str, why: object, *, line: int | None = None, remedy: str | None = None) -> None:
        where = "" if line is None else f" in line {line}"
        super().__init__(f"{path} is damaged{where} ({why}); {remedy or (REMEDY if line is None else LINE_REMEDY)}.")
        self.path, self.line = Path(path), line


class naming:  # lower case, as contextlib's: it is used as a function
    """An OSError in the block that names no file (writing to an open one) names this file or folder. So does a write that fails
    inside safetensors, tokenizers or torch, whose own errors are no OSErrors."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            if error.filename is None and error.errno is not None:
                error.filename = self._path
        elif error is not None and (code := re.search(r"\(os error (\d+)\)", str(error))):  # of a library written in Rust
            raise OSError(int(code[1]), os.strerror(int(code[1])), self._path) from error
        elif isinstance(error, RuntimeError) and re.search(r"inline_container|PytorchStreamWriter", str(error)):
            raise OSError(errno.ENOSPC, "it was not written to its end, as on a full disk", self._path) from error


def write_atomically(path: Path, text: str) -> None:
    """The file has its old or its new content, never a part of it, also if two ranks write at once. An OSError names path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None  # not the temporary name, which says nothing to anybody
        raise
    finally:
        with suppress(OSError):  # the first error is the one to hear of
            temporary.unlink(missing_ok=True)


def read_text(path: Path, *, remedy: str = REMEDY) -> str:
    """A text file in UTF-8, without its byte order mark. DamagedFile if it is none; OSError if it cannot be opened."""
    return _decoded(path.read_bytes(), path, None, remedy)


def read_json(path: Path, *, remedy: str = REMEDY) -> Any:
    """The value in a JSON file. DamagedFile if it is none; OSError if it cannot be opened. A byte order mark is skipped."""
    return parse_json(path.read_bytes(), path, remedy=remedy)


def read_object(path: Path, kinds: Mapping[str, Kind] | None = None, *, remedy: str = REMEDY) -> dict[str, Any]:
    """The object in a JSON file. DamagedFile if it is none, or breaks one of kinds (see require_kinds)."""
    return parse_object(path.read_bytes(), path, kinds, remedy=remedy)


def read_lines(path: Path, kinds: Mapping[str, Kind] | None = None, *, remedy: str | None = None) -> list[dict[str, Any]]:
    """The objects of a JSONL file, one a line. What follows the last line break was cut short by a kill and is left out."""
    return [record for _, record in numbered_lines(path, kinds, remedy=remedy)]


def numbered_lines(
    path: Path,
    kinds: Mapping[str, Kind] | None = None,
    *,
    is_log: bool = True,
    needs_line_end: bool = True,
    remedy: str | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same one after the other, each with its line number, counted from 1. is_log: the file grows line by line; any other
    is damaged if it has no line break at its end, unless needs_line_end is false: others may have written it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") or not is_log:
                if needs_line_end and not line.endswith(b"\n"):
                    raise DamagedFile(path, "it is cut short", line=number, remedy=remedy)
                yield number, parse_object(line, path, kinds, line=number, remedy=remedy)


def parse_object(
    data: bytes | str,
    path: Path,
    kinds: Mapping[str, Kind] | None = None,
    *,
    line: int | None = None,
    remedy: str | None = None,
) -> dict[str, Any]:
    """The object in a piece of a file. path, line: where it is from, for the message."""
    value = parse_json(data, path, line=line, remedy=remedy)
    if not isinstance(value, dict):
        raise DamagedFile(path, f"no JSON object, but {short(value)}", line=line, remedy=remedy)
    require_kinds(value, kinds or {}, path, line=line, remedy=remedy)
    return value


def parse_json(data: bytes | str, path: Path, *, line: int | None = None, remedy: str | None = None) -> Any:
    """The value in a piece of a file. No key may stand twice in an object: the last one would silently win."""
    try:
        return json.loads(_decoded(data, path, line, remedy), object_pairs_hook=_without_repetition)
    except DamagedFile:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if line is None else f"column {error.colno}"
        raise DamagedFile(path, f"no JSON: {error.msg} at {place}", line=line, remedy=remedy) from error
    except ValueError as error:  # a key that stands twice; a number of thousands of digits
        raise DamagedFile(path, str(error).split(";")[0], line=line, remedy=remedy) from error
    except RecursionError as error:
        raise DamagedFile(path, "nested too deep", line=line, remedy=remedy) from error


def _decoded(data: bytes | str, path: Path, line: int | None, remedy: str | None) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFile(
            path, f"no UTF-8 text: byte {error.start} is {data[error.start]:#04x}", line=line, remedy=remedy
        ) from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {short(twice)} stands twice")
    return record


def require_kinds(
    record: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    path: Path,
    *,
    may_lack: bool = False,
    line: int | None = None,
    remedy: str | None = None,
) -> None:
    """DamagedFile unless every key of kinds is there with a value of its kind. Numbers must be finite and below 2^63; true and
    false are none. Text must be encodable. A kind with None (int | None) may be null, not absent. may_lack: any key may be
    absent, as in files that older versions wrote."""
    for key, kind in kinds.items():
        if key not in record and not may_lack:
            raise DamagedFile(path, f"it has no {key}", line=line, remedy=remedy)
        if key in record and not is_kind(record[key], kind):
            raise DamagedFile(path, f"{key} is {short(record[key])} where {_wanted(kind)} belongs", line=line, remedy=remedy)


def is_kind(value: Any, kind: Kind) -> bool:
    """See require_kinds."""
    if isinstance(kind, UnionType):
        return any(is_kind(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return type(value) is str and value in get_args(kind)
    if isinstance(kind, GenericAlias):
        items = value.values() if isinstance(value, dict) else value
        return type(value) is get_origin(kind) and all(is_kind(item, get_args(kind)[-1]) for item in items)
    if type(value) is int:
        return kind in (int, float) and abs(value) < _MAX_INT
    if type(value) is str:
        return kind is str and is_encodable(value)
    return type(value) is kind and (kind is not float or math.isfinite(value))


def is_encodable(text: str) -> bool:
    """Not so for half a surrogate pair, which JSON can spell and a file name can hold, and no file or page can take."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _wanted(kind: Kind) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_wanted, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if isinstance(kind, GenericAlias):
        return f"{_NAMES[get_origin(kind)]} in which each value is {_wanted(get_args(kind)[-1])}"
    return _NAMES[kind]


def short(value: Any) -> str:
    """A value for a sentence: on one line, as ASCII, and never long."""
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else _NAMES.get(type(value), type(value).__name__)
    return text if len(text) <= 60 else f"{text[:56]} ..."


@cache
def hints_of(schema: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, worked out once: each annotation is a text that Python has to compile."""
    return MappingProxyType(get_type_hints(schema))


def read_record(path: Path, schema: type[Record], *, remedy: str = REMEDY) -> Record:
    """The object in a JSON file as a dataclass. DamagedFile if a key is missing or its value is of another type.

    Keys that the dataclass does not have are left out (a newer version wrote them), and those with a default may be missing (an
    older one did).
    """
    return as_record(read_object(path, remedy=remedy), schema, path, remedy=remedy)


def as_record(found: Mapping[str, Any], schema: type[Record], path: Path, *, remedy: str = REMEDY) -> Record:
    """The same of an object that is read already; path: where it is from, for the message."""
    hints = hints_of(schema)
    known = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    needed = {name: hints[name] for name, field in known.items() if field.default is MISSING or name in found}
    require_kinds(found, needed, path, remedy=remedy)
    return schema(**{name: found[name] for name in needed})


def difference(before: Mapping[str, Any], now: Mapping[str, Any], *, says: str = "now") -> str:
    """Every key by which two settings differ, with its two values, and how many keys do: "lr=1, now lr=2; seed=0, now seed=1 (2
    keys differ)". Empty if they are the same. Compared as JSON keeps them: a tuple is a list. An absent key is null."""
    old, new = (json.loads(json.dumps(dict(each))) for each in (before, now))
    different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if not different:
        return ""
    each = "; ".join(f"{key}={old.get(key)}, {says} {key}={new.get(key)}" for key in different)
    return f"{each} ({len(different)} keys differ)"


def step_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints in a run's folder of checkpoints (step_ and at least eight digits), the oldest first. What else lies
    there is left alone."""
    found = (path for path in checkpoints.glob("step_*") if _STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def sentence_of(error: OSError) -> str:
    """One sentence for a file that cannot be opened, read or written: which, why, and what to do."""
    what = str(error.filename) if error.filename is not None else "a file"
    why = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "see to it, and run the same command again")
    return f"{what}: {why}; {remedy}."


def sentence_for(error: BaseException) -> str | None:
    """What the user reads if they can mend what happened (a ValueError, an OSError about a file); None for a bug, whose
    traceback must be seen."""
    if isinstance(error, OSError):
        is_about_file = error.filename is not None and not isinstance(
            error, ConnectionError | ChildProcessError | BrokenPipeError
        )
        return sentence_of(error) if is_about_file or error.errno in _REMEDIES else None
    return str(error) if isinstance(error, ValueError) else None
