"""A warm interpreter that forks a child for every program: one worker of the sandbox, started by sandbox.py.

It is two processes. The supervisor is what is started. It imports what programs may use, forks the zygote, and from then on speaks
frames (length, bytes) on its standard input: a request in, the child's end and its raw answer out (`pack_end`). The zygote forks the
children, on a byte from the supervisor, and does nothing else, ever: it sees no request and no answer, so that no program inherits
anything of another one, and its memory is the same at every fork, so that a program finds the same addresses whatever ran before it.
The children belong to the supervisor, who watches them and ends them. Requests go through a file in memory, which the child reads.

It is executed, never forked from a trainer, and ends when its input does. All that a program starts dies with it. No program of
anybody else runs in these processes. See child.py for what a child does.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    # As it is started, nothing of ours is on the path. Before any other arclab that is installed.
    if str(Path(__file__).resolve().parents[2]) not in sys.path:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ctypes
import fcntl
import gc
import json
import mmap
import os
import resource
import select
import signal
import struct
from contextlib import suppress
from pathlib import Path
from time import monotonic  # as it is before the clocks of programs are replaced
from typing import IO, Any, NamedTuple, NoReturn

from arclab.llm.lockdown import (
    SET_CHILD_SUBREAPER,
    SET_PDEATHSIG,
    Fork,
    Lock,
    drop_capabilities,
    fix_addresses,
    has_fixed_addresses,
    locked_down,
    prctl,
)

if __name__ == "__main__":
    fix_addresses()  # starts this process anew, so before everything that takes time

from arclab.llm.child import ANSWER, REQUEST, preload, rehearse, run_program, settle
from arclab.llm.execution import RECORD_BYTES, STDOUT_MARK, Isolation, Status, unpack_header
from arclab.llm.fixed_sources import clock, seed_all

LENGTH = struct.Struct("<I")
_END = struct.Struct("<BddB?")
_NUMBER = struct.Struct("i")  # of a process, as the kernel writes it
_COMMAND, _REPLY = 5, 6  # files of the zygote, beside those of child.py
_FIRST_OWN = 20  # files of the supervisor are not below, where the zygote puts its own
_QUIET_MS = 10  # most programs end sooner, and are left alone until then; what they write waits in the pipe
_DONE, _FAILED = b"+", b"-"


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


def _read_child(pidfd: int, pipe: int, cap: int, deadline: float) -> tuple[bytes, Status | None]:
    """Everything the child answers until it ends; and why it had to be ended, if it had to."""
    answer = b""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(_QUIET_MS)
    poll.register(pipe, select.POLLIN)
    while True:
        left_ms = (deadline - monotonic()) * 1000
        events = poll.poll(max(0, left_ms)) if left_ms > 0 else ()
        if not events:
            return answer, Status.timeout_wall
        if any(number == pipe for number, _ in events):
            answer += os.read(pipe, 65536)
            if len(answer) > cap:
                return answer, Status.output_limit
        else:
            return answer, None  # it has ended, and the pipe is empty


def _empty(pipe: int) -> None:
    """What a child wrote before it was ended is for nobody, least of all for the next one's reader."""
    with suppress(BlockingIOError):
        while os.read(pipe, 65536):
            pass


def _end(child: int) -> tuple[int, Any]:
    """Kill the child and its group; (wait status, resource usage)."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it had no time to make a group of its own
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _end_orphans(zygote: int) -> None:
    """Kill whoever was left to this process, which is a subreaper."""
    while orphans := [child for child in _children() if child != zygote]:
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)


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
    """The supervisor: has the zygote fork a child for each request. What does not change between requests is kept, not asked for again.

    OSError: this machine cannot fork for another process.
    """

    def __init__(self, lock: Lock | None) -> None:
        self._lock = lock
        command, self._command = _own_pipe()
        self._reply, reply = _own_pipe()
        self._answer, answer = _own_pipe()
        os.set_blocking(self._answer, False)
        self._request = fcntl.fcntl(os.memfd_create("request"), fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN)
        self._number = mmap.mmap(-1, mmap.PAGESIZE)  # of the last child: shared with the zygote
        parent, self.zygote = os.getpid(), os.fork()
        if self.zygote == 0:
            try:
                prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() == parent:
                    files = {ANSWER: answer, REQUEST: self._request, _COMMAND: command, _REPLY: reply}
                    _serve_forks(files, self._number, lock, parent)
            finally:
                os._exit(1)
        for number in (command, reply, answer):
            os.close(number)

    def serve(self, request: bytes) -> tuple[End, bytes]:
        """Have a child forked for one request; its end and the child's raw answer. ChildProcessError: the zygote is lost."""
        begun = monotonic()
        header = unpack_header(request)
        os.ftruncate(self._request, 0)
        os.pwrite(self._request, request, 0)
        clock.reset()
        os.write(self._command, _DONE)
        if os.read(self._reply, 1) != _DONE:
            raise ChildProcessError("the zygote forks no more")
        child = _NUMBER.unpack_from(self._number)[0]
        cap = RECORD_BYTES * header.num_inputs + len(STDOUT_MARK) + header.stdout_bytes
        pidfd = os.pidfd_open(child)
        try:
            answer, ended = _read_child(pidfd, self._answer, cap, begun + header.wall_s)
        finally:
            status, usage = _end(child)
            if self._lock is None:  # else there is nothing that it could have started
                _end_orphans(self.zygote)
            _empty(self._answer)
            os.close(pidfd)
        cpu_s = usage.ru_utime + usage.ru_stime
        verdict, message = _verdict(status, cpu_s, header.cpu_s, ended)
        return End(verdict, message, cpu_s, monotonic() - begun, clock.was_read), answer[:cap]


def _own_pipe() -> tuple[int, int]:
    """Reader and writer, numbered from _FIRST_OWN."""
    pair = os.pipe()
    reader, writer = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN) for number in pair)
    for number in pair:
        os.close(number)
    return reader, writer


def _serve_forks(files: dict[int, int], number: mmap.mmap, lock: Lock | None, parent: int) -> NoReturn:
    """The zygote. Its loop makes no object that outlives a turn, so that every child finds the same memory."""
    for own, file in files.items():
        os.dup2(file, own)
    os.closerange(max(files) + 1, 4096)
    settle()
    number.madvise(mmap.MADV_DONTFORK)  # a child cannot tell its parent the number of another process
    fork = Fork(ctypes.addressof(ctypes.c_char.from_buffer(number)))
    mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    seed_all(0)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # a collection touches every young object; most programs end before this many
    while os.read(_COMMAND, 1):
        child = fork()
        if child == 0:
            run_program(mapped, lock, parent)  # never returns
        os.write(_REPLY, _DONE if child > 0 else _FAILED)
    os._exit(0)


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
    drop_capabilities()
    server = Server(lock)
    hello = [(Isolation.seccomp if lock else Isolation.limits).name, why_not, has_fixed_addresses()]
    write_frame(answers, json.dumps(hello).encode())
    while (body := read_frame(requests)) is not None:
        write_frame(answers, pack_end(*server.serve(body)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
