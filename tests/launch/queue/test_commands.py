"""The command line around the queue: logs, watching, wrong words."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from arclab.launch.queue.plan import read_plan
from arclab.runs.folder import State, open_run

from ...conftest import ROOT


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arclab.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.txt"
    path.write_text(
        "".join(
            f"pretrain_encoder.py experiment=quickstart runs_dir={tmp_path}/runs name={n} seed={i}\n"
            for i, n in enumerate("ab")
        )
    )
    return path


def test_tail_shows_the_end_and_follows(file: Path) -> None:
    folder = open_run(read_plan(file, "a").runs[0].config)
    folder.console.write_text("".join(f"line {i}\n" for i in range(100)))
    assert launch("tail", "a", "--file", str(file), "-n", "2").stdout.splitlines()[1:] == ["line 98", "line 99"]
    command = [sys.executable, "-u", "-m", "arclab.launch", "tail", "a", "--file", str(file), "-n", "1", "--follow"]
    # A shell's background job, and so its children, starts with SIGINT ignored.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=listen) as follower:
        timer = threading.Timer(60, follower.kill)
        timer.start()
        assert follower.stdout is not None
        assert [follower.stdout.readline().strip() for _ in range(2)][1] == "line 99"
        with folder.console.open("a") as log:
            log.write("line 100\n")
        assert follower.stdout.readline() == "line 100\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait() == 0
        timer.cancel()


def test_before_training_the_log_of_the_job_is_shown(file: Path) -> None:
    folder = open_run(read_plan(file, "a").runs[0].config)
    silent = launch("tail", "a", "--file", str(file))
    assert silent.returncode == 2 and "a has written nothing yet" in silent.stderr
    (folder.path / "jobs").mkdir()
    (folder.path / "jobs/12_0_log.err").write_text("ModuleNotFoundError: torch\n")
    assert "ModuleNotFoundError: torch" in launch("tail", "a", "--file", str(file)).stdout


def test_watching_ends_when_nothing_runs(file: Path) -> None:
    open_run(read_plan(file, "a").runs[0].config).write_status(State.failed, 3, "the last words")
    done = launch("status", str(file), "--watch", "0.1")
    assert done.returncode == 0 and "1 FAILED, 1 NEW" in done.stdout and "a: the last words" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (("tail", "*"), "* matches 2 runs (a, b); name one of them"), (("cancel", "x"), "--only 'x' matches none of the 2 runs"),
])  # fmt: skip
def test_wrong_names(file: Path, arguments: tuple[str, ...], message: str) -> None:
    done = launch(*arguments, "--file", str(file))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_wrong_words(file: Path) -> None:
    assert launch("sumbit", str(file)).returncode == launch("retry", str(file)).returncode == 2
    assert "--failed" in launch("retry", str(file)).stderr
    none = launch("submit", str(file), "--cluster", "local", "--places", "0")
    assert none.returncode == 2 and "--places 0 must be at least 1" in none.stderr
