"""The tables train_predictions and eval_predictions: a few predicted grids beside their input and truth.

Always written as JSON into the run folder; with W&B on they are tables with one picture a row (input, truth, prediction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arclab.data.tasks import COLORS, Grid

TABLE_ROWS = 16
_CELL_PX, _GAP_PX, _BACKGROUND = 8, 8, 255
_RGB = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLORS], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predicted grid; predicted None: no grid was shown, truth None: the answer is hidden."""

    task: str
    test: int
    input: Grid
    truth: Grid | None
    predicted: Grid | None

    @property
    def correct(self) -> bool | None:
        if self.truth is None:
            return None
        return self.predicted is not None and np.array_equal(self.predicted, self.truth)


def table_record(step: int, predictions: Sequence[Prediction]) -> dict[str, Any]:
    def rows(grid: Grid | None) -> list[list[int]] | None:
        return None if grid is None else grid.tolist()

    records = [
        {
            "task": p.task,
            "test": p.test,
            "correct": p.correct,
            "input": rows(p.input),
            "truth": rows(p.truth),
            "predicted": rows(p.predicted),
        }
        for p in predictions
    ]
    return {"step": step, "predictions": records}


def picture(prediction: Prediction) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8: input, truth and prediction side by side in the official colours; a missing grid is blank, of
    the input's size."""
    grids = (prediction.input, prediction.truth, prediction.predicted)
    blank = np.full((*prediction.input.shape, 3), _BACKGROUND, dtype=np.uint8)
    tiles = [(blank if g is None else _RGB[g]).repeat(_CELL_PX, 0).repeat(_CELL_PX, 1) for g in grids]
    height = max(len(tile) for tile in tiles)
    gap = np.full((height, _GAP_PX, 3), _BACKGROUND, dtype=np.uint8)
    padded = [np.pad(t, ((0, height - len(t)), (0, 0), (0, 0)), constant_values=_BACKGROUND) for t in tiles]
    return np.concatenate([part for tile in padded for part in (tile, gap)][:-1], axis=1)


def wandb_table(predictions: Sequence[Prediction]) -> Any:
    import wandb

    rows: list[Any] = [[p.task, p.test, p.correct, wandb.Image(picture(p))] for p in predictions]
    return wandb.Table(columns=["task", "test", "correct", "input, truth, prediction"], data=rows)
