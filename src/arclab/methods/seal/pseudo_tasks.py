"""What a task's demonstrations are made into: tasks whose answers are known, to train a model on before it answers the task.

    tasks = pseudo_tasks(task, config.pseudo_tasks, seed=0)       # before the cap; each has one test, whose output is known
    chosen = chosen_rows(tasks, config.pseudo_tasks, seed, row_of)       # as many as are trained on, as rows

leave_out=1 asks for each demonstration in turn and shows all others; leave_out=2 leaves out one of these as well. With N
demonstrations that makes N and N (N - 1) tasks. Each is kept as it is, and as every augmenter shows it. Then each gets
`permutations` copies with other colours (0 stays) and the demonstrations in another order. What is there twice is kept once, in
the order in which it was made. So there are (1 + permutations) x N^2 x (1 + A) of them with [1, 2] and A augmenters, less those
that are alike, too large, or show fewer than min_demos demonstrations. Draws depend on the seed and the task's id alone. Test
inputs and outputs are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arclab.config.seal_schema import PseudoTaskConfig
from arclab.data.augment import Augmentation, task_rng
from arclab.data.tasks import NUM_COLORS, ArcTask
from arclab.lm.training.rows import Row
from arclab.methods.seal.augmenters import GROUPS, applied, augmenters

_CAP_DRAWS = 1  # the stream of which pseudo-tasks are kept, beside that of how they are made


def pseudo_tasks(task: ArcTask, config: PseudoTaskConfig, seed: int) -> list[ArcTask]:
    """All of them, each once. Their ids say how they were made."""
    rng = task_rng(seed, task.id)
    chosen = augmenters(*(group for group in GROUPS if getattr(config, group)))
    base = [made for count in config.leave_out for made in _left_out(task, count) if len(made.demos) >= config.min_demos]
    transforms = [[augmenter.drawn(rng) for augmenter in chosen] for _ in base]
    views = [view for made, drawn in zip(base, transforms, strict=True) for each in drawn if (view := applied(made, each))]
    tasks = _each_once([*base, *views])
    copies = [_permuted(made, config.permute_colors, rng) for _ in range(config.permutations) for made in tasks]
    return _each_once([*tasks, *copies])


def _left_out(task: ArcTask, count: int) -> Iterator[ArcTask]:
    """The demonstrations of the task as tasks, in which `count` of them are not shown, one of these being asked for."""
    for asked, pair in enumerate(task.demos):
        others = [number for number in range(len(task.demos)) if number != asked]
        for missing in [None] if count == 1 else others:
            demos = tuple(task.demos[number] for number in others if number != missing)
            without = "" if missing is None else f" without {missing + 1}"
            yield ArcTask(f"asks {asked + 1}{without}", demos, (pair,), task.source)


def _permuted(task: ArcTask, permute_colors: bool, rng: np.random.Generator) -> ArcTask:
    order = rng.permutation(len(task.demos))
    task = replace(task, id=f"{task.id}, order", demos=tuple(task.demos[number] for number in order))
    if not permute_colors:
        return task
    colors = np.concatenate([[0], 1 + rng.permutation(NUM_COLORS - 1)]).astype(np.uint8)
    return replace(Augmentation(0, colors).apply(task), id=f"{task.id} and colours")


def _each_once(tasks: Sequence[ArcTask]) -> list[ArcTask]:
    return list({_content(task): task for task in reversed(tasks)}.values())[::-1]


def _content(task: ArcTask) -> tuple[object, ...]:
    grids = [grid for pair in task.pairs for grid in (pair.input, pair.output) if grid is not None]
    return len(task.demos), *((grid.shape, grid.tobytes()) for grid in grids)


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """num_made: pseudo-tasks there were to choose from. num_too_long: that were drawn and do not fit into the context."""

    rows: list[Row]
    tasks: list[ArcTask]
    num_made: int
    num_too_long: int


def chosen_rows(task: ArcTask, config: PseudoTaskConfig, seed: int, row_of: Callable[[ArcTask], Row | None]) -> ChosenRows:
    """At most max_count pseudo-tasks, drawn at random from those whose rows fit. row_of: None for one that does not."""
    tasks, rows, kept, too_long = pseudo_tasks(task, config, seed), list[Row](), list[ArcTask](), 0
    rng = np.random.default_rng([_CAP_DRAWS, *task_rng(seed, task.id).integers(2**32, size=2)])
    for number in rng.permutation(len(tasks)):
        if len(rows) == config.max_count:
            break
        row = row_of(tasks[number])
        if row is None:
            too_long += 1
        else:
            rows.append(row)
            kept.append(tasks[number])
    return ChosenRows(rows, kept, len(tasks), too_long)
