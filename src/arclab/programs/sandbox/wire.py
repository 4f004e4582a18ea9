"""What the two ends of the sandbox and the supervisor between them send each other. It imports nothing large.

Frames are a length and that many bytes: to the supervisor a request, which begins with a Header; from it how the child ended
(`pack_end`) with the child's raw answer. See execution.py for what is in the rest of a request and in an answer.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import IO, NamedTuple

LENGTH = struct.Struct("<I")
_HEADER = struct.Struct("<QdIIIIII??I")
HEADER_BYTES = _HEADER.size
_END = struct.Struct("<BddB?")
STDOUT_MARK = b"\xff\x00stdout\x00\xff"  # behind the records, before what was printed; no record of a child's making holds it


class Status(Enum):
    """What became of one input. The numbers are those on the wire."""

    ok = 0
    syntax_error = 1
    no_entry_point = 2
    exception = 3
    bad_output = 4
    timeout_cpu = 5
    timeout_wall = 6
    oom = 7
    killed = 8
    exited = 9
    output_limit = 10
    sandbox_error = 11


class Header(NamedTuple):
    """The head of a request: limits, and what unpack_body() needs. answer_bytes: the child may write no more."""

    seed: int
    wall_s: float
    cpu_s: int
    memory_mb: int
    stdout_bytes: int
    num_inputs: int
    entry_bytes: int
    source_bytes: int
    as_arrays: bool
    other_addresses: bool
    answer_bytes: int


def pack_header(header: Header) -> bytes:
    return _HEADER.pack(*header)


def unpack_header(request: bytes) -> Header:
    return Header._make(_HEADER.unpack_from(request))


def read_frame(file: IO[bytes]) -> bytes | None:
    """The next frame, or None at the end of the stream."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    body = file.read(LENGTH.unpack(head)[0])
    return body if len(body) == LENGTH.unpack(head)[0] else None


def write_frame(file: IO[bytes], body: bytes) -> None:
    file.write(LENGTH.pack(len(body)) + body)
    file.flush()


class End(NamedTuple):
    """How a child ended: what its parent saw, and so what becomes of the inputs that it did not answer."""

    status: Status
    message: str
    cpu_s: float
    wall_s: float
    clock_read: bool


def pack_end(end: End, answer: bytes) -> bytes:
    message = end.message.encode()
    return _END.pack(end.status.value, end.cpu_s, end.wall_s, len(message), end.clock_read) + message + answer


def unpack_end(frame: bytes) -> tuple[End, bytes]:
    code, cpu_s, wall_s, size, clock_read = _END.unpack_from(frame)
    at = _END.size + size
    return End(Status(code), frame[_END.size : at].decode(), cpu_s, wall_s, clock_read), frame[at:]
