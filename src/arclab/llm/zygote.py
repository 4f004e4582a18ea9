"""A warm interpreter that forks a child for every program: one process of the sandbox, started by sandbox.py.

It speaks frames (length, bytes) on its standard input and output: a request in, the child's end and its raw answer
out (`pack_end`). It is executed, never forked from a trainer, imports what programs may use, and ends when its input does. All that a
program starts dies with it. No program of anybody else runs in this process. See child.py for what a child does.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    # threading and random would tidy up in every child, a third of what a fork costs: here is one thread, and seed_all() seeds.
    os.register_at_fork = lambda **hooks: None

import fcntl
import gc
import json
import resource
import select
import signal
import struct
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

# As it is started, nothing of ours is on the path. Before any other arclab that is installed.
if __name__ == "__main__" and str(Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from arclab.llm.child import (
    SET_CHILD_SUBREAPER,
    SET_PDEATHSIG,
    Lock,
    locked_down,
    prctl,
    preload,
    rehearse,
    run_program,
    seed_all,
    settle,
)
from arclab.llm.execution import RECORD_BYTES, STDOUT_MARK, Isolation, Status, unpack_header

LENGTH = struct.Struct("<I")
_END = struct.Struct("<BddB")
_FIRST_OWN = 10  # below are the files of children; _MAX_FILES of child.py is above
_QUIET_MS = 10  # most programs end sooner, and are left alone until then; what they write waits in the pipe


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


def pack_end(end: End, answer: bytes) -> bytes:
    message = end.message.encode()
    return _END.pack(end.status.value, end.cpu_s, end.wall_s, len(message)) + message + answer


def unpack_end(frame: bytes) -> tuple[End, bytes]:
    code, cpu_s, wall_s, size = _END.unpack_from(frame)
    at = _END.size + size
    return End(Status(code), frame[_END.size : at].decode(), cpu_s, wall_s), frame[at:]


def _read_child(pidfd: int, pipe: int, cap: int, deadline: float) -> tuple[bytes, Status | None]:
    """Everything the child answers until it ends; and why it had to be ended, if it had to."""
    answer = b""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(_QUIET_MS)
    poll.register(pipe, select.POLLIN)
    while True:
        left_ms = (deadline - time.monotonic()) * 1000
        events = poll.poll(max(0, left_ms)) if left_ms > 0 else ()
        if not events:
            return answer, Status.timeout_wall
        if any(number == pipe and event & select.POLLIN for number, event in events):
            answer += os.read(pipe, 65536)
            if len(answer) > cap:
                return answer, Status.output_limit
        elif any(number == pidfd for number, _ in events):
            return answer, None
        else:
            poll.unregister(pipe)  # closed, but the child lives


def _end(child: int) -> tuple[int, Any]:
    """Kill the child and its group; (wait status, resource usage)."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it had no time to make a group of its own
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _end_orphans() -> None:
    """Kill whoever was left to this process, which is a subreaper."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for orphan in _children():
                    os.kill(orphan, signal.SIGKILL)
                time.sleep(0.001)
        except ProcessLookupError:
            continue
        except ChildProcessError:
            return


def _children() -> list[int]:
    own, found = os.getpid(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b") ")[2].split()[1]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(parent) == own:
                found.append(int(entry))
    return found


def _verdict(status: int, cpu_s: float, limit_s: int, ended: Status | None) -> tuple[Status, str]:
    """Why the inputs that were not answered were not."""
    if ended is not None:
        return ended, ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and cpu_s >= limit_s):
            return Status.timeout_cpu, ""
        return Status.killed, f"signal {signal.Signals(number).name}"
    return Status.exited, f"exit status {os.WEXITSTATUS(status)}"


class Server:
    """Forks the children. What does not change from one program to the next is kept, not asked for again."""

    def __init__(self, lock: Lock | None) -> None:
        self._lock, self._seed = lock, None
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        self._mapped = pages * resource.getpagesize()

    def serve(self, request: bytes) -> tuple[End, bytes]:
        """Fork a child for one request; its end and the child's raw answer."""
        begun = time.monotonic()
        header = unpack_header(request)
        if header.seed != self._seed:
            self._seed = header.seed
            seed_all(header.seed)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.setsid()
            run_program(request, header, writer, self._mapped, self._lock)  # never returns
        os.close(writer)
        cap = RECORD_BYTES * header.num_inputs + len(STDOUT_MARK) + header.stdout_bytes
        pidfd = os.pidfd_open(child)
        try:
            answer, ended = _read_child(pidfd, reader, cap, begun + header.wall_s)
        finally:
            status, usage = _end(child)
            if self._lock is None:  # else there is nothing that it could have started
                _end_orphans()
            os.close(pidfd)
            os.close(reader)
        cpu_s = usage.ru_utime + usage.ru_stime
        verdict, message = _verdict(status, cpu_s, header.cpu_s, ended)
        return End(verdict, message, cpu_s, time.monotonic() - begun), answer[:cap]


def main() -> int:
    requests, answers = (
        os.fdopen(fcntl.fcntl(n, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN), mode) for n, mode in ((0, "rb"), (1, "wb"))
    )
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C belongs to the one who asked
    if prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return 1
    preload()
    lock, why_not = locked_down()
    rehearse()
    settle()
    write_frame(answers, json.dumps([(Isolation.seccomp if lock else Isolation.limits).name, why_not]).encode())
    server = Server(lock)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # a collection touches every young object; most programs end before this many
    while (body := read_frame(requests)) is not None:
        write_frame(answers, pack_end(*server.serve(body)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
