"""A run that was killed without a word is FAILED for whoever looks next, and only if its process is certainly gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.config.schema import ExperimentConfig
from arclab.files import write_atomically
from arclab.launch.queue.jobsfile import JobLine, Section
from arclab.launch.queue.plan import PlannedRun
from arclab.launch.queue.progress import read_progress
from arclab.launch.queue.submit import submit
from arclab.methods.recursive.run import pretrain
from arclab.results.reading import read_runs
from arclab.runs.folder import RunDir, State
from arclab.runs.killed import KILLED, status_now
from arclab.runs.lock import lock_path
from arclab.runs.process_id import boot_id, pid_namespace

from ..conftest import ROOT, script_env
from ..methods.recursive.training.common import run_training

Tiny = Callable[..., ExperimentConfig]
HOLD = """
import sys, time
from pathlib import Path
from arclab.runs.folder import RunDir
from arclab.runs.lock import locked
with locked(RunDir(Path(sys.argv[1]))):
    print(flush=True)
    time.sleep(60)
"""


def killed(config: ExperimentConfig) -> RunDir:
    """Saved at step 2 of 4; then another process has it, says RUNNING and is killed."""
    run_training(config)
    run = RunDir(config.folder)
    for step in run.checkpoints.glob("step_00000004/*"):
        step.unlink()
    (run.checkpoints / "step_00000004").rmdir()
    run.write_status(State.running, 2)
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, cwd=ROOT, env=script_env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert (status_now(run) or {})["state"] == "RUNNING"  # it lives
        process.kill()
    return run


def test_whoever_looks_next_sees_a_failure(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny()
    run = killed(config)
    assert json.loads((run.path / "status.json").read_text())["state"] == "RUNNING"
    job = JobLine(1, 1, Section("", "", "", 0), "pretrain_encoder.py", "pretrain_encoder", config.name, (), ())
    planned = PlannedRun(job, config, ())
    progress = read_progress(planned, None)
    assert progress.state == "FAILED" and "was killed after step 2" in progress.message
    assert "the same command continues from its last checkpoint" in progress.message
    written = json.loads((run.path / "status.json").read_text())
    assert (written["state"], written["step"], written["exit_status"]) == ("FAILED", 2, KILLED)
    compared = read_runs([run.path])[0].state
    assert compared.startswith("FAILED at step ") and "was killed" in compared
    assert submit([planned], "local", dry_run=True)[0].what == "would be submitted to local (continues: FAILED)"
    assert pretrain(config) == 0 and run.state is State.done
    said = capfd.readouterr().err
    assert "was killed after step 2" in said and "continuing from step 2" in said


def test_what_cannot_be_written_is_seen_all_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = killed(tiny())

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "status.json")

    monkeypatch.setattr(RunDir, "write_status", refused)
    assert (status_now(run) or {})["state"] == "FAILED"
    assert (run.read_status() or {})["state"] == "RUNNING"


@pytest.mark.parametrize(
    "holder",
    [
        {"slurm_job": "12"},  # may be requeued
        {"host": "elsewhere", "boot_id": "another"},  # cannot be looked up
        {"pid": os.getpid(), "start_ticks": None, "boot_id": "", "host": "elsewhere"},
    ],
)
def test_only_what_is_certain_is_said(tmp_path: Path, holder: dict[str, object]) -> None:
    run = RunDir(tmp_path)
    record = {
        "host": os.uname().nodename, "pid": 2**22 - 1, "started": 1.0, "slurm_job": None, "incarnation": "0", "since": "now",
        "start_ticks": 1, "boot_id": boot_id(), "pid_namespace": pid_namespace(),
    }  # fmt: skip
    run.write_status(State.running, 3)
    write_atomically(lock_path(run), json.dumps({**record, **holder}))
    assert (status_now(run) or {})["state"] == "RUNNING"
    write_atomically(lock_path(run), json.dumps(record))
    assert (status_now(run) or {})["state"] == "FAILED"
