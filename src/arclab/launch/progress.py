"""How far a run is, read from its folder and its queue: state, step, speed, verdict, best score.

    progress = read_progress(run, queue)               # queue: {job id: state}, see job_states()

Reads status.json, job.json, metrics.jsonl and criterion.json, whoever wrote them and while they are written. It needs no
model and decides nothing. A run that says RUNNING but has no job and no living process is LOST: killed without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.launch.plan import PlannedRun
from arclab.rundir import RunDir, State

NEW, QUEUED, LOST = "NEW", "QUEUED", "LOST"
_TAIL_BYTES = 65536
_RATE_ROWS = 20
_DEFAULT_METRIC = "all.exact_accuracy"
# Numbers of rows that a share is taken over, by the beginning of its name.
_COUNTS = {"all.": "all.count", "ARC/": "ARC/tasks", "train/": "train/count"}


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
    """state: of status.json, or NEW, QUEUED, LOST. verdict: of the last health check. result: PASS or FAIL, "" without one."""

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
    """job.json: the job that was last submitted for a run."""

    id: str
    cluster: str
    submitted: str


def read_job(run: RunDir) -> JobRecord | None:
    record = _read_object(run.path / "job.json")
    return JobRecord(record["id"], record["cluster"], record["submitted"]) if record else None


def read_progress(run: PlannedRun, queue: Mapping[str, str]) -> Progress:
    """queue: the states of living jobs by id; empty where there is no queue."""
    folder = run.folder
    status = folder.read_status() or {}
    job = read_job(folder)
    rows = _last_rows(folder.metrics)
    health = next((row["health"] for row in reversed(rows) if "health" in row), "")
    criterion = _read_object(folder.path / "criterion.json") or {}
    metric = run.config.criterion.metric if run.config.criterion else _DEFAULT_METRIC
    step = max([int(status.get("step", 0)), *(int(row["_step"]) for row in rows[-1:])])
    return Progress(
        state=_state(status, job, queue), job=job.id if job else "", step=step, total_steps=run.config.trainer.steps,
        steps_per_s=steps_per_s(rows), verdict=str(health), best=best_score(folder.metrics, metric),
        result=str(criterion.get("result", "")), message=str(status.get("message", "")),
    )  # fmt: skip


def _state(status: Mapping[str, Any], job: JobRecord | None, queue: Mapping[str, str]) -> str:
    """The folder's word counts, unless it says that something runs of which the queue knows nothing."""
    written = status.get("state")
    queued = queue.get(job.id) if job else None
    if queued is not None and written not in (State.done.value, State.running.value):
        return QUEUED if queued == "PENDING" else queued
    if written is None:
        return NEW if job is None else LOST
    return LOST if written in (State.running.value, QUEUED) and job is not None and queued is None else str(written)


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
    count = next((count for prefix, count in _COUNTS.items() if metric.startswith(prefix)), "")
    best: Best | None = None
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            if f'"{metric}"' not in line or not line.endswith("\n"):
                continue
            row = json.loads(line)
            value = row[metric]
            if value is not None and (best is None or value > best.value):
                best = Best(metric, value, int(row[count]) if row.get(count) else None, row["_step"])
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
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
