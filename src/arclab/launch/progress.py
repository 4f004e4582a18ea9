"""How far a run is, read from its folder and its queue: state, step, speed, verdict, best score.

    living = living_jobs(runs)                                   # {folder: "QUEUED" or "RUNNING"}; one squeue for all of them
    progress = read_progress(run, living.get(run.folder.path))

Reads status.json, job.json, lock.json, metrics.jsonl and criterion.json, whoever wrote them and while they are written. It
decides nothing. Beside the states of status.json there are NEW (no folder), QUEUED, REQUEUED (told to end, and will
continue by itself), CANCELLED (by the command cancel) and LOST:
the folder says that it was submitted or runs, but there is no such job or process; it was killed without a word.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from arclab import slurm
from arclab.config.compose import ConfigError
from arclab.files import read_object, write_atomically
from arclab.launch.cluster import Kind
from arclab.launch.plan import PlannedRun
from arclab.metrics.names import count_of
from arclab.rundir import RunDir, State
from arclab.runlock import living_holder

log = logging.getLogger(__name__)
NEW, QUEUED, REQUEUED, LOST, CANCELLED = "NEW", "QUEUED", "REQUEUED", "LOST", "CANCELLED"
_RUNNING = State.running.value
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED")
_TAIL_BYTES = 65536
_RATE_ROWS = 20
_DEFAULT_METRIC = "all.exact_accuracy"


@dataclass(frozen=True, slots=True)
class Best:
    """The highest value of a metric, and n/N and the step it was measured at."""

    metric: str
    value: float
    total: int | None
    step: int

    def __str__(self) -> str:
        count = f" ({round(self.value * self.total, 2):g}/{self.total})" if self.total else ""
        return f"{self.metric} {100 * self.value:.1f} %{count} at {self.step:,}"


@dataclass(frozen=True, slots=True)
class Progress:
    """state: see read_state. verdict: of the last health check, and its step. result: PASS or FAIL, "" without one."""

    state: str
    job: str
    step: int
    total_steps: int
    steps_per_s: float | None
    verdict: str
    best: Best | None
    result: str
    message: str

    @property
    def eta_s(self) -> float | None:
        if self.state != State.running.value or not self.steps_per_s:
            return None
        return (self.total_steps - self.step) / self.steps_per_s


@dataclass(frozen=True, slots=True)
class JobRecord:
    """job.json: the job last submitted for a run. submitted: seconds since 1970. host: the machine whose process a local job is."""

    id: str
    cluster: Kind
    submitted: float
    is_cancelled: bool = False
    host: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """A process of another machine: its number says nothing here."""
        return self.cluster == "local" and self.host not in ("", socket.gethostname())


def read_job(run: RunDir) -> JobRecord | None:
    record = _read_object(run.path / "job.json")
    return JobRecord(**record) if record else None


def write_job(run: RunDir, job: JobRecord) -> None:
    write_atomically(run.path / "job.json", json.dumps(asdict(job)) + "\n")


def living_jobs(runs: Sequence[PlannedRun], *, must_know: bool = True) -> dict[Path, str]:
    """Folder -> QUEUED or RUNNING, for the runs that have a job in the queue or a process of this machine.

    Where SLURM is not installed (a machine that only sees the folders), or with must_know=False does not answer, the word of the
    folder counts for SLURM's jobs, as it does for processes of other machines. ConfigError if it must be known and SLURM does not answer.
    """
    jobs = {run.folder.path: job for run in runs if (job := read_job(run.folder)) is not None}
    queue = _queue(must_know) if any(job.cluster == "slurm" for job in jobs.values()) else None
    states = {path: _job_state(RunDir(path), job, queue) for path, job in jobs.items()}
    return {path: state for path, state in states.items() if state is not None}


def _queue(must_know: bool) -> dict[str, str] | None:
    """SLURM's states by job id; None if it cannot be asked."""
    if not slurm.is_installed():
        return None
    try:
        return slurm.queue_states()
    except ConfigError as error:
        if must_know:
            raise
        log.warning("states are those of the run folders: %s", error)
        return None


def _job_state(run: RunDir, job: JobRecord, queue: Mapping[str, str] | None) -> str | None:
    if job.cluster == "slurm" and queue is not None:
        state = queue.get(job.id)
        return None if state is None or state in _ENDED else QUEUED if state in _WAITING else _RUNNING
    written = (run.read_status() or {}).get("state")
    is_unseen = job.cluster == "slurm" or job.is_elsewhere
    is_alive = written in (State.submitted.value, _RUNNING) if is_unseen else _has_process(job)
    return None if not is_alive else QUEUED if written == State.submitted.value else _RUNNING


def _has_process(job: JobRecord) -> bool:
    return job.cluster == "local" and is_process(int(job.id), job.submitted)


def is_process(pid: int, not_after: float) -> bool:
    """Does this process run, and has it since that time? Numbers are used again."""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= not_after + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_state(run: RunDir, living: str | None) -> str:
    """The state in one word. living: what living_jobs() knows of it."""
    written = (run.read_status() or {}).get("state")
    if written == State.done.value:
        return written
    if living is not None:
        return REQUEUED if written == State.preempted.value else living
    if living_holder(run) is not None:
        return _RUNNING
    job = read_job(run)
    if job is not None and job.is_cancelled:
        return CANCELLED
    if written in (_RUNNING, State.submitted.value):
        return NEW if job is None and written == State.submitted.value else LOST
    return written or NEW


def read_progress(run: PlannedRun, living: str | None) -> Progress:
    folder = run.folder
    status, job = folder.read_status() or {}, read_job(folder)
    rows = _last_rows(folder.metrics)
    health = next((f"{row['health']} at {row['_step']:,}" for row in reversed(rows) if "health" in row), "")
    criterion = _read_object(folder.path / "criterion.json") or {}
    metric = run.config.criterion.metric if run.config.criterion else _DEFAULT_METRIC
    step = max([int(status.get("step", 0)), *(int(row["_step"]) for row in rows[-1:])])
    return Progress(
        state=read_state(folder, living), job=job.id if job else "", step=step, total_steps=run.config.trainer.steps,
        steps_per_s=steps_per_s(rows), verdict=health, best=best_score(folder.metrics, metric),
        result=str(criterion.get("result", "")), message=str(status.get("message", "")),
    )  # fmt: skip


def steps_per_s(rows: list[dict[str, Any]]) -> float | None:
    """Over the last logged rows; time between two lives of a run does not count."""
    if len(rows) < 2:
        return None
    first, last = rows[-_RATE_ROWS:][0], rows[-1]
    seconds = last["_runtime"] - first["_runtime"]
    return (last["_step"] - first["_step"]) / seconds if seconds > 0 else None


def best_score(metrics: Path, metric: str) -> Best | None:
    """The best value of a share. Only lines that name it are parsed: a long run has many others."""
    if not metrics.is_file():
        return None
    best: Best | None = None
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            if f'"{metric}"' not in line or not line.endswith("\n"):
                continue
            row = json.loads(line)
            value = row[metric]
            if value is not None and (best is None or value > best.value):
                best = Best(metric, value, count_of(metric, row), row["_step"])
    return best


def _last_rows(metrics: Path) -> list[dict[str, Any]]:
    """The complete rows in the last few kilobytes."""
    if not metrics.is_file():
        return []
    with metrics.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith(b"\n")]
    return [json.loads(line) for line in (complete[1:] if size > _TAIL_BYTES else complete)]


def _read_object(path: Path) -> dict[str, Any] | None:
    return read_object(path) if path.is_file() else None
