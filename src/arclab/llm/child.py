"""The process that runs one program: locks itself in, calls the program with every input, writes its answers, ends.

It holds the program's source and its inputs and nothing else: no expected output, no environment, no open file. What a program
may import (PRELOADED) is loaded before, because under seccomp a child opens no file at all, and so cannot read a data set either.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any, NoReturn, Protocol

import numpy as np

from arclab.data.tasks import MAX_SIDE, NUM_COLORS
from arclab.llm.execution import STDOUT_MARK, Status, pack_error, pack_grid

PRELOADED = (
    "ast", "bisect", "collections", "copy", "dataclasses", "enum", "fractions", "functools", "heapq", "itertools", "json", "math", "operator", "re",
    "statistics", "string", "typing", "numpy.linalg", "numpy.random",
)  # fmt: skip
PROGRAM = "<program>"
_STACK_MB, _MAX_FILES = 64, 16
# All that a computing process needs. Everything else fails with EPERM: files, sockets, processes, threads, signals, memory of others.
_SYSCALLS = (
    "read", "write", "close", "lseek", "fstat", "mmap", "mprotect", "munmap", "mremap", "madvise", "brk", "futex", "rt_sigaction", "rt_sigprocmask",
    "rt_sigreturn", "sigaltstack", "getpid", "gettid", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times",
    "getrandom", "getrusage", "sched_yield", "sched_getaffinity", "exit", "exit_group", "restart_syscall", "poll", "ppoll", "select", "pselect6",
)  # fmt: skip


class Lock(Protocol):
    """A prepared filter; load() applies it to the calling process for good."""

    def load(self) -> None: ...


def preload() -> None:
    """Import what programs may use into the process that forks their children."""
    for name in PRELOADED:
        importlib.import_module(name)


def locked_down() -> tuple[Lock | None, str]:
    """The filter for children if this system enforces it, tried out on a child; else None and the reason."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"libseccomp cannot be loaded ({error})"
    import errno

    lock = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in _SYSCALLS:
        try:
            lock.add_rule(pyseccomp.ALLOW, name)
        except (OSError, ValueError, RuntimeError):
            continue  # not a system call of this architecture
    child = os.fork()
    if child == 0:
        os._exit(_probe(lock))
    held = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return (lock, "") if held else (None, "the kernel did not apply a seccomp filter")


def _probe(lock: Lock) -> int:
    try:
        lock.load()
        os.open("/", os.O_RDONLY)
    except PermissionError:
        return 0
    except OSError:
        return 1
    return 1


