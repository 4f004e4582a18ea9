"""What an encoder makes of a task: context vectors of a run's checkpoint, and ways to look at them.

    contexts = task_contexts(Path("runs/quickstart/a"), split="train", num_augmentations=3)
    start = task_contexts(Path("runs/quickstart/a"), split="train", num_augmentations=3, trained=False)
    points, shares = pca(contexts.vectors)

A view is one task under one augmentation, shown with all its demonstrations or with one of them left out. Views that differ
only in the demonstrations shown describe the same task: a useful encoder keeps them together and different tasks apart. An
augmented copy asks for other colours or another orientation, so its vector has every right to move. Shapes: V views, F =
context tokens x width values of a context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from arclab.config.schema import PuzzleTableConfig, WeightsKind
from arclab.data.sampler import BatchPlan, PuzzleSpace
from arclab.data.splits import load_tasks, require_fit
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.saved import TrainedRun

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALL_DEMOS = -1
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Contexts:
    """vectors (V, F); task_V: position in task_ids; augmentation_V: 0 is the task as it is; left_out_V: demonstration, or
    ALL_DEMOS.

    rules: of each task, see rule_of.
    step: optimiser steps behind the weights, 0 for the untrained encoder.
    """

    vectors: Floats
    task_V: Ints
    augmentation_V: Ints
    left_out_V: Ints
    task_ids: tuple[str, ...]
    rules: tuple[str, ...]
    step: int

    @property
    def rule_V(self) -> Ints:
        """Position of each view's rule in sorted(set(rules))."""
        return np.unique(self.rules, return_inverse=True)[1][self.task_V].astype(np.int64)


def rule_of(task: ArcTask) -> str:
    """What kind of change a task asks for, as far as its source says: the family of a toy task with its view, shift, crop or
    line (colour maps aside), the concept of a ConceptARC task; "unknown" for all others."""
    if task.rule is not None:
        return f"{task.source.removeprefix('toy:')} {task.rule.split(' colors=')[0]}"
    return task.id.rstrip("0123456789") if task.source == "conceptarc" else "unknown"


def task_contexts(
    run: Path, *, split: str = "train", num_augmentations: int = 0, max_tasks: int | None = None, trained: bool = True,
    weights: WeightsKind = WeightsKind.ema,
) -> Contexts:  # fmt: skip
    """Context vectors of a run's tasks. trained=False: the encoder as the run's seed initialised it.

    run: a run folder (its newest checkpoint) or a checkpoint folder. ValueError: the run has a puzzle table, the split has
    no tasks, or a task does not fit on the run's canvas.
    """
    of_run = TrainedRun.open(run)
    config = of_run.config
    tasks = load_tasks(config.dataset).named(split)[:max_tasks]
    if not tasks:
        raise ValueError(f"split={split} has no tasks in dataset={config.dataset.name}; choose another split.")
    require_fit(tasks, config.dataset.canvas, split)
    model = _model(of_run, weights if trained else None)
    space = PuzzleSpace(tasks, num_augmentations, config.seed, config.dataset.canvas)
    views = np.array(list(_views(space, config.dataset.max_demos)), dtype=np.int64)
    vectors = [
        encode_views(model, space, views[i : i + _BATCH], config.dataset.max_demos) for i in range(0, len(views), _BATCH)
    ]
    step = int(of_run.state["step"]) if trained else 0
    task_V, augmentation_V, left_out_V = views.T.copy()
    ids, rules = tuple(task.id for task in tasks), tuple(rule_of(task) for task in tasks)
    return Contexts(np.concatenate(vectors), task_V, augmentation_V, left_out_V, ids, rules, step)


def require_encoder(run: TrainedRun) -> None:
    """ValueError: the run has none."""
    kind = run.config.encoder.kind
    if isinstance(run.config.encoder, PuzzleTableConfig):
        raise ValueError(f"{run.run.path} has encoder.kind={kind}, which reads no demonstrations; give the run of an encoder.")


def _model(run: TrainedRun, weights: WeightsKind | None) -> RecursiveModel:
    """The run's model on the CPU; weights None: as at its first step, decoder initialisation left out (it moves no encoder)."""
    require_encoder(run)
    config = run.config
    torch.manual_seed(config.seed)
    model = build_model(config, num_puzzles=1) if weights is None else run.model(weights)
    return model.eval()


def _views(space: PuzzleSpace, max_demos: int) -> Iterator[tuple[int, int, int]]:
    """(task, augmentation, demonstration left out): all demonstrations first, then each left out where one would remain."""
    for task in range(len(space.tasks)):
        num_demos = min(max_demos, int(space.store.num_demos_T[task]))
        left_out = [ALL_DEMOS, *(range(num_demos) if num_demos > 1 else ())]
        yield from ((task, a, out) for a in range(int(space.num_augmentations_T[task])) for out in left_out)


@torch.no_grad()
def encode_views(model: RecursiveModel, space: PuzzleSpace, views: Ints, max_demos: int) -> Floats:
    """(V, F) context of the views, rows of (task, augmentation, demonstration left out); the test input does not enter it."""
    task_V, augmentation_V, left_out_V = views.T.copy()
    store = space.store
    slots = np.arange(min(max_demos, int(store.num_demos_T.max())))[None]
    shown = (slots < store.num_demos_T[task_V][:, None]) & (slots != left_out_V[:, None])
    order = np.argsort(~shown, axis=1, kind="stable")  # shown ones to the front: a batch has no gaps
    first_V1 = store.first_pair_T[task_V][:, None]
    demos_VK = np.where(np.take_along_axis(shown, order, axis=1), first_V1 + order, -1)
    query_V = store.first_pair_T[task_V] + store.num_demos_T[task_V]
    offsets = np.zeros((len(views), 1 + slots.shape[1], 2), dtype=np.int64)
    batch = space.render(BatchPlan(task_V, augmentation_V, query_V, demos_VK, offsets), with_puzzle_ids=False)
    context = model.condition(batch.to(next(model.parameters()).device)).context
    assert context is not None
    return context.summary_BTD.flatten(1).double().cpu().numpy()


def pca(vectors: Floats, num_components: int = 2) -> tuple[Floats, Floats]:
    """(V, k) coordinates along the first principal components, and the share (k,) of the variance that each explains.

    The sign of a component is arbitrary; here its largest loading is positive. All shares are 0 if the vectors are equal.
    """
    centred = vectors - vectors.mean(axis=0)
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    power = scale**2
    total = power.sum()
    shares = power / total if total > 0 else power
    return (left * scale * sign)[:, :num_components], shares[:num_components]


def tsne(vectors: Floats, seed: int = 0) -> Floats:
    """(V, 2) t-SNE embedding. ValueError if scikit-learn is not installed. Distances between far groups mean nothing."""
    try:
        from sklearn.manifold import TSNE  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("t-SNE needs scikit-learn; install it with pip install -e '.[notebooks]' (or '.[dev]').") from error
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors).astype(np.float64)


def between_share(vectors: Floats, group_V: Ints) -> float:
    """Share of the variance that lies between groups: 0 is none, 1 is groups of equal vectors. nan if nothing varies.

    Chance is not 0: random vectors give about (groups - 1) / (V - 1).
    """
    centred = vectors - vectors.mean(axis=0)
    total = float((centred**2).sum())
    if total <= 1e-20 * max(1.0, float((vectors**2).sum())):  # rounding of equal vectors
        return float("nan")
    groups = [centred[group_V == g] for g in np.unique(group_V)]
    return sum(len(group) * float((group.mean(axis=0) ** 2).sum()) for group in groups) / total
