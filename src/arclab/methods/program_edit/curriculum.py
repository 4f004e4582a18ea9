"""Which tasks are drawn, by how well they go: curriculum.json, one entry for each task, and pure functions on it.

    curriculum = new_curriculum(task_ids, data="digest of the tasks")
    curriculum = observe(curriculum, "007bbfb7", successes=[True, False], step=12)      # after each group of a task
    ids = draw(curriculum, 8, Random(f"{seed}/{step}"))
    write_curriculum(path, curriculum); read_curriculum(path, data, task_ids)

success is absolute: did the program reproduce every demonstration. A reward by the parent's would fall to 0 where programs to
begin with are good already. A task leaves the drawing once it is solved nearly always for many visits (saturated), but for a
small share of draws in which it is tried again; it comes back when it fails there. A task that hardly ever goes is drawn more
often, up to a limit, and its pairs are augmented more (level); where that does not help for long, it gives up on it: weight 1.
Nothing here draws random numbers but draw(), from the generator that it is given.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from arclab.files import DamagedFile, read_object, require_kinds, write_atomically

VERSION = 2
SATURATED_ABOVE, SATURATED_STD, SATURATED_VISITS = 0.8, 0.1, 5
REACTIVATED_BELOW, PROBE_SHARE = 0.7, 0.02
HARD_BELOW, HARD_GROUPS, MAX_WEIGHT, MAX_LEVEL, GIVE_UP_GROUPS = 0.05, 3, 8.0, 3, 40
_MEMORY = 0.3  # what the newest group counts in a running mean
_TAIL = 20
_MOST_MOMENTS = 400
_KINDS = {
    "num_groups": int, "mean": float, "variance": float, "last_step": int, "state": str, "weight": float, "level": int,
    "quiet_visits": int, "history": list[float],
    "baseline": float,
}  # fmt: skip
_MOMENT = {"step": int, "active": int, "saturated": int, "hard": int, "given_up": int, "mean": float}


class TaskState(Enum):
    """active: drawn by its weight. saturated: only tried again now and then. hard: drawn more often, augmented. given_up: hard
    for so long that it is drawn like any other."""

    active = "active"
    saturated = "saturated"
    hard = "hard"
    given_up = "given_up"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """mean, variance: running, of the share of successes of a group. level: of augmentation: 0 none, 1 symmetries, 2 colours
    too, 3 generated pairs too. quiet_visits: groups in a row that look saturated. history: the newest groups' shares. baseline:
    mean worth of edits before the training, by which rounds go; 0 where it was not measured."""

    num_groups: int = 0
    mean: float = 0.0
    variance: float = 0.0
    last_step: int = 0
    state: TaskState = TaskState.active
    weight: float = 1.0
    level: int = 0
    quiet_visits: int = 0
    history: tuple[float, ...] = ()
    baseline: float = 0.0

    @property
    def is_over(self) -> bool:
        """Nothing more is expected of it, for now."""
        return self.state in (TaskState.saturated, TaskState.given_up)


@dataclass(frozen=True, slots=True)
class Moment:
    """How many tasks were in each state after a drawing. mean: of the running means of the tasks that were visited."""

    step: int
    active: int
    saturated: int
    hard: int
    given_up: int
    mean: float


@dataclass(frozen=True, slots=True)
class Curriculum:
    """data: names the data set; a file of another one is refused. past: how it went, the oldest first; of a long training not
    every drawing."""

    data: str
    tasks: MappingProxyType[str, TaskRecord]
    past: tuple[Moment, ...] = ()

    @property
    def is_all_saturated(self) -> bool:
        """Nothing is left to learn: a training ends well."""
        return all(task.state is TaskState.saturated for task in self.tasks.values())


def new_curriculum(task_ids: Sequence[str], data: str) -> Curriculum:
    assert task_ids, "tasks to learn from"
    return Curriculum(data, MappingProxyType({id_: TaskRecord() for id_ in task_ids}))


def with_baseline(curriculum: Curriculum, baseline: Mapping[str, float]) -> Curriculum:
    tasks = {id_: replace(task, baseline=baseline[id_]) for id_, task in curriculum.tasks.items()}
    return replace(curriculum, tasks=MappingProxyType(tasks))


def of_round(curriculum: Curriculum, count: int) -> tuple[int, Curriculum]:
    """Which of `count` rounds of rising difficulty it is in, from 0, and the curriculum of that round's tasks alone: the first
    one with a task of which something is expected, or the last one."""
    rounds = rounds_by_difficulty({id_: task.baseline for id_, task in curriculum.tasks.items()}, count)
    for number, ids in enumerate(rounds):
        if number == len(rounds) - 1 or not all(curriculum.tasks[id_].is_over for id_ in ids):
            break
    return number, replace(curriculum, tasks=MappingProxyType({id_: curriculum.tasks[id_] for id_ in ids}))


def observe(curriculum: Curriculum, task_id: str, successes: Sequence[bool], step: int) -> Curriculum:
    """The same after a group of rollouts of a task."""
    after = _observed(curriculum.tasks[task_id], sum(successes) / len(successes), step)
    return replace(curriculum, tasks=MappingProxyType({**curriculum.tasks, task_id: after}))


def with_moment(curriculum: Curriculum, step: int) -> Curriculum:
    """The same after a drawing, which its past tells from now on."""
    states = [task.state for task in curriculum.tasks.values()]
    seen = [task.mean for task in curriculum.tasks.values() if task.num_groups]
    counts = {state.value: states.count(state) for state in TaskState}
    past = (*curriculum.past, Moment(step, **counts, mean=sum(seen) / len(seen) if seen else 0.0))
    return replace(curriculum, past=past if len(past) <= _MOST_MOMENTS else (*past[:-1:2], past[-1]))


def _observed(before: TaskRecord, share: float, step: int) -> TaskRecord:
    if before.num_groups == 0:
        mean, variance = share, 0.0
    else:
        change = share - before.mean
        mean = before.mean + _MEMORY * change
        variance = (1 - _MEMORY) * (before.variance + _MEMORY * change**2)
    # What a group says itself counts, too: the running variance of a task that has just been learned is still that of learning.
    history = (*before.history, share)[-_TAIL:]
    newest = history[-SATURATED_VISITS:]
    spread = (sum((each - sum(newest) / len(newest)) ** 2 for each in newest) / len(newest)) ** 0.5
    looks_done = mean > SATURATED_ABOVE and spread < SATURATED_STD
    seen = replace(
        before, num_groups=before.num_groups + 1, mean=mean, variance=variance, last_step=step, history=history,
        quiet_visits=before.quiet_visits + 1 if looks_done else 0,
    )  # fmt: skip
    return _judged(seen)


def _judged(seen: TaskRecord) -> TaskRecord:
    if seen.state is TaskState.saturated:
        return seen if seen.mean >= REACTIVATED_BELOW else replace(seen, state=TaskState.active, weight=_bonus(seen.mean))
    if seen.quiet_visits >= SATURATED_VISITS:
        return replace(seen, state=TaskState.saturated, weight=0.0)
    if seen.num_groups >= HARD_GROUPS and seen.mean < HARD_BELOW:
        if seen.num_groups >= GIVE_UP_GROUPS:
            return replace(seen, state=TaskState.given_up, weight=1.0)
        is_new = seen.state is not TaskState.hard
        if is_new or seen.num_groups % HARD_GROUPS == 0:  # once more after as many groups without success
            weight = min(MAX_WEIGHT, 2 * (1.0 if is_new else seen.weight))
            return replace(seen, state=TaskState.hard, weight=weight, level=min(MAX_LEVEL, seen.level + 1))
        return seen
    return replace(seen, state=TaskState.active, weight=_bonus(seen.mean))


def _bonus(mean: float) -> float:
    """Tasks that go half of the time teach most."""
    return 1.0 + mean * (1.0 - mean)


def draw(curriculum: Curriculum, count: int, rng: Random) -> list[str]:
    """Tasks of the next groups, each with its own draw. Saturated ones have PROBE_SHARE of all draws, as long as there are
    others; where there are none they are all that is left."""
    asleep = [id_ for id_, task in curriculum.tasks.items() if task.state is TaskState.saturated]
    awake = {id_: task.weight for id_, task in curriculum.tasks.items() if task.state is not TaskState.saturated}
    drawn = []
    for _ in range(count):
        is_probe = bool(asleep) and (not awake or rng.random() < PROBE_SHARE)
        drawn.append(rng.choice(asleep) if is_probe else rng.choices(list(awake), list(awake.values()))[0])
    return drawn


def rounds_by_difficulty(baseline: dict[str, float], count: int) -> list[list[str]]:
    """Tasks in rounds of rising difficulty, 1 / mean baseline reward: the easiest first, rounds of nearly equal size."""
    ranked = sorted(baseline, key=lambda id_: (-baseline[id_], id_))
    size, more = divmod(len(ranked), count)
    ends = [size * (n + 1) + min(more, n + 1) for n in range(count)]
    return [ranked[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def write_curriculum(path: Path, curriculum: Curriculum) -> None:
    tasks = {id_: {**asdict(task), "state": task.state.value} for id_, task in curriculum.tasks.items()}
    told = {"version": VERSION, "data": curriculum.data, "tasks": tasks, "past": [asdict(each) for each in curriculum.past]}
    write_atomically(path, json.dumps(told, indent=1) + "\n")


def read_curriculum(path: Path, data: str, task_ids: Collection[str]) -> Curriculum:
    """ValueError, in one sentence: it is of another data set. DamagedFile: not what was written, or of another version."""
    found = read_object(path, {"version": int})
    if found["version"] != VERSION:
        raise DamagedFile(path, f"it is of version {found['version']}, not {VERSION}")
    require_kinds(found, {"data": str, "tasks": dict[str, dict], "past": list[dict]}, path)
    if found["data"] != data or found["tasks"].keys() != set(task_ids):
        raise ValueError(
            f"{path} is of another data set; give the data that the run began with, or remove the file to begin again."
        )
    past = tuple(_moment(path, row) for row in found["past"])
    return Curriculum(data, MappingProxyType({id_: _task(path, id_, row) for id_, row in found["tasks"].items()}), past)


def _moment(path: Path, row: dict[str, Any]) -> Moment:
    require_kinds(row, _MOMENT, path)
    if row.keys() != _MOMENT.keys():
        raise DamagedFile(path, "its past is not what was written")
    return Moment(**row)


def _task(path: Path, id_: str, row: dict[str, object]) -> TaskRecord:
    require_kinds(row, _KINDS, path)
    states = {state.value: state for state in TaskState}
    if row["state"] not in states or row.keys() != _KINDS.keys():
        raise DamagedFile(path, f"task {id_} is not what was written")
    given: dict[str, object] = {**row, "state": states[str(row["state"])], "history": tuple(row["history"])}  # type: ignore[arg-type]
    return TaskRecord(**given)  # type: ignore[arg-type]
