"""Finished results that share tasks, cut down to the tasks that all of them scored.

    groups = task_groups(open_results(paths, "RESULT"))       # results that share a task are in one group
    groups[0].runs                                            # each with one split that holds the common tasks alone

Scores of common tasks are counted again from predictions.jsonl. Tasks whose grids differ between results are no common ones.
It tests and draws nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from arclab.config.compose import ConfigError
from arclab.data.tasks import ArcTask
from arclab.results.finished import different_grids, named, scored_tasks
from arclab.results.reading import Run, ScoredSplit
from arclab.results.scoring import Share

OUTCOMES = {
    "first": "solved with the first attempt",
    "second": "solved within two attempts",
    "candidate": "right among the candidates, but not within two attempts",
    "missed": "not solved",
    "hidden": "its answer is hidden",
}


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """name: of data and split. ids: the common tasks. notes: what was left out, or could not be compared. hidden: common tasks
    without known answers."""

    name: str
    runs: tuple[Run, ...]
    ids: tuple[str, ...]
    hidden: frozenset[str]
    notes: tuple[str, ...]

    def outcome(self, split: ScoredSplit, task: str) -> str:
        """A key of OUTCOMES; of a task with several test inputs, what holds for all of them."""
        if task in self.hidden:
            return "hidden"
        ranks = [test.truth_rank for (id_, _), test in split.predictions.items() if id_ == task]
        known = [rank for rank in ranks if rank is not None]
        if len(known) < len(ranks):
            return "missed"
        return "first" if max(known) < 1 else "second" if max(known) < 2 else "candidate"


def task_groups(runs: Sequence[Run]) -> list[TaskGroup]:
    """In the order of their first results. ConfigError: results of a group share tasks two by two, but none in all of them."""
    groups: list[list[Run]] = []
    for run in runs:
        ids = set(run.splits[0].task_ids)
        near = [group for group in groups if any(ids & set(other.splits[0].task_ids) for other in group)]
        joined = [other for group in near for other in group]
        groups = [group for group in groups if group not in near] + [[*joined, run]]
    groups.sort(key=lambda group: min(runs.index(run) for run in group))
    found: list[TaskGroup] = []
    for group in groups:
        found.append(_group(group, {other.name for other in found}))
    return found


def _group(runs: list[Run], taken: Collection[str]) -> TaskGroup:
    tasks, unread = _tasks_of(runs)
    shared = set.intersection(*(set(run.splits[0].task_ids) for run in runs))
    ids = [id_ for id_ in runs[0].splits[0].task_ids if id_ in shared]
    changed = {id_ for other in tasks[1:] for id_ in different_grids(tasks[0], other)} & shared
    ids = [id_ for id_ in ids if id_ not in changed]
    if not ids:
        raise ConfigError(
            f"no task is common to all of {', '.join(str(run.path) for run in runs)}; leave out the results that share none "
            "with the others."
        )
    notes = []
    if changed:
        notes.append(f"{len(changed)} tasks have the same ids and other grids, and are left out ({named(sorted(changed))})")
    notes += _left_out(runs, ids)
    notes += [f"the tasks of {run.label} could not be read again, so other grids would not be noticed" for run in unread]
    known = {id_ for each in tasks for id_, task in each.items() if all(test.output is not None for test in task.tests)}
    hidden = _hidden(runs, ids, known if tasks else None)
    first = runs[0].splits[0]
    base = f"{first.record.get('dataset') or runs[0].settings.get('dataset.name', 'tasks')}, {first.split}"
    name = next(each for number in range(1, len(taken) + 2) if (each := base + f" ({number})" * (number > 1)) not in taken)
    cut = tuple(replace(run, splits=(_restricted(run.splits[0], name, ids, hidden),)) for run in runs)
    return TaskGroup(name, cut, tuple(ids), frozenset(hidden), tuple(notes))


def _tasks_of(runs: Sequence[Run]) -> tuple[list[dict[str, ArcTask]], list[Run]]:
    """The tasks of each result whose sources can be read, and the other results."""
    found, unread = [], []
    for run in runs:
        try:
            found.append(scored_tasks(run))
        except ConfigError:
            unread.append(run)
    return found, unread


def _left_out(runs: Sequence[Run], ids: Sequence[str]) -> list[str]:
    """How many tasks of which result are not common."""
    extra = {run.label: len(run.splits[0].task_ids) - len(ids) for run in runs}
    several = [f"{label} {count + len(ids)}" for label, count in extra.items() if count]
    if not several:
        return []
    return [
        f"only the {len(ids)} tasks that all {len(runs)} results have are counted; scored were more by {', '.join(several)}"
    ]


def _hidden(runs: Sequence[Run], ids: Sequence[str], known: set[str] | None) -> set[str]:
    """Common tasks without known answers. known: as far as sources can be read; None: none can, and a result with hidden
    answers does not say which."""
    if not any(run.splits[0].has_hidden_answers for run in runs):
        return set()
    return set(ids) if known is None else {id_ for id_ in ids if id_ not in known}


def _restricted(split: ScoredSplit, name: str, ids: Sequence[str], hidden: Collection[str]) -> ScoredSplit:
    """The split with these tasks alone, scored again where it had others, under the name of the group."""
    wanted = set(ids)
    predictions = {key: test for key, test in split.predictions.items() if key[0] in wanted}
    record = {**split.record, "split": name}
    if len(predictions) < len(split.predictions):
        shares = _shares(ScoredSplit(split.name, record, predictions), [id_ for id_ in ids if id_ not in hidden])
        record |= {"scores": {key: {"n": share.n, "N": share.total} for key, share in shares.items()}, "tasks_digest": None}
    return ScoredSplit(split.name, record, predictions)


def _shares(split: ScoredSplit, ids: Sequence[str]) -> dict[str, Share]:
    """The headline scores over tasks with known answers."""
    places = {id_: [test.truth_rank for (task, _), test in split.predictions.items() if task == id_] for id_ in ids}

    def hits(id_: str, k: int) -> list[bool]:
        return [place is not None and place < k for place in places[id_]]

    found = {}
    for k in (1, 2):
        found[f"ARC/pass@{k}"] = Share(sum(sum(hits(id_, k)) / len(places[id_]) for id_ in ids), len(ids))
        found[f"ARC/solved@{k}"] = Share(sum(all(hits(id_, k)) for id_ in ids), len(ids))
    return found
