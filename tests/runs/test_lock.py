"""The kernel's lock on a run folder: who dies lets go, whatever the clock, the namespace and the children; who lost it writes nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from arclab.config.compose import ConfigError
from arclab.config.schema import ExperimentConfig
from arclab.files import write_atomically
from arclab.methods.recursive.run import pretrain
from arclab.runs import lock as runlock
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import LostLock, keeper, living_holder, lock_path, locked, read_holder, require_free

from ..conftest import ROOT, script_env

Tiny = Callable[..., ExperimentConfig]
# Holds a folder, and has a child that goes on for a while after it, as a loader of data has.
HOLD = """
import os, sys, time
from pathlib import Path
from arclab.runs.folder import RunDir
from arclab.runs.lock import locked
with locked(RunDir(Path(sys.argv[1]))):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@contextmanager
def held(run: RunDir, *wrapper: str) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the run; its child ends after this block."""
    command = [*wrapper, sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, env=script_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            if not wrapper:
                os.kill(child, 9)


def change(run: RunDir, **values: Any) -> None:
    write_atomically(lock_path(run), json.dumps({**json.loads(lock_path(run).read_text()), **values}))


def test_a_clock_that_is_set_and_a_child_that_lives_on_do_not_matter(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with held(run) as process:
        change(run, started=1.0)  # what psutil says moves with the clock
        with pytest.raises(ConfigError, match="is in use by pid"), locked(run):
            pass
        process.kill()
        process.wait()
        assert living_holder(run) is None
        with locked(run):  # although the child has inherited every file
            assert (holder := read_holder(run)) is not None and holder.is_me


def test_a_holder_in_another_pid_namespace_is_known_by_the_kernel_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with held(run) as process:
        change(run, pid=2**22 + 1, pid_namespace="pid:[1]", host="container")  # as a container sees itself
        with pytest.raises(ConfigError, match="is in use by pid 4194305 on container"):
            require_free(run)
        lock_path(run).unlink()
        with pytest.raises(ConfigError, match=r"is in use by a process that has lost its lock\.json"):
            require_free(run)
        write_atomically(lock_path(run), "{}")
        process.kill()
    lock_path(run).unlink()
    require_free(run)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare (util-linux)")
def test_two_real_namespaces_keep_each_other_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with held(run, "unshare", "--pid", "--fork", "--kill-child") as process:
        with pytest.raises(ConfigError, match="is in use by pid 1 on "):
            require_free(run)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while living_holder(run) is not None:  # the kernel ends the namespace
            assert time.monotonic() < deadline
            time.sleep(0.02)
        require_free(run)


def test_without_file_locks_the_record_decides_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    run = RunDir(tmp_path / "run")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(fcntl, "lockf", refuse)
        patch.setattr(FileLock, "acquire", refuse)
        with locked(run):
            assert (holder := read_holder(run)) is not None and not holder.has_lock
            assert [r.getMessage() for r in caplog.records if "has no file locks (No locks available)" in r.getMessage()]
            with pytest.raises(ConfigError, match="is in use by pid"), locked(run):
                pass
        assert read_holder(run) is None


def test_whoever_cannot_look_at_the_lock_believes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    with held(run) as process:
        monkeypatch.setattr(runlock, "_is_held", lambda _: None)
        assert living_holder(run) is not None
        process.kill()
        process.wait()
        assert living_holder(run) is None


@pytest.mark.parametrize("how", ["taken over", "removed"])
def test_a_run_that_has_lost_its_lock_writes_nothing_more(how: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never DONE: the folder is another process's, whose status and checkpoints stay."""
    from arclab.methods.recursive.training import trainer

    config = tiny()
    step, run = trainer.train_step, RunDir(config.folder)

    def lose(*arguments: object) -> object:
        if run.metrics.is_file() and '"_step": 1,' in run.metrics.read_text():
            if how == "removed":
                lock_path(run).unlink(missing_ok=True)
            else:
                change(run, pid=1, host="other")
            run.write_status(State.preempted, 77, "of the other process")
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train_step", lose)
    with pytest.raises(LostLock, match=r"lock\.json no longer names pid .* the same command continues"):
        pretrain(config)
    status = run.read_status() or {}
    assert (status["state"], status["step"], status["message"]) == ("PREEMPTED", 77, "of the other process")
    assert not list(run.checkpoints.glob("step_*")) and '"_step": 2,' not in run.metrics.read_text()
    holder = read_holder(run)
    assert (holder is None) if how == "removed" else (holder is not None and holder.pid == 1)


def test_a_damaged_lock_of_a_living_run_does_not_end_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with locked(run):
        require_held = keeper(run)
        lock_path(run).write_text("{")
        require_held()
    assert not lock_path(run).exists()
