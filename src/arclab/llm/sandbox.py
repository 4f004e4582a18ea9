"""Run programs that nobody has read: a fresh process for each, locked in, its answers checked here.

    with Sandbox(num_workers=2, limits=Limits(cpu_s=2)) as sandbox:
        results = sandbox.run([Execution(source, inputs=(grid,))])        # in order; results[0].grids[0].status

Each worker is a warm interpreter (zygote.py) that forks a child for every program (child.py), so that a program costs milliseconds
and cannot touch the next one. Linux only. The isolation that the system allowed stands in every result; `min_isolation` refuses
less. It does not compare with expected outputs, and never learns them. Programs never share a child, though that would save most of
what a fork costs: whatever ran first could change what the next one answers, without a trace.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from arclab.config.llm_schema import SandboxConfig
from arclab.llm.execution import (
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
from arclab.llm.zygote import End, read_frame, unpack_end, write_frame

_ZYGOTE = Path(__file__).with_name("zygote.py")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LC_ALL": "C.UTF-8",
    "LD_BIND_NOW": "1",  # symbols are looked up once, not by every child
}  # fmt: skip
_PROGRAMS_PER_ZYGOTE = 10_000  # then a fresh one: nothing can build up


def open_sandbox(config: SandboxConfig) -> Sandbox:
    """The sandbox that the configuration group `sandbox` describes."""
    limits = Limits(config.cpu_s, config.wall_s, config.memory_mb, config.stdout_bytes)
    return Sandbox(num_workers=config.num_workers, limits=limits, min_isolation=config.min_isolation)


class SandboxError(ValueError):
    """The sandbox cannot be had as asked for."""


class _Worker:
    """A zygote process and its two pipes. Used by one thread at a time."""

    def __init__(self) -> None:
        # Not -I, which would ignore PYTHONHASHSEED: the order of a set of strings is the same in every worker.
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-X", "utf8", str(_ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=_ENVIRONMENT, cwd="/", start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.num_programs = 0
        hello = read_frame(self._answers)
        if hello is None:
            error = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise SandboxError(
                f"the sandbox did not start ({error[-1] if error else 'no message'}); check that {sys.executable} has numpy."
            )
        level, self.why_not_more = json.loads(hello)
        self.isolation = Isolation[level]

    def ask(self, request: bytes) -> tuple[End, bytes] | None:
        """The child's end and its raw answer; None if the zygote is gone."""
        self.num_programs += 1
        try:
            write_frame(self._requests, request)
        except BrokenPipeError:
            return None
        frame = read_frame(self._answers)
        return None if frame is None else unpack_end(frame)

    def close(self) -> None:
        """The zygote ends when its input does."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Sandbox:
    """A pool of workers. ValueError if the isolation that the system allows is below min_isolation.

    cache_size: results kept by program, inputs and seed; those that depend on the machine's load are not.
    """

    def __init__(
        self, *, num_workers: int | None = None, limits: Limits | None = None, min_isolation: Isolation = Isolation.seccomp, cache_size: int = 100_000
    ) -> None:  # fmt: skip
        if num_workers is not None and num_workers < 1:
            raise SandboxError(
                f"sandbox num_workers={num_workers} must be at least 1; raise it, or leave it out for one per core."
            )
        self.limits, self._cache_size = limits or Limits(), cache_size
        self._cache: OrderedDict[bytes, Result] = OrderedDict()
        self._guard = threading.Lock()
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._num_workers = num_workers or len(os.sched_getaffinity(0))
        first = _Worker()
        self._idle.put(first)
        self.isolation, self._min_isolation = first.isolation, min_isolation
        if first.isolation.value < min_isolation.value:
            self._num_workers = 1
            self.close()
            raise SandboxError(
                f"sandbox.min_isolation={min_isolation.name} cannot be had: {first.why_not_more}; install libseccomp (Debian: apt-get install "
                f"libseccomp2), or accept less with sandbox.min_isolation={first.isolation.name}."
            )
        for _ in range(self._num_workers - 1):
            self._idle.put(_Worker())
        self._pool = ThreadPoolExecutor(self._num_workers)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.close()

    def close(self) -> None:
        for _ in range(self._num_workers):
            self._idle.get().close()

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
        worker = self._idle.get()
        try:
            worker, result = self._ask(worker, execution, request)
        finally:
            self._idle.put(worker)
        if not any(grid.status in TRANSIENT for grid in result.grids):
            with self._guard:
                self._cache[key] = result
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        return result

    def _ask(self, worker: _Worker, execution: Execution, request: bytes) -> tuple[_Worker, Result]:
        """The result, and the worker to use from now on: a new one if this one is worn out or was lost."""
        if worker.num_programs >= _PROGRAMS_PER_ZYGOTE:
            worker = self._renewed(worker)
        answer = worker.ask(request)
        if answer is None:  # hardly ever the program's fault, so once more
            worker = self._renewed(worker)
            answer = worker.ask(request)
        if answer is None:
            lost = tuple(GridResult(Status.sandbox_error, None, "the sandbox process was lost") for _ in execution.inputs)
            return self._renewed(worker), Result(lost, worker.isolation, "", 0.0, 0.0)
        return worker, _result(execution, worker.isolation, *answer)

    def _renewed(self, worker: _Worker) -> _Worker:
        worker.close()
        new = _Worker()
        if new.isolation.value < self._min_isolation.value:
            new.close()
            raise SandboxError(f"sandbox.min_isolation={self._min_isolation.name} can no longer be had: {new.why_not_more}.")
        return new


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
    return Result(tuple(grids), isolation, stdout.decode(errors="replace"), end.cpu_s, end.wall_s)
