"""Votes of an unfinished evaluation, kept in its output folder, so that the same command goes on after a kill.

    store = VoteStore(folder, key)               # key: everything that decides the votes; another key never reads these files
    tally = store.load()                         # None if there is nothing of this key
    store.save(rank, tally)                      # whole or not at all; the last one counts
    store.remove()                               # the evaluation is written: nothing is left to resume
    whole = VoteStore(folder, key, shards=[...]) # also what shards have counted in their own folders, which stays there

A file votes_<key>_<generation>_<rank>.npz holds the counts and exactly the rows that were counted. Going on means: rank 0
adds up the newest generation and writes it as the base of the next one, with which all older files are void; so a kill at
any moment neither loses a saved vote nor counts one twice, and the number of ranks may change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile, naming
from arclab.methods.recursive.solver.votes import GridKey, VoteBox
from arclab.results.attempts import TestKey

_BASE = "base"
_DIGEST_BYTES = 32
_LOW = 2**32  # units of confidence are kept in two halves: their sum may exceed 64 bits


@dataclass(slots=True)
class Tally:
    """What has been counted: votes, sums of the statistics' numerators, and which rows of the evaluation."""

    done_R: npt.NDArray[np.bool_]
    sums: npt.NDArray[np.float64]
    box: VoteBox = field(default_factory=VoteBox)

    def merge(self, other: Tally) -> None:
        assert not (self.done_R & other.done_R).any(), "no row is counted twice"
        self.done_R |= other.done_R
        self.sums = self.sums + other.sums
        self.box.merge([other.box])


class VoteStore:
    """keys: the test inputs, in the order in which files number them. shards: folders in which others have counted parts."""

    def __init__(self, folder: Path, key: str, shards: Sequence[Path] = ()) -> None:
        self._folder, self._key, self._generation = folder, key, 0
        self._shards = shards

    def beside(self, what: str) -> VoteStore:
        """Of something else that the same evaluation counts, in the same folders."""
        key = hashlib.sha256(f"{self._key} {what}".encode()).hexdigest()[:16]
        return VoteStore(self._folder, key, self._shards)

    def load(self, keys: Sequence[TestKey]) -> Tally | None:
        """Everything counted so far, as the base of a new generation. For rank 0 only. ConfigError: a shard has counted nothing
        of this key."""
        files = self._files()
        generation, parts = self._newest(files, keys)
        known_R = np.logical_or.reduce([part.done_R for part in parts]) if parts else None
        for part in self._of_shards(keys):
            if known_R is None or not known_R[part.done_R].any():  # else it is in the base already
                parts.append(part)
        if not parts:
            self._generation = 1  # the only generation without a base
            return None
        self._generation = generation + 1
        tally = parts[0]
        for part in parts[1:]:
            tally.merge(part)
        self._write(_BASE, keys, tally)
        self._void(files)
        return tally

    def _newest(self, files: dict[tuple[int, str], Path], keys: Sequence[TestKey]) -> tuple[int, list[Tally]]:
        """The generation that counts, and what its files hold."""
        generation = max((g for g, part in files if part == _BASE), default=1)
        return generation, [_read(path, keys) for (g, _), path in files.items() if g == generation]

    def _of_shards(self, keys: Sequence[TestKey]) -> Iterator[Tally]:
        for folder in self._shards:
            shard = VoteStore(folder, self._key)
            _, parts = shard._newest(shard._files(), keys)
            if not parts:
                raise ConfigError(
                    f"{folder} holds no votes of these weights, tasks and settings: another model or other settings have made "
                    f"this shard; remove {folder.parent}, and give the command again."
                )
            yield from parts

    def join(self, generation: int) -> None:
        """What rank 0 said after load()."""
        self._generation = generation

    @property
    def has_shards(self) -> bool:
        return bool(self._shards)

    @property
    def generation(self) -> int:
        return self._generation

    def save(self, rank: int, keys: Sequence[TestKey], tally: Tally) -> None:
        self._write(str(rank), keys, tally)

    def remove(self) -> None:
        """Also what other settings left behind: the folder now holds results."""
        for path in self._folder.glob("votes_*_*_*.npz"):
            path.unlink(missing_ok=True)

    def _files(self) -> dict[tuple[int, str], Path]:
        found = {}
        for path in sorted(self._folder.glob(f"votes_{self._key}_*_*.npz")):
            _, _, generation, part = path.stem.split("_")
            found[int(generation), part] = path
        return found

    def _void(self, files: dict[tuple[int, str], Path]) -> None:
        for (generation, _), path in files.items():
            if generation < self._generation:
                path.unlink(missing_ok=True)

    def _write(self, part: str, keys: Sequence[TestKey], tally: Tally) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"votes_{self._key}_{self._generation}_{part}.npz"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        content = _packed(keys, tally)
        try:
            with naming(path), temporary.open("wb") as file:
                file.write(content + hashlib.sha256(content).digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # a part of it must not keep a full disk full
                temporary.unlink(missing_ok=True)


def _packed(keys: Sequence[TestKey], tally: Tally) -> bytes:
    """Counts as one table (test input, height, width, votes, two halves of the confidence) and the cells of all grids in a
    row."""
    number = {key: n for n, key in enumerate(keys)}
    table, cells = [], []
    for key, grids in tally.box.counts.items():
        for grid, (votes, units) in grids.items():
            height, width, content = grid or (0, 0, b"")
            table.append((number[key], height, width, votes, *divmod(units, _LOW)))
            cells.append(content)
    file = BytesIO()
    np.savez(
        file, table=np.array(table, dtype=np.int64).reshape(-1, 6), cells=np.frombuffer(b"".join(cells), dtype=np.uint8),
        done=np.packbits(tally.done_R), num_rows=np.array(len(tally.done_R)), sums=tally.sums,
    )  # fmt: skip
    return file.getvalue()


def _read(path: Path, keys: Sequence[TestKey]) -> Tally:
    """The tally in a file: an archive of numpy, and the SHA-256 of its bytes. DamagedFile unless they agree."""
    whole = path.read_bytes()
    content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise DamagedFile(
            path, "its bytes are not those that were written", remedy="remove it, and what it had counted is predicted again"
        )
    with np.load(BytesIO(content)) as file:
        num_rows = int(file["num_rows"])
        tally = Tally(np.unpackbits(file["done"], count=num_rows).astype(bool), file["sums"])
        table, cells, start = file["table"], file["cells"].tobytes(), 0
    for number, height, width, votes, high, low in table.tolist():
        grid: GridKey = (height, width, cells[start : start + height * width]) if height else None
        tally.box.add(keys[number], grid, votes, high * _LOW + low)
        start += height * width
    return tally
