"""Pictures of the comparison page: curves of several runs in one pair of axes, and the tasks on which runs disagree.

    svgs = overlay_svgs(runs, ["train/exact_accuracy"])       # one SVG for each metric that any run logged
    galleries = disagreements(runs)                           # per split, the tasks that some runs solve and others do not
    galleries = failures(runs)                                # per split, the tasks that no run solves

Grids and axes are drawn by report.py. Inputs and truths come from the task sources of the runs' settings; where a source is
gone, the gallery says so and shows the predictions alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Grid
from arclab.files import sentence_for
from arclab.metrics.names import REGISTRY
from arclab.pages.report import (  # fmt: skip
    CURVE_STYLE,
    SHOWN_TASKS,
    TEST_SIZE,
    AttemptView,
    attempt_view,
    cell_px,
    curve_points,
    demo_pictures,
    grid_svg,
    inline_svg,
    scale_y,
    style_axes,
)
from arclab.results.reading import PredictedTest, Run, ScoredSplit

_COLORS = ("#2f6fdb", "#e2711d", "#2a9d5c", "#b0439e", "#9a7b00", "#00889a", "#d1332e", "#6b7078")
_DASHES = ("-", "--", ":")


def color_of(index: int) -> str:
    """The colour of run number `index` everywhere on the page; from the ninth on colours repeat with other dashes."""
    return _COLORS[index % len(_COLORS)]


def overlay_svgs(runs: Sequence[Run], names: Iterable[str]) -> list[Markup]:
    """One SVG for each metric that at least one run logged, in the order of `names`."""
    return [inline_svg(figure) for name in names if (figure := _overlay(runs, name)) is not None]


def _overlay(runs: Sequence[Run], name: str) -> Figure | None:
    series = {i: points for i, run in enumerate(runs) if len(points := curve_points(run.rows, name))}
    if not series:
        return None
    with matplotlib.rc_context(CURVE_STYLE):
        figure = Figure(figsize=(3.7, 2.5))
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0.125, 0.165, 0.83, 0.73))
        for i, points in series.items():
            marker = "o" if len(points) <= 30 else ""
            dashes = _DASHES[i // len(_COLORS) % len(_DASHES)]
            axes.plot(*points.T, color=color_of(i), linewidth=1.2, alpha=0.9, marker=marker, markersize=3, linestyle=dashes)
        axes.set_title(name, loc="left", fontsize=8.5, fontweight="bold", pad=5)
        style_axes(axes)
        scale_y(axes, {REGISTRY[name].unit}, np.concatenate(list(series.values()))[:, 1])
    return figure


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run answered to a test input: its right attempt, else its first. view None: it made no attempt."""

    label: str
    color: str
    place: int
    is_right: bool
    view: AttemptView | None


