"""Bucketed training: every task on the smallest canvas that holds its pairs, instead of all on the largest.

    parts = bucketed(data, batch_size, unit)

A batch keeps its size and what it stands for: its rows are shared out over the canvases in proportion to the tasks (few-shot)
or pairs (puzzle ids) of each, a step trains all of them, and weights make up for the rounding of shares to whole rows. So the
expected gradient is that of the full canvas, the number of rows of each canvas never changes (static shapes), and each part has
its own epochs. The canvas of a task follows from the pairs that are trained on, outputs included: they are all known. A scored
task whose demonstrations alone are trained on does not get its canvas from its test pairs. Augmentations never change it. It
differs from the full canvas in one thing: a translated grid moves within its own canvas.
"""

from __future__ import annotations

import numpy as np

from arclab.config.dataset_schema import CANVASES
from arclab.data.sampler import IntArray, Part, TrainingData


def smallest_canvas(side: int, full: int) -> int:
    """The least canvas that holds grids of this side and the EOS marks around them; on the full one they may be cut off.

    Room for the marks, because without them a prediction cannot say that its grid ends here.
    """
    return next((c for c in CANVASES if side < c < full), full)


def task_canvases(data: TrainingData) -> IntArray:
    """(tasks,) side of the smallest canvas for every trainable pair of each task, at most the data's own."""
    store = data.space.store
    pair_P = np.arange(len(store.heights) // 2)
    height_P, width_P = store.pair_extent(pair_P)
    is_trained_P = pair_P < np.repeat(store.first_pair_T + data.trainable_T, store.num_pairs_T)
    side_T = np.maximum.reduceat(np.where(is_trained_P, np.maximum(height_P, width_P), 0), store.first_pair_T)
    for task, stream in store.streams.items():
        side_T[task] = stream.max_side
    return np.array([smallest_canvas(int(side), data.canvas) for side in side_T])


def bucketed(data: TrainingData, batch_size: int, unit: int) -> tuple[Part, ...]:
    """Parts of a batch from the smallest canvas upwards; the rows of each are a multiple of `unit` (ranks x micro-batches).

    ValueError if the batch is too small to give every canvas its rows.
    """
    canvas_T = task_canvases(data)
    canvases = np.unique(canvas_T)
    if batch_size < unit * len(canvases):
        raise ValueError(
            f"trainer.batch_size={batch_size} is too small for trainer.canvas=bucketed: the training tasks need canvases of "
            f"side {', '.join(map(str, canvases))}, each with at least {unit} rows (ranks x trainer.grad_accumulation); raise "
            f"it to {unit * len(canvases)} or more, or set trainer.canvas=full."
        )
    rows_T = data.visits_T if data.is_few_shot else data.visits_T * data.trainable_T
    share_C = np.array([rows_T[canvas_T == canvas].sum() for canvas in canvases]) / rows_T.sum()
    rows_C = unit * _whole_shares(share_C, batch_size // unit)
    starts_C = np.cumsum(rows_C) - rows_C
    return tuple(
        Part(
            data.only(np.flatnonzero(canvas_T == canvas), int(canvas)), int(start), int(rows), float(share * batch_size / rows)
        )
        for canvas, start, rows, share in zip(canvases, starts_C, rows_C, share_C, strict=True)
    )


def _whole_shares(share_C: np.ndarray, total: int) -> IntArray:
    """Whole numbers of at least 1 that sum to total, as near to the shares as can be (largest remainders)."""
    wanted_C = share_C * total
    rows_C = np.maximum(np.floor(wanted_C).astype(np.int64), 1)
    while rows_C.sum() != total:
        step = 1 if rows_C.sum() < total else -1
        miss_C = np.where((rows_C > 1) | (step > 0), step * (wanted_C - rows_C), -np.inf)
        rows_C[miss_C.argmax()] += step
    return rows_C
