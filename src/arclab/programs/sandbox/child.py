"""The process that runs one program: locks itself in, calls the program with every input, writes its answers, ends.

It holds the program's source and its inputs and nothing else: no expected output, no environment, no open file. It reads its
request itself, after the fork, so that nothing of another request is ever in the memory that it inherits. What a program may
import (PRELOADED, and arc_dsl where it is installed) is loaded before, because under seccomp a child opens no file at all, and
so cannot read a data set either. A program that imports arc_dsl gets grids as that language has them: tuples of tuples.

Most of a child's time are page faults: memory is shared with the zygote until one of them writes to it. So whatever is equal
for all children is done once in the zygote (`settle`, `rehearse`), and a child only does what must be its own.
"""

from __future__ import annotations

import builtins
import codecs
import importlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

import numpy as np

from arclab.data.rearc_package import INSTALL, load_dsl
from arclab.programs.sandbox.execution import (
    STDOUT_MARK,
    Execution,
    Header,
    Limits,
    Status,
    pack_error,
    pack_grid,
    pack_request,
    unpack_body,
)
from arclab.programs.sandbox.fixed_sources import clock, fix_sources, may_differ, names_in, seed_all, shift_addresses
from arclab.programs.sandbox.lockdown import SET_PDEATHSIG, Lock, forbid_new_privileges, prctl
from arclab.programs.sandbox.plain import BadOutput, name_of, plain_rows
from arclab.programs.sandbox.supervisor import ANSWER, REQUEST
from arclab.programs.sandbox.wire import unpack_header

# Modules that only compute. What they import themselves is there, too; the first two are what they import late.
PRELOADED = (
    "_strptime",
    "tracemalloc",
    "abc",
    "array",
    "ast",
    "base64",
    "binascii",
    "bisect",
    "calendar",
    "cmath",
    "codecs",
    "collections.abc",
    "colorsys",
    "contextlib",
    "contextvars",
    "copy",
    "copyreg",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "errno",
    "fractions",
    "functools",
    "gc",
    "graphlib",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "importlib.util",
    "inspect",
    "io",
    "itertools",
    "json",
    "keyword",
    "locale",
    "logging",
    "math",
    "numbers",
    "operator",
    "pathlib",
    "pickle",
    "pprint",
    "queue",
    "random",
    "re",
    "reprlib",
    "sched",
    "secrets",
    "shlex",
    "signal",
    "statistics",
    "string",
    "struct",
    "sysconfig",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "token",
    "tokenize",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "unittest",
    "uuid",
    "warnings",
    "weakref",
    "zlib",
    "numpy.lib.stride_tricks",
    "numpy.linalg",
    "numpy.random",
    "numpy.typing",
)
_CODECS = (
    "ascii",
    "latin-1",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-32",
    "cp437",
    "cp1252",
    "idna",
    "punycode",
    "unicode_escape",
    "raw_unicode_escape",
    "rot13",
    "hex",
    "base64",
)
# What numpy loads only when it is first used, as far as this numpy has it. np.unique uses ma.
_PARTS_OF_NUMPY = ("char", "fft", "ma", "polynomial", "rec", "strings")
DSL = "arc_dsl"
PROGRAM = "<program>"
_STACK_MB, _MAX_FILES = 64, 16
_REHEARSALS = 20


def preload() -> None:
    """Import what programs may use into the process that forks their children."""
    fix_sources()
    for name in PRELOADED:
        importlib.import_module(name)
    for name in _CODECS:
        codecs.lookup(name)
    for name in _PARTS_OF_NUMPY:
        getattr(np, name, None)
    if load_dsl(DSL) is None:
        sys.meta_path.insert(0, _NoDsl())


class _NoDsl:
    """Says what to do to a program that imports a language that is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == DSL:
            raise ModuleNotFoundError(f"{DSL} is not installed; run {INSTALL}.", name=DSL)


class _Capture:
    """Standard output of the program: keeps the first bytes, forgets the rest."""

    encoding, errors, closed = "utf-8", "replace", False

    def __init__(self) -> None:
        self.left, self.kept = 0, bytearray()

    def write(self, text: str) -> int:
        if self.left > 0:
            # What is printed may be of a class of the program's own, whose methods are not asked.
            piece = str.encode(str.__getitem__(text, slice(self.left)), errors="replace")[: self.left]
            self.left -= len(piece)
            self.kept += piece
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


_captured = _Capture()  # nothing is printed in the zygote, so every child finds it empty


def settle() -> None:
    """What all children inherit, done once in the zygote: no environment, arguments or open files, and the limits that it can
    bear too."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    forbid_new_privileges()
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
    for _ in range(_REHEARSALS):
        assert len([record for record in _answers(request, unpack_header(request)) if record[0] == Status.ok.value]) == 2


