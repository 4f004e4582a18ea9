"""From a plan to jobs: submit what is not there yet, cancel, try failed runs again.

    actions = submit(plan.runs, "slurm", dry_run=False)        # returns at once; one Action for each run
    actions = cancel(plan.runs)
    actions = retry(plan.runs, cluster=None)

Idempotent: a run that is DONE, queued or running is left alone, so the same command can be given again after adding lines. What
failed or was cancelled starts again only by retry. Before a job exists its folder has the frozen configuration and the status
SUBMITTED; job.json names the job. On this machine (cluster local) jobs are processes that wait for a place, one after another
unless more are allowed; debug runs them in this process and blocks. Every run continues from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from submitit.core.utils import DelayedSubmission

from arclab.config.compose import ConfigError
from arclab.files import write_atomically
from arclab.interrupt import StopSignals, interrupted_status
from arclab.launch.cluster import JobTask, Kind, build_executor, submission_errors
from arclab.launch.job import prepare_run, run_job
from arclab.launch.plan import PlannedRun
from arclab.launch.progress import (
    CANCELLED,
    LOST,
    NEW,
    QUEUED,
    JobRecord,
    living_jobs,
    read_job,
    read_state,
    write_job,
)
from arclab.rundir import RunDir, State
from arclab.slurm import require_installed

# A year: jobs of this machine wait for each other, and no time limit is meant.
_LOCAL_LIMIT_MIN = 365 * 24 * 60
_SLOT_POLL_S = 0.5
_STARTABLE = (NEW, LOST, State.preempted.value)
_RETRIED = (State.failed.value, CANCELLED, LOST)


@dataclass(frozen=True, slots=True)
class Action:
    """What was done for a run. job "": none was submitted or cancelled."""

    run: str
    job: str
    what: str


def submit(runs: Sequence[PlannedRun], cluster: Kind, *, dry_run: bool = False, places: int = 1) -> list[Action]:
    """Submit every run that is new, lost or preempted. places: runs at a time on this machine."""
    if cluster == "slurm" and not dry_run:
        require_installed()
    living = living_jobs(runs)
    actions: list[Action] = []
    for run in runs:
        state = read_state(run.folder, living.get(run.folder.path))
        with _naming_what_was_started(actions):
            actions.append(_submit_or_say(run, state, cluster, dry_run, places))
    return actions


@contextmanager
def _naming_what_was_started(actions: Sequence[Action]) -> Iterator[None]:
    """A refusal in the middle of a list also says what waits in the queue by then."""
    try:
        yield
    except ConfigError as error:
        started = [action.run for action in actions if action.what.startswith("submitted")]
        if not started:
            raise
        raise ConfigError(f"{error} Submitted before it: {', '.join(started)}; the same command leaves these alone.") from error


def _submit_or_say(run: PlannedRun, state: str, cluster: Kind, dry_run: bool, places: int) -> Action:
    if state in _STARTABLE and run.waits_for is not None:
        return Action(run.name, "", f"waits for {run.waits_for} to be DONE; submit again then")
    if state not in _STARTABLE:
        hint = "; retry --failed starts it again" if state in _RETRIED else ""
        return Action(run.name, _job_id(run), f"skipped: {state}{hint}")
    if dry_run:
        return Action(run.name, "", f"would be submitted to {cluster}" + ("" if state == NEW else f" (continues: {state})"))
    return _started(run, cluster, places, "" if state == NEW else f" (continues: {state})")


def _started(run: PlannedRun, cluster: Kind, places: int, note: str) -> Action:
    job = _start(run, cluster, places)
    if cluster == "debug":
        return Action(run.name, job, f"ended: {read_state(run.folder, None)}{note}")
    return Action(run.name, job, f"submitted{note}")


def _job_id(run: PlannedRun) -> str:
    job = read_job(run.folder)
    return job.id if job else ""


def _start(run: PlannedRun, cluster: Kind, places: int) -> str:
    """Prepare the folder and submit its job; returns the job's id."""
    before, job_before = run.folder.read_status(), read_job(run.folder)
    folder = prepare_run(run.config)
    _record_command(folder, run)
    folder.write_status(State.submitted, folder.step)
    (folder.path / "job.json").unlink(missing_ok=True)
    if cluster == "debug":
        write_job(folder, JobRecord(str(os.getpid()), cluster, time.time()))
        run_job(folder.path)
        return str(os.getpid())
    try:
        job = _submit_to_slurm(run) if cluster == "slurm" else _submit_here(run, places)
    except ConfigError:
        folder.restore_status(before)  # nothing waits anywhere
        if job_before is not None:
            write_job(folder, job_before)  # it may say that the run was cancelled
        raise
    write_job(folder, JobRecord(job, cluster, time.time(), host=socket.gethostname()))
    return job


