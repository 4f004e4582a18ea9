"""Run folders with damaged files: what is read is right, and what is not names its file. Nothing here trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arclab.config.compose import ConfigError, freeze, thaw
from arclab.config.plain_composer import PlainComposer
from arclab.config.saved_file import read_config
from arclab.config.schema import ExperimentConfig
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.pages.compare import render_comparison
from arclab.pages.compare_scores import commits
from arclab.pages.tracking import convergence, issues, observations, status, tracking_sheet
from arclab.results.criterion import read_criterion
from arclab.results.reading import read_runs
from arclab.results.writing import require_no_larger
from arclab.runs.folder import RunDir, State

from ..conftest import TINY, compose
from ..damage import REPEATED, damaged_bytes, damaged_json, damaged_value, outcome_or_sentence

ROWS = [
    {"_step": 0, "_runtime": 0.1, "_timestamp": 1.7e9, "num_train_tasks": 4.0},
    {"_step": 2, "train/exact_accuracy": 0.5, "train/count": 8.0, "train/new_colors_exact": None, "health": "LEARNING", "health_note": "fine"},
    {"_step": 4, "all.exact_accuracy": 0.25, "all.labelled": 8.0, "ARC/pass@1": 0.5, "ARC/pass@2": 0.5, "ARC/solved@2": 0.5, "ARC/tasks": 4.0},
]  # fmt: skip
CRITERION = {
    "result": "FAIL", "phase": "phase 1", "metric": "all.exact_accuracy", "threshold": 0.9, "value": 0.25, "n": 2.0, "N": 8,
    "counted": "augmented test inputs", "interval95": [0.1, 0.5], "interval_over": "4 tasks", "step": 4, "sentence": "FAIL: ...",
}  # fmt: skip
SCORES = {
    name: {"n": 1.0, "N": 2, "value": 0.5, "interval95": [0.1, 0.9]} for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
}
RECORD = {
    "split": "train", "num_tasks": 2, "num_augmentations": 1, "step": 4, "weights": "ema", "stamps": ["fit"], "notes": [],
    "scores": SCORES, "statistics": {"all.exact_accuracy": 0.25}, "config": {"evaluation.halting": "early"}, "tasks_digest": "ab",
}  # fmt: skip
PREDICTIONS = [
    {"task": task, "test": 0, "candidates": [{"grid": [[1, 2]], "votes": 3, "confidence": 0.5}, {"grid": None, "votes": 1, "confidence": 0.1}],
     "num_candidates": 2, "truth_rank": rank}
    for task, rank in (("a", 0), ("b", None))
]  # fmt: skip
JSON_FILES: dict[str, Any] = {
    "criterion.json": CRITERION, "evaluation/train/metrics.json": RECORD, "wandb.json": {"id": "x", "mode": "offline", "url": None},
    "provenance.json": {"command": "pretrain_encoder.py", "commit": "abc", "notes": ["n"], "earlier": [{"commit": "d", "to_step": 2}]},
    "checkpoints/step_00000004/state.json": {"step": 4, "stamps": ["transductive"]},
}  # fmt: skip
LINES = {"metrics.jsonl": ROWS, "evaluation/train/predictions.jsonl": PREDICTIONS}


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    for name, content in {
        **{n: json.dumps(r).encode() for n, r in JSON_FILES.items()},
        **{n: lines(r) for n, r in LINES.items()},
    }.items():
        (made.path / name).parent.mkdir(parents=True, exist_ok=True)
        (made.path / name).write_bytes(content)
    made.config.write_text("experiment_name: none\nname: a\ntrainer: {steps: 4}\nevaluation: {split: train}\n")
    made.write_status(State.done, 4)
    return made


def look_at(run: RunDir) -> None:
    """Everything that pages are made of, without drawing them."""
    (read,) = read_runs([run.path])
    assert all(share.interval[0] <= share.interval[1] for split in read.splits for share in split.shares.values())
    assert all(isinstance(stamp, str) for stamp in read.stamps) and isinstance(read.state, str)
    assert all(set(split.solved) == set(split.task_ids) for split in read.splits)
    assert [issues(read), observations(read), convergence(read), status(read), commits(read)]


def test_the_whole_folder_is_read(run: RunDir) -> None:
    look_at(run)
    (read,) = read_runs([run.path])
    assert read.rows == ROWS and read.verdict == "FAIL" and read.splits[0].solved == {"a": True, "b": False}
    assert "FAIL: ..." in render_comparison([read]) and "FAIL: ..." in tracking_sheet(read, None)


@pytest.mark.parametrize("name", list(JSON_FILES))
def test_damaged_objects(run: RunDir, name: str) -> None:
    path = run.path / name
    whole = path.read_bytes()

    @given(content=damaged_json(JSON_FILES[name]))
    @REPEATED
    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome_or_sentence(lambda: look_at(run), path)

    check()
    for content in (b"[]", b"\x00" * 50, b"[" * 100_000, b"\xff", b'{"a": 1, "a": 2}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} is damaged \("):
            look_at(run)
    path.write_bytes(whole)


@pytest.mark.parametrize("name", list(LINES))
def test_damaged_lines(run: RunDir, name: str) -> None:
    path, records = run.path / name, LINES[name]

    @given(
        content=st.one_of(
            damaged_bytes(lines(records)), *(damaged_value(r).map(lambda v: lines([v, *records[1:]])) for r in records)
        )
    )
    @REPEATED
    def check(content: bytes) -> None:
        path.write_bytes(content)
        outcome_or_sentence(lambda: look_at(run), path)

    check()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "it has no _step"),
        ({"_step": "4"}, "_step is '4' where a whole number belongs"),
        ({"_step": 4, "train/lm_loss": "0.5"}, "train/lm_loss is '0.5' where a number or null belongs"),
        ({"_step": 4, "train/lm_loss": float("nan")}, "train/lm_loss is nan where"),
        ({"_step": 4, "health_note": 3}, "health_note is 3 where text belongs"),
        ({"_step": 4, "ARC/pass@1": 1.5}, "ARC/pass@1 is 1.5, which it cannot be"),
        ({"_step": 4, "ARC/tasks": -1}, "ARC/tasks is -1, which it cannot be"),
        ({"_step": 4, "train/count": True}, "train/count is True where"),
    ],
)
def test_a_row_that_is_none_stops_a_resume_before_the_log_is_touched(tmp_path: Path, row: Any, fault: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content := lines([ROWS[0], row]))
    with pytest.raises(ValueError) as error:
        MetricLogger(path, None, resume_step=9, runtime_s=0)
    assert str(error.value).startswith(f"{path} is damaged in line 2 ({fault}") and str(error.value).endswith(
        "; correct that line, or remove it."
    )
    assert path.read_bytes() == content


def test_losses_may_be_anything_finite(tmp_path: Path) -> None:
    """Only what is counted has a range."""
    rows = [
        {
            "_step": 1,
            "train/lm_loss": -2.5,
            "encoder/swap_drop": -0.1,
            "train/exact_accuracy": 1 + 1e-9,
            "of_an_older_version": 7,
        }
    ]
    (tmp_path / "m.jsonl").write_bytes(lines(rows))
    assert read_rows(tmp_path / "m.jsonl") == rows


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"n": 9.0}, "n is 9.0 of N = 8"),
        ({"value": None}, "value is None, and no share"),
        ({"interval_over": "tasks"}, "interval_over does not begin with a number"),
        ({"sentence": None}, "sentence is None where text belongs"),
    ],
)
def test_a_criterion_that_does_not_add_up(run: RunDir, change: dict[str, Any], fault: str) -> None:
    path = run.path / "criterion.json"
    path.write_text(json.dumps(CRITERION | change))
    with pytest.raises(ValueError) as error:
        read_criterion(run)
    assert str(error.value) == f"{path} is damaged ({fault}); restore it, or remove it."


@pytest.mark.parametrize(
    ("prediction", "fault"),
    [
        ({"candidates": [{"grid": [[1, 10]], "votes": 1, "confidence": 1}]}, "colours must be 0 to 9, got 10"),
        ({"candidates": [{"grid": [[1], [2, 3]], "votes": 1, "confidence": 1}]}, "must have the same length"),
        ({"candidates": [{"grid": [[1]], "votes": "3", "confidence": 1}]}, "votes is '3' where a whole number belongs"),
        ({"candidates": [3]}, "candidates is a list where a list in which each value is an object belongs"),
        ({"task": "\ud800"}, r"task is '\\ud800' where text belongs"),
        ({"task": "a"}, "test input 0 of task a stands twice"),
        ({"truth_rank": "0"}, "truth_rank is '0' where a whole number or null belongs"),
    ],
)
def test_predictions_that_are_none(run: RunDir, prediction: dict[str, Any], fault: str) -> None:
    path = run.path / "evaluation/train/predictions.jsonl"
    path.write_bytes(lines([PREDICTIONS[0], PREDICTIONS[1] | prediction]))
    with pytest.raises(ValueError) as error:
        read_runs([run.path])
    assert str(error.value).startswith(f"{path} is damaged in line 2 (") and fault.replace("\\\\", "\\") in str(error.value)
    assert str(error.value).endswith("; run evaluate.py again.")


def test_predictions_that_are_cut_short(run: RunDir) -> None:
    """In the middle of a line, or at its end: a paired test on those that are left would be another test."""
    path = run.path / "evaluation/train/predictions.jsonl"
    whole = path.read_bytes()
    record = {**RECORD, "predictions_sha256": hashlib.sha256(whole).hexdigest()}
    (path.parent / "metrics.json").write_text(json.dumps(record))
    assert len(read_runs([run.path])[0].splits[0].predictions) == 2
    for content, fault in (
        (whole[:-1], "it is cut short"),
        (lines(PREDICTIONS[:1]), "it is not the one that metrics.json beside it was made with"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=fault):
            read_runs([run.path])


@given(content=damaged_json({"num_tasks": 5, "num_augmentations": 2}))
@REPEATED
def test_a_damaged_earlier_evaluation_is_not_replaced_unseen(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    outcome_or_sentence(lambda: require_no_larger(tmp_path, 5, 2), tmp_path)


CONFIG = freeze(compose("pretrain_encoder", TINY))
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\x00\x01\x02", "is damaged ("),
        (b"\xff\xfe", "is damaged (no UTF-8 text"),
        (b"- a\n- b\n", "is damaged (no keys"),
        (b"3\n", "is damaged (no keys"),
        (b"a: " + b"[" * 5000, "is damaged ("),
        (BOMB.encode(), "is damaged (it has aliases"),
        (CONFIG.replace("\n  steps: 4\n", "\n  steps: four\n").encode(), "trainer.steps: Value 'four'"),
        (CONFIG.replace("  steps: 4", "  stepps: 4").encode(), "unknown key trainer.stepps"),
        (CONFIG.replace("trainer:", "trainer: 3\nother:").encode(), ": "),
        (CONFIG.replace("seed: 0", "seed: ${nothing}").encode(), "seed: "),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    for read in (thaw, PlainComposer().thaw):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert str(path) in str(error.value) and fault in str(error.value) and "\n" not in str(error.value)


def test_damaged_configurations_are_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    readers: tuple[Callable[[Path], Any], ...] = (thaw, PlainComposer().thaw, read_config)

    @given(content=damaged_bytes(CONFIG.encode()))
    @REPEATED
    def check(content: bytes) -> None:
        path.write_bytes(content)
        for read in readers:
            config = outcome_or_sentence(lambda read=read: read(path), path)
            assert config is None or read is read_config or isinstance(config, ExperimentConfig)

    check()
    path.write_text("﻿" + CONFIG)
    assert thaw(path) == PlainComposer().thaw(path) == compose("pretrain_encoder", TINY)
    with pytest.raises(ConfigError, match="does not exist"):
        thaw(tmp_path / "none")
