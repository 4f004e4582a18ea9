"""Does the decoder use the context? Accuracy lost when demonstrations are swapped between tasks, or the context is zero.

    drop = swap_drop(model, batch)            # Drop; drop.exact, drop.cells: intact minus swapped
    drop = zero_context_drop(model, batch)

Both predict the same queries twice with model.predict; only the conditioning changes. The model is left as it was. It does
not choose tasks: batches are rendered elsewhere (encoder_health.py, benchmarks).
Shapes: B rows, S canvas cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arclab.data.sampler import Batch
from arclab.models.encoders import Memory, TaskContext
from arclab.models.losses import row_losses
from arclab.models.recursive import RecursiveModel


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Over `rows` labelled rows: share of grids exactly right, and mean share of cells right; nan without rows."""

    exact: float
    cells: float
    rows: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The same rows with their own conditioning (intact) and with the changed one (swapped, or zeroed)."""

    intact: Accuracy
    swapped: Accuracy

    @property
    def exact(self) -> float:
        return self.intact.exact - self.swapped.exact

    @property
    def cells(self) -> float:
        return self.intact.cells - self.swapped.cells


def swap_drop(model: RecursiveModel, batch: Batch, order: Tensor | None = None, *, chunk_rows: int | None = None) -> Drop:
    """Row b answers its own query from the demonstrations of row order[b]; chunk_rows limits the rows predicted at once.

    Without an order every row gets demonstrations of another task, and rows for which there is none are left out.
    ValueError if the batch has a single task and no order was given.
    """
    keep_B = torch.ones(len(batch), dtype=torch.bool, device=batch.task_id_B.device)
    if order is None:
        order = other_task_order(batch.task_id_B)
        keep_B = batch.task_id_B[order] != batch.task_id_B
        if not keep_B.any():
            raise ValueError(
                "swapping demonstrations needs at least two tasks and the batch has one; give more tasks or an order."
            )
    swapped = replace(
        batch, demo_inputs_BKS=batch.demo_inputs_BKS[order], demo_outputs_BKS=batch.demo_outputs_BKS[order],
        num_demos_B=batch.num_demos_B[order],
    )  # fmt: skip
    return Drop(_accuracy(model, batch, keep_B, chunk_rows), _accuracy(model, swapped, keep_B, chunk_rows))


def zero_context_drop(model: RecursiveModel, batch: Batch, *, chunk_rows: int | None = None) -> Drop:
    """Every query is answered with whatever the encoder gives replaced by zeros. Only for models with an encoder."""
    keep_B = torch.ones(len(batch), dtype=torch.bool, device=batch.task_id_B.device)
    intact = _accuracy(model, batch, keep_B, chunk_rows)
    with zeroed_context(model):
        return Drop(intact, _accuracy(model, batch, keep_B, chunk_rows))


def other_task_order(task_id_B: Tensor) -> Tensor:
    """(B,) int64: a permutation that gives every row one of another task, as far as no task has more than half of the rows.

    Rows are sorted by task and shifted by the size of the largest task.
    """
    by_task = task_id_B.argsort(stable=True)
    largest = int(task_id_B.unique(return_counts=True)[1].max())
    order = torch.empty_like(by_task)
    order[by_task] = by_task.roll(-largest)
    return order


@contextmanager
def zeroed_context(model: RecursiveModel) -> Iterator[None]:
    """While it is open, the encoder writes zeros: context and memory; masks and its own state keep their values."""
    encoder = model.encoder
    if encoder is None:
        raise ValueError("this model has no encoder whose context could be set to zero; use a few_shot run.")
    original, outer = encoder.write, encoder.__dict__.get("write")  # outer: one that is already replaced on this instance

    def write_zeros(memory: Memory, state: Tensor | None, noise: torch.Generator | None) -> TaskContext:
        context = original(memory, state, noise)
        blank = (
            None if context.memory is None else replace(context.memory, tokens_BMD=torch.zeros_like(context.memory.tokens_BMD))
        )
        return replace(context, tokens_BTD=torch.zeros_like(context.tokens_BTD), memory=blank)

    encoder.write = write_zeros
    try:
        yield
    finally:
        del encoder.write
        if outer is not None:
            encoder.write = outer


def _accuracy(model: RecursiveModel, batch: Batch, keep_B: Tensor, chunk_rows: int | None) -> Accuracy:
    size, exact, cells, rows = chunk_rows or len(batch), 0.0, 0.0, 0
    for start in range(0, len(batch), size):
        part = batch.rows(start, start + size)
        losses = row_losses(*model.predict(part), part.labels_BS)
        counted = losses.has_labels & keep_B[start : start + size]
        exact += float(losses.exact[counted].double().sum())
        cells += float(losses.accuracy[counted].double().sum())
        rows += int(counted.sum())
    return Accuracy(exact / rows, cells / rows, rows) if rows else Accuracy(float("nan"), float("nan"), 0)