def run_program(mapped: int, lock: Lock | None, parent: int) -> NoReturn:
    """Run in a fresh child; writes one record for each input, then what was printed. Ends the process.

    mapped: bytes of address space that the zygote has, and the program for nothing. parent: process without which this one
    ends.
    """
    status = 1
    try:
        prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(status)
        os.setsid()
        request = os.pread(REQUEST, os.lseek(REQUEST, 0, os.SEEK_END), 0)
        header = unpack_header(request)
        _lock_in(header, mapped, lock)
        _prepare(header)
        for record in _answers(request, header):
            _write_all(ANSWER, record)
        _write_all(ANSWER, STDOUT_MARK + bytes(_captured.kept))
        status = 0
    finally:
        os._exit(status)


def _lock_in(header: Header, mapped: int, lock: Lock | None) -> None:
    """No open files but the answer's, limits that only a child can have, then the filter."""
    os.closerange(ANSWER + 1, _MAX_FILES)
    space = mapped + header.memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (header.cpu_s, header.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # no effect for root: there only the filter stops forks
    if lock is not None:
        lock.load()


def _prepare(header: Header) -> None:
    _captured.left = header.stdout_bytes
    if header.seed != 0:  # the zygote has the state of seed 0
        seed_all(header.seed)
    if header.other_addresses:
        shift_addresses()


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _answers(request: bytes, header: Header) -> Iterator[bytes]:
    """A record for each input: yielded as they come, so that a later crash loses no earlier one."""
    entry, source, grids = unpack_body(request, header)
    solve, failure, uses_dsl = _load(source, entry)
    for rows in grids:
        if solve is None:
            yield failure
            continue
        grid: Any = tuple(map(tuple, rows)) if uses_dsl else [list(row) for row in rows]
        if header.as_arrays:
            grid = np.array(grid, np.uint8)
        yield _guarded(lambda grid=grid: pack_grid(plain_rows(solve(grid))))


def _load(source: str, entry: str) -> tuple[Callable[[Any], Any] | None, bytes, bool]:
    """The program's entry point, or the record that says why there is none; and whether it imports arc_dsl."""
    module = ModuleType("__solution__")
    sys.modules[module.__name__] = module  # where dataclasses look for the names in a program's annotations
    namespace = module.__dict__
    namespace["__builtins__"] = builtins
    uses_dsl = False

    def load() -> bytes:
        nonlocal uses_dsl
        try:
            code: CodeType = compile(source, PROGRAM, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
            line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
            return pack_error(Status.syntax_error, f"{type(error).__name__}: {getattr(error, 'msg', error)}{line}")
        if may_differ(code):
            clock.note()
        uses_dsl = any(DSL in names for names in names_in(code))
        exec(code, namespace)
        return b""

    failure = _guarded(load)
    solve = namespace.get(entry)
    if failure:
        return None, failure, uses_dsl
    if not callable(solve):
        return None, pack_error(Status.no_entry_point, f"no function {entry}"), uses_dsl
    return solve, b"", uses_dsl


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
    if kind is BadOutput:
        return pack_error(Status.bad_output, parts[0])
    if issubclass(kind, MemoryError):
        return pack_error(Status.oom, "MemoryError")
    if issubclass(kind, SystemExit):
        code = SystemExit.__dict__["code"].__get__(error)
        return pack_error(Status.exited, f"sys.exit({code if type(code) in (int, type(None)) else 'text'})")
    trace, line = BaseException.__dict__["__traceback__"].__get__(error), None
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == PROGRAM else line
        trace = trace.tb_next
    text = next((part for part in parts if type(part) is str), "")
    return pack_error(Status.exception, f"{name_of(kind)}: {text[:200]}" + (f" (line {line})" if line else ""))