class _Capture:
    """Standard output of the program: keeps the first bytes, forgets the rest."""

    encoding, errors, closed = "utf-8", "replace", False

    def __init__(self, limit: int) -> None:
        self._left, self.kept = limit, bytearray()

    def write(self, text: str) -> int:
        if self._left > 0:
            piece = text[: self._left].encode(errors="replace")[: self._left]
            self._left -= len(piece)
            self.kept += piece
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _lock_in(request: dict[str, Any], writer: int, lock: Lock | None) -> int:
    """Limits, no open files but the answer's (returned), then the filter."""
    space = _mapped_bytes() + request["memory_mb"] * 2**20
    nothing = os.open(os.devnull, os.O_RDWR)
    if writer <= 3:
        writer = os.dup(writer)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.dup2(writer, 3)
    os.closerange(4, 4096)
    os.chdir("/")
    os.environ.clear()
    sys.argv[:] = [PROGRAM]
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    limits = {
        resource.RLIMIT_CPU: (request["cpu_s"], request["cpu_s"] + 1),
        resource.RLIMIT_AS: (space, space),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (_MAX_FILES, _MAX_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NPROC: (0, 0),  # no effect for root: there only the filter stops forks
    }
    for kind, pair in limits.items():
        resource.setrlimit(kind, pair)
    stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = _STACK_MB * 2**20
    resource.setrlimit(resource.RLIMIT_STACK, (wanted if stack == resource.RLIM_INFINITY else min(wanted, stack), stack))
    if lock is not None:
        lock.load()
    return 3


def run_program(request: dict[str, Any], writer: int, lock: Lock | None) -> NoReturn:
    """Run in a fresh child; writes one record for each input, then what was printed. Ends the process."""
    status = 1
    try:
        answer = _lock_in(request, writer, lock)
        captured = _Capture(request["stdout_bytes"])
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = captured  # pyright: ignore[reportAttributeAccessIssue]
        for record in _answers(request):
            _write_all(answer, record)
        _write_all(answer, STDOUT_MARK + bytes(captured.kept))
        status = 0
    finally:
        os._exit(status)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _answers(request: dict[str, Any]) -> Any:
    """A record for each input: yielded as they come, so that a later crash loses no earlier one."""
    inputs = request["inputs"]
    random.seed(request["seed"])
    np.random.seed(request["seed"] % 2**32)
    solve, failure = _load(request["source"], request["entry"])
    for rows in inputs:
        if solve is None:
            yield failure
            continue
        grid = np.array(rows, np.uint8) if request["as_arrays"] else [list(row) for row in rows]
        yield _guarded(lambda grid=grid: pack_grid(_plain_rows(solve(grid))))


def _load(source: str, entry: str) -> tuple[Callable[[Any], Any] | None, bytes]:
    """The program's entry point, or the record that says why there is none."""
    namespace: dict[str, Any] = {"__name__": "__solution__", "__builtins__": builtins}
    linecache.cache[PROGRAM] = (len(source), None, source.splitlines(keepends=True), PROGRAM)

    def load() -> bytes:
        try:
            code: CodeType = compile(source, PROGRAM, "exec")
        except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
            line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
            return pack_error(Status.syntax_error, f"{type(error).__name__}: {getattr(error, 'msg', error)}{line}")
        exec(code, namespace)
        return b""

    failure = _guarded(load)
    solve = namespace.get(entry)
    if failure:
        return None, failure
    if not callable(solve):
        return None, pack_error(Status.no_entry_point, f"no function {entry}")
    return solve, b""


def _guarded(call: Callable[[], bytes]) -> bytes:
    """What call returns, or a record of what it raised."""
    raised = _Raised()
    with raised:
        return call()
    return raised.record


class _Raised:
    """Whatever ends the block becomes a record: a program may raise anything, and no input may cost another one its answer."""

    record = b""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is not None:
            self.record = _record_of(error)
        return True


def _record_of(error: BaseException) -> bytes:
    if isinstance(error, _BadOutput):
        return pack_error(Status.bad_output, str(error))
    if isinstance(error, MemoryError):
        return pack_error(Status.oom, "MemoryError")
    if isinstance(error, SystemExit):
        return pack_error(Status.exited, f"sys.exit({error.code if isinstance(error.code, int | None) else 'text'})")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == PROGRAM]
    text = next((part for part in error.args if isinstance(part, str)), "")
    return pack_error(Status.exception, f"{type(error).__name__}: {text[:200]}" + (f" (line {lines[-1]})" if lines else ""))


class _BadOutput(Exception):
    """The program returned something that is no grid."""


def _plain_rows(value: object) -> list[list[int]]:
    """The returned grid as lists of ints. Arrays, tuples, numpy integers and whole floats are fine."""
    if isinstance(value, np.ndarray):
        if value.ndim != 2 or value.dtype.kind not in "iuf":
            raise _BadOutput(f"array of {value.ndim} dimensions and type {value.dtype}, not a grid of whole numbers")
        if max(value.shape) > MAX_SIDE:
            raise _BadOutput(f"{value.shape[0]} x {value.shape[1]} is larger than {MAX_SIDE} x {MAX_SIDE}")
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise _BadOutput(f"{type(value).__name__}, not a list of rows")
    if not 1 <= len(value) <= MAX_SIDE:
        raise _BadOutput(f"{len(value)} rows, not 1 to {MAX_SIDE}")
    rows = [_plain_row(row) for row in value]
    if len({len(row) for row in rows}) != 1:
        raise _BadOutput("rows of different lengths")
    return rows


def _plain_row(row: object) -> list[int]:
    if isinstance(row, np.ndarray) and row.ndim == 1 and len(row) <= MAX_SIDE:
        row = list(row)
    if not isinstance(row, list | tuple):
        raise _BadOutput(f"a row is {type(row).__name__}, not a list")
    if not 1 <= len(row) <= MAX_SIDE:
        raise _BadOutput(f"a row of {len(row)} cells, not 1 to {MAX_SIDE}")
    if all(type(cell) is int and 0 <= cell < NUM_COLORS for cell in row):  # the usual case, and faster
        return list(row)
    return [_plain_cell(cell) for cell in row]


def _plain_cell(cell: Any) -> int:
    is_number = isinstance(cell, int | float | np.integer | np.floating) and not isinstance(cell, bool)
    if not is_number or not 0 <= cell < NUM_COLORS or int(cell) != cell:
        raise _BadOutput(
            f"a cell is {str(cell)[:20] if is_number else type(cell).__name__}, not a colour 0 to {NUM_COLORS - 1}"
        )
    return int(cell)
