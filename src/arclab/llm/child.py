"""The process that runs one program: locks itself in, calls the program with every input, writes its answers, ends.

It holds the program's source and its inputs and nothing else: no expected output, no environment, no open file. What a program
may import (PRELOADED) is loaded before, because under seccomp a child opens no file at all, and so cannot read a data set either.
Landlock is not used: it restricts opening files and connecting sockets, and the filter's list of allowed calls has none that does either.

Most of a child's time are page faults: memory is shared with the zygote until one of them writes to it. So whatever is equal for all
children is done once in the zygote (`settle`, `rehearse`), and a child only does what must be its own.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

import numpy as np

from arclab.data.tasks import MAX_SIDE, NUM_COLORS
from arclab.llm.execution import (
    STDOUT_MARK,
    Execution,
    Header,
    Limits,
    Status,
    pack_error,
    pack_grid,
    pack_request,
    unpack_body,
    unpack_header,
)

PRELOADED = (
    "ast", "bisect", "collections", "copy", "dataclasses", "enum", "fractions", "functools", "heapq", "itertools", "json", "math", "operator", "re",
    "statistics", "string", "typing", "numpy.linalg", "numpy.random",
)  # fmt: skip
# What numpy loads only when it is first used, as far as this numpy has it. np.unique uses ma.
_PARTS_OF_NUMPY = ("char", "fft", "ma", "polynomial", "rec", "strings")
PROGRAM = "<program>"
ANSWER = 3  # the only file of a child
_STACK_MB, _MAX_FILES = 64, 16
# All that a computing process needs. Everything else fails with EPERM: files, sockets, processes, threads, signals, memory of others.
_SYSCALLS = (
    "read", "write", "close", "lseek", "fstat", "mmap", "mprotect", "munmap", "mremap", "madvise", "brk", "futex", "rt_sigaction", "rt_sigprocmask",
    "rt_sigreturn", "sigaltstack", "getpid", "gettid", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times",
    "getrandom", "getrusage", "sched_yield", "sched_getaffinity", "exit", "exit_group", "restart_syscall", "poll", "ppoll", "select", "pselect6",
)  # fmt: skip

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of sys/prctl.h, as the next three
_SET_SECCOMP, _MODE_FILTER, _SET_NO_NEW_PRIVS = 22, 2, 38
_INSTRUCTION_BYTES = 8  # struct sock_filter
prctl = ctypes.PyDLL(None).prctl  # PyDLL: cheaper than CDLL, whose release of the interpreter's lock helps no single thread
prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


class Lock:
    """A prepared filter; load() applies it to the calling process for good.

    libseccomp makes the program once; to load it is then one system call, where SyscallFilter.load() makes it anew in every child.
    """

    def __init__(self, program: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(program, len(program))
        self._header = _FilterProgram(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(self._buffer))
        self._at = ctypes.addressof(self._header)

    def load(self) -> None:
        if prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or prctl(_SET_SECCOMP, _MODE_FILTER, self._at, 0, 0) != 0:
            raise OSError("the kernel refused the filter")


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def seed_all(seed: int) -> None:
    """In the zygote, before a fork: a child starts with the state that it leaves."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def preload() -> None:
    """Import what programs may use into the process that forks their children."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in _PARTS_OF_NUMPY:
        getattr(np, name, None)
    np.random.default_rng = _seeded(np.random.default_rng)


def _seeded(default_rng: Callable[[Any], np.random.Generator]) -> Callable[..., np.random.Generator]:
    """Without a seed of its own a generator starts from numpy's state, which is seeded, and not from the system's entropy."""
    return lambda seed=None: default_rng(np.random.randint(2**31) if seed is None else seed)


def locked_down() -> tuple[Lock | None, str]:
    """The filter for children if this system enforces it, tried out on a child; else None and the reason."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"libseccomp cannot be loaded ({error})"
    import errno

    wanted = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in _SYSCALLS:
        try:
            wanted.add_rule(pyseccomp.ALLOW, name)
        except (OSError, ValueError, RuntimeError):
            continue  # not a system call of this architecture
    with open(os.memfd_create("filter"), "w+b") as file:
        wanted.export_bpf(file)
        file.seek(0)
        lock = Lock(file.read())
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

    def __init__(self) -> None:
        self.left, self.kept = 0, bytearray()

    def write(self, text: str) -> int:
        if self.left > 0:
            piece = text[: self.left].encode(errors="replace")[: self.left]
            self.left -= len(piece)
            self.kept += piece
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


