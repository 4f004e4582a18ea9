"""What an encoder's context knows about tasks: scale-free statistics of contexts, and what swapping or zeroing it costs.

    metrics = encoder_health(model, tasks, settings)             # {"between_task_share": 0.31, "swap_drop": 0.12, ...}

The names are registered as encoder/... (scored tasks) and train_encoder/... (training tasks). One context is taken per task
and view: all demonstrations, another augmentation, the even and the odd demonstrations. Nothing here is trained on or
chosen by; every rank computes the same numbers. A random encoder also reaches a high retrieval accuracy where colours or
sizes give tasks away: compare with an untrained run before reading much into it.
Shapes: N tasks, X all values of a context, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arclab.config.schema import CanvasRule
from arclab.data.buckets import smallest_canvas
from arclab.data.sampler import Batch, BatchPlan, IntArray, PuzzleSpace
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.probes.context_ablations import Done, swap_drop, zero_context_drop


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """max_tasks: the sample, spread evenly over the task list; chunk_rows: rows in the model at once. rule: the canvas of
    answers. done: hears how many of the num_predictions are made."""

    max_tasks: int
    canvas: int
    rule: CanvasRule
    seed: int
    max_demos: int
    chunk_rows: int
    device: torch.device
    done: Done | None = None


def between_task_share(contexts_NX: Tensor) -> float:
    """Variance across tasks / mean square: 0 for identical contexts, 1 - 1/N for orthogonal ones of equal length; nan for
    zeros."""
    x = contexts_NX.double()
    return _quotient((x - x.mean(0)).square().mean(), x.square().mean())


def effective_rank(pooled_ND: Tensor) -> float:
    """exp(entropy) of the shares of variance along principal axes of the centred contexts; 0 if they are identical."""
    x = pooled_ND.double()
    power = torch.linalg.svdvals(x - x.mean(0)).square()
    if power.sum() <= 1e-12 * x.square().sum().clamp(min=1e-300):
        return 0.0
    shares = power / power.sum()
    return float(torch.exp(-(shares * shares.clamp(min=1e-300).log()).sum()))


def view_spread(first_NX: Tensor, second_NX: Tensor) -> float:
    """Mean squared distance between two views of one task / between views of different tasks: 0 the same, 1 unrelated."""
    distance_NN = _squared_distances(first_NX, second_NX)
    count = len(distance_NN)
    same = distance_NN.diagonal().sum()
    return _quotient(same / count, (distance_NN.sum() - same) / max(1, count * (count - 1)))


def retrieval_accuracy(first_NX: Tensor, second_NX: Tensor) -> float:
    """How often second_NX[n] is the nearest neighbour of first_NX[n]; ties count by their chance, so identical contexts give
    1/N."""
    distance_NN = _squared_distances(first_NX, second_NX)
    tolerance = 1e-12 * float(first_NX.double().square().sum(-1).max() + second_NX.double().square().sum(-1).max())
    nearest_NN = distance_NN <= distance_NN.min(dim=1, keepdim=True).values + tolerance
    return float((nearest_NN.diagonal().double() / nearest_NN.sum(1)).mean())


def _squared_distances(first_NX: Tensor, second_NX: Tensor) -> Tensor:
    """(N, N) float64, by differences: the usual expansion into products cannot tell near contexts from equal ones."""
    return torch.cdist(first_NX.double(), second_NX.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def _quotient(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else math.nan


def num_predictions(model: RecursiveModel, tasks: Sequence[ArcTask], max_tasks: int) -> int:
    """How many answers encoder_health asks the model for: intact, swapped and zeroed. The rest takes next to no time."""
    sample = min(max_tasks, len(tasks))
    return 0 if model.encoder is None or sample < 2 else 3 * sample


def encoder_health(model: RecursiveModel, tasks: Sequence[ArcTask], settings: HealthSettings) -> dict[str, float]:
    """Names without prefix. Empty for a puzzle table, an empty sample or one task; what is undefined is left out."""
    sample = spread_sample(tasks, settings.max_tasks)
    if model.encoder is None or len(sample) < 2:
        return {}
    space = PuzzleSpace(sample, 1, settings.seed, settings.canvas)
    metrics = {"tasks": float(len(sample)), **_context_metrics(model, space, settings)}
    demos_NK = _demos(space, settings, slice(None))
    canvas_N = _canvases(space, settings, demos_NK)
    # Neighbours in size exchange demonstrations, so that most swapped rows stay on their canvas.
    by_canvas = np.argsort(canvas_N, kind="stable")
    order = np.empty_like(by_canvas)
    order[by_canvas] = np.roll(by_canvas, -1)
    whole = render_by_canvas(space, settings, demos_NK)
    other = render_by_canvas(space, settings, demos_NK[order])
    swapped = swap_drop(model, whole, other, chunk_rows=settings.chunk_rows, done=settings.done)
    zeroed = zero_context_drop(model, whole, intact=swapped.intact, chunk_rows=settings.chunk_rows, done=settings.done)
    metrics |= {
        "exact_accuracy": swapped.intact.exact, "accuracy": swapped.intact.cells,
        "swap_drop": swapped.exact, "swap_drop_cells": swapped.cells,
        "zero_context_drop": zeroed.exact, "zero_context_drop_cells": zeroed.cells,
    }  # fmt: skip
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def spread_sample(tasks: Sequence[ArcTask], count: int) -> list[ArcTask]:
    """At most count tasks at even distances, so that every part of the list is represented."""
    places = np.linspace(0, len(tasks) - 1, min(count, len(tasks))).round().astype(int) if count else []
    return [tasks[i] for i in places]


def _context_metrics(model: RecursiveModel, space: PuzzleSpace, settings: HealthSettings) -> dict[str, float]:
    def contexts(demos_NK: IntArray, augmentation_N: IntArray | None = None) -> Tensor:
        return _contexts(model, _render(space, settings, demos_NK, augmentation_N), settings.chunk_rows)

    all_demos = _demos(space, settings, slice(None))
    plain_NTD = contexts(all_demos)
    metrics = {
        "between_task_share": between_task_share(plain_NTD.flatten(1)),
        "effective_rank": effective_rank(plain_NTD.mean(1)),
    }
    has_view = space.num_augmentations_T > 1
    if has_view.sum() > 1:
        other = contexts(all_demos, np.minimum(1, space.num_augmentations_T - 1))
        rows = torch.from_numpy(has_view)
        metrics["augmentation_spread"] = view_spread(plain_NTD[rows].flatten(1), other[rows].flatten(1))
    has_halves = np.minimum(space.store.num_demos_T, settings.max_demos) > 1
    if has_halves.sum() > 1:
        rows = torch.from_numpy(has_halves)
        halves = (_demos(space, settings, slice(start, None, 2)) for start in (0, 1))
        first, second = (
            contexts(np.where(has_halves[:, None], half, all_demos[:, : half.shape[1]]))[rows].flatten(1) for half in halves
        )
        metrics["subset_spread"] = view_spread(first, second)
        metrics["retrieval_accuracy"] = retrieval_accuracy(first, second)
        metrics["retrieval_chance"] = 1.0 / len(first)
    return metrics


def _demos(space: PuzzleSpace, settings: HealthSettings, part: slice) -> IntArray:
    """(N, K) pair numbers of a part of every task's demonstrations in file order; -1 in empty slots, which come last."""
    store = space.store
    slots = np.arange(min(settings.max_demos, int(store.num_demos_T.max())))[part][None]
    return np.where(slots < store.num_demos_T[:, None], store.first_pair_T[:, None] + slots, -1)


