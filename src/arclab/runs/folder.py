"""One folder per run, without timestamps, so that the same command resumes in place: <runs_dir>/<experiment_name>/<name> for
one that trains; the folder of its results for one that evaluates.

config.yaml        the resolved configuration        provenance.json   command, commit, machine, versions, data notes
status.json        state, step, message, exit status metrics.jsonl     one row per logged step
lock.json          who works here (arclab.runs.lock)   console.log       output of a torchrun job (arclab.launch.job)
PREEMPT            asks the run to save and end      run_id            the W&B run, the same after every resume
criterion.json     PASS or FAIL, if the run has one    release.json    makes it a release: see arclab.methods.recursive.release
checkpoints/       see arclab.runs.checkpoints    evaluation/       results of evaluate.py

This module imports no torch: whoever starts a run does not need it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, freeze, identity, other_run, quoted, thaw_run
from arclab.config.run import RunConfig
from arclab.files import DamagedFile, read_object, require_kinds, step_folders, write_atomically

_STATUS_REMEDY = "remove it, and the run goes on from its last checkpoint"


class State(Enum):
    submitted = "SUBMITTED"  # waits in a queue
    running = "RUNNING"
    done = "DONE"
    failed = "FAILED"
    stopped = "STOPPED"  # by trainer.stop_when_unhealthy
    preempted = "PREEMPTED"  # told to end: saved, and the same command continues


@dataclass(frozen=True, slots=True)
class RunDir:
    """outer: the run whose stage it is (arclab.runs.stages), if that one runs it."""

    path: Path
    outer: RunDir | None = None

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def preempt(self) -> Path:
        return self.path / "PREEMPT"

    @property
    def is_told(self) -> bool:
        """Is there a file that asks this run, or the one around it, to save and end?"""
        return self.preempt.exists() or (self.outer is not None and self.outer.is_told)

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    @property
    def run_id(self) -> str:
        """The id of this run at W&B: made once."""
        path = self.path / "run_id"
        if not path.is_file():
            write_atomically(path, uuid.uuid4().hex[:12] + "\n")
        return path.read_text(encoding="utf-8").strip()

    @property
    def step(self) -> int:
        """The step that status.json names; 0 before there is one."""
        return (self.read_status() or {"step": 0})["step"]

    @property
    def state(self) -> State | None:
        status = self.read_status()
        return None if status is None else State(status["state"])

    def write_status(
        self, state: State, step: int, message: str = "", exit_status: int = 0, *, num_steps: int | None = None
    ) -> None:
        """exit_status: what the process returns (of FAILED and STOPPED: 2 if the user can mend it, 1 for a crash). num_steps:
        how far the run goes, where its configuration does not say."""
        status = {"state": state.value, "step": step, "message": message, "exit_status": exit_status, "time": time.time()}
        status |= {} if num_steps is None else {"num_steps": num_steps}
        write_atomically(self.path / "status.json", json.dumps(status) + "\n")

    def restore_status(self, status: dict[str, Any] | None) -> None:
        """Put back what read_status() said earlier."""
        if status is None:
            (self.path / "status.json").unlink(missing_ok=True)
        else:
            write_atomically(self.path / "status.json", json.dumps(status) + "\n")

    def read_status(self) -> dict[str, Any] | None:
        """None before there is one. DamagedFile if it says no state, step and message."""
        path = self.path / "status.json"
        if not path.is_file():
            return None
        status = read_object(path, remedy=_STATUS_REMEDY)
        optional = {key: int for key in ("exit_status", "num_steps") if key in status}
        hints = {"state": str, "step": int, "message": str, **optional}
        require_kinds(status, hints, path, remedy=_STATUS_REMEDY)
        if status["state"] not in {state.value for state in State} or status["step"] < 0:
            raise DamagedFile(path, f"state={status['state'][:40]!r}, step={status['step']}", remedy=_STATUS_REMEDY)
        return status


def short_commit(record: dict[str, Any]) -> str:
    """The commit of a provenance record, short; "+changes" is kept."""
    commit, plus, changes = str(record.get("commit", "not recorded")).partition("+")
    return (commit if " " in commit else commit[:10]) + plus + changes


def open_run(config: RunConfig, notes: tuple[str, ...] = ()) -> RunDir:
    """The run's folder, created or found, with the configuration frozen in it. ConfigError if it belongs to another one.

    A run that is DONE is left as it is, unless the same command does it again (an evaluation): what it was made with must not
    become what looked at it. Where checkpoints go on,
    provenance.json also keeps how they were made ("earlier"), and what the configuration leaves open
    (trainer.batch_size=auto) is what they were made with.
    """
    run = RunDir(config.folder)
    require_same(run, config)
    if has_finished(run, config):
        return run
    if run.config.is_file() and step_folders(run.checkpoints):
        config = config.settled(thaw_run(run.config))
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.config, freeze(config))
    record = {**provenance(), "notes": list(notes)}
    if step_folders(run.checkpoints) and run.provenance.is_file():
        before = read_object(run.provenance)
        start = {key: before[key] for key in ("command", "commit", "machine", "torch", "started") if key in before}
        record["earlier"] = [*before.get("earlier", []), {**start, "to_step": run.step}]
    write_atomically(run.provenance, json.dumps(record, indent=1) + "\n")
    return run


def add_notes(run: RunDir, notes: tuple[str, ...]) -> None:
    """Put what was learned from the data into provenance.json."""
    record = read_object(run.provenance)
    write_atomically(run.provenance, json.dumps({**record, "notes": list(notes)}, indent=1) + "\n")


def is_done(run: RunDir, config: RunConfig) -> bool:
    """Is there nothing left to do? ConfigError for a run that was stopped as unhealthy and would only be stopped again."""
    status = run.read_status() or {"state": "", "message": ""}
    if status["state"] == State.stopped.value and config.stops_when_unhealthy:
        raise ConfigError(f"{status['message']}; {run.path} goes on from there with trainer.stop_when_unhealthy=false.")
    return has_finished(run, config)


def has_finished(run: RunDir, config: RunConfig) -> bool:
    """It is DONE, the same command does not do it again, and there are no more steps than it has made."""
    is_longer = config.num_steps is not None and config.num_steps > run.step
    return run.state is State.done and not config.is_done_again and not is_longer


def require_same(run: RunDir, config: RunConfig) -> None:
    """ConfigError if the folder belongs to another configuration. One that never started and waits nowhere belongs to nobody,
    nor does one that was refused before its first step, or of a run which the same command does again with whatever
    settings."""
    if run.state is None or not run.config.is_file() or config.is_done_again or _was_refused(run):
        return
    held = thaw_run(run.config)
    if other := other_run(held, config):
        before, now = identity(held), identity(config)
        changed = [f"{key}={quoted(value)}" for key, value in before.items() if key in now and now[key] != value]
        raise ConfigError(
            f"the run folder {run.path} was made with {other}; choose another name=, or remove the "
            f"folder{how_to_continue(run, changed)}."
        )


def how_to_continue(run: RunDir, changed: Sequence[str] = ()) -> str:
    """The command of the run in the folder, as the end of a sentence; empty if it is not known. changed: overrides that give
    back what the run was made with. The command gets them where it is the present one: then it is a file of conf/ that says
    something else since."""
    command = read_object(run.provenance).get("command", "") if run.provenance.is_file() else ""
    if not isinstance(command, str) or not re.match(r"(python )?\w+\.py( |$)", command):
        return ""
    if command == _command():
        command = " ".join([command, *map(shlex.quote, changed)])
    return f"; the run in it goes on with: {command if command.startswith('python ') else f'python {command}'}"


def _was_refused(run: RunDir) -> bool:
    """It never made a step, for a reason that the user was asked to mend."""
    status = run.read_status() or {}
    has_begun = run.metrics.exists() or bool(step_folders(run.checkpoints))
    return status.get("state") == State.failed.value and status.get("exit_status") == 2 and not has_begun


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """What a number needs to be traced: command, commit, machine and versions."""
    return {
        "command": _command(),
        "commit": _git_commit(),
        "machine": ", ".join([platform.machine(), f"{os.cpu_count()} cores", *_gpu_names()]),
        "python": platform.python_version(),
        "torch": version("torch"),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _gpu_names() -> list[str]:
    """One name for each kind of GPU here; none without the NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return sorted(set(asked.stdout.splitlines())) if asked.returncode == 0 else []


def _git_commit() -> str:
    root = Path(__file__).resolve().parents[3]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed.strip() else "")
