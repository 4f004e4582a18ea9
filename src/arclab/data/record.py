"""What a checkpoint keeps of its training tasks: their ids and order, digests of their content, and their rows in a puzzle
table.

    record = record_of(data)                                        # record.text() goes into tasks.json of every checkpoint
    record = parse_record(checkpoint / "tasks.json")
    require_same_data(record, record_of(data), checkpoint)          # a run that continues
    why = changed_task(record, record_of(data))                     # "" if every recorded task is as it was

A run continues bit for bit only on the same tasks in the same order, and row n of a puzzle table means nothing without the
task and the augmentation that it was trained for. This module says what differs; it does not load tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arclab.data.augment import ViewRule
from arclab.data.rearc import PREFIX
from arclab.data.sampler import TrainingData
from arclab.data.sources import REARC_ORIGINALS, load_source
from arclab.data.tasks import ArcTask, Pair
from arclab.files import DamagedFile, read_object

TASKS_FILE = "tasks.json"
NO_RECORD = (
    "this checkpoint was written before checkpoints kept a record of their training tasks, so that nobody can check that the "
    "tasks are the same ones in the same order as when it was trained"
)


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """demos, tests: digests of the demonstrations and of the test pairs (their inputs alone where learns_tests is false).
    views: digest of the augmentation table, num_views its rows; first_row: the first of them in a puzzle table."""

    id: str
    demos: str
    tests: str
    learns_tests: bool
    views: str
    num_views: int
    first_row: int


@dataclass(frozen=True, slots=True)
class DataRecord:
    """The training tasks of a run in their order."""

    rule: ViewRule
    tasks: tuple[TaskRecord, ...]

    @property
    def num_puzzles(self) -> int:
        """Rows of the puzzle table, the blank one included."""
        return 1 + sum(task.num_views for task in self.tasks)

    def text(self) -> str:
        return json.dumps({"views": self.rule.value, "tasks": [asdict(task) for task in self.tasks]})


def record_of(data: TrainingData) -> DataRecord:
    """The record of training data as they were built."""
    space = data.space
    learns_tests_T = data.trainable_T > space.store.num_demos_T
    tasks = (
        TaskRecord(
            id=task.id, demos=demos_digest(task), tests=_digest(task.tests, with_outputs=bool(learns_tests_T[t])),
            learns_tests=bool(learns_tests_T[t]), views=_short(hashlib.sha256(space.views_of(t).tobytes())),
            num_views=int(space.num_augmentations_T[t]), first_row=1 + int(space.first_augmentation_T[t]),
        )
        for t, task in enumerate(space.tasks)
    )  # fmt: skip
    return DataRecord(space.rule, tuple(tasks))


def demos_digest(task: ArcTask) -> str:
    """The same for tasks with equal demonstrations, whatever their ids."""
    return _digest(task.demos, with_outputs=True)


def rearc_demos(record: DataRecord) -> set[str]:
    """demos_digest of the original tasks whose RE-ARC pairs were trained on: their rules are known, their pairs are not."""
    known = {task.id for task in record.tasks if task.id.startswith(PREFIX)}
    return {demos_digest(task) for task in load_source(REARC_ORIGINALS) if PREFIX + task.id in known} if known else set()


def same_task(one: ArcTask, other: ArcTask) -> bool:
    """The same demonstrations and tests, answers included."""
    return demos_digest(one) == demos_digest(other) and all(
        _digest(one.tests, with_outputs=given) == _digest(other.tests, with_outputs=given) for given in (False, True)
    )


def _digest(pairs: Iterable[Pair], *, with_outputs: bool) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        for grid in (pair.input, pair.output if with_outputs else None):
            if grid is not None:
                digest.update(bytes(grid.shape) + np.ascontiguousarray(grid).tobytes())
            digest.update(b"|")
    return _short(digest)


def _short(digest: Any) -> str:
    return digest.hexdigest()[:16]


def parse_record(path: Path) -> DataRecord:
    """The record in a file. DamagedFile if it cannot be read as one."""
    content = read_object(path)
    try:
        record = DataRecord(ViewRule(content["views"]), tuple(TaskRecord(**task) for task in content["tasks"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(path, f"no record of training tasks: {error}") from error
    kinds = (
        ("id", str),
        ("demos", str),
        ("tests", str),
        ("learns_tests", bool),
        ("views", str),
        ("num_views", int),
        ("first_row", int),
    )
    wrong = [key for task in record.tasks for key, kind in kinds if type(getattr(task, key)) is not kind]
    next_row = 1
    for task in record.tasks if not wrong else ():
        if task.first_row != next_row or task.num_views < 1:
            wrong.append("first_row")
        next_row += task.num_views
    if wrong:
        raise DamagedFile(path, f"no record of training tasks: {wrong[0]} is not what it should be")
    return record


def _difference(before: TaskRecord, now: TaskRecord) -> str:
    """What is another about a task, in words; empty if nothing is."""
    if before.demos != now.demos:
        return "has other demonstrations"
    if before.learns_tests != now.learns_tests:
        return f"was trained {'with' if before.learns_tests else 'without'} its test pairs, and now it is the other way round"
    if before.tests != now.tests:
        return "has other test pairs"
    return "has other augmentations" if before.views != now.views else ""


def require_same_data(before: DataRecord, now: DataRecord, checkpoint: Path) -> None:
    """ValueError if a run would continue on other training data than it was started with."""
    why = changed_task(before, now)
    if not why and [task.id for task in before.tasks] != [task.id for task in now.tasks]:
        known = {task.id for task in before.tasks}
        added = [task.id for task in now.tasks if task.id not in known]
        if added:
            why = f"task {added[0]} is new ({len(added)} are)"
        else:
            first = next(b.id for b, n in zip(before.tasks, now.tasks, strict=True) if b.id != n.id)
            why = f"the tasks are the same ones in another order (from task {first} on)"
    if why:
        raise ValueError(
            f"the training tasks are not those of checkpoint {checkpoint}: {why}; put the tasks back as they were to continue "
            "this run, or start one with another name=."
        )


def changed_task(before: DataRecord, now: DataRecord) -> str:
    """The first recorded task that is missing or another by now; empty if there is none."""
    current = {task.id: task for task in now.tasks}
    missing = [task for task in before.tasks if task.id not in current]
    if missing:
        known = {task.id for task in before.tasks}
        twin = next((task.id for task in now.tasks if task.demos == missing[0].demos and task.id not in known), None)
        renamed = f", and {twin} has its content: a task is known by its name" if twin else ""
        return f"task {missing[0].id} is missing ({len(missing)} of {len(before.tasks)} are{renamed})"
    changed = [(task, why) for task in before.tasks if (why := _difference(task, current[task.id]))]
    return f"task {changed[0][0].id} {changed[0][1]} ({len(changed)} of {len(before.tasks)} differ)" if changed else ""
