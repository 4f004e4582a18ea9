"""A worklist: items with ids that take long to make, kept in a JSONL file as they are finished, so that none is made twice.

    worklist = Worklist(folder / "nodes.jsonl", settings)      # settings: {dotted key: value} of all that decides an item
    worklist.check()                                           # ConfigError: made with other settings; changes nothing
    done = worklist.load(parse)                                # {id: what parse makes of its record}; mends the file's end
    for id_ in share(ids, number, count):                      # this process's part of the ids; all of them: share(ids, 0, 1)
        if id_ not in done:
            worklist.add(id_, {"score": 0.5})                  # on disk when it returns
    merge(paths, target)                                       # the worklists of all shards in one file
    settings, items = read_items(path, parse)                  # for who only reads

The first line holds the settings; each further line is the record of one item, with its id and a checksum. The same command
goes on after a kill: a line that was cut short is dropped. A damaged line is named in a warning, stays where it is and counts
for nothing. Of two lines with one id the later one counts.

One process writes to a file at a time: hold the lock of its run folder from load() to the last add(). Shards write a file
each, and are merged when they are done, or earlier and once more. What an item depends on beyond the settings (the prompt, the
node above it) belongs into its record, where the reader compares it. Keep order, votes and sums out of here: they are made
again from the items.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile, Kind, difference, naming, parse_object, require_kinds, short

_CHECKSUM = "crc32"
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemKind:
    """What the items are, for the file and its messages. id_key: the key of the id in a line. holds: "replies drawn".
    again: what follows from a damaged line. elsewhere: how the user has another file."""

    id_key: str = "id"
    holds: str = "items made"
    again: str = "its item is made again"
    elsewhere: str = "choose another output_dir="

    @property
    def file_remedy(self) -> str:
        return f"remove the file, or {self.elsewhere}"

    @property
    def line_remedy(self) -> str:
        return f"{self.again} unless another line holds it; remove the line to hear no more of it"


ITEMS = ItemKind()


@dataclass(frozen=True, slots=True)
class Line:
    """Where a record stands, for whoever parses it. number: counted from 1."""

    path: Path
    number: int
    remedy: str

    def require(self, record: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
        """DamagedFile unless the record has these keys, with values of these kinds."""
        require_kinds(record, kinds, self.path, line=self.number, remedy=self.remedy)

    def damaged(self, why: str) -> DamagedFile:
        return DamagedFile(self.path, why, line=self.number, remedy=self.remedy)


# Makes an item of its record, which has its id too. Raises what Line gives it: then the line counts for nothing.
Parse = Callable[[dict[str, Any], Line], T]


class Worklist:
    """The finished items of one file, which need not be there yet. settings: values that JSON can hold."""

    def __init__(self, path: Path, settings: Mapping[str, Any], kind: ItemKind = ITEMS) -> None:
        self.path, self._settings, self._kind = path, settings, kind

    def check(self) -> None:
        """ConfigError: other settings. DamagedFile: no file of this kind. Another process may be writing to it."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                self._require_same(_settings_in(file.readline(), self.path, self._kind))

    def load(self, parse: Parse[T]) -> dict[str, T]:
        """{id: item} of what is finished. ConfigError: other settings. DamagedFile: no file of this kind. A half-written end is
        cut off, so nobody else may be writing."""
        if not self.path.is_file():
            return {}
        lines = _whole_lines(self.path)
        self._require_same(_settings_in(lines, self.path, self._kind))
        items = _items_in(lines, self.path, self._kind, parse)
        _cut(self.path, len(lines))
        return items

    def add(self, id_: str, record: Mapping[str, Any]) -> None:
        """Keep a finished item. record: values that JSON can hold, without the id."""
        self.add_all({id_: record})

    def add_all(self, records: Mapping[str, Mapping[str, Any]], *, is_synced: bool = True) -> None:
        """Keep several at once. is_synced=False: they outlive the process, not a failure of power; for small items in
        thousands."""
        self._append([{self._kind.id_key: id_, **record} for id_, record in records.items()], is_synced=is_synced)

    def _append(self, records: Sequence[dict[str, Any]], *, is_synced: bool = True) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.is_file()
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(_line({"settings": dict(self._settings)}))
            file.writelines(map(_line, records))
            file.flush()
            if is_synced:
                os.fsync(file.fileno())

    def _require_same(self, before: Mapping[str, Any] | None) -> None:
        if before is not None and (other := difference(before, self._settings)):
            raise ConfigError(f"{self.path} holds {self._kind.holds} with {other}; {self._kind.elsewhere}, or remove the file.")


