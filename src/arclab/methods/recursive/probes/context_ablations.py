"""Does the decoder use the context? Accuracy lost when demonstrations are swapped between tasks, or the context is zero.

    drop = swap_drop(model, batches, swapped)            # ContextDrop; drop.exact, drop.cells: intact minus swapped
    drop = zero_context_drop(model, batches)

Both predict the same queries twice with model.predict; only the conditioning changes. The model is left as it was. It does
not choose tasks: batches, one for each canvas, are rendered elsewhere (encoder_health.py).
Shapes: B rows, S canvas cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arclab.data.sampler import Batch
from arclab.methods.recursive.encoders import Memory, TaskContext
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel

Done = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Over `rows` labelled rows: share of grids exactly right, and mean share of cells right; nan without rows."""

    exact: float
    cells: float
    rows: int


@dataclass(frozen=True, slots=True)
class ContextDrop:
    """The same rows with their own conditioning (intact) and with the changed one (swapped, or zeroed)."""

    intact: Accuracy
    swapped: Accuracy

    @property
    def exact(self) -> float:
        return self.intact.exact - self.swapped.exact

    @property
    def cells(self) -> float:
        return self.intact.cells - self.swapped.cells


def swap_drop(
    model: RecursiveModel, batches: Sequence[Batch], swapped: Sequence[Batch], *, chunk_rows: int | None = None,
    done: Done | None = None,
) -> ContextDrop:  # fmt: skip
    """The same queries with their own demonstrations and with those of others; chunk_rows limits the rows predicted at once.
    done: hears how many rows were predicted, after every chunk."""
    return ContextDrop(accuracy_of(model, batches, chunk_rows, done), accuracy_of(model, swapped, chunk_rows, done))


def zero_context_drop(
    model: RecursiveModel, batches: Sequence[Batch], *, intact: Accuracy | None = None, chunk_rows: int | None = None,
    done: Done | None = None,
) -> ContextDrop:  # fmt: skip
    """Every query is answered with whatever the encoder gives replaced by zeros. Only for models with an encoder. intact: what
    the same queries reach with it, where that is known."""
    intact = intact or accuracy_of(model, batches, chunk_rows, done)
    with zeroed_context(model):
        return ContextDrop(intact, accuracy_of(model, batches, chunk_rows, done))


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


def accuracy_of(model: RecursiveModel, batches: Sequence[Batch], chunk_rows: int | None, done: Done | None = None) -> Accuracy:
    """Of model.predict over all labelled rows; chunk_rows and done: see swap_drop."""
    exact, cells, rows = 0.0, 0.0, 0
    for batch in batches:
        size = chunk_rows or len(batch)
        for start in range(0, len(batch), size):
            part = batch.rows(start, start + size)
            losses = row_losses(*model.predict(part), part.labels_BS)
            counted = losses.has_labels
            exact += float(losses.exact[counted].double().sum())
            cells += float(losses.accuracy[counted].double().sum())
            rows += int(counted.sum())
            if done is not None:
                done(len(part))
    return Accuracy(exact / rows, cells / rows, rows) if rows else Accuracy(float("nan"), float("nan"), 0)