def _render(
    space: PuzzleSpace, settings: HealthSettings, demos_NK: IntArray, augmentation_N: IntArray | None = None, *,
    row_N: IntArray | None = None, canvas: int | None = None,
) -> Batch:  # fmt: skip
    """One row per task (of row_N): its first test input under one augmentation, nothing translated."""
    task_B = np.arange(len(space.tasks)) if row_N is None else row_N
    offsets = np.zeros((len(task_B), 1 + demos_NK.shape[1], 2), dtype=np.int64)
    augmentation = np.zeros(len(task_B), dtype=np.int64) if augmentation_N is None else augmentation_N[task_B]
    query_B = (space.store.first_pair_T + space.store.num_demos_T)[task_B]
    plan = BatchPlan(task_B, augmentation, query_B, demos_NK[task_B], offsets)
    return space.render(plan, with_puzzle_ids=False, canvas=canvas).to(settings.device)


def _canvases(space: PuzzleSpace, settings: HealthSettings, demos_NK: IntArray) -> IntArray:
    """(N,) the canvas on which each row of _render is answered: the whole one, or the smallest that holds demonstrations and
    query. An answer that does not fit moves its row up, as an evaluation does when it finds a prediction at the edge."""
    if settings.rule is CanvasRule.full:
        return np.full(len(demos_NK), settings.canvas)
    store = space.store
    pairs = np.concatenate([(store.first_pair_T + store.num_demos_T)[:, None], demos_NK], axis=1)
    sides = np.where(pairs >= 0, np.maximum(*store.pair_extent(np.maximum(pairs, 0))), 0).max(axis=1)
    return np.array([smallest_canvas(int(side), settings.canvas) for side in sides])


def render_by_canvas(space: PuzzleSpace, settings: HealthSettings, demos_NK: IntArray) -> list[Batch]:
    """The rows of _render, those of one canvas together."""
    canvas_N = _canvases(space, settings, demos_NK)
    return [
        _render(space, settings, demos_NK, row_N=np.flatnonzero(canvas_N == canvas), canvas=int(canvas))
        for canvas in np.unique(canvas_N)
    ]


@torch.no_grad()
def _contexts(model: RecursiveModel, batch: Batch, chunk_rows: int) -> Tensor:
    """(N, T, D) float32 on the CPU."""
    parts = []
    for start in range(0, len(batch), chunk_rows):
        context = model.condition(batch.rows(start, start + chunk_rows)).context
        assert context is not None
        parts.append(context.summary_BTD.float().cpu())
    return torch.cat(parts)
