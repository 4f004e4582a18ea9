"""Watches over the programs of one worker of the sandbox: started by sandbox.py, it starts the zygote, which forks them for it.

It speaks frames (wire.py) on its standard input, a socket: first a greeting of the zygote, then for every request that comes in
how the child ended and its raw answer. Requests go to the child through a file in memory, answers come back through a pipe, and
the zygote is sent a byte: it sees neither. The children belong to this process, which ends them when they take too long or
answer too much.

It ends when its input does, and all that was started dies with it. It runs no program, and imports nothing large.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__" and str(Path(__file__).resolve().parents[3]) not in sys.path:
    # As it is started, nothing of ours is on the path. Before any other arclab that is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from arclab.programs.sandbox.lockdown import SET_CHILD_SUBREAPER, fix_addresses, prctl
from arclab.programs.sandbox.wire import End, Status, pack_end, read_frame, unpack_header, write_frame

# Files of the zygote; the first two are left to its children.
ANSWER, REQUEST, COMMAND, REPLY, SHARED = range(3, 8)
# In SHARED: the number of the last child, and, on a page that the child has too, whether it read a clock.
NUMBER_AT, CLOCK_AT, SHARED_BYTES = 0, mmap.PAGESIZE, 2 * mmap.PAGESIZE
DONE, FAILED = b"+", b"-"
_NUMBER = struct.Struct("i")  # of a process, as the kernel writes it
_ZYGOTE = Path(__file__).with_name("zygote.py")
_FIRST_OWN = 20  # files of this process are not below, where the zygote has its own
_QUIET_MS = 10  # most programs end sooner, and are left alone until then; what they write waits in the pipe


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
    """Has the zygote fork a child for each request. python: the command of an interpreter."""

    def __init__(self, python: Sequence[str]) -> None:
        command, self._command = _own_pipe()
        self._reply, reply = _own_pipe()
        self._answer, answer = _own_pipe()
        os.set_blocking(self._answer, False)
        self._request, shared = (_moved(os.memfd_create(name)) for name in ("request", "shared"))
        os.ftruncate(shared, SHARED_BYTES)
        self._shared = mmap.mmap(shared, SHARED_BYTES)
        files = {ANSWER: answer, REQUEST: self._request, COMMAND: command, REPLY: reply, SHARED: shared}
        for number, file in files.items():
            os.dup2(file, number)
        self._zygote = subprocess.Popen(
            [*python, str(_ZYGOTE), str(os.getpid())], stdin=subprocess.DEVNULL, pass_fds=tuple(files)
        )
        for number in (*files, command, reply, answer, shared):
            os.close(number)
        with os.fdopen(os.dup(self._reply), "rb", buffering=0) as file:
            hello = read_frame(file)
        if hello is None:
            raise ChildProcessError("the zygote did not start")
        self.hello, self._has_lock = hello, b"seccomp" in hello

    def serve(self, request: bytes) -> tuple[End, bytes]:
        """Have a child forked for one request; its end and the child's raw answer. ChildProcessError: the zygote is lost."""
        begun = time.monotonic()
        header = unpack_header(request)
        os.ftruncate(self._request, 0)
        os.pwrite(self._request, request, 0)
        self._shared[CLOCK_AT:] = bytes(SHARED_BYTES - CLOCK_AT)  # all of it: no program leaves the next one a message
        os.write(self._command, DONE)
        if os.read(self._reply, 1) != DONE:
            raise ChildProcessError("the zygote forks no more")
        child = _NUMBER.unpack_from(self._shared, NUMBER_AT)[0]
        pidfd = os.pidfd_open(child)
        try:
            answer, ended = _read_child(pidfd, self._answer, header.answer_bytes, begun + header.wall_s)
        finally:
            status, usage = _end(child)
            if not self._has_lock:  # else there is nothing that it could have started
                _end_orphans(self._zygote.pid)
            _empty(self._answer)
            os.close(pidfd)
        cpu_s = usage.ru_utime + usage.ru_stime
        verdict, message = _verdict(status, cpu_s, header.cpu_s, ended)
        end = End(verdict, message, cpu_s, time.monotonic() - begun, self._shared[CLOCK_AT] != 0)
        return end, answer[: header.answer_bytes]

    def close(self) -> None:
        """End the zygote and wait for it: nobody else would."""
        self._zygote.kill()
        self._zygote.wait()


def _moved(file: int) -> int:
    """The same file under a number from _FIRST_OWN."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN)
    os.close(file)
    return moved


def _own_pipe() -> tuple[int, int]:
    """Reader and writer."""
    reader, writer = os.pipe()
    return _moved(reader), _moved(writer)


def main() -> int:
    channel = _moved(os.dup(0))
    requests, answers = os.fdopen(channel, "rb"), os.fdopen(channel, "wb", closefd=False)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C belongs to the one who asked
    if prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return 1
    fix_addresses()
    try:
        server = Server(sys.orig_argv[:-1])
        try:
            write_frame(answers, server.hello)
            while (body := read_frame(requests)) is not None:
                write_frame(answers, pack_end(*server.serve(body)))
        finally:
            server.close()
    except (ChildProcessError, BrokenPipeError):  # the zygote is lost, and has said why; or whoever asked is
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
