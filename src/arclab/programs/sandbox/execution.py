"""What is asked of the sandbox and what it answers. Shared by both of its sides, so it imports neither torch nor much else.

    Execution(source="def solve(I): return I[::-1]", inputs=(grid,))  ->  Result(grids=(GridResult(Status.ok, grid),), ...)

A request on the wire (`pack_request`) is a header of fixed size (wire.py), which is all that the supervisor looks at, and a
body for the child. An answer of the child (`pack_grid`, `pack_error`) is one record for each input: status, two numbers, that
many bytes. Expected outputs are no part of a request: whoever asks compares. `unpack_records` believes nothing that the child
wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from arclab.config.llm_schema import Isolation
from arclab.data.tasks import MAX_SIDE, NUM_COLORS, Grid
from arclab.programs.sandbox.wire import HEADER_BYTES, STDOUT_MARK, Header, Status, pack_header

MESSAGE_BYTES = 300
_RECORD = struct.Struct("<BHH")  # status, then (height, width) of a grid or (length of the message, 0)
_SHAPE = struct.Struct("<HH")
# Every input can be answered by the largest record; whatever comes after that is a flood.
RECORD_BYTES = _RECORD.size + max(MAX_SIDE * MAX_SIDE, MESSAGE_BYTES)


# What a child may say of itself; the rest is what its parent sees of its end.
_CLAIMS = {
    Status.ok,
    Status.syntax_error,
    Status.no_entry_point,
    Status.exception,
    Status.bad_output,
    Status.oom,
    Status.exited,
}
# Depends on the machine's load or on an accident: asked again next time.
TRANSIENT = {Status.timeout_wall, Status.killed, Status.sandbox_error}


@dataclass(frozen=True, slots=True)
class Limits:
    """For one program and all of its inputs together. memory_mb: on top of what a warm interpreter maps."""

    cpu_s: int = 2
    wall_s: float = 5.0
    memory_mb: int = 512
    stdout_bytes: int = 4096

    def __post_init__(self) -> None:
        for name, low in (("cpu_s", 1), ("wall_s", 0.05), ("memory_mb", 16), ("stdout_bytes", 0)):
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"sandbox {name}={value} must be at least {low}; raise it.")


@dataclass(frozen=True, slots=True)
class Execution:
    """A program and the grids it is called with, one after the other, each a fresh copy.

    entry: the function that is called. as_arrays: it gets uint8 arrays, not lists of lists. seed: of all random numbers.
    other_addresses: objects are at other addresses than usual, for a second run that shows whether an answer depends on them.
    """

    source: str
    inputs: tuple[Grid, ...]
    entry: str = "solve"
    as_arrays: bool = False
    seed: int = 0
    other_addresses: bool = False


@dataclass(frozen=True, slots=True)
class GridResult:
    """grid: where status is ok. message: what went wrong, with the line of the program where there is one."""

    status: Status
    grid: Grid | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One answer for every input. stdout: the first stdout_bytes that the program printed, errors="replace".

    nondeterministic: the program read a clock, so that its answers may be others next time; not kept.
    """

    grids: tuple[GridResult, ...]
    isolation: Isolation
    stdout: str
    cpu_s: float
    wall_s: float
    cached: bool = False
    nondeterministic: bool = False


def pack_request(execution: Execution, limits: Limits) -> bytes:
    """Header, entry, source, shapes, cells. A source may hold half a surrogate pair: whether it compiles is the child's to
    say."""
    source, entry = execution.source.encode(errors="surrogatepass"), execution.entry.encode()
    grids = [np.asarray(grid, np.uint8) for grid in execution.inputs]
    header = Header(
        execution.seed % 2**64,
        limits.wall_s,
        limits.cpu_s,
        limits.memory_mb,
        limits.stdout_bytes,
        len(grids),
        len(entry),
        len(source),
        execution.as_arrays,
        execution.other_addresses,
        RECORD_BYTES * len(grids) + len(STDOUT_MARK) + limits.stdout_bytes,
    )
    return b"".join(
        [
            pack_header(header),
            entry,
            source,
            *(_SHAPE.pack(*grid.shape) for grid in grids),
            *(grid.tobytes() for grid in grids),
        ]
    )


def unpack_body(request: bytes, header: Header) -> tuple[str, str, list[list[bytes]]]:
    """Entry, source, and the rows of every grid."""
    at = HEADER_BYTES + header.entry_bytes
    entry = request[HEADER_BYTES:at].decode()
    source = request[at : at + header.source_bytes].decode(errors="surrogatepass")
    shapes_at = at + header.source_bytes
    at, grids = shapes_at + header.num_inputs * _SHAPE.size, []
    for number in range(header.num_inputs):
        height, width = _SHAPE.unpack_from(request, shapes_at + number * _SHAPE.size)
        grids.append([request[at + row * width : at + (row + 1) * width] for row in range(height)])
        at += height * width
    return entry, source, grids


def pack_grid(rows: list[list[int]]) -> bytes:
    return _RECORD.pack(Status.ok.value, len(rows), len(rows[0])) + b"".join(map(bytes, rows))


def pack_error(status: Status, message: str) -> bytes:
    text = message.encode(errors="replace")[:MESSAGE_BYTES]
    return _RECORD.pack(status.value, len(text), 0) + text


def unpack_records(data: bytes, count: int) -> list[GridResult]:
    """At most `count` answers, up to the first that is cut off or is no answer at all."""
    return [answer for _, answer in zip(range(count), _records(data), strict=False)]


def _records(data: bytes) -> Iterator[GridResult]:
    at = 0
    while at + _RECORD.size <= len(data):
        code, first, second = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if code >= len(Status) or Status(code) not in _CLAIMS:
            return
        status = Status(code)
        size = first * second if status is Status.ok else first
        body = data[at : at + size]
        at += size
        if len(body) < size:
            return
        if status is not Status.ok:
            yield GridResult(status, None, body[:MESSAGE_BYTES].decode(errors="replace"))
        elif 1 <= first <= MAX_SIDE and 1 <= second <= MAX_SIDE and max(body) < NUM_COLORS:
            yield GridResult(status, np.frombuffer(body, np.uint8).reshape(first, second).copy())
        else:
            return
