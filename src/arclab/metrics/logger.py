"""Metrics go to metrics.jsonl always and to W&B if it is on, under the registered names only.

    with MetricLogger(run.metrics, wandb_run, resume_step=step, runtime_s=runtime) as log:
        log.write(step, {"train/lm_loss": 0.3})

Rows after resume_step are removed when the file is opened: a resumed run writes each step once. Only rank 0 has a logger.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from arclab.files import DamagedFile, is_kind, naming, numbered_lines, short, write_atomically
from arclab.metrics.names import COUNTS, REGISTRY, ROW_FIELDS, TABLES, TEXT_FIELDS, is_counted_share
from arclab.metrics.tables import Prediction, table_record, wandb_table
from arclab.metrics.wandb_run import kept_in

_ROUNDING = 1e-6  # a mean of ones can come out above 1
_MAX_COUNT = 2**40  # steps, rows, seconds since 1970: no run has more, and dates end somewhere


class MetricLogger:
    def __init__(self, path: Path, wandb_run: Any | None, *, resume_step: int, runtime_s: float) -> None:
        _keep_rows_until(path, resume_step)
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._wandb = wandb_run
        self._start = time.monotonic() - runtime_s

    @property
    def runtime_s(self) -> float:
        """Seconds of training so far, earlier runs of the same folder included."""
        return time.monotonic() - self._start

    def write(self, step: int, metrics: dict[str, float], text: dict[str, str] | None = None) -> None:
        """One row. Values that are not finite are written as null, so that the file stays JSON. text: see TEXT_FIELDS."""
        unknown = sorted(metrics.keys() - REGISTRY.keys())
        assert not unknown, f"metric {unknown} is not in metrics/names.py"
        row = {"_step": step, "_runtime": round(self.runtime_s, 3), "_timestamp": round(time.time(), 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        assert text is None or text.keys() <= set(TEXT_FIELDS)
        row |= text or {}
        with naming(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)
            if text:
                self._wandb.summary.update(text)

    def alert(self, title: str, text: str, *, is_bad: bool) -> None:
        """A W&B alert (mail or chat, as the user's account says); nothing without W&B."""
        if self._wandb is not None:
            self._wandb.alert(title=title, text=text, level="ERROR" if is_bad else "WARN")

    def table(self, step: int, name: str, predictions: Sequence[Prediction]) -> None:
        """The newest predictions as <run>/<name>.json, and as a W&B table with pictures."""
        assert name in TABLES
        write_atomically(self._path.with_name(f"{name}.json"), json.dumps(table_record(step, predictions)) + "\n")
        if self._wandb is not None:
            with kept_in(self._path.parent):  # the table copies its pictures
                self._wandb.log({name: wandb_table(predictions)}, step=step)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._wandb is not None:
            with kept_in(self._path.parent):
                self._wandb.finish(exit_code=0 if error is None else 1)
        with suppress(OSError) if error else naming(self._path):  # of two errors the first one says what happened
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a metrics.jsonl (a kill can leave a part of the last one). DamagedFile names a line that is no
    row."""
    if not path.is_file():
        return []
    rows = []
    for number, row in numbered_lines(path, {"_step": int}):
        fault = next((fault for name, value in row.items() if (fault := _fault_of(name, value))), None)
        if fault is not None:
            raise DamagedFile(path, fault, line=number)
        rows.append(row)
    return rows


def _fault_of(name: str, value: Any) -> str | None:
    if not is_kind(value, str if name in TEXT_FIELDS else float | None):
        return f"{name} is {short(value)} where {'text' if name in TEXT_FIELDS else 'a number or null'} belongs"
    most = 1 + _ROUNDING if is_counted_share(name) else _MAX_COUNT if name in COUNTS or name in ROW_FIELDS else None
    if most is None or value is None or 0 <= value <= most:
        return None
    return f"{name} is {short(value)}, which it cannot be"


def _keep_rows_until(path: Path, step: int) -> None:
    kept = [row for row in read_rows(path) if row["_step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
