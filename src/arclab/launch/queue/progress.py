"""How far a run is, read from its folder and its queue: state, step, speed, verdict, best score.

    living = living_jobs(runs)                                   # {folder: "QUEUED" or "RUNNING"}; one squeue for all of them
    progress = read_progress(run, living.get(run.folder.path))

Reads status.json, job.json, lock.json, metrics.jsonl and criterion.json, whoever wrote them and while they are written. It
decides nothing. The words for a state are those of arclab.runs.statewords.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.files import DamagedFile, parse_object, read_object, require_kinds, sentence_of
from arclab.launch.queue.plan import PlannedRun
from arclab.metrics.best import Best, best_score
from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import read_job
from arclab.runs.lock import read_holder
from arclab.runs.statewords import DAMAGED, QUEUED, REQUEUED, living_folders, read_state

OPEN_STATES = (State.running.value, QUEUED, REQUEUED)  # the run goes on by itself
_TAIL_BYTES = 65536
_RATE_ROWS = 20


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

    See arclab.runs.statewords.living_folders; damaged runs are left out.
    """
    return living_folders([run.folder for run in runs if not damage_of(run)], must_know=must_know)


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