def read_items(path: Path, parse: Parse[T], kind: ItemKind = ITEMS) -> tuple[dict[str, Any], dict[str, T]]:
    """The settings of a file and {id: item}, whatever the settings are; changes nothing. DamagedFile: no file of this kind."""
    lines = _whole_lines(path)
    settings = _settings_in(lines, path, kind)
    if settings is None:
        raise Line(path, 1, kind.file_remedy).damaged("it is empty")
    return settings, _items_in(lines, path, kind, parse)


def share(ids: Iterable[str], number: int, count: int) -> list[str]:
    """The part of the ids that shard `number` (from 0) of `count` has, in the order given: each id is in one part, and parts
    differ in size by at most one. It depends on which ids there are alone, not on their order. ValueError: no such shard."""
    if not 0 <= number < count:
        raise ValueError(f"there is no shard number={number} of count={count}; give a number from 0 to {max(0, count - 1)}.")
    ids = list(ids)
    mine = set(sorted(set(ids))[number::count])
    return [id_ for id_ in dict.fromkeys(ids) if id_ in mine]


def merge(paths: Sequence[Path], target: Path, kind: ItemKind = ITEMS) -> int:
    """Add the items of several worklists to the one at target, which need not be there yet; the number of items it has then.

    Nothing is written unless all fit together. ConfigError: a file is not there, the settings are not the same, or two files
    have different content for one id. Only target must not be written to meanwhile; damaged lines count for nothing, as ever.
    """
    assert paths, "nothing to merge"
    first: tuple[Path, Mapping[str, Any]] | None = None
    merged: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in [target, *paths] if target.is_file() else paths:
        lines = _lines_to_merge(path)
        settings = _settings_in(lines, path, kind)
        first = first or (None if settings is None else (path, settings))
        if (
            settings is not None
            and first is not None
            and (other := difference(settings, first[1], says=f"and {first[0]} with"))
        ):
            raise ConfigError(f"{path} holds {kind.holds} with {other}; merge files of the same settings only.")
        for id_, record in _items_in(lines, path, kind, lambda record, _: record).items():
            held_in, held = merged.setdefault(id_, (path, record))
            if _content(held) != _content(record):
                raise ConfigError(
                    f"{held_in} and {path} have different content for {kind.id_key}={short(id_)}; remove that line from one "
                    "of them, or leave one of them out."
                )
    if first is not None:
        if target.is_file():
            _cut(target, len(_whole_lines(target)))
        Worklist(target, first[1], kind)._append([record for held_in, record in merged.values() if held_in != target])
    return len(merged)


def _lines_to_merge(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, so it cannot be merged; check the path, or leave it out.")
    return _whole_lines(path)


def _whole_lines(path: Path) -> bytes:
    """Without an end that a kill cut short, or that another process is writing just now."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _cut(path: Path, num_bytes: int) -> None:
    """Leave the first num_bytes of a file; no file if there are none."""
    if num_bytes == 0:
        path.unlink()
    elif num_bytes < path.stat().st_size:
        with naming(path), path.open("r+b") as file:
            file.truncate(num_bytes)


def _settings_in(lines: bytes, path: Path, kind: ItemKind) -> dict[str, Any] | None:
    """What the first line says; None if there is no whole one."""
    first, line_break, _ = lines.partition(b"\n")
    if not line_break:
        return None
    line = Line(path, 1, kind.file_remedy)
    record = _record(first, line)
    line.require(record, {"settings": dict})
    return record["settings"]


def _items_in(lines: bytes, path: Path, kind: ItemKind, parse: Parse[T]) -> dict[str, T]:
    items: dict[str, T] = {}
    for number, content in enumerate(lines.split(b"\n")[1:-1], start=2):
        line = Line(path, number, kind.line_remedy)
        try:
            record = _record(content, line)
            line.require(record, {kind.id_key: str})
            items[record[kind.id_key]] = parse(record, line)
        except DamagedFile as error:
            log.warning("%s", error)
    return items


def _record(content: bytes, line: Line) -> dict[str, Any]:
    """The object in a line, without its checksum, which must be right if there is one: earlier versions wrote none."""
    record = parse_object(content, line.path, line=line.number, remedy=line.remedy)
    if _CHECKSUM in record and record.pop(_CHECKSUM) != _checksum(record):
        raise line.damaged("it was changed: its checksum is another")
    return record


def _line(record: dict[str, Any]) -> str:
    assert _CHECKSUM not in record, record
    return json.dumps({**record, _CHECKSUM: _checksum(record)}) + "\n"


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(_content(record))


def _content(record: dict[str, Any]) -> bytes:
    """What a record says, however it is written."""
    return json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode()
