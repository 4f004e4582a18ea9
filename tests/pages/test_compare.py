"""The comparison page: a row for every run, scores, curves, what differs, and what it refuses. Tasks: test_compare_tasks.py."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from arclab.metrics.names import REGISTRY, Metric
from arclab.pages.analyse import analyse
from arclab.pages.compare import render_comparison
from arclab.pages.compare_pictures import line_sample, overlay_svgs
from arclab.pages.compare_scores import commits, run_rows, score_groups
from arclab.pages.tracking import tracking_sheet
from arclab.results.reading import FIT_STAMP, read_runs, settings_difference

from .conftest import CRITERION, edit, load, set_ranks


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
    first, second = (run.rows["ARC/pass@2"] for run in group.runs)
    assert (first.fraction, first.percent) == ("3/3", "100.0 %") and second.fraction.endswith("/4")
    page = render_comparison(runs)
    assert first.interval in page and second.interval in page and "not generalisation" in page


def columns(page: str, section: str) -> list[list[str]]:
    """What each row of the section's first sortable table is sorted by, column by column; columns that cannot are left out."""
    table = re.search(rf'<section id="{section}">.*?<table class="[^"]*sortable">(.*?)</table>', page, re.DOTALL)
    assert table
    heads = re.findall(r"<th(?: [^>]*)?>", table[1].split("</thead>")[0])
    fixed = sum("data-fixed" in head for head in heads)
    rows = [re.findall(r'<t[hd][^>]*data-sort="([^"]*)"', row) for row in table[1].split("</thead>")[1].split("</tr>")[:-1]]
    assert rows and all(len(row) == len(heads) - fixed for row in rows)
    return rows


def test_a_run_is_a_row_that_every_column_can_sort(folder: Path) -> None:
    """As numbers, so that 9 % stands before 10 %; what is missing has no key and goes last."""
    set_ranks(folder / "a", {f"t{i}": [0 if i < 1 else None] for i in range(11)})
    set_ranks(folder / "b", {f"t{i}": [0 if i < 2 else None] for i in range(11)})
    (folder / "a/criterion.json").write_text(json.dumps({**CRITERION, "result": "FAIL", "sentence": "FAIL <why>"}))
    runs = load(folder, "a", "b")
    page = render_comparison(runs)
    (a, b), names = columns(page, "runs"), list(run_rows(runs)[0].values)
    assert (a[0], *a[-2:], b[0], *b[-2:]) == (
        "a",
        "FAIL",
        "DONE",
        "b",
        "no criterion",
        "DONE",
    ) and 'title="FAIL &lt;why&gt;"' in page
    place = 1 + names.index("pass@2, train")
    assert (float(a[place]), float(b[place])) == (1 / 11, 2 / 11)
    assert "steps to 90 %" not in names  # no run has reached it
    assert [row[0] for row in columns(page, "scores")] == ["a", "b"]
    assert float(columns(page, "scores")[0][2]) == 1 / 11
    shutil.rmtree(folder / "b/evaluation")
    runs = load(folder, "a", "b")
    runs[1].rows.clear()
    assert columns(render_comparison(runs), "runs")[1][place] == ""


def test_settings_have_a_row_for_every_run_once_there_are_many(folder: Path) -> None:
    names = [shutil.copytree(folder / "b", folder / f"b{i}").name for i in range(3)]
    for i, name in enumerate(names):
        config = folder / name / "config.yaml"
        config.write_text(config.read_text().replace("name: b", f"name: {name}").replace("gain: 0.7", f"gain: {i + 2}.5"))
    page = render_comparison(load(folder, "a", "b", *names))
    rows = columns(page, "settings")
    assert rows == [["a", "0.1"], ["b", "0.7"], ["b0", "2.5"], ["b1", "3.5"], ["b2", "4.5"]]
    few = render_comparison(load(folder, "a", "b"))
    assert '<th scope="row">encoder.context.gain</th><td>0.1</td><td class="changed">0.7</td>' in few


def test_the_page_follows_the_theme_and_scrolls_tables_in_boxes(folder: Path) -> None:
    page = render_comparison(load(folder, "a", "b"))
    style = page[page.index("<style>") : page.index("</style>")]
    light, dark = (re.findall(r"(--[\w-]+): (#\w+)", part) for part in style.split("prefers-color-scheme: dark")[:2])
    assert "color-scheme: light dark" in style and {"--ink", "--paper", "--card", "--up", "--down"} <= dict(dark[:20]).keys()
    assert all(dict(light)[name] != value for name, value in dark[:10])
    bare = re.sub(r'<div class="scroll[^>]*>.*?</table></div>|<details><summary>All.*?</details>', "", page, flags=re.DOTALL)
    assert "<table" not in bare, "a table outside a box widens the whole page"


def test_ninth_run_has_other_dashes_than_the_first(folder: Path) -> None:
    assert line_sample(0) != line_sample(8) != line_sample(16) and len({line_sample(i) for i in range(22)}) == 22
    run = load(folder, "a")[0]
    (svg,) = overlay_svgs([run] * 9, ["train/lm_loss"])
    first, ninth = (re.search(rf'<g class="run-{i}"><path[^>]*style="([^"]*)"', svg) for i in (0, 8))
    assert first and ninth and "stroke-dasharray" in ninth[1] and "stroke-dasharray" not in first[1]


def test_scores_that_must_be_equal_are_left_out(folder: Path) -> None:
    set_ranks(folder / "a", {"t1": [0], "t2": [1]})
    edit(
        folder / "a/evaluation/train/metrics.json",
        scores={f"ARC/{name}": {"n": 1, "N": 2} for name in ("pass@1", "pass@2", "pass@5", "pass@10", "solved@1", "solved@2")},
    )
    (group,) = score_groups(load(folder, "a"))
    assert group.names == ("ARC/pass@1", "ARC/pass@2") and group.more == ()
    assert group.idle == {
        "ARC/pass@5": "ARC/pass@2",
        "ARC/pass@10": "ARC/pass@2",
        "ARC/solved@1": "ARC/pass@1",
        "ARC/solved@2": "ARC/pass@2",
    }
    assert "Left out, as they must be equal to what is shown: ARC/solved@1 (= ARC/pass@1); " in render_comparison(
        load(folder, "a")
    )
    (folder / "a/evaluation/train/predictions.jsonl").unlink()
    assert score_groups(load(folder, "a"))[0].idle == {}  # nobody knows how many answers there were


def test_page_loads_nothing_and_its_anchors_lead_somewhere(folder: Path) -> None:
    page = render_comparison(load(folder, "a", "b"))
    assert "<figure><svg" in page
    assert not re.search(r"https?:|//\w+\.|@import|<link|<script |<img|<iframe|fetch\(|XMLHttp", page)
    references = [r for pair in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', page) for r in pair if r]
    anchors = [r for r in references if r.startswith("#")]
    assert anchors and all(f'id="{reference[1:]}"' in page for reference in anchors)
    assert all(r.startswith("tasks/train/") for r in references if r not in anchors)


def test_curves_hold_every_run_that_logged_the_metric(folder: Path) -> None:
    a, b = load(folder, "a", "b")
    (both,) = overlay_svgs([a, b], ["train/lm_loss"])
    assert "#2f6fdb" in both and "#e2711d" in both
    b.rows.clear()
    (one,) = overlay_svgs([a, b], ["train/lm_loss"])
    assert "#2f6fdb" in one and "#e2711d" not in one
    assert overlay_svgs([b], ["train/lm_loss"]) == []


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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "compare.html",
        "quickstart-a.md",
        "quickstart-b.md",
        "tasks",
    ]


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
