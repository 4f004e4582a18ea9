"""Planned runs become jobs: their folders are prepared, then SLURM or this machine gets them.

    prepared = prepare(run, "slurm")             # the frozen configuration, the status SUBMITTED; no job yet
    for run, job in start([prepared, ...], places=1): ...

Shards that are started together on SLURM are elements of one job array, or of several where it would be larger than the
cluster takes (MaxArraySize). Each element is preempted, requeued, cancelled and submitted again by itself. Whether a run should
be started is not asked here: see arclab.launch.queue.submit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from submitit.core.utils import DelayedSubmission

from arclab.config.compose import ConfigError
from arclab.files import naming, read_object, write_atomically
from arclab.launch.cluster import JobTask, build_executor, submission_errors
from arclab.launch.job import prepare_run
from arclab.launch.queue.plan import PlannedRun
from arclab.runs import slurm
from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import JobRecord, Kind, read_job, write_job
from arclab.runs.signals import StopSignals, interrupted_status

# A year: jobs of this machine wait for each other, and no time limit is meant.
_LOCAL_LIMIT_MIN = 365 * 24 * 60
_SLOT_POLL_S = 0.5
LOGS = "jobs"  # the folder of a job's own logs


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose folder waits for its job. status, job: what the folder said before."""

    run: PlannedRun
    cluster: Kind
    status: dict[str, Any] | None
    job: JobRecord | None

    def give_up(self) -> None:
        """Nothing waits anywhere: the folder says what it said before."""
        with suppress(OSError):  # of two errors the first one says what happened
            self.run.folder.restore_status(self.status)
            if self.job is not None:
                write_job(self.run.folder, self.job)  # it may say that the run was cancelled


def prepare(run: PlannedRun, cluster: Kind) -> Prepared:
    before, job_before = run.folder.read_status(), read_job(run.folder)
    folder = prepare_run(run.config)
    _record_command(folder, run)
    folder.write_status(State.submitted, folder.step)
    (folder.path / "job.json").unlink(missing_ok=True)
    return Prepared(run, cluster, before, job_before)


def array_of(run: PlannedRun) -> object:
    """Runs of which this is equal are started together: the shards of one evaluation or stage, which ask for the same."""
    folder = run.folder.path
    return folder if run.config.launch.shard is None else (folder.parent, run.makers)


def start(prepared: Sequence[Prepared], places: int) -> Iterator[tuple[PlannedRun, str]]:
    """Submits them; each with the id of its job. ConfigError, OSError: what was not submitted is as it was before."""
    by_job = [(each,) for each in prepared]
    if len(prepared) > 1 and all(each.cluster == "slurm" for each in prepared):
        size = slurm.max_array_size()
        by_job = [tuple(prepared[first : first + size]) for first in range(0, len(prepared), size)]
    for number, together in enumerate(by_job):
        try:
            jobs = _submit(together, places)
        except (ConfigError, OSError):
            for each in [waiting for left in by_job[number:] for waiting in left]:
                each.give_up()
            raise
        for each, job in zip(together, jobs, strict=True):
            _name_job(each, job)
            yield each.run, job


def _submit(together: Sequence[Prepared], places: int) -> list[str]:
    """The ids of their jobs: of elements of one array, where they are several."""
    runs = [each.run for each in together]
    if together[0].cluster == "debug":
        return [str(os.getpid())]  # run by arclab.launch.queue.submit
    with naming(_log_folder(runs)):
        return _submit_to_slurm(runs) if together[0].cluster == "slurm" else [_submit_here(runs[0], places)]


def _name_job(each: Prepared, job: str) -> None:
    """job.json, by which everybody else knows the job."""
    record = JobRecord.of_slurm(job) if each.cluster == "slurm" else JobRecord.of_process(int(job), each.cluster)
    try:
        write_job(each.run.folder, record)
    except OSError as error:
        end = f"scancel {job}" if each.cluster == "slurm" else f"kill {job}"
        error.add_note(f"note: {each.run.name} was submitted as job {job}, which nothing names now; end it with: {end}")
        raise


