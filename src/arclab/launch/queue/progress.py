"""How far a run is, read from its folder and its queue: state, step, speed, verdict, best score.

    living = living_jobs(runs)                                   # {folder: "QUEUED" or "RUNNING"}; one squeue for all of them
    progress = read_progress(run, living.get(run.folder.path))

Reads status.json, job.json, lock.json, metrics.jsonl and criterion.json, whoever wrote them and while they are written. It
decides nothing. Beside the states of status.json there are NEW (no folder), QUEUED, REQUEUED (told to end, and will
continue by itself), CANCELLED (by the command cancel), DAMAGED (a file of it cannot be read; the message says which) and LOST:
the folder says that it was submitted or runs, but there is no such job or process. Where it is certain that the process was
killed (arclab.runs.killed), the run is FAILED.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile, is_kind, parse_object, read_object, require_kinds, sentence_of
from arclab.launch.queue.jobrecord import JobRecord, read_job
from arclab.launch.queue.plan import PlannedRun
from arclab.metrics.names import count_of
from arclab.runs import slurm
from arclab.runs.folder import RunDir, State
from arclab.runs.killed import status_now
from arclab.runs.lock import living_holder, read_holder

log = logging.getLogger(__name__)
NEW, QUEUED, REQUEUED, LOST, CANCELLED, DAMAGED = "NEW", "QUEUED", "REQUEUED", "LOST", "CANCELLED", "DAMAGED"
_RUNNING = State.running.value
OPEN_STATES = (_RUNNING, QUEUED, REQUEUED)  # the run goes on by itself
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED")
_TAIL_BYTES = 65536
_RATE_ROWS = 20


@dataclass(frozen=True, slots=True)
class Best:
    """The highest value of a metric, n/N, and the step it was measured at (None: of nothing that was trained here)."""

    metric: str
    value: float
    total: int | None
    step: int | None

    def __str__(self) -> str:
        count = f" ({round(self.value * self.total, 2):g}/{self.total})" if self.total else ""
        place = "" if self.step is None else f" at {self.step:,}"
        return f"{self.metric} {100 * self.value:.1f} %{count}{place}"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """state: see read_state. total_steps: None where only the data say it and the run has not begun.

    verdict: of the last health check, and its step. result: PASS or FAIL, "" without one."""

    state: str
    job: str
    step: int
    total_steps: int | None
    steps_per_s: float | None
    verdict: str
    best: Best | None
    result: str
    message: str

    @property
    def eta_s(self) -> float | None:
        if self.state != State.running.value or not self.steps_per_s or self.total_steps is None:
            return None
        return (self.total_steps - self.step) / self.steps_per_s


def living_jobs(runs: Sequence[PlannedRun], *, must_know: bool = True) -> dict[Path, str]:
    """Folder -> QUEUED or RUNNING, for the runs that have a job in the queue or a process of this machine.

    Where SLURM is not installed (a machine that only sees the folders), or with must_know=False does not answer, the word of
    the folder counts for SLURM's jobs, as it does for processes of other machines. ConfigError if it must be known and SLURM
    does not answer.
    """
    whole = [run.folder for run in runs if not damage_of(run)]
    jobs = {folder.path: job for folder in whole if (job := read_job(folder)) is not None}
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
    is_open = written in (State.submitted.value, _RUNNING)
    # The process of a debug job goes on after its run.
    is_alive = is_open if is_unseen else job.is_running_here() and (is_open or job.cluster == "local")
    return None if not is_alive else QUEUED if written == State.submitted.value else _RUNNING


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
    if written == _RUNNING:
        written = (status_now(run) or {}).get("state")
    if written in (_RUNNING, State.submitted.value):
        return NEW if job is None and written == State.submitted.value else LOST
    return written or NEW


def damage_of(run: PlannedRun) -> str:
    """The sentence for what cannot be read of a run's records; "" if all of them can."""
    if run.damage:
        return run.damage
    try:
        run.folder.read_status()
        read_job(run.folder)
        read_holder(run.folder)
    except DamagedFile as error:
        return str(error)
    except OSError as error:
        return sentence_of(error)
    return ""


def read_progress(run: PlannedRun, living: str | None) -> RunProgress:
    """DAMAGED, with the sentence as its message, if a file of the run cannot be read: the others of a list are shown all the
    same."""
    damage = damage_of(run)
    try:
        if not damage:
            return _progress(run, living)
    except DamagedFile as error:
        damage = str(error)
    except OSError as error:
        damage = sentence_of(error)
    return RunProgress(DAMAGED, "", 0, run.config.num_steps, None, "", None, "", damage)


def _progress(run: PlannedRun, living: str | None) -> RunProgress:
    folder = run.folder
    state, job = read_state(folder, living), read_job(folder)
    status = folder.read_status() or {}  # after its state: that of a killed run is written down by who looks first
    rows = _last_rows(folder.metrics)
    health = next((f"{row['health']} at {row['_step']:,}" for row in reversed(rows) if "health" in row), "")
    step = max([status.get("step", 0), *(row["_step"] for row in rows[-1:])])
    return RunProgress(
        state=state, job=job.id if job else "", step=step,
        total_steps=run.config.num_steps or status.get("num_steps"), steps_per_s=steps_per_s(rows), verdict=health,
        best=final_score(folder, run.config.best_metric) or best_score(folder.metrics, run.config.best_metric),
        result=_result(folder.path / "criterion.json"), message=status.get("message", ""),
    )  # fmt: skip


def _result(criterion: Path) -> str:
    if not criterion.is_file():
        return ""
    found = read_object(criterion)
    require_kinds(found, {"result": str}, criterion)
    return found["result"]


def steps_per_s(rows: list[dict[str, Any]]) -> float | None:
    """Over the last logged rows; time between two lives of a run does not count."""
    if len(rows) < 2:
        return None
    first, last = rows[-_RATE_ROWS:][0], rows[-1]
    seconds = last["_runtime"] - first["_runtime"]
    return (last["_step"] - first["_step"]) / seconds if seconds > 0 else None


def final_score(run: RunDir, metric: str) -> Best | None:
    """The share in the results of an evaluation (metrics.json); None where there are none."""
    path = run.path / "metrics.json"
    if not path.is_file():
        return None
    record = read_object(path, {"scores": dict[str, dict]})
    require_kinds(record, {"step": int}, path, may_lack=True)
    found = record["scores"].get(metric)
    if found is None:
        return None
    require_kinds(found, {"n": float, "N": int}, path)
    return Best(metric, found["n"] / max(1, found["N"]), found["N"], record.get("step"))


def best_score(metrics: Path, metric: str) -> Best | None:
    """The best value of a share. Only lines that name it are parsed: a long run has many others."""
    if not metrics.is_file():
        return None
    best: Best | None = None
    name = f'"{metric}"'.encode()
    with metrics.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if name not in line or not line.endswith(b"\n"):
                continue
            row = parse_object(line, metrics, line=number)
            require_kinds(row, {metric: float | None, "_step": int}, metrics, line=number)
            value = row[metric]
            if value is not None and (best is None or value > best.value):
                counts = {key: n for key, n in row.items() if is_kind(n, float)}
                best = Best(metric, value, count_of(metric, counts), row["_step"])
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
    rows = [parse_object(line, metrics) for line in (complete[1:] if size > _TAIL_BYTES else complete)]
    for row in rows:
        require_kinds(row, {"_step": int, "_runtime": float, **({"health": str} if "health" in row else {})}, metrics)
    return rows
