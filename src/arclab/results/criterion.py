"""Success criteria: what a run must reach, judged at its end from the metrics of its last evaluation.

    require_measurable(config)                              # before training: ValueError if the run cannot be judged
    result = judge_criterion(config.criterion, read_rows(run.metrics))
    write_criterion(result, run)                            # criterion.json in the run folder

A result is n/N with a 95 % Wilson interval. PASS and FAIL go by the value alone; whether the interval excludes the
threshold is said beside it. Augmented copies of a task are not independent trials: the interval counts tasks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arclab.config.run import CriterionConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.tasks import ArcTask
from arclab.files import DamagedFile, Kind, read_object, write_atomically
from arclab.metrics.names import count_of, is_counted_share
from arclab.results.scoring import Share
from arclab.runs.folder import RunDir

_FILE = "criterion.json"


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """value = n/N of `counted`; interval95 is over num_independent of `independent`. value nan: never measured, a FAIL."""

    criterion: CriterionConfig
    step: int
    n: float
    N: int
    counted: str
    num_independent: int
    independent: str

    @property
    def value(self) -> float:
        return self.n / self.N if self.N else math.nan

    @property
    def interval95(self) -> tuple[float, float]:
        return Share(self.value * self.num_independent, self.num_independent).interval if self.N else (0.0, 1.0)

    @property
    def passed(self) -> bool:
        return self.value >= self.criterion.threshold

    def __str__(self) -> str:
        low, high = self.interval95
        certain = not low <= self.criterion.threshold <= high
        return (
            f"{'PASS' if self.passed else 'FAIL'} ({self.criterion.phase}): {self.criterion.metric} {self.n:g}/{self.N} "
            f"{self.counted} = {100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] over {self.num_independent} "
            f"{self.independent}, {'at least' if self.passed else 'below'} {100 * self.criterion.threshold:g} %"
            + ("" if certain else " (the interval contains the threshold)")
        )


def require_measurable(config: ExperimentConfig) -> None:
    """ValueError if the criterion's metric does not exist, is no share where more is better, or is never measured."""
    if config.criterion is None:
        return
    name = config.criterion.metric
    if not is_counted_share(name):
        known = ", ".join(("train/exact_accuracy", "all.exact_accuracy", "ARC/pass@1", "ARC/pass@2", "ARC/solved@2"))
        raise ValueError(
            f"criterion.metric={name} is not a share of rows or tasks that a run measures and that should be high; use one of "
            f"{known}."
        )
    if not name.startswith("train/") and config.trainer.eval_every == 0:
        raise ValueError(
            f"criterion.metric={name} is measured in evaluations and trainer.eval_every=0 has none; set it above 0."
        )


def require_answers(config: ExperimentConfig, tasks: Sequence[ArcTask]) -> None:
    """ValueError if a criterion wants scores of tasks none of which has a known answer."""
    if config.criterion is None or config.criterion.metric.startswith("train/"):
        return
    if all(pair.output is None for task in tasks for pair in task.tests):
        raise ValueError(
            f"criterion.metric={config.criterion.metric} cannot be measured: no answer of the {len(tasks)} scored tasks "
            f"(evaluation.split={config.evaluation.split.value}) is known; set criterion=null, or score a split with answers."
        )


def judge_criterion(criterion: CriterionConfig, rows: Sequence[Mapping[str, Any]]) -> CriterionResult:
    """By the newest row that has the metric. train/: rows that halted; all.: augmented copies; ARC/: tasks."""
    row = next((row for row in reversed(rows) if row.get(criterion.metric) is not None), None)
    if row is None:
        return CriterionResult(criterion, rows[-1]["_step"] if rows else 0, 0.0, 0, "never measured", 0, "tasks")
    value, step = row[criterion.metric], row["_step"]
    if criterion.metric.startswith("train/"):
        count = int(row["train/count"])
        tasks = next((int(r["num_train_tasks"]) for r in rows if "num_train_tasks" in r), count)
        independent = (
            (tasks, "training tasks") if tasks < count else (count, "rows")
        )  # rows of one task are no independent trials
        return CriterionResult(criterion, step, value * count, count, "rows", *independent)
    if criterion.metric.startswith(("text/", "knowledge/")):
        asked = count_of(criterion.metric, row) or 0
        return CriterionResult(criterion, step, round(value * asked, 3), asked, "questions", asked, "questions")
    if criterion.metric.startswith("edits/"):
        count, counted = count_of(criterion.metric, row) or 0, "start programs" if "solved" in criterion.metric else "edits"
        return CriterionResult(criterion, step, round(value * count, 3), count, counted, count, counted)
    if criterion.metric == "seal/successful_share":
        count, tasks = count_of(criterion.metric, row) or 0, int(row["ARC/tasks"])
        return CriterionResult(criterion, step, round(value * count, 3), count, "proposals", tasks, "tasks")
    if criterion.metric.startswith(("learned/", "seal/")):
        count = count_of(criterion.metric, row) or 0
        return CriterionResult(criterion, step, round(value * count, 3), count, "tasks", count, "tasks")
    tasks = int(row["ARC/tasks"])
    if criterion.metric.startswith("ARC/"):
        return CriterionResult(criterion, step, value * tasks, tasks, "tasks", tasks, "tasks")
    count = count_of(criterion.metric, row) or 0
    return CriterionResult(criterion, step, round(value * count, 3), count, "augmented test inputs", tasks, "tasks")


def write_criterion(result: CriterionResult, run: RunDir) -> None:
    """criterion.json: the criterion, PASS or FAIL, n, N, value, interval and the step it was measured at."""
    measured = result.N > 0
    record = {
        "result": "PASS" if result.passed else "FAIL",
        "phase": result.criterion.phase,
        "metric": result.criterion.metric,
        "threshold": result.criterion.threshold,
        "value": result.value if measured else None,
        "n": result.n,
        "N": result.N,
        "counted": result.counted,
        "interval95": list(result.interval95),
        "interval_over": f"{result.num_independent} {result.independent}",
        "step": result.step,
        "sentence": str(result),
    }
    write_atomically(run.path / _FILE, json.dumps(record, indent=1) + "\n")


def remove_criterion(run: RunDir) -> None:
    (run.path / _FILE).unlink(missing_ok=True)


_KINDS: dict[str, Kind] = {
    "result": str, "phase": str, "metric": str, "threshold": float, "value": float | None, "n": float, "N": int, "counted": str,
    "interval_over": str, "step": int, "sentence": str,
}  # fmt: skip


def read_criterion(run: RunDir) -> dict[str, Any] | None:
    """What write_criterion wrote, with num_independent, the number that interval_over begins with; None if there is none.
    DamagedFile if it is not that."""
    path = run.path / _FILE
    if not path.is_file():
        return None
    record = read_object(path, _KINDS)
    number = re.match(r"(\d{1,18}) ", record["interval_over"])
    if number is None:
        raise DamagedFile(path, "interval_over does not begin with a number")
    if record["N"] < 0 or not 0 <= record["n"] <= record["N"]:
        raise DamagedFile(path, f"n is {record['n']} of N = {record['N']}")
    if record["N"] > 0 and (record["value"] is None or not 0 <= record["value"] <= 1):
        raise DamagedFile(path, f"value is {record['value']}, and no share")
    return {**record, "num_independent": int(number[1])}
