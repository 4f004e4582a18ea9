"""The control of test-time training: its lines are valid, rankings are of the same candidates, and who is tested against whom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import compose_run
from arclab.config.seal_schema import EvaluateTestTimeTrainingConfig
from arclab.data.sources import load_source
from arclab.methods.seal.solver import TASK_ITEMS, TASKS, TaskRecord, record_as_json
from arclab.results.attempts import Candidate
from arclab.runs.worklist import Worklist
from experiments.test_time_training import folder_of, lines, markdown, parse, ranked, scores, source, table


def test_every_line_is_an_evaluation_and_cells_differ_in_what_they_say() -> None:
    arguments = parse(["--seeds", "1"])
    found = {name: compose_run("evaluate_test_time_training", line) for name, line in lines(arguments, 1, Path("m")).items()}
    assert len(found) == 12
    for name, config in found.items():
        assert isinstance(config, EvaluateTestTimeTrainingConfig)
        adaptation, decode, _ = name.split("_")
        assert config.solver.decode.value == decode and config.seed == 1
        assert (config.solver.adaptation.kind.value, config.solver.demonstrations.value) == (
            "lora" if adaptation == "other" else adaptation, "other_task" if adaptation == "other" else "own",
        )  # fmt: skip
    assert len({str(config.folder) for config in found.values()}) == 12


def grid(value: int) -> np.ndarray:
    return np.array([[value]], np.uint8)


def test_counts_and_tests_by_hand(tmp_path: Path) -> None:
    """The truth is third by votes and first by the product, in one task of two, after training; nothing is right before it."""
    arguments = parse(["--folder", str(tmp_path), "--seeds", "0", "1", "--test-tasks", "2", "--decodes", "dfs", "--adaptations", "none", "lora"])  # fmt: skip
    tasks = load_source(source(arguments, "test", 2))
    wrong = [Candidate(grid(value), 9 - value, 0.5, -5.0) for value in (7, 8)]
    for seed in (0, 1):
        for adaptation in ("none", "lora"):
            worklist = Worklist(folder_of(arguments, adaptation, "dfs", seed) / TASKS, {}, TASK_ITEMS)
            for number, task in enumerate(tasks):
                truth = Candidate(np.asarray(task.tests[0].output), 0, 0.5, -1.0)
                right = [truth] if adaptation == "lora" and number == 0 else []
                worklist.add(task.id, record_as_json(TaskRecord("d", tests=((*right, *wrong),))))
    rows = {(row["adaptation"], row["ranking"]): row for row in table(scores(arguments))}
    assert {key: (row["n"], row["N"]) for key, row in rows.items()} == {
        ("none", "votes"): (0, 4), ("none", "product"): (0, 4), ("lora", "votes"): (0, 4), ("lora", "product"): (2, 4),
    }  # fmt: skip
    best = rows["lora", "product"]
    assert best["seeds"] == {"0": [1, 2], "1": [1, 2]} and "against_none" not in rows["none", "product"]
    assert best["against_none"] == best["against_votes"] == {"alone": 2, "other_alone": 0, "p": pytest.approx(0.5)}
    text = markdown(list(rows.values()), {"command": "c", "commit": "x", "machine": "m"})
    assert "| lora | dfs | product | 2/4 = 50.0 %" in text and "2 / 0, p = 0.5 | 2 / 0, p = 0.5 |" in text
    assert json.dumps(list(rows.values()))


def test_votes_go_before_probability() -> None:
    given = [Candidate(grid(1), 1, 0.9, -1.0), Candidate(grid(2), 2, 0.1, -2.0), Candidate(grid(3), 2, 0.2, -3.0)]
    assert ranked(given, "product") == given and ranked(given, "votes") == [given[2], given[1], given[0]]
