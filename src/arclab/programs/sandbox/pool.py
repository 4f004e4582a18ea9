"""Run programs that nobody has read: a fresh process for each, locked in, its answers checked here.

    with Sandbox(num_workers=2, limits=Limits(cpu_s=2)) as sandbox:
        results = sandbox.run([Execution(source, inputs=(grid,))])        # in order; results[0].grids[0].status

Each worker is a warm interpreter (zygote.py) that forks a child for every program (child.py), so that a program costs
milliseconds and cannot touch the next one, and a supervisor (supervisor.py) that watches the children. Linux only. The
isolation that the system allowed stands in every result; `min_isolation` refuses less. It does not compare with expected
outputs, and never learns them. Programs never share a child, though that would save most of what a fork costs: whatever ran
first could change what the next one answers, without a trace.

The same program gives the same answers in every worker: its random numbers are functions of the seed, and its objects are at
the same addresses, by which Python orders sets of them. Clocks are real; who reads one is marked as nondeterministic. Some
systems forbid fixed addresses (Docker does unless told otherwise): then `has_fixed_addresses` is false, a warning says so, and
programs.py runs what matters a second time, at other addresses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from arclab.config.llm_schema import SandboxConfig
from arclab.programs.sandbox.execution import (
    STDOUT_MARK,
    TRANSIENT,
    Execution,
    GridResult,
    Isolation,
    Limits,
    Result,
    Status,
    pack_request,
    unpack_records,
)
from arclab.programs.sandbox.wire import LENGTH, End, unpack_end

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
    "LD_BIND_NOW": "1",  # symbols are looked up once, not by every child
}
# Not -I, which would ignore PYTHONHASHSEED. -B: a worker that wrote byte code would have another memory than the next, which
# reads it.
_PYTHON = (sys.executable, "-B", "-s", "-P", "-X", "utf8")
_PROGRAMS_PER_ZYGOTE = 10_000  # then a fresh one: nothing can build up
_START_S = 120.0  # a worker imports numpy, perhaps from a slow file system
_MARGIN_S = 10.0  # what a worker may take beyond a program's own limit, on a busy machine
_CLOSE_S = 5.0
# Prints where objects of many sizes are. Equal in all workers, or the order of sets of objects is not.
_PROBE = (
    "import hashlib\ndef solve(I):\n    made = [[object(), {n: n}, 'x' * n, (lambda: n), type('A', (), {})] for n in "
    "range(300)]\n    print(hashlib.md5(repr([id(thing) for things in [[None, len, int]] + made for thing in "
    "things]).encode()).hexdigest())\n    return I"
)
log = logging.getLogger(__name__)


def open_sandbox(config: SandboxConfig) -> Sandbox:
    """The sandbox that the configuration group `sandbox` describes."""
    limits = Limits(config.cpu_s, config.wall_s, config.memory_mb, config.stdout_bytes)
    return Sandbox(num_workers=config.num_workers, limits=limits, min_isolation=config.min_isolation)


class SandboxError(ValueError):
    """The sandbox cannot be had as asked for."""


class _Worker:
    """A supervisor with its zygote, and the socket to it. Used by one thread at a time. Every wait has an end."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*_PYTHON, str(_SUPERVISOR)],
                stdin=other.fileno(),
                stdout=other.fileno(),
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            other.close()
        self.num_programs, self.is_closed = 0, False
        deadline = time.monotonic() + _START_S
        hello = self._receive(deadline)
        if hello is None:
            silent = "no message" if time.monotonic() < deadline else f"no answer in {_START_S:g} s"
            raise SandboxError(
                f"the sandbox did not start ({self._last_words() or silent}); check that {sys.executable} has numpy."
            )
        level, self.why_not_more, self.has_fixed_addresses = json.loads(hello)
        self.isolation = Isolation[level]

    def ask(self, request: bytes, within_s: float) -> tuple[End, bytes] | None:
        """The child's end and its raw answer; None if the worker is gone or does not answer in time, and then it is closed."""
        self.num_programs += 1
        deadline = time.monotonic() + within_s
        try:
            self._socket.settimeout(within_s)
            self._socket.sendall(LENGTH.pack(len(request)) + request)
        except OSError:  # it was lost, or is stopped and takes nothing more
            frame = None
        else:
            frame = self._receive(deadline)
        if frame is None:
            self._kill()
            self.close()
            return None
        return unpack_end(frame)

    def _receive(self, deadline: float) -> bytes | None:
        """The next frame, or None: the stream has ended, or nothing came in time."""
        head = self._bytes(LENGTH.size, deadline)
        return None if head is None else self._bytes(LENGTH.unpack(head)[0], deadline)

    def _bytes(self, size: int, deadline: float) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self._socket.settimeout(left_s)
            try:
                piece = self._socket.recv(size - len(data))
            except OSError:
                return None
            if not piece:
                return None
            data += piece
        return bytes(data)

    def _last_words(self) -> str:
        """Of a worker that did not start, which this ends."""
        assert self._process.stderr is not None
        self._kill()  # or what it started would keep its end of the pipe open
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        return lines[-1] if lines else ""

    def _kill(self) -> None:
        """It and its zygote, which are a process group; children that run are killed by the kernel when their parent is."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """The worker ends when its input does; one that is stopped, or at work, is killed."""
        if self.is_closed:
            return
        self.is_closed = True
        assert self._process.stderr is not None
        self._socket.close()
        self._process.stderr.close()
        try:
            self._process.wait(timeout=_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()


class Sandbox:
    """A pool of workers. ValueError if the isolation that the system allows is below min_isolation.

    cache_size: results kept by program, inputs and seed; those that depend on the machine's load are not.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        limits: Limits | None = None,
        min_isolation: Isolation = Isolation.seccomp,
        cache_size: int = 100_000,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise SandboxError(
                f"sandbox num_workers={num_workers} must be at least 1; raise it, or leave it out for one per core."
            )
        self.limits, self._cache_size, self._min_isolation = limits or Limits(), cache_size, min_isolation
        self._cache: OrderedDict[bytes, Result] = OrderedDict()
        self._guard = threading.Lock()
        self._num_workers = num_workers or len(os.sched_getaffinity(0))
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()  # None: a worker that has yet to be started
        self._layout: str | None = None
        self.has_fixed_addresses = True
        workers: list[_Worker] = []
        try:
            for _ in range(self._num_workers):
                workers.append(self._started())
        finally:
            if len(workers) < self._num_workers:
                for worker in workers:
                    worker.close()
        self.isolation = workers[0].isolation
        for worker in workers:
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(self._num_workers)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, after the programs that they run. Can be called twice."""
        self._pool.shutdown(cancel_futures=True)
        while not self._idle.empty():  # all of them: their users have ended
            worker = self._idle.get()
            if worker is not None:
                worker.close()

    def run(self, executions: Sequence[Execution]) -> list[Result]:
        """The results in the order of the requests; one that was answered before is not run again."""
        results: list[Result | None] = [None] * len(executions)
        numbers = iter(range(len(executions)))

        over = threading.Event()

        def work() -> None:  # one call for each thread, not for each program: to wake another thread costs a tenth of a program
            for number in numbers:
                if over.is_set():
                    return
                results[number] = self._run_one(executions[number])

        try:
            for done in [self._pool.submit(work) for _ in range(min(self._num_workers, len(executions)))]:
                done.result()
        finally:
            over.set()  # after Ctrl-C, or a failure of one thread, the others end with the program they run
        return [result for result in results if result is not None]

    def stream(self, executions: Sequence[Execution]) -> Iterator[Result]:
        """The same, one after the other as they come."""
        return self._pool.map(self._run_one, executions)

    def _run_one(self, execution: Execution) -> Result:
        request = pack_request(execution, self.limits)
        key = hashlib.sha256(request).digest()
        with self._guard:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return replace(known, cached=True)
        worker, is_answered = self._idle.get(), False
        try:
            worker, result = self._ask(worker, execution, request)
            is_answered = True
        finally:
            if not is_answered and worker is not None:  # who knows what it will answer next
                worker.close()
            # Whoever takes an empty slot tries to start a worker.
            self._idle.put(None if worker is None or worker.is_closed else worker)
        if not result.nondeterministic and not any(grid.status in TRANSIENT for grid in result.grids):
            with self._guard:
                self._cache[key] = result
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        return result

    def _ask(self, worker: _Worker | None, execution: Execution, request: bytes) -> tuple[_Worker, Result]:
        """The result, and the worker that gave it: a new one if the other is worn out or was lost."""
        if worker is not None and worker.num_programs >= _PROGRAMS_PER_ZYGOTE:
            worker.close()
        for _ in range(2):  # a worker is hardly ever lost by the program's fault, so once more
            if worker is None or worker.is_closed:
                worker = self._started()
            answer = worker.ask(request, self.limits.wall_s + _MARGIN_S)
            if answer is not None:
                return worker, _result(execution, worker.isolation, *answer)
        assert worker is not None
        lost = tuple(GridResult(Status.sandbox_error, None, "the sandbox process was lost") for _ in execution.inputs)
        return worker, Result(lost, worker.isolation, "", 0.0, 0.0)

    def _started(self) -> _Worker:
        """A new worker. SandboxError: it does not start, or isolates less than asked for."""
        try:
            worker = _Worker()
        except OSError as error:
            raise SandboxError(
                f"the sandbox cannot start a process ({error.strerror}); free memory or raise the limit on processes."
            ) from error
        if worker.isolation.value < self._min_isolation.value:
            worker.close()
            raise SandboxError(
                f"sandbox.min_isolation={self._min_isolation.name} cannot be had: {worker.why_not_more}; install libseccomp "
                f"(Debian: apt-get install libseccomp2), or accept less with sandbox.min_isolation={worker.isolation.name}."
            )
        self._compare_addresses(worker)
        return worker

    def _compare_addresses(self, worker: _Worker) -> None:
        """Where objects are has to be the same in all workers; where it is not, or cannot be, has_fixed_addresses says so."""
        probe = Execution(_PROBE, (np.zeros((1, 1), np.uint8),))
        answer = worker.ask(pack_request(probe, Limits()), Limits().wall_s + _MARGIN_S)
        layout = None if answer is None else _result(probe, worker.isolation, *answer).stdout
        with self._guard:
            self._layout = self._layout or layout
            is_equal = worker.has_fixed_addresses and layout is not None and layout == self._layout
            if self.has_fixed_addresses and not is_equal:
                self.has_fixed_addresses = False
                log.warning(
                    "The system does not give every worker the same addresses, so the order of sets of objects can differ "
                    "between workers: programs that reproduce all demonstrations run twice. In Docker, allow personality(2) "
                    "with a seccomp profile of your own."
                )


def _result(execution: Execution, isolation: Isolation, end: End, answer: bytes) -> Result:
    """The child's answers, and the reason of its end for every input that it did not answer."""
    records, mark, stdout = answer.partition(STDOUT_MARK)
    grids = unpack_records(records, len(execution.inputs))
    status, message = end.status, end.message
    if status is Status.output_limit:
        grids = []
    elif status is Status.exited and mark:  # it ended as it should, but some of what it wrote is no answer
        status, message = Status.bad_output, "an answer that is no grid"
    grids += [GridResult(status, None, message)] * (len(execution.inputs) - len(grids))
    return Result(
        tuple(grids), isolation, stdout.decode(errors="replace"), end.cpu_s, end.wall_s, nondeterministic=end.clock_read
    )
