"""The best value of a share in the metrics.jsonl of a run.

    best_score(run.metrics, "all.exact_accuracy")        # None if it was never measured

Of equal values the latest counts: it has trained longer. It does not know which steps have a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arclab.files import is_kind, parse_object, require_kinds
from arclab.metrics.names import count_of


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


def scores_by_step(metrics: Path, metric: str) -> dict[int, Best]:
    """Every measured value of a share. Only lines that name it are parsed: a long run has many others. DamagedFile: a line is
    no row."""
    if not metrics.is_file():
        return {}
    found: dict[int, Best] = {}
    name = f'"{metric}"'.encode()
    with metrics.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if name not in line or not line.endswith(b"\n"):
                continue
            row = parse_object(line, metrics, line=number)
            require_kinds(row, {metric: float | None, "_step": int}, metrics, line=number)
            if row[metric] is not None:
                counts = {key: n for key, n in row.items() if is_kind(n, float)}
                found[row["_step"]] = Best(metric, row[metric], count_of(metric, counts), row["_step"])
    return found


def best_score(metrics: Path, metric: str, *, until: int | None = None) -> Best | None:
    """until: the last step that counts; None: all do."""
    scores = [score for step, score in sorted(scores_by_step(metrics, metric).items()) if until is None or step <= until]
    return max(reversed(scores), key=lambda score: score.value, default=None)
