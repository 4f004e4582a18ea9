"""The page of a run at the end of its training: written by the training itself, from what its folder holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arclab.files import DamagedFile
from arclab.pages.training_report import render_training_report, write_training_report
from arclab.runs.folder import RunDir

from .conftest import CRITERION, load


def test_training_leaves_its_page(folder: Path) -> None:
    """Score, health, curves and the predicted grids of the last evaluation, in a file that loads nothing."""
    page = (folder / "a/report.html").read_text()
    (run,) = load(folder, "a")
    assert run.own_scores is not None
    share = run.own_scores[2]["ARC/pass@2"]
    assert f"{100 * share.value:.1f} %" in page and f"/{share.total} tasks" in page and "during training, step 4," in page
    table = json.loads((folder / "a/eval_predictions.json").read_text())["predictions"]
    assert re.findall(r'data-task="(\w+)"', page) == [record["task"] for record in table]
    assert "scored on the training tasks: this measures fit" in page[: page.index("<header")] and "<figure><svg" in page
    assert "<dt>health</dt>" in page and "not a finite" not in page and all(key in page for key in run.settings)
    assert not re.search(r"https?:|<link|<script |<img", page)


def test_the_page_says_the_verdicts_and_escapes_them(folder: Path) -> None:
    (folder / "a/criterion.json").write_text(json.dumps({**CRITERION, "sentence": "PASS <b>"}))
    (run,) = load(folder, "a")
    run.rows[-1].update({"health": "STARVED", "health_level": "bad", "health_note": "STARVED x 0.02 < 0.05: look here"})
    page = render_training_report(run)
    assert "PASS &lt;b&gt;" in page and "<dd>step 4: STARVED x 0.02 &lt; 0.05</dd>" in page


def test_without_evaluations_the_page_says_how_to_get_them(folder: Path) -> None:
    (folder / "a/eval_predictions.json").unlink()
    (run,) = load(folder, "a")
    run.rows[:] = [{"_step": row["_step"], "train/lm_loss": 1.0} for row in run.rows]
    page = render_training_report(run)
    assert f"evaluate.py checkpoint={run.path} does" in page and "No predictions: training scored no task." in page


def test_a_damaged_table_is_named(folder: Path) -> None:
    path = folder / "a/eval_predictions.json"
    path.write_text(
        json.dumps({"step": 4, "predictions": [{"task": "t", "test": 0, "input": [[11]], "truth": None, "predicted": None}]})
    )
    before = (folder / "a/report.html").read_bytes()
    with pytest.raises(DamagedFile, match=r"eval_predictions\.json is damaged"):
        write_training_report(RunDir(folder / "a"))
    assert (folder / "a/report.html").read_bytes() == before
