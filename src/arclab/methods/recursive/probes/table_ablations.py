"""Does a TRM use the vector of a puzzle? Accuracy lost with the vector of another task, or with zeros.

    metrics = table_health(model, tasks, puzzle_rows, settings)      # {"exact_accuracy": 0.4, "wrong_id_drop": 0.4, ...}

The names are registered as puzzle/.... The first test input of each task is predicted without augmentation: as it is, with the
vector of the next task, and with a vector of zeros. A model that answers as well with a wrong vector has not learned the task,
but grids that are right for many tasks. The model is left as it was; nothing is trained on or chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from arclab.data.sampler import Batch, PuzzleSpace
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.probes.context_ablations import ContextDrop, accuracy_of
from arclab.methods.recursive.probes.encoder_health import HealthSettings, render_by_canvas, spread_sample

NUM_ABLATIONS = 3  # predictions of a task: as it is, with another task's vector, with zeros


def num_table_predictions(model: RecursiveModel, tasks: Sequence[ArcTask], max_tasks: int) -> int:
    sample = min(max_tasks, len(tasks))
    return 0 if model.puzzle_table is None or sample < 2 else NUM_ABLATIONS * sample


def table_health(
    model: RecursiveModel, tasks: Sequence[ArcTask], puzzle_rows: Mapping[str, int], settings: HealthSettings
) -> dict[str, float]:
    """Names without prefix. puzzle_rows: task id -> its first row in the table. Empty for an encoder, or for one task; what is
    undefined (answers that are hidden) is left out."""
    sample = spread_sample(tasks, settings.max_tasks)
    if model.puzzle_table is None or len(sample) < 2:
        return {}
    space = PuzzleSpace(sample, 1, settings.seed, settings.canvas)
    first_N = np.array([puzzle_rows[task.id] for task in sample], dtype=np.int64)
    own, wrong = (_with_rows(space, settings, rows_N) for rows_N in (first_N, np.roll(first_N, -1)))
    intact = accuracy_of(model, own, settings.chunk_rows, settings.done)
    swapped = ContextDrop(intact, accuracy_of(model, wrong, settings.chunk_rows, settings.done))
    with blank_rows(model):
        blank = ContextDrop(intact, accuracy_of(model, own, settings.chunk_rows, settings.done))
    metrics = {
        "tasks": float(len(sample)), "exact_accuracy": intact.exact, "accuracy": intact.cells,
        "wrong_id_drop": swapped.exact, "wrong_id_drop_cells": swapped.cells,
        "blank_id_drop": blank.exact, "blank_id_drop_cells": blank.cells,
    }  # fmt: skip
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _with_rows(space: PuzzleSpace, settings: HealthSettings, rows_N: np.ndarray) -> list[Batch]:
    """The first test input of every task, one batch for each canvas, with these rows of the table."""
    batches = render_by_canvas(space, settings, np.zeros((len(rows_N), 0), dtype=np.int64))
    row_of_task_N = torch.from_numpy(rows_N).to(settings.device)
    for batch in batches:
        batch.puzzle_id_B = row_of_task_N[batch.task_id_B]
    return batches


@contextmanager
def blank_rows(model: RecursiveModel) -> Iterator[None]:
    """While it is open, every puzzle's vector is zero, as before training."""
    table = model.puzzle_table
    assert table is not None

    def zeros(puzzle_id_B: Tensor) -> Tensor:
        return table.weight.new_zeros(len(puzzle_id_B), table.weight.shape[1])

    table.forward = zeros
    try:
        yield
    finally:
        del table.forward