_captured = _Capture()  # nothing is printed in the zygote, so every child finds it empty


def settle() -> None:
    """What all children inherit, done once in the zygote: no environment, arguments or open files, and the limits that it can bear too."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2, ANSWER):  # so that no pipe is ever given the number of the answer's
        os.dup2(nothing, number)
    if nothing > ANSWER:
        os.close(nothing)
    os.chdir("/")
    os.environ.clear()
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = _captured  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv[:] = [PROGRAM]
    stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = _STACK_MB * 2**20
    for kind, pair in {
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (_MAX_FILES, _MAX_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_STACK: (wanted if stack == resource.RLIM_INFINITY else min(wanted, stack), stack),
    }.items():
        resource.setrlimit(kind, pair)


def rehearse() -> None:
    """Run a harmless program in the zygote: fills the interpreter's caches, which every child would have to fill again."""
    source = "import numpy as np\ndef solve(I):\n    return np.flip(np.array([row[::-1] for row in I]), 0)\n"
    request = pack_request(Execution(source, (np.zeros((3, 3), np.uint8),) * 2), Limits())
    for _ in range(20):
        assert len([record for record in _answers(request, unpack_header(request)) if record[0] == Status.ok.value]) == 2


def run_program(request: bytes, header: Header, writer: int, mapped: int, lock: Lock | None) -> NoReturn:
    """Run in a fresh child; writes one record for each input, then what was printed. Ends the process.

    mapped: bytes of address space that the zygote has, and the program for nothing.
    """
    status = 1
    try:
        _lock_in(header, writer, mapped, lock)
        _captured.left = header.stdout_bytes
        for record in _answers(request, header):
            _write_all(ANSWER, record)
        _write_all(ANSWER, STDOUT_MARK + bytes(_captured.kept))
        status = 0
    finally:
        os._exit(status)


def _lock_in(header: Header, writer: int, mapped: int, lock: Lock | None) -> None:
    """No open files but the answer's, limits that only a child can have, then the filter."""
    os.dup2(writer, ANSWER)
    os.closerange(ANSWER + 1, 4096)
    space = mapped + header.memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (header.cpu_s, header.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no effect for root: there only the filter stops forks
    if lock is not None:
        lock.load()


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _answers(request: bytes, header: Header) -> Iterator[bytes]:
    """A record for each input: yielded as they come, so that a later crash loses no earlier one."""
    entry, source, grids = unpack_body(request, header)
    solve, failure = _load(source, entry)
    for rows in grids:
        if solve is None:
            yield failure
            continue
        grid: Any = [list(row) for row in rows]
        if header.as_arrays:
            grid = np.array(grid, np.uint8)
        yield _guarded(lambda grid=grid: pack_grid(_plain_rows(solve(grid))))


def _load(source: str, entry: str) -> tuple[Callable[[Any], Any] | None, bytes]:
    """The program's entry point, or the record that says why there is none."""
    module = ModuleType("__solution__")
    sys.modules[module.__name__] = module  # where dataclasses look for the names in a program's annotations
    namespace = module.__dict__
    namespace["__builtins__"] = builtins

    def load() -> bytes:
        try:
            code: CodeType = compile(source, PROGRAM, "exec", dont_inherit=True)
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
    """What was raised, read without running a line of the program: its exceptions may define any attribute, and raise there."""
    kind, parts = type(error), BaseException.__dict__["args"].__get__(error)
    if issubclass(kind, _BadOutput):
        return pack_error(Status.bad_output, str(error))
    if issubclass(kind, MemoryError):
        return pack_error(Status.oom, "MemoryError")
    if issubclass(kind, SystemExit):
        code = SystemExit.__dict__["code"].__get__(error)
        return pack_error(Status.exited, f"sys.exit({code if type(code) in (int, type(None)) else 'text'})")
    trace = BaseException.__dict__["__traceback__"].__get__(error)
    lines = [line for frame, line in traceback.walk_tb(trace) if frame.f_code.co_filename == PROGRAM]
    text = next((part for part in parts if type(part) is str), "")
    name = type.__dict__["__name__"].__get__(kind)
    return pack_error(Status.exception, f"{name}: {text[:200]}" + (f" (line {lines[-1]})" if lines else ""))


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
