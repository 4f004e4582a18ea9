"""Run folders of earlier versions stay whole: they are evaluated, continued and compared like new ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import thaw, thaw_run
from arclab.launch.start import start
from arclab.methods.recursive.run import pretrain
from arclab.metrics.logger import read_rows
from arclab.pages.analyse import analyse
from arclab.runs.folder import RunDir, State

from .conftest import ROOT

KEPT = ROOT / "tests" / "fixtures" / "runs_2026_11"
NAMES = ("etrm", "trm")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the kept runs, where their names say they lie."""
    folder = tmp_path / "runs" / "toy_queue"
    for name in NAMES:
        shutil.copytree(KEPT / name, folder / name)
    return folder


def predicted(folder: Path) -> list[dict[str, Any]]:
    """The grids and votes of an evaluation, without the confidences, whose last digits are the machine's, and without the
    sum of votes, which these runs did not keep."""
    lines = (folder / "evaluation" / "train" / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    answers = [{**r, "candidates": [(c["grid"], c["votes"]) for c in r["candidates"]]} for r in records]
    return [{key: value for key, value in answer.items() if key != "num_votes"} for answer in answers]


@pytest.mark.parametrize("name", NAMES)
def test_an_old_checkpoint_answers_as_it_did(kept: Path, name: str) -> None:
    before = predicted(kept / name)
    start("evaluate.py", [f"checkpoint={kept / name}"])
    assert predicted(kept / name) == before
    assert (kept / name / "evaluation" / "train" / "report.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on_to_where_it_would_have_come(kept: Path, name: str) -> None:
    config = thaw(kept / name / "config.yaml")
    config.runs_dir = str(kept.parent)
    before = read_rows(kept / name / "metrics.jsonl")
    assert pretrain(config) == 0
    rows = read_rows(kept / name / "metrics.jsonl")
    assert rows[: len(before)] == before and RunDir(kept / name).state is State.done
    expected = json.loads((KEPT / "at_step_120.json").read_text())[name]
    assert {key: rows[-1][key] for key in expected} == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_old_runs_are_compared(kept: Path, tmp_path: Path) -> None:
    analyse([kept / name for name in NAMES], tmp_path / "page")
    page = (tmp_path / "page" / "compare.html").read_text()
    assert all(f"toy_queue/{name}" in page for name in NAMES) and "PREEMPTED at step 61 of 120" in page


def test_a_memgen_run_from_before_triggers_and_reward_is_read_as_it_was() -> None:
    config = thaw_run(KEPT / "memgen" / "config.yaml")
    assert config.memgen.weaver.start_from is None and config.memgen.trigger.kind.value == "always"
    assert config.trainer.kind == "sft" and config.dataset.guessed_share == 0.0
