"""Runs that are told to end or killed: they save and say so, and nobody is left behind."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from arclab.config.schema import ExperimentConfig
from arclab.launch import torchrun
from arclab.launch.job import describe_kill, last_words, prepare_run
from arclab.launch.torchrun import worker_environment
from arclab.metrics.logger import read_rows
from arclab.runs import tied
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import read_holder
from arclab.runs.signals import StopSignals
from arclab.runs.tied import tie_to

from ..conftest import ROOT, TINY, script_env

Tiny = Callable[..., ExperimentConfig]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.poll()
        time.sleep(0.02)


def start_long_run(tmp_path: Path, *overrides: str) -> tuple[subprocess.Popen[str], RunDir]:
    """A run with one checkpoint at its far end, once it has made some steps."""
    long = ["trainer.steps=2000", "trainer.checkpoint_every=2000", f"runs_dir={tmp_path}", "name=t", *overrides]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, and a child inherits what is ignored
    process = subprocess.Popen(
        [sys.executable, "pretrain_encoder.py", *TINY, *long], cwd=ROOT, env=script_env(), stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGHUP, before)
    run = RunDir(tmp_path / "quickstart" / "t")
    wait_until(lambda: len(read_rows(run.metrics)) > 5, process)
    return process, run


@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, ["trainer.num_workers=1"]),
        (signal.SIGUSR2, ["launch.cpus=2"]),
        (signal.SIGHUP, ["launch.cpus=2"]),
    ],
    ids=["in_place_int", "in_place_term", "two_ranks_usr2", "two_ranks_hup"],
)
@pytest.mark.slow
def test_told_to_end_a_run_saves_and_says_so(number: signal.Signals, overrides: list[str], tmp_path: Path) -> None:
    """The signal goes to every process of the run, as SLURM sends it."""
    process, run = start_long_run(tmp_path, *overrides)
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.send_signal(number)
    _, output = process.communicate(timeout=150)
    assert process.returncode == 128 + number and "Traceback" not in output, output
    assert run.state is State.preempted and 5 <= run.step < 2000
    assert [p.name for p in run.checkpoints.iterdir()] == [f"step_{run.step:08d}"]
    assert [row["_step"] for row in read_rows(run.metrics)] == list(range(run.step + 1))
    assert read_holder(run) is None and not run.preempt.exists()


def test_a_terminal_that_is_closed_lets_a_run_save(tmp_path: Path) -> None:
    """Its shell is gone and writes to it fail, the progress bar's too."""
    command = [sys.executable, "pretrain_encoder.py", *TINY, f"runs_dir={tmp_path}", "name=t", "trainer.steps=2000",
               "trainer.checkpoint_every=2000", "trainer.num_workers=1"]  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.chdir(ROOT)
        os.execve(sys.executable, command, script_env())
    run, deadline = RunDir(tmp_path / "quickstart/t"), time.monotonic() + 120
    while len(read_rows(run.metrics)) < 5:
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP and run.state is State.preempted
    assert [p.name for p in run.checkpoints.iterdir()] == [f"step_{run.step:08d}"]


def test_nohup_stays_what_it_is() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_ends_a_run_too_but_not_the_next(tmp_path: Path) -> None:
    """A file that is there from before was meant for somebody else."""
    (tmp_path / "quickstart/t").mkdir(parents=True)
    (tmp_path / "quickstart/t/PREEMPT").touch()
    process, run = start_long_run(tmp_path)
    run.preempt.touch()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and run.state is State.preempted


def test_killed_parent_leaves_nobody_behind(tmp_path: Path) -> None:
    process, run = start_long_run(tmp_path, "launch.cpus=2")
    family = psutil.Process(process.pid).children(recursive=True)
    assert sum("arclab.launch.worker" in p.cmdline() for p in family) >= 2
    process.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=10)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    holder = read_holder(run)
    assert run.state is State.running and holder is not None and not holder.is_alive()


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)
        assert signals.number == signal.SIGTERM
        signals.number = None
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_how_a_run_ended_is_read_from_what_is_left() -> None:
    killed = (
        "Root Cause (first observed failure):\n exitcode: -9 (pid: 12)\n traceback: Signal 9 (SIGKILL) received by PID 12\n"
    )
    assert "a worker (pid 12) was killed by SIGKILL; if nobody did it" in (describe_kill(1, killed) or "")
    assert describe_kill(1, "Signal 15 (SIGTERM) received by PID 12") is None
    assert (describe_kill(-9, "") or "").startswith("torchrun was killed by SIGKILL")
    output = (
        'noise\nTraceback (most recent call last):\n  File "x"\nImportError: no y\nE1 torch.distributed.elastic failed\nmore'
    )
    assert last_words(1, output).endswith("ImportError: no y\nE1") and last_words(1, "").endswith("wrote nothing")


def test_output_that_nobody_takes_does_not_hold_the_ranks(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal: the pipe is emptied all the same, and console.log has everything."""
    command = [sys.executable, "-c", "for n in range(3000): print('x' * 100)"]
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: command)

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    run = prepare_run(tiny())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Closed())
        process = torchrun.Torchrun(run, tiny().launch, torchrun.Node(0, "localhost", "0"))
        code = process.wait(60)
        process.close()
    assert code == 0 and len(run.console.read_text()) == 3000 * 101


def test_torchrun_does_not_end_of_what_reaches_every_process_of_a_job(tiny: Tiny) -> None:
    """SIGTERM, SIGUSR2 and SIGHUP are ignored from its first moment, and it installs no handler of its own for them."""
    environment = worker_environment(tiny().launch)
    read = "from torch.distributed.run import get_args_parser as p; print(getattr(p().parse_args(['x']), 'signals_to_handle', 'SIGQUIT'))"
    done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True)
    assert done.stdout == "SIGQUIT\n", done.stderr  # torchrun reads the variable
    show = "import signal as s; print({s.getsignal(n) for n in (s.SIGTERM, s.SIGUSR2, s.SIGHUP)} == {s.SIG_IGN})"
    done = subprocess.run([sys.executable, "-c", show], preexec_fn=tie_to(os.getpid()), capture_output=True, text=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("now", "expected", "dies"), [(1, None, True), (7, None, False), (1, 1, False), (1, 7, True), (7, 7, False)]
)
def test_a_child_of_process_1_is_no_orphan_if_it_was_told_so(
    monkeypatch: pytest.MonkeyPatch, now: int, expected: int | None, dies: bool
) -> None:
    """In a container the launcher may be process 1: its torchrun must not take itself for orphaned."""
    killed: list[int] = []
    monkeypatch.setattr(tied.ctypes, "CDLL", lambda _: types.SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(tied.os, "getppid", lambda: now)
    monkeypatch.setattr(tied.os, "kill", lambda pid, _: killed.append(pid))
    tied.die_with_parent(expected)
    assert bool(killed) == dies