def _log_folder(runs: Sequence[PlannedRun]) -> Path:
    """That of an array stands beside the folders of its runs."""
    folder = runs[0].folder.path
    return (folder if len(runs) == 1 else folder.parent) / LOGS


def job_logs(run: PlannedRun) -> list[Path]:
    """What its jobs themselves have printed; of elements of arrays, the last one alone."""
    folder, job = run.folder.path, read_job(run.folder)
    of_array = [] if job is None or "_" not in job.id else folder.parent.glob(f"{LOGS}/{job.id}_*_log.*")
    return [*folder.glob(f"{LOGS}/*_log.*"), *of_array]


def _submit_to_slurm(runs: Sequence[PlannedRun]) -> list[str]:
    jobs = [job for maker in runs[0].makers if (job := read_job(RunDir(maker))) is not None]
    launch = runs[0].config.launch
    name = runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"
    executor = build_executor(
        launch, "slurm", _log_folder(runs), name=name, after=[job.id for job in jobs], array_size=len(runs)
    )
    with submission_errors(launch):
        return [job.job_id for job in executor.submit_array([JobTask(run.folder.path.resolve()) for run in runs])]


def _submit_here(run: PlannedRun, places: int) -> str:
    """As a process that outlives the terminal."""
    executor = build_executor(run.config.launch, "local", _log_folder([run]), name=run.name)
    executor.update_parameters(timeout_min=_LOCAL_LIMIT_MIN)
    folder = Path(run.config.runs_dir).resolve() / ".places"
    after = tuple(maker.resolve() for maker in run.makers)
    task = LocalTask(run.folder.path.resolve(), folder, places, os.environ.get("CUDA_VISIBLE_DEVICES"), after)
    with _detached():
        return executor.submit(task).job_id


@contextmanager
def _detached() -> Iterator[None]:
    """Processes started here outlive the terminal and do not keep a pipe open: no SIGHUP, no Ctrl-C, no standard input and
    output."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
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
        for number, handler in before.items():
            signal.signal(number, handler)


def _record_command(folder: RunDir, run: PlannedRun) -> None:
    """provenance.json names the line that makes the run, not the command that submitted it."""
    record = read_object(folder.provenance)
    record["command"] = run.job.command
    write_atomically(folder.provenance, json.dumps(record, indent=1) + "\n")


def maker_failed(maker: RunDir) -> str:
    state = maker.state
    return f"needs {maker.path}, which is {'NEW' if state is None else state.value}; see to that run, and retry this one"


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A run on this machine that waits until one of `places` is free. folder: where the places are. after: the folders of runs
    that must be DONE before.

    visible_gpus: CUDA_VISIBLE_DEVICES of who submitted. submitit sets its own, and hides all GPUs from a job that names none.
    """

    run_dir: Path
    folder: Path
    places: int
    visible_gpus: str | None
    after: tuple[Path, ...] = ()

    def __call__(self) -> None:
        if self.visible_gpus is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        os.setpgid(0, 0)  # a run handles SIGINT, so the Ctrl-C of who submitted it must not reach its processes
        self.folder.mkdir(parents=True, exist_ok=True)
        for maker in self.after:
            self._wait_for(RunDir(maker))
        place = self._take()
        try:
            JobTask(self.run_dir)()
        finally:
            place.release()

    def _wait_for(self, maker: RunDir) -> None:
        """Until it is DONE. If it ends in another way, this run is FAILED."""
        with StopSignals() as signals:
            while (state := maker.state) is not State.done:
                if signals.number is not None:
                    raise SystemExit(interrupted_status(signals.number))
                job = read_job(maker)
                has_ended = state not in (State.submitted, State.running) or job is None or not job.is_running_here()
                if has_ended and maker.state is not State.done:  # looked at again: it may have ended just now
                    RunDir(self.run_dir).write_status(State.failed, 0, maker_failed(maker), 2)
                    raise SystemExit(2)
                time.sleep(_SLOT_POLL_S)

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
