"""Does a solver use the demonstrations? Score it again with the wrong ones, or with none.

    drop = swap_drop(solver, tasks)                  # demonstrations exchanged between tasks of one source; any solver
    drop = context_drop(solver, model, tasks)        # the encoder's context set to zero; recursive models
    drop.value                                       # share of tasks lost: intact less ablated

A solver that ignores the demonstrations loses nothing; one that reads its rule from them loses nearly all it has. Both
scores are ARC/pass@1, by default without augmentation; context_ablations.py does the same for one rendered batch. It says
nothing about how the demonstrations are used.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arclab.data.tasks import ArcTask
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.probes.context_ablations import zeroed_context
from arclab.results.attempts import Budget, Solver
from arclab.results.scoring import Share, score


@dataclass(frozen=True, slots=True)
class ScoreDrop:
    """ARC/pass@1 of the same tasks as they are and ablated."""

    intact: Share
    ablated: Share

    @property
    def value(self) -> float:
        """Share of tasks lost, -1 to 1; above 0: the solver uses what was taken away."""
        return self.intact.value - self.ablated.value


def swap_demonstrations(tasks: Sequence[ArcTask], seed: int = 0) -> list[ArcTask]:
    """The tasks with the demonstrations of another task of the same source; its rule differs where rules are known.

    Ids, tests and order stay. ValueError if a task has no such partner.
    """
    rng = np.random.default_rng([seed, 0x5A])
    groups: defaultdict[str, list[ArcTask]] = defaultdict(list)
    for task in tasks:
        groups[_collection(task)].append(task)
    partners = {task.id: partner for group in groups.values() for task, partner in _partners(group, rng)}
    return [dataclasses.replace(task, demos=partners[task.id].demos) for task in tasks]


def _collection(task: ArcTask) -> str:
    """What the task was taken from: the folder, where its source is a file of its own."""
    return str(Path(task.source).parent) if task.source.endswith(".json") else task.source


def _partners(group: list[ArcTask], rng: np.random.Generator) -> Iterator[tuple[ArcTask, ArcTask]]:
    order = [group[i] for i in rng.permutation(len(group))]
    for place, task in enumerate(order):
        others = order[place + 1 :] + order[:place]
        partner = next((other for other in others if other.rule is None or other.rule != task.rule), None)
        if partner is None:
            raise ValueError(
                f"demonstrations cannot be swapped: task {task.id} is the only one of source {task.source} with its rule; "
                "score more tasks."
            )
        yield task, partner


def swap_drop(solver: Solver, tasks: Sequence[ArcTask], *, budget: Budget | None = None, seed: int = 0) -> ScoreDrop:
    """What the solver loses when every task gets the demonstrations of another one."""
    return ScoreDrop(_pass_at_1(solver, tasks, budget), _pass_at_1(solver, swap_demonstrations(tasks, seed), budget))


def context_drop(solver: Solver, model: RecursiveModel, tasks: Sequence[ArcTask], *, budget: Budget | None = None) -> ScoreDrop:
    """What the solver loses when the context of its model, which must have an encoder, is all zeros."""
    intact = _pass_at_1(solver, tasks, budget)
    with zeroed_context(model):
        return ScoreDrop(intact, _pass_at_1(solver, tasks, budget))


def _pass_at_1(solver: Solver, tasks: Sequence[ArcTask], budget: Budget | None) -> Share:
    return score(tasks, solver.solve(tasks, budget or Budget(num_augmentations=0)))["ARC/pass@1"]
