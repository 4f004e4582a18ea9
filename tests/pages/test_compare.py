"""The comparison page: scores side by side, curves, the gallery, what differs, and what it refuses."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from arclab.metrics.names import REGISTRY, Metric
from arclab.pages.analyse import analyse
from arclab.pages.compare import commits, render_comparison, score_groups
from arclab.pages.compare_pictures import disagreements, failures, overlay_svgs
from arclab.pages.tracking import tracking_sheet
from arclab.results.reading import FIT_STAMP, read_runs, settings_difference

from .conftest import edit, load, set_ranks


def test_settings_difference_keeps_only_what_differs() -> None:
    first = {"name": "a", "seed": 0, "x.y": True, "old": None, "wandb.mode": "auto"}
    second = {"name": "b", "seed": 0, "x.y": False, "new": 1, "wandb.mode": "disabled"}
    assert settings_difference(first, second) == {"x.y": ["true", "false"], "old": ["null", "not set"], "new": ["not set", "1"]}


def test_forced_halts_are_shown_where_they_are_logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "train/forced_halt_share"
    monkeypatch.setitem(REGISTRY, name, Metric(name, "share", "none", "halted by the step limit"))
    runs = load(folder, "a", "b")
    runs[0].rows[-1][name] = 0.625
    page = render_comparison(runs)
    assert f"{name}, last tenth" in page and "62.5 %" in page and page.count(f">{name}<") == 1


def test_the_commits_of_a_run_that_went_on_are_all_named(folder: Path) -> None:
    earlier = [{"commit": "a" * 40, "to_step": 2}, {"commit": "b" * 40 + "+changes", "to_step": 3}]
    edit(folder / "a/provenance.json", commit="b" * 40 + "+changes", earlier=earlier)
    assert commits(load(folder, "a")[0]) == f"{'b' * 10}+changes ({'a' * 10} to step 2)"
    edit(folder / "a/provenance.json", commit="not recorded", earlier=[])
    assert commits(load(folder, "a")[0]) == "not recorded"


def test_scores_of_training_carry_the_stamps_of_their_weights(folder: Path) -> None:
    """A run without evaluate.py has no metrics.json to say what its numbers mean; its checkpoint and split do."""
    shutil.rmtree(folder / "b/evaluation")
    edit(sorted((folder / "b/checkpoints").glob("step_*/state.json"))[-1], stamps=["transductive: <decoder>"])
    (run,) = load(folder, "b")
    assert run.stamps == ["transductive: <decoder>", "scored on the training tasks: this measures fit, not generalisation"]
    page, sheet = render_comparison([run]), tracking_sheet(run, None)
    assert page.count("transductive: &lt;decoder&gt;") >= 2 and "<decoder>" not in page
    assert "> ⚠️ **transductive: <decoder>**" in sheet


def test_finished_run_has_no_partial_badge(folder: Path) -> None:
    page = render_comparison(load(folder, "a", "b"))
    assert 'class="badge partial"' not in page and "DONE at step 4" in page


def test_scores_stand_side_by_side(folder: Path) -> None:
    set_ranks(folder / "a", {f"t{i}": [0] for i in range(3)})
    runs = load(folder, "a", "b")
    (group,) = score_groups(runs)
    first, second = (column.rows["ARC/pass@2"] for column in group.columns)
    assert (first.fraction, first.percent) == ("3/3", "100.0 %") and second.fraction.endswith("/4")
    page = render_comparison(runs)
    assert first.interval in page and second.interval in page and "not generalisation" in page


def test_page_loads_nothing_and_its_anchors_lead_somewhere(folder: Path) -> None:
    page = render_comparison(load(folder, "a", "b"))
    assert "<figure><svg" in page
    assert not re.search(r"https?:|//\w+\.|@import|<link|<script|<img|<iframe", page)
    references = [r for pair in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', page) for r in pair if r]
    assert references and all(reference.startswith("#") and f'id="{reference[1:]}"' in page for reference in references)


def test_curves_hold_every_run_that_logged_the_metric(folder: Path) -> None:
    a, b = load(folder, "a", "b")
    (both,) = overlay_svgs([a, b], ["train/lm_loss"])
    assert "#2f6fdb" in both and "#e2711d" in both
    b.rows.clear()
    (one,) = overlay_svgs([a, b], ["train/lm_loss"])
    assert "#2f6fdb" in one and "#e2711d" not in one
    assert overlay_svgs([b], ["train/lm_loss"]) == []


def test_gallery_shows_real_grids_and_who_was_right(folder: Path) -> None:
    task = load(folder, "a")[0].splits[0].task_ids[0]
    for name, place in (("a", 0), ("b", None)):
        tests = [place] * sum(key[0] == task for key in load(folder, name)[0].splits[0].predictions)
        set_ranks(folder / name, {task: tests, "gone": [place]})
    (gallery,) = disagreements(load(folder, "a", "b"))
    known, gone = gallery.cards
    assert known.solvers == ("a",) and known.demos and known.tests[0].truth is not None
    assert [(x.label, x.is_right) for x in known.tests[0].answers] == [("a", True), ("b", False)]
    assert gone.tests[0].truth is None and gallery.problem == "task gone is in none of the runs' sources"
    page = render_comparison(load(folder, "a", "b"))
    assert f'data-task="{task}"' in page and "1x2 instead of" in page


def test_failures_are_the_tasks_that_no_run_solves(folder: Path) -> None:
    set_ranks(folder / "a", {"t1": [0], "t2": [None], "t3": [1, 5]})
    set_ranks(folder / "b", {"t1": [None], "t2": [3], "t3": [None, 0]})
    both, alone = failures(load(folder, "a", "b"))[0], failures(load(folder, "b"))[0]
    assert [card.id for card in both.cards] == ["t2", "t3"] and (both.num_tasks, both.num_common) == (2, 3)
    assert [card.id for card in alone.cards] == ["t1", "t2", "t3"] and not disagreements(load(folder, "b"))
    page = render_comparison(load(folder, "b"))
    assert 'id="failures-train"' in page and page.count("<article") == 3 and "Tasks that b does not solve" in page
    set_ranks(folder / "b", {"t1": [0]})
    assert "Every task is solved." in render_comparison(load(folder, "b"))
    edit(folder / "b/evaluation/train/metrics.json", scores={"ARC/solved@2": {"n": 0, "N": 0}, "ARC/pass@2": {"n": 0, "N": 0}})
    assert failures(load(folder, "b")) == []  # hidden answers: wrong is not known


def test_grids_of_validation_tasks_are_found(folder: Path) -> None:
    source = "toy:dihedral?tasks=3&side=4&split=validation"
    set_ranks(folder / "a", {"toy_dihedral_validation_00001": [None]})
    (run,) = load(folder, "a")
    run.settings["dataset.validation_sources"] = [source]
    (gallery,) = failures([run])
    assert gallery.problem == "" and gallery.cards[0].demos and gallery.cards[0].tests[0].truth is not None


def test_unreadable_source_leaves_the_predictions(folder: Path) -> None:
    set_ranks(folder / "a", {"t": [0]})
    set_ranks(folder / "b", {"t": [None]})
    runs = load(folder, "a", "b")
    for run in runs:
        run.settings.update({"dataset.train_sources": ["folder:gone"], "dataset.eval_sources": []})
    (gallery,) = disagreements(runs)
    assert "gone does not exist" in gallery.problem and gallery.cards[0].tests[0].answers[0].view is not None


def test_labels_are_as_long_as_they_must_be(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "a", tmp_path / "other")
    assert [run.label for run in read_runs([folder / "a", folder / "b"])] == ["a", "b"]
    assert [run.label for run in read_runs([folder / "a", other])] == [str(folder / "a"), str(other)]
    written = [path.name for path in analyse([folder / "a", other], tmp_path / "out")]
    assert written == ["compare.html", "quickstart-a.md", "quickstart-a-2.md"]


def test_command_writes_page_and_sheets(folder: Path, run_script: Any, tmp_path: Path) -> None:
    arguments = ("arclab.pages", f"{folder}/a", f"{folder}/b", "--output", f"{tmp_path}/out")
    done = run_script("-m", *arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "quickstart-a.md", "quickstart-b.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}"], r"quickstart is not a run folder \(it has neither config.yaml nor metrics.json\)"),
        (["{}/none"], r"none is not a run folder \(it does not exist\)"),
        (["{}/a", "{}/a"], "was given twice"),
    ],
)
def test_what_is_no_run_is_one_sentence_and_status_2(folder: Path, run_script: Any, arguments: list[str], message: str) -> None:
    done = run_script("-m", "arclab.pages", *(a.format(folder) for a in arguments))
    assert done.returncode == 2 and re.search(message, done.stderr) and "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["status.json", "metrics.jsonl", "config.yaml", "evaluation/train/predictions.jsonl"])
def test_damaged_file_is_named(folder: Path, file: str) -> None:
    """With the line, where the file has one record a line."""
    (folder / "a" / file).write_text("{ broken: [\n")
    where = r" is damaged in line 1 \(" if file.endswith(".jsonl") else r" is damaged \("
    with pytest.raises(ValueError, match=re.escape(str(folder / "a" / file)) + where):
        load(folder, "a")


def test_values_that_are_not_finite_are_left_out(folder: Path) -> None:
    (run,) = load(folder, "a")
    run.rows.append({"_step": 5, "train/lm_loss": None, "train/exact_accuracy": math.nan, "train/count": 3.0})
    assert run.series("train/lm_loss")[-1][0] == 4 and run.train_exact is None


def test_scores_made_in_training_carry_the_rules_they_were_made_by(folder: Path) -> None:
    """They have no record of their own that would say so."""
    (run,) = load(folder, "a")
    assert run.own_scores is not None and run.own_stamps == (FIT_STAMP,)
    run.settings["evaluation.halting"] = "early"
    assert run.own_stamps[-1] == "not the published evaluation: evaluation.halting=early"