@dataclass(frozen=True, slots=True)
class DisputedTest:
    """Pictures are None where the task's source cannot be read."""

    input: Markup | None
    truth: Markup | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class DisputedTask:
    id: str
    solvers: tuple[str, ...]
    demos: tuple[tuple[Markup, Markup], ...]
    tests: tuple[DisputedTest, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Tasks of one split: kind disagreements (some runs solve them within two attempts, others do not) or failures (none does).

    num_common: the tasks that were compared. problem: why grids are missing.
    """

    kind: str
    split: str
    labels: tuple[str, ...]
    num_tasks: int
    num_common: int
    cards: tuple[DisputedTask, ...]
    problem: str

    @property
    def num_left_out(self) -> int:
        return self.num_tasks - len(self.cards)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A run with one of its evaluations."""

    index: int
    run: Run
    split: ScoredSplit


def disagreements(runs: Sequence[Run]) -> list[Gallery]:
    """One gallery for each split with predictions of at least two runs; a task counts where two of them answered it."""
    groups = _by_split(_Scored(i, run, split) for i, run in enumerate(runs) for split in run.splits if split.predictions)
    galleries = []
    for name, group in groups.items():
        if len(group) > 1:
            common = {task: entries for task, entries in _answered(group).items() if len(entries) > 1}
            disputed = {t: entries for t, entries in common.items() if len({e.split.solved[t] for e in entries}) > 1}
            galleries.append(_gallery("disagreements", name, group, disputed, len(common)))
    return galleries


def failures(runs: Sequence[Run]) -> list[Gallery]:
    """One gallery for each split with predictions; where answers are hidden, wrong is not known and a run is left out."""
    known = (_Scored(i, run, s) for i, run in enumerate(runs) for s in run.splits if s.predictions and not s.has_hidden_answers)
    galleries = []
    for name, group in _by_split(known).items():
        answered = _answered(group)
        failed = {t: entries for t, entries in answered.items() if not any(e.split.solved[t] for e in entries)}
        galleries.append(_gallery("failures", name, group, failed, len(answered)))
    return galleries


def _by_split(scored: Iterable[_Scored]) -> dict[str, list[_Scored]]:
    groups: dict[str, list[_Scored]] = {}
    for entry in scored:
        groups.setdefault(entry.split.split, []).append(entry)
    return groups


def _answered(group: list[_Scored]) -> dict[str, list[_Scored]]:
    """Task id -> the runs that answered it."""
    ids = dict.fromkeys(task for entry in group for task in entry.split.task_ids)
    return {task: [entry for entry in group if task in entry.split.solved] for task in ids}


def _gallery(kind: str, split: str, group: list[_Scored], chosen: dict[str, list[_Scored]], num_common: int) -> Gallery:
    shown = dict(list(chosen.items())[:SHOWN_TASKS])
    tasks, problem = _load_tasks(group, set(shown))
    cards = tuple(_card(task, tasks.get(task), entries) for task, entries in shown.items())
    return Gallery(kind, split, tuple(e.run.label for e in group), len(chosen), num_common, cards, problem)


def _load_tasks(group: list[_Scored], wanted: set[str]) -> tuple[dict[str, ArcTask], str]:
    """The wanted tasks from the sources in the runs' settings, and the first reason why a source could not be read."""
    found: dict[str, ArcTask] = {}
    problem = ""
    keys = ("dataset.train_sources", "dataset.validation_sources", "dataset.eval_sources")
    for source in dict.fromkeys(s for entry in group for key in keys for s in entry.run.settings.get(key) or ()):
        if wanted <= found.keys():
            break
        try:
            found |= {task.id: task for task in load_source(source) if task.id in wanted and task.id not in found}
        except (ValueError, OSError) as error:  # the page is still worth having without inputs and truths
            problem = problem or sentence_for(error) or str(error)
    missing = sorted(wanted - found.keys())
    return found, problem or (f"task {missing[0]} is in none of the runs' sources" if missing else "")


def _card(task_id: str, task: ArcTask | None, entries: list[_Scored]) -> DisputedTask:
    solvers = tuple(entry.run.label for entry in entries if entry.split.solved[task_id])
    numbers = sorted({number for entry in entries for t, number in entry.split.predictions if t == task_id})
    tests = tuple(_test(task_id, number, task, entries) for number in numbers)
    return DisputedTask(task_id, solvers, demo_pictures(task) if task else (), tests)


def _test(task_id: str, number: int, task: ArcTask | None, entries: list[_Scored]) -> DisputedTest:
    test = task.tests[number] if task is not None and number < len(task.tests) else None
    answered = [
        (entry, entry.split.predictions[task_id, number]) for entry in entries if (task_id, number) in entry.split.predictions
    ]
    known = [grid for grid in (test.input, test.output) if grid is not None] if test else []
    grids = known + [c.grid for _, p in answered for c in p.candidates[:2] if c.grid is not None]
    cell = cell_px(max((max(grid.shape) for grid in grids), default=1), TEST_SIZE)
    truth = test.output if test else None
    return DisputedTest(
        input=grid_svg(test.input, cell) if test else None,
        truth=grid_svg(truth, cell) if truth is not None else None,
        answers=tuple(_answer(entry, predicted, truth, cell) for entry, predicted in answered),
    )


def _answer(entry: _Scored, predicted: PredictedTest, truth: Grid | None, cell: int) -> Answer:
    place = predicted.truth_rank if predicted.is_right and predicted.truth_rank is not None else 0
    view = None
    if place < len(predicted.candidates):
        candidate = predicted.candidates[place]
        num_votes = sum(c.votes for c in predicted.candidates)
        view = attempt_view(candidate, truth, num_votes, cell)
        if predicted.num_candidates > len(predicted.candidates):  # the votes of the others are not in the file
            view = replace(view, support=(f"{candidate.votes} votes", view.support[1]))
    return Answer(entry.run.label, color_of(entry.index), place, predicted.is_right, view)
