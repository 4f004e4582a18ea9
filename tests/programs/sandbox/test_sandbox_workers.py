"""Workers that stop, die or cannot be started: nothing waits for ever, and the sandbox works again when they can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from arclab.programs.sandbox import pool as sandbox_module
from arclab.programs.sandbox.execution import Execution, Isolation, Limits, Status
from arclab.programs.sandbox.pool import Sandbox, SandboxError

GRID = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
LIMITS = Limits(cpu_s=1, wall_s=0.5, memory_mb=256)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(sandbox_module, "_MARGIN_S", 0.5)
    monkeypatch.setattr(sandbox_module, "_CLOSE_S", 0.3)
    monkeypatch.setattr(Sandbox, "_compare_addresses", lambda self, worker: None)  # which takes its time on a busy machine
    return Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits, cache_size=0)


def status(pool: Sandbox, source: str = "def solve(I): return I") -> Status:
    return pool.run([Execution(source, (GRID,))])[0].grids[0].status


def processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def supervisor(family: list[psutil.Process]) -> psutil.Process:
    return next(process for process in family if process.ppid() == os.getpid())


def zygote(family: list[psutil.Process]) -> psutil.Process:
    return next(process for process in family if process.ppid() != os.getpid())


@pytest.mark.parametrize("victim", [supervisor, zygote])
@pytest.mark.parametrize("padding", [0, 3_000_000], ids=["small", "larger than any buffer"])
def test_a_worker_that_is_stopped_is_replaced(
    pool: Sandbox, victim: Callable[[list[psutil.Process]], psutil.Process], padding: int
) -> None:
    others = processes()
    with pool:
        others -= set(family := [p for p in others if "sandbox/" in " ".join(p.cmdline())][-2:])
        victim(family).send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        assert status(pool, "def solve(I): return I #" + "x" * padding) is Status.ok
        assert time.monotonic() - begun < 20
        assert not psutil.wait_procs(family, timeout=10)[1]
    assert processes() == others


def test_a_worker_that_is_stopped_does_not_keep_the_sandbox_open(pool: Sandbox) -> None:
    family = [p for p in processes() if "sandbox/" in " ".join(p.cmdline())]
    for process in family:
        process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - begun < 10 and not psutil.wait_procs(family, timeout=10)[1]


def test_who_always_stops_costs_one_program(pool: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers in a row: it is the sandbox's error, of this program only."""
    started = Sandbox._started

    def stopped(self: Sandbox) -> sandbox_module._Worker:
        worker = started(self)
        worker._process.send_signal(signal.SIGSTOP)
        return worker

    with pool:
        pool._idle.get().close()  # pyright: ignore[reportOptionalMemberAccess]
        pool._idle.put(None)
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "_started", stopped)
            assert status(pool) is Status.sandbox_error
        assert [status(pool), status(pool)] == [Status.ok] * 2


def test_a_worker_that_cannot_be_renewed_is_tried_again(pool: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence each time, and no thread is left waiting."""

    def no_process(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    (tmp_path / "supervisor.py").write_text("raise SystemExit('no numpy here')")
    with pool:
        pool._idle.get().close()  # pyright: ignore[reportOptionalMemberAccess]
        pool._idle.put(None)
        with monkeypatch.context() as patch:
            patch.setattr(sandbox_module.subprocess, "Popen", no_process)
            for _ in range(3):
                with pytest.raises(SandboxError, match=r"^the sandbox cannot start a process \(Resource.*; free memory .*\.$"):
                    status(pool)
        with monkeypatch.context() as patch:
            patch.setattr(sandbox_module, "_SUPERVISOR", tmp_path / "supervisor.py")
            for _ in range(2):
                with pytest.raises(SandboxError, match=r"^the sandbox did not start \(no numpy here\); check"):
                    status(pool)
        assert status(pool) is Status.ok


def test_a_worker_that_cannot_be_started_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before, count, start = processes(), 0, Sandbox._started

    def second_fails(self: Sandbox) -> sandbox_module._Worker:
        nonlocal count
        count += 1
        if count == 2:
            raise SandboxError("no more")
        return start(self)

    monkeypatch.setattr(Sandbox, "_started", second_fails)
    with pytest.raises(SandboxError, match="no more"):
        Sandbox(num_workers=3, limits=LIMITS, min_isolation=Isolation.limits)
    assert processes() == before and count == 2


def test_a_worker_that_never_greets_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "supervisor.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(sandbox_module, "_SUPERVISOR", tmp_path / "supervisor.py")
    monkeypatch.setattr(sandbox_module, "_START_S", 0.5)
    with pytest.raises(SandboxError, match="no answer in"):
        Sandbox(num_workers=1, min_isolation=Isolation.limits)
