"""Tasks on the comparison page: who solved what, the filter's attributes, shared pictures, and the page of each task."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from arclab.pages import compare_tasks
from arclab.pages.analyse import analyse
from arclab.pages.compare import render_comparison
from arclab.pages.compare_tasks import task_galleries, task_pages

from .conftest import edit, load, set_ranks


def test_gallery_shows_real_grids_and_who_was_right(folder: Path) -> None:
    task = load(folder, "a")[0].splits[0].task_ids[0]
    for name, place in (("a", 0), ("b", None)):
        tests = [place] * sum(key[0] == task for key in load(folder, name)[0].splits[0].predictions)
        set_ranks(folder / name, {task: tests, "gone": [place]})
    (gallery,) = task_galleries(load(folder, "a", "b"))
    known, gone = gallery.tasks
    assert [run.label for run in known.solvers] == ["a"] and known.demos and known.tests[0].truth is not None
    assert [(x.runs[0].label, x.is_right) for x in known.tests[0].answers] == [("a", True), ("b", False)]
    assert gone.tests[0].truth is None and gallery.problem == "task gone is in none of the runs' sources"
    page = render_comparison(load(folder, "a", "b"))
    assert f'data-task="{task}"' in page and "1x2 instead of" in page


def test_outcomes_and_the_attributes_that_the_filter_reads(folder: Path) -> None:
    set_ranks(folder / "a", {"t1": [0], "t2": [None], "t3": [1, 5], "t4": [0]})
    set_ranks(folder / "b", {"t1": [None], "t2": [3], "t3": [None, 0], "t4": [1]})
    runs = load(folder, "a", "b")
    (gallery,) = task_galleries(runs)
    assert [(task.id, task.outcome) for task in gallery.tasks] == [
        ("t1", "some"),
        ("t2", "none"),
        ("t3", "none"),
        ("t4", "all"),
    ]
    assert gallery.counts == {"some": 1, "none": 2, "all": 1}
    page = render_comparison(runs)
    found = re.findall(r'data-task="(\w+)" data-outcome="(\w+)" data-answered="([^"]*)" data-solved="([^"]*)"', page)
    assert found == [
        ("t1", "some", "0 1", "0"),
        ("t2", "none", "0 1", ""),
        ("t3", "none", "0 1", ""),
        ("t4", "all", "0 1", "0 1"),
    ]
    form = page[page.index('<form class="filter" data-for="tasks-train" hidden>') : page.index("</form>")]
    assert form.count('<option value="1">b</option>') == 2 and '<option value="none">no run solves it</option>' in form
    (alone,) = task_galleries(load(folder, "b"))
    assert alone.counts == {"none": 3, "all": 1}
    edit(folder / "b/evaluation/train/metrics.json", scores={"ARC/solved@2": {"n": 0, "N": 0}, "ARC/pass@2": {"n": 0, "N": 0}})
    assert task_galleries(load(folder, "b"))[0].counts == {"unknown": 4}  # hidden answers: wrong is not known


def test_runs_with_one_answer_share_a_picture_and_right_ones_come_first(folder: Path) -> None:
    set_ranks(folder / "a", {"t1": [None]})
    set_ranks(folder / "b", {"t1": [None]})
    (gallery,) = task_galleries(load(folder, "a", "b"))
    (answer,) = gallery.tasks[0].tests[0].answers
    assert [run.label for run in answer.runs] == ["a", "b"] and "<b>2 runs</b>" in render_comparison(load(folder, "a", "b"))
    set_ranks(folder / "b", {"t1": [1]})
    (gallery,) = task_galleries(load(folder, "a", "b"))
    assert [(x.runs[0].label, x.is_right) for x in gallery.tasks[0].tests[0].answers] == [("b", True), ("a", False)]


def test_tasks_beyond_the_drawn_ones_are_lines_that_lead_to_their_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_tasks, "SHOWN_TASKS", 1)
    set_ranks(folder / "a", {"t1": [None], "t2": [None], "t3": [0], "t4": [0]})
    runs = load(folder, "a")
    (gallery,) = task_galleries(runs)
    assert [bool(task.tests) for task in gallery.tasks] == [True, False, True, False] and gallery.num_lines == 2
    page = render_comparison(runs)
    assert "<b>2 tasks are lines</b>" in page and page.count('class="card line"') == 2
    pages = {str(path) for path in task_pages(runs)}
    assert set(re.findall(r'<h4><a href="([^"]*)">', page)) == pages and len(pages) == 4


def test_grids_of_validation_tasks_are_found(folder: Path) -> None:
    source = "toy:dihedral?tasks=3&side=4&split=validation"
    set_ranks(folder / "a", {"toy_dihedral_validation_00001": [None]})
    (run,) = load(folder, "a")
    run.settings["dataset.validation_sources"] = [source]
    (gallery,) = task_galleries([run])
    assert gallery.problem == "" and gallery.tasks[0].demos and gallery.tasks[0].tests[0].truth is not None


def test_grids_of_an_evaluation_on_other_data_are_found(folder: Path) -> None:
    """What evaluate.py dataset.eval_sources= scored is known to its own record alone."""
    set_ranks(folder / "a", {"toy_dihedral_test_00001": [None]}, "other")
    record = folder / "a/evaluation/other/metrics.json"
    sources = ["toy:dihedral?tasks=3&side=4&split=test"]
    edit(record, config={**json.loads(record.read_text())["config"], "dataset.eval_sources": sources})
    (gallery,) = (each for each in task_galleries(load(folder, "a")) if each.split == "other")
    assert gallery.problem == "" and gallery.tasks[0].demos and gallery.tasks[0].tests[0].truth is not None


def test_unreadable_source_leaves_the_predictions(folder: Path) -> None:
    set_ranks(folder / "a", {"t": [0]})
    set_ranks(folder / "b", {"t": [None]})
    runs = load(folder, "a", "b")
    for run in runs:
        run.settings.update({"dataset.train_sources": ["folder:gone"], "dataset.eval_sources": []})
    (gallery,) = task_galleries(runs)
    assert "gone does not exist" in gallery.problem and gallery.tasks[0].tests[0].answers[0].view is not None
    (page,) = task_pages(runs).values()
    assert "Input and truth are missing" in page and "gone does not exist" in page


def test_the_page_of_a_task_holds_every_candidate_of_every_run(folder: Path, tmp_path: Path) -> None:
    runs = load(folder, "a", "b")
    analyse([run.path for run in runs], tmp_path)
    for task in runs[0].splits[0].task_ids:
        page = (tmp_path / f"tasks/train/{task}.html").read_text()
        for run in runs:
            (row, *_) = re.findall(rf'<tr data-run="{run.label}">.*?</tr>', page, re.DOTALL)
            candidates = run.splits[0].predictions[task, 0].candidates
            grids = sum(candidate.grid is not None for candidate in candidates)
            assert row.count("<use ") == grids and row.count("no grid") == len(candidates) - grids
            for candidate in candidates:
                assert f"{candidate.votes} vote{'' if candidate.votes == 1 else 's'}, {candidate.confidence:.2f}" in row
        used = set(re.findall(r'<use href="#([^"]*)"', page))
        assert used == set(re.findall(r'<g id="([^"]*)"', page)), "each different grid is drawn once"
        assert 'href="../../compare.html"' in page and not re.search(r"https?:|<link|<script |<img", page)


def test_ids_that_are_no_file_names_get_pages_of_their_own(folder: Path) -> None:
    set_ranks(folder / "a", {"../x": [0], "a b": [0], "a/b": [0], "a_b": [0]})
    runs = load(folder, "a")
    assert [str(path) for path in task_pages(runs)] == [f"tasks/train/{n}.html" for n in ("___x", "a_b", "a_b~2", "a_b~3")]


def test_a_split_that_one_run_has_is_shown_too(folder: Path) -> None:
    set_ranks(folder / "a", {"e1": [0]}, "evaluation")
    shutil.rmtree(folder / "b/evaluation")
    assert [gallery.split for gallery in task_galleries(load(folder, "a", "b"))] == ["evaluation", "train"]
