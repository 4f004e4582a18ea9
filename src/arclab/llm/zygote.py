"""A warm interpreter that forks a child for every program: one process of the sandbox, started by sandbox.py.

It speaks frames (length, bytes) on its standard input and output: a JSON request in, a JSON header and the child's raw answer out.
It is executed, never forked from a trainer, imports what programs may use, and ends when its input does. All that a program starts
dies with it. No program runs in this process. See child.py for what a child does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":  # isolated mode (-I) puts nothing of ours on the path
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from arclab.llm.child import Lock, locked_down, preload, run_program
from arclab.llm.execution import RECORD_BYTES, STDOUT_MARK, Isolation, Status

LENGTH = struct.Struct("<I")
_SET_CHILD_SUBREAPER, _SET_PDEATHSIG = 36, 1
_libc = ctypes.CDLL(None, use_errno=True)


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


def _read_child(pid: int, pipe: int, cap: int, deadline: float) -> tuple[bytes, Status | None]:
    """Everything the child answers until it ends; and why it had to be ended, if it had to."""
    pidfd, answer = os.pidfd_open(pid), bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    poll.register(pidfd, select.POLLIN)
    try:
        while True:
            left_ms = (deadline - time.monotonic()) * 1000
            events = dict(poll.poll(max(0, left_ms))) if left_ms > 0 else {}
            if not events:
                return bytes(answer), Status.timeout_wall
            if pipe in events:
                piece = os.read(pipe, 65536)
                answer += piece
                if len(answer) > cap:
                    return bytes(answer), Status.output_limit
                if not piece:
                    poll.unregister(pipe)
            elif pidfd in events:
                return bytes(answer), None
    finally:
        os.close(pidfd)


def _end_everything(child: int) -> tuple[int, Any]:
    """Kill the child, its group and whoever was left to this process; (wait status, resource usage) of the child."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    while True:  # orphans come here because this process is a subreaper
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for orphan in _children():
                    os.kill(orphan, signal.SIGKILL)
                time.sleep(0.001)
        except ProcessLookupError:
            continue
        except ChildProcessError:
            return status, usage


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


def serve_one(request: dict[str, Any], lock: Lock | None) -> tuple[dict[str, Any], bytes]:
    """Fork a child for one request; the header and the child's raw answer."""
    begun = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        run_program(request, writer, lock)  # never returns
    os.close(writer)
    cap = RECORD_BYTES * len(request["inputs"]) + len(STDOUT_MARK) + request["stdout_bytes"]
    try:
        answer, ended = _read_child(child, reader, cap, begun + request["wall_s"])
    finally:
        status, usage = _end_everything(child)
        os.close(reader)
    cpu_s = usage.ru_utime + usage.ru_stime
    verdict, message = _verdict(status, cpu_s, request["cpu_s"], ended)
    header = {"status": verdict.value, "message": message, "cpu_s": cpu_s, "wall_s": time.monotonic() - begun}
    return header, answer[:cap]


def main() -> int:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C belongs to the one who asked
    if _libc.prctl(_SET_CHILD_SUBREAPER, 1) != 0:
        return 1
    preload()
    lock, why_not = locked_down()
    write_frame(answers, json.dumps([(Isolation.seccomp if lock else Isolation.limits).name, why_not]).encode())
    gc.freeze()
    while (body := read_frame(requests)) is not None:
        header, answer = serve_one(json.loads(body), lock)
        head = json.dumps(header).encode()
        write_frame(answers, LENGTH.pack(len(head)) + head + answer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
