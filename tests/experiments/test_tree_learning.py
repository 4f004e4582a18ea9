"""The table of the learning control: counts of all seeds, and who is tested against whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arclab.config.compose import compose_run
from experiments.tree_learning import copy_first_rounds, lines, markdown, paired_tests, parse, scores, stage, table, took


def test_drawn_labels_begin_with_the_round_that_learned(tmp_path: Path) -> None:
    arguments = parse(["--folder", str(tmp_path), "--seeds", "0", "1", "--set", "num_threads=1"])
    found = {
        name: compose_run("self_improve_tree_search", line)
        for run in ("learned", "drawn")
        for name, line in lines(arguments, run).items()
    }
    assert list(found) == [
        "learned_s0",
        "learned_s1",
        *(f"drawn_s{s}-0-{n}" for s in (0, 1) for n in ("reward_model", "evaluate")),
    ]
    assert found["learned_s1"].seed == 1 and found["learned_s1"].sft.twin and found["learned_s0"].rounds == 2
    drawn = found["drawn_s1-0-reward_model"]
    assert drawn.reward_model.shuffle_labels and not found["learned_s1"].reward_model.shuffle_labels
    for name in ("start", "collect", "curate", "sft"):
        folder = stage(arguments, "learned", 1, 0, name)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert copy_first_rounds(arguments) == copy_first_rounds(arguments) == [1]
    assert (drawn.folder_of("sft", 0) / "manifest.json").is_file()


def test_counts_and_tests_by_hand(tmp_path: Path) -> None:
    """Of two seeds with three tasks each."""
    arguments = parse(["--folder", str(tmp_path), "--seeds", "0", "1", "--rounds", "1"])
    solved = {"start": "a", "twin": "", "search": "ab", "sampling": "bc", "model": "abc"}
    counts = {
        "programs/count": 8.0, "programs/tokens": 70.0, "learned/search_count": 9.0, "learned/search_tokens": 60.0,
        "learned/sampling_count": 9.0, "learned/sampling_tokens": 90.0,
    }  # fmt: skip
    for seed in (0, 1):
        folder = stage(arguments, "learned", seed, 0, "evaluate")
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(
            json.dumps({which: {task: task in tasks for task in "abc"} for which, tasks in solved.items()})
        )
        (folder / "manifest.json").write_text(json.dumps({"counts": counts}))
    found = scores(arguments)
    rows = {(row["run"], row["what"]): row for row in table(found, [0, 1])}
    assert {what: (row["n"], row["N"]) for (_, what), row in rows.items()} == {
        "start": (2, 6), "twin 0": (0, 6), "search 0": (4, 6), "sampling 0": (4, 6), "search with reward model 0": (6, 6)
    }  # fmt: skip
    compared = {row["question"]: row for row in paired_tests(found, [0, 1], 1)}
    learned = compared["does it learn"]
    assert (learned["first_alone"], learned["second_alone"], learned["tasks"]) == (2, 0, 6)
    assert learned["p_value"] == pytest.approx(0.5)
    assert compared["does the twin"]["second_alone"] == 2
    assert compared["does the reward model add to the search"]["first_alone"] == 2
    assert compared["does it, and the search, add to sampling"]["first_alone"] == 2
    assert not any("second round" in question or "drawn" in question for question in compared)
    record = {
        "scores": list(rows.values()), "tests": list(compared.values()), "took": took(arguments),
        "reward_models": [{"run": "learned", "right": 9, "pairs": 10}],
        "provenance": {"command": "c", "commit": "x", "machine": "m"},
    }  # fmt: skip
    text = markdown(record)
    assert "| learned | search 0 | 4/6 = 66.7 %" in text and "9/10 = 90.0 %" in text
    assert "| does it learn | search 0 against start | 2 | 0 | 0.5 |" in text
    assert "search with reward model, last round: 16 programs, 140 tokens." in text
