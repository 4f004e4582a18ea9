"""The curriculum with students that are simulated: each task has a logistic learning curve of its own."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from arclab.files import DamagedFile
from arclab.methods.program_edit.curriculum import (
    GIVE_UP_GROUPS,
    MAX_LEVEL,
    MAX_WEIGHT,
    PROBE_SHARE,
    Curriculum,
    Moment,
    TaskState,
    draw,
    new_curriculum,
    observe,
    read_curriculum,
    rounds_by_difficulty,
    with_moment,
    write_curriculum,
)

GROUP = 16


class Student:
    """Success is logistic in the visits of a task, from 3 % up: half way after its difficulty in visits; None: never."""

    def __init__(self, difficulty: dict[str, float | None]) -> None:
        self.difficulty, self.visits = difficulty, Counter[str]()

    def chance(self, task: str) -> float:
        hard = self.difficulty[task]
        return 0.0 if hard is None else 1 / (1 + math.exp(3.5 - 3.5 * self.visits[task] / hard))

    def try_(self, task: str, rng: Random) -> list[bool]:
        self.visits[task] += 1
        return [rng.random() < self.chance(task) for _ in range(GROUP)]


def studied(
    student: Student, steps: int, seed: int = 0, curriculum: Curriculum | None = None, first: int = 0
) -> tuple[Curriculum, list[list[str]]]:
    curriculum = curriculum or new_curriculum(list(student.difficulty), "d")
    drawn = []
    for step in range(first, first + steps):
        rng = Random(f"{seed}/{step}")
        drawn.append(draw(curriculum, 4, rng))
        for task in drawn[-1]:
            curriculum = observe(curriculum, task, student.try_(task, rng), step)
    return curriculum, drawn


def test_what_is_learned_leaves_what_is_hard_is_drawn_more_and_nothing_starves() -> None:
    student = Student({**{f"easy{n}": 3.0 for n in range(8)}, **{f"late{n}": 30.0 for n in range(3)}, "never": None})
    curriculum, drawn = studied(student, 150)
    tasks = curriculum.tasks
    assert all(tasks[f"easy{n}"].state is TaskState.saturated and tasks[f"easy{n}"].weight == 0 for n in range(8))
    early, late = (Counter(task for group in part for task in group) for part in (drawn[:15], drawn[-60:]))
    assert sum(early[f"easy{n}"] for n in range(8)) > 0.5 * early.total()
    probes = sum(late[f"easy{n}"] for n in range(8))
    assert probes < 5 * PROBE_SHARE * late.total() and min(student.visits.values()) >= 5
    assert all(tasks[f"late{n}"].mean > 0.8 for n in range(3))  # they were drawn until they went
    assert tasks["never"].mean == 0 and tasks["never"].level == MAX_LEVEL


def test_it_takes_fewer_groups_than_drawing_all_alike() -> None:
    difficulty: dict[str, float | None] = {**{f"easy{n}": 3.0 for n in range(12)}, **{f"late{n}": 25.0 for n in range(4)}}

    def groups(is_uniform: bool, seed: int) -> int:
        student, curriculum = Student(dict(difficulty)), new_curriculum(list(difficulty), "d")
        for step in range(2000):
            rng = Random(f"{seed}/{step}")
            (task,) = [rng.choice(list(difficulty))] if is_uniform else draw(curriculum, 1, rng)
            curriculum = observe(curriculum, task, student.try_(task, rng), step)
            if all(student.chance(each) > 0.9 for each in difficulty):
                return step
        raise AssertionError("never learned")

    for seed in range(3):
        assert groups(False, seed) < 0.7 * groups(True, seed)


def test_a_hard_task_weighs_more_up_to_a_limit_and_is_given_up() -> None:
    curriculum = new_curriculum(["a"], "d")
    weights, levels, states = [], [], []
    for step in range(GIVE_UP_GROUPS + 3):
        curriculum = observe(curriculum, "a", [False] * GROUP, step)
        task = curriculum.tasks["a"]
        weights.append(task.weight), levels.append(task.level), states.append(task.state)
    assert (
        weights[:9] == [1, 1, 2, 2, 2, 4, 4, 4, 8]
        and max(weights) == MAX_WEIGHT
        and levels[2] == 1
        and max(levels) == MAX_LEVEL
    )
    assert (
        states[1] is TaskState.active and states[2] is TaskState.hard and states[-1] is TaskState.given_up and weights[-1] == 1
    )
    for step in range(3):
        curriculum = observe(curriculum, "a", [True] * GROUP, 99 + step)
    assert curriculum.tasks["a"].state is TaskState.active and curriculum.tasks["a"].weight > 1


def test_a_saturated_task_that_fails_comes_back_and_one_that_varies_never_sleeps() -> None:
    curriculum = new_curriculum(["a", "b"], "d")
    for step in range(8):
        curriculum = observe(curriculum, "a", [True] * 16, step)
        curriculum = observe(curriculum, "b", [step % 2 == 0 or n < 10 for n in range(16)], step)
        assert (curriculum.tasks["a"].state is TaskState.saturated) is (step >= 4)
    assert curriculum.tasks["b"].state is TaskState.active and not curriculum.is_all_saturated
    assert set(draw(curriculum, 200, Random(0))) == {"a", "b"}
    curriculum = observe(curriculum, "a", [False] * 16, 9)
    curriculum = observe(curriculum, "a", [False] * 16, 10)
    assert curriculum.tasks["a"].state is TaskState.active and curriculum.tasks["a"].weight > 0


def test_all_saturated_is_said_and_drawn_all_the_same() -> None:
    curriculum = new_curriculum(["a", "b"], "d")
    for step in range(12):
        for task in ("a", "b"):
            curriculum = observe(curriculum, task, [True] * 4, step)
    assert curriculum.is_all_saturated and set(draw(curriculum, 50, Random(0))) == {"a", "b"}


def test_a_stopped_run_goes_on_to_the_same_draws(tmp_path: Path) -> None:
    difficulty: dict[str, float | None] = {"a": 3.0, "b": 10.0, "c": None}
    student = Student(dict(difficulty))
    whole, drawn = studied(student, 40)
    again = Student(dict(difficulty))
    half, first = studied(again, 20)
    path = tmp_path / "curriculum.json"
    write_curriculum(path, half)
    read = read_curriculum(path, "d", ["a", "b", "c"])
    assert read == half
    ended, second = studied(again, 20, curriculum=read, first=20)
    assert ended == whole and first + second == drawn


def test_a_file_of_other_data_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curriculum.json"
    write_curriculum(path, observe(new_curriculum(["a"], "d"), "a", [True], 1))
    for data, ids in (("e", ["a"]), ("d", ["a", "b"])):
        with pytest.raises(ValueError, match=r"curriculum\.json is of another data set; give the data that the run began with"):
            read_curriculum(path, data, ids)
    for old, new in (
        ('"active"', '"odd"'),
        ('"mean": 1.0', '"mean": "x"'),
        ('"version": 2', '"version": 9'),
        ('"level": 0,', ""),
        ('"given_up": 0', '"given_up": "none"'),
        ('"past"', '"passed"'),
    ):
        write_curriculum(path, with_moment(observe(new_curriculum(["a"], "d"), "a", [True], 1), 1))
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(DamagedFile):
            read_curriculum(path, "d", ["a"])


def test_the_past_of_a_long_training_stays_small(tmp_path: Path) -> None:
    curriculum = observe(new_curriculum(["a", "b"], "d"), "a", [True, False], 0)
    for step in range(2000):
        curriculum = with_moment(curriculum, step)
    steps = [each.step for each in curriculum.past]
    assert 200 <= len(steps) <= 400 and steps[0] == 0 and steps[-1] == 1999 and steps == sorted(set(steps))
    assert curriculum.past[0] == Moment(0, active=2, saturated=0, hard=0, given_up=0, mean=0.5)
    write_curriculum(tmp_path / "curriculum.json", curriculum)
    assert read_curriculum(tmp_path / "curriculum.json", "d", ["a", "b"]) == curriculum


def test_rounds_rise_in_difficulty() -> None:
    baseline = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.7, "e": 0.3}
    assert rounds_by_difficulty(baseline, 2) == [["a", "d", "c"], ["e", "b"]]
    assert rounds_by_difficulty(baseline, 9) == [["a"], ["d"], ["c"], ["e"], ["b"]]