def _submit_to_slurm(run: PlannedRun) -> str:
    executor = build_executor(run.config.launch, "slurm", run.folder.path / "jobs", name=run.name)
    with submission_errors(run.config.launch):
        return executor.submit(JobTask(run.folder.path.resolve())).job_id


def _submit_here(run: PlannedRun, places: int) -> str:
    """As a process that outlives the terminal."""
    executor = build_executor(run.config.launch, "local", run.folder.path / "jobs", name=run.name)
    executor.update_parameters(timeout_min=_LOCAL_LIMIT_MIN)
    folder = Path(run.config.runs_dir).resolve() / ".places"
    task = LocalTask(run.folder.path.resolve(), folder, places, os.environ.get("CUDA_VISIBLE_DEVICES"))
    with _detached():
        return executor.submit(task).job_id


@contextmanager
def _detached() -> Iterator[None]:
    """Processes started here outlive the terminal and do not keep a pipe open: no SIGHUP, no standard input and output."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        for number, old in enumerate(kept):
            os.dup2(old, number)
            os.close(old)
        os.close(nothing)
        signal.signal(signal.SIGHUP, before)


def _record_command(folder: RunDir, run: PlannedRun) -> None:
    """provenance.json names the line that makes the run, not the command that submitted it."""
    record = json.loads(folder.provenance.read_text(encoding="utf-8"))
    record["command"] = " ".join(["pretrain_encoder.py", *run.job.overrides])
    write_atomically(folder.provenance, json.dumps(record, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A run on this machine that waits until one of `places` is free. folder: where the places are.

    visible_gpus: CUDA_VISIBLE_DEVICES of who submitted. submitit sets its own, and hides all GPUs from a job that names none.
    """

    run_dir: Path
    folder: Path
    places: int
    visible_gpus: str | None

    def __call__(self) -> None:
        if self.visible_gpus is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self._take()
        try:
            JobTask(self.run_dir)()
        finally:
            place.release()

    def _take(self) -> FileLock:
        with StopSignals() as signals:
            while True:
                for number in range(self.places):
                    lock = FileLock(self.folder / f"{number}.lock")
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                    return lock
                if signals.number is not None:
                    raise SystemExit(interrupted_status(signals.number))
                time.sleep(_SLOT_POLL_S)

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)


def cancel(runs: Sequence[PlannedRun]) -> list[Action]:
    """End the jobs of queued and running runs; a running one saves first. Others are left as they are."""
    living = living_jobs(runs)
    actions = []
    for run in runs:
        job, state = read_job(run.folder), read_state(run.folder, living.get(run.folder.path))
        if job is None or run.folder.path not in living or state == State.done.value:
            note = " (not started by submit: stop it where it runs)" if state == State.running.value else ""
            actions.append(Action(run.name, "", f"nothing to cancel: {state}{note}"))
            continue
        if job.is_elsewhere:
            actions.append(Action(run.name, job.id, f"not cancelled: it is a process of {job.host}; give the command there"))
            continue
        if job.cluster == "slurm":
            require_installed()
        write_job(run.folder, replace(job, is_cancelled=True))
        _end(job, is_running=living[run.folder.path] != QUEUED)
        actions.append(Action(run.name, job.id, "cancelled" if living[run.folder.path] == QUEUED else "told to save and end"))
    return actions


def _end(job: JobRecord, *, is_running: bool) -> None:
    """A running job of SLURM gets the signal alone: scancel by itself would kill it KillWait seconds later, saved or not."""
    if job.cluster == "slurm":
        only = ["--signal=TERM"] if is_running else []
        subprocess.run(["scancel", *only, job.id], check=True, capture_output=True)
        return
    try:
        os.kill(int(job.id), signal.SIGTERM)
    except ProcessLookupError:
        return  # ended by itself in this moment


def retry(runs: Sequence[PlannedRun], cluster: Kind | None, *, dry_run: bool = False, places: int = 1) -> list[Action]:
    """Submit failed, cancelled and lost runs again, each to where it was unless `cluster` says otherwise."""
    living = living_jobs(runs)
    actions = []
    for run in runs:
        state, job = read_state(run.folder, living.get(run.folder.path)), read_job(run.folder)
        if state not in _RETRIED:
            actions.append(Action(run.name, "", f"skipped: {state}"))
            continue
        if run.waits_for is not None:
            actions.append(Action(run.name, "", f"waits for {run.waits_for} to be DONE; retry again then"))
            continue
        kind: Kind = cluster or (job.cluster if job else "slurm")
        if dry_run:
            actions.append(Action(run.name, "", f"would be submitted to {kind} again ({state})"))
        else:
            with _naming_what_was_started(actions):
                actions.append(_started(run, kind, places, f" again ({state})"))
    return actions
