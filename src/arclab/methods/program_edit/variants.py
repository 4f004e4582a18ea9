"""Other looks of a task that is trained on: views and colours of hard tasks, generated pairs, and pairs in other roles.

    variant = augmented(task, level=2, rng=rng, stream=None)       # level: of a TaskRecord of the curriculum
    variant = permuted(task, rng)                                  # demonstrations and tests change places
    stream = stream_of(task, config.dataset)                       # of RE-ARC, where the task has a generator

A variant keeps the id of its task. It is for tasks that are trained on alone: what was a test output may become a
demonstration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from arclab.config.dataset_schema import DatasetConfig
from arclab.data.augment import Augmentation
from arclab.data.rearc import PairRule, load_rearc
from arclab.data.rearc_package import package_folder
from arclab.data.sources import REARC_ORIGINALS
from arclab.data.tasks import MAX_SIDE, NUM_COLORS, ArcTask, Pair, PairStream

_VIEWS, _COLORS, _PAIRS = 1, 2, 3  # the level from which each is used
_PLAIN_SHARE = 0.5  # of a hard task's groups are of the task as it is
_MOST_NUMBER = 10_000  # of a generated pair


def augmented(task: ArcTask, level: int, rng: Random, stream: PairStream | None) -> ArcTask:
    """The task, or a variant of it by its level: 0 none, 1 views, 2 colours too, 3 generated pairs too."""
    if level < _VIEWS or rng.random() < _PLAIN_SHARE:
        return task
    if level >= _PAIRS and stream is not None:
        task = _with_pairs(task, [stream.pair(rng.randrange(_MOST_NUMBER)) for _ in task.pairs])
    colors = list(range(1, NUM_COLORS))
    if level >= _COLORS:
        rng.shuffle(colors)
    view = Augmentation(rng.randrange(8), np.array([0, *colors], np.uint8))
    return replace(view.apply(task), rule=None)


def permuted(task: ArcTask, rng: Random) -> ArcTask:
    """The same pairs in other roles; the task as it is where an output is not known."""
    if any(pair.output is None for pair in task.pairs):
        return task
    return _with_pairs(task, rng.sample(task.pairs, len(task.pairs)))


def _with_pairs(task: ArcTask, pairs: Sequence[Pair]) -> ArcTask:
    count = len(task.demos)
    return replace(task, demos=tuple(pairs[:count]), tests=tuple(pairs[count:]))


def stream_of(task: ArcTask, dataset: DatasetConfig) -> PairStream | None:
    """Where generated pairs of the task come from; None: it has no generator here."""
    if task.stream is not None:
        return task.stream
    if task.source != REARC_ORIGINALS or package_folder() is None:
        return None
    settings = dataset.rearc
    rule = PairRule(settings.min_difficulty, settings.max_difficulty, dataset.max_side or MAX_SIDE, settings.timeout_s)
    found = load_rearc("rearc:", rule, [task])
    return found[0].stream if found else None
