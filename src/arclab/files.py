"""Reading and writing small files: whole or not at all, and an error names the file, the line and what to do.

    write_atomically(path, text)          # the old or the new content, never a part of it
    read_json(path)                       # any JSON value
    read_object(path)                     # a JSON object
    read_lines(path)                      # the objects of a JSONL file; a line that a kill cut short is left out

DamagedFile is a ValueError, so that an entry script prints it as one sentence. An OSError (no permission, full disk) keeps its
kind on the way up and becomes a sentence there: see sentence_of. It does not know what a file means; whoever reads it checks its keys.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REMEDY = "restore it, or remove it"
_STEP = re.compile(r"step_[0-9]{8,}")

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "your quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
    errno.EACCES: "check its permissions, or choose another folder",
    errno.EPERM: "check its permissions, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "it was moved or removed; put it back, or check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "it is a folder; give a file",
    errno.EEXIST: "it is there already; remove it, or choose another name",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.EIO: "the disk reports an error; check it, and run the same command again",
    errno.ESTALE: "the network file system has lost it; mount it again",
}


class DamagedFile(ValueError):
    """A file that cannot be read as what it should be. The message names it, the line, and the remedy."""

    def __init__(self, path: Path | str, why: object, *, line: int | None = None, remedy: str = REMEDY) -> None:
        where = str(path) if line is None else f"{path}, line {line},"
        super().__init__(f"{where} is damaged ({why}); {remedy}.")
        self.path, self.line = Path(path), line


def write_atomically(path: Path, text: str) -> None:
    """The file has its old or its new content, never a part of it, also if two ranks write at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, *, remedy: str = REMEDY) -> Any:
    """The value in a JSON file. DamagedFile if it is none; OSError if it cannot be opened. A byte order mark is skipped."""
    return parse_json(path.read_bytes(), path, remedy=remedy)


def read_object(path: Path, *, remedy: str = REMEDY) -> dict[str, Any]:
    """The object in a JSON file. DamagedFile if it is none."""
    return _as_object(read_json(path, remedy=remedy), path, None, remedy)


def read_lines(path: Path, *, remedy: str = REMEDY) -> list[dict[str, Any]]:
    """The objects of a JSONL file, one a line. What follows the last line break was cut short by a kill and is left out."""
    return [record for _, record in numbered_lines(path, remedy=remedy)]


def numbered_lines(path: Path, *, remedy: str = REMEDY) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same one after the other, each with its line number, counted from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, parse_object(line, path, line=number, remedy=remedy)


def parse_object(data: bytes | str, path: Path, *, line: int | None = None, remedy: str = REMEDY) -> dict[str, Any]:
    """The object in a piece of a file. path, line: where it is from, for the message."""
    return _as_object(parse_json(data, path, line=line, remedy=remedy), path, line, remedy)


def parse_json(data: bytes | str, path: Path, *, line: int | None = None, remedy: str = REMEDY) -> Any:
    """The value in a piece of a file."""
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits; nested too deep
        why = "nested too deep" if isinstance(error, RecursionError) else f"no JSON: {error}"
        raise DamagedFile(path, why, line=line, remedy=remedy) from error


def _as_object(value: Any, path: Path, line: int | None, remedy: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedFile(path, "no JSON object", line=line, remedy=remedy)
    return value


def step_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints in a run's folder of checkpoints (step_ and at least eight digits), the oldest first. What else lies there is left alone."""
    found = (path for path in checkpoints.glob("step_*") if _STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def sentence_of(error: OSError) -> str:
    """One sentence for a file that cannot be opened, read or written: which, why, and what to do."""
    what = str(error.filename) if error.filename is not None else "a file"
    why = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "see to it, and run the same command again")
    return f"{what}: {why}; {remedy}."
