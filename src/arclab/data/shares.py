"""Tasks divided between processes, so that each has about as much to do.

    costs = [expected_cost(task) for task in tasks]
    mine = share_of(tasks, number=0, count=4)
    owners(costs, [task.id for task in tasks], 4)            # the number of the share of each

It depends on the tasks alone: every process comes to the same shares.
"""

from __future__ import annotations

from collections.abc import Sequence

from arclab.data.tasks import ArcTask


def expected_cost(task: ArcTask) -> int:
    """In cells of all grids that a prompt shows: what is read, and about what has to be thought about."""
    shown = [grid for pair in task.demos for grid in (pair.input, pair.output)] + [pair.input for pair in task.tests]
    return sum(grid.size for grid in shown if grid is not None)


def owners(costs: Sequence[float], ids: Sequence[str], count: int) -> list[int]:
    """For each task the number of its share, from 0. The costliest task goes to the share that has least so far."""
    loads, found = [0.0] * count, [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], ids[place])):
        least = min(range(count), key=lambda each: (loads[each], each))
        loads[least] += costs[place]
        found[place] = least
    return found


def share_of(tasks: Sequence[ArcTask], number: int, count: int) -> tuple[ArcTask, ...]:
    """The tasks of share `number` of `count`, in their order. ValueError: more shares than tasks."""
    if count > len(tasks):
        raise ValueError(f"launch.shards={count} is more than the {len(tasks)} tasks; give at most {len(tasks)}.")
    found = owners([expected_cost(task) for task in tasks], [task.id for task in tasks], count)
    return tuple(task for task, owner in zip(tasks, found, strict=True) if owner == number)
