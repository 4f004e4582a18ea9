"""The tasks of the comparison page: who solved what, the answers of all runs, and a page for each task.

    galleries = task_galleries(runs)                 # for each split every task, those first on which the runs differ
    pages = task_pages(runs)                         # {"tasks/train/007bbfb7.html": html}, every candidate of every run

Inputs and truths come from the task sources of the runs' settings; where a source is gone, the gallery says so and shows the
predictions alone. SHOWN_TASKS tasks of each outcome are drawn, the others are lines that lead to their pages. Runs with the
same answer share a picture. predictions.jsonl keeps the best candidates of a test input; a page says how many there were else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import quote

from markupsafe import Markup

from arclab.data.tasks import ArcTask, Grid
from arclab.pages.compare_pictures import color_of
from arclab.pages.paired_views import splits_of
from arclab.pages.report import (  # fmt: skip
    DEMO_SIZE,
    SHOWN_TASKS,
    TEST_SIZE,
    AttemptView,
    attempt_view,
    cell_px,
    demo_pictures,
    grid_frame,
    grid_shapes,
    grid_svg,
)
from arclab.pages.templating import page
from arclab.results.attempts import Candidate
from arclab.results.finished import find_tasks
from arclab.results.reading import PredictedTest, Run, ScoredSplit

Reference = Callable[[Grid], Markup]
_SHOWN_ANSWERS = 6  # pictures beside a test input; many runs give many wrong answers
OUTCOMES = {  # in the order of the page
    "some": "some runs solve it, others do not",
    "none": "no run solves it",
    "all": "every run solves it",
    "unknown": "its answer is hidden",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """Run number index with its evaluation of one split."""

    index: int
    run: Run
    split: ScoredSplit

    @property
    def label(self) -> str:
        return self.run.label

    @property
    def color(self) -> str:
        return color_of(self.index)


@dataclass(frozen=True, slots=True)
class Answer:
    """What runs answered to a test input: their right attempt, else their first. view None: they made no attempt. Of one run
    alone the view says at which place and with how many votes."""

    runs: tuple[Scored, ...]
    place: int
    is_right: bool
    view: AttemptView | None


@dataclass(frozen=True, slots=True)
class AnsweredTest:
    """Pictures are None where the task's source cannot be read. num_left_out: answers that only the task's page shows."""

    input: Markup | None
    truth: Markup | None
    answers: tuple[Answer, ...]
    num_left_out: int


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A task with the numbers of the runs that answered and that solved it. address: its page, relative to compare.html. tests
    is empty for a task that is a line only."""

    id: str
    outcome: str
    answered: tuple[Scored, ...]
    solvers: tuple[Scored, ...]
    address: str
    demos: tuple[tuple[Markup, Markup], ...] = ()
    tests: tuple[AnsweredTest, ...] = ()


@dataclass(frozen=True, slots=True)
class Gallery:
    """All tasks of one split that any run answered. problem: why grids are missing."""

    split: str
    runs: tuple[Scored, ...]
    tasks: tuple[TaskEntry, ...]
    problem: str

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> number of tasks, for the outcomes that there are."""
        found = [task.outcome for task in self.tasks]
        return {outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found}

    @property
    def num_lines(self) -> int:
        return sum(not task.tests for task in self.tasks)


def task_galleries(runs: Sequence[Run]) -> list[Gallery]:
    """One for each split with predictions."""
    return [_gallery(name, group) for name, group in _groups(runs).items()]


def _groups(runs: Sequence[Run]) -> dict[str, list[Scored]]:
    """Split -> the runs with predictions of it."""
    found = {
        name: [Scored(i, run, s) for i, run in enumerate(runs) if (s := run.split(name)) and s.predictions]
        for name in splits_of(runs)
    }
    return {name: group for name, group in found.items() if group}


def _gallery(name: str, group: list[Scored]) -> Gallery:
    answered = _answered(group)
    addresses = _addresses(name, answered)
    order = list(OUTCOMES)
    ids = sorted(answered, key=lambda task: order.index(_outcome(task, answered[task])))
    drawn = [t for o in order for t in [t for t in ids if _outcome(t, answered[t]) == o][:SHOWN_TASKS]]
    tasks, problem = _load_tasks(name, group, set(drawn))
    entries = [_entry(task, answered[task], addresses[task]) for task in ids]
    is_drawn = set(drawn)
    return Gallery(name, tuple(group), tuple(_drawn(e, tasks.get(e.id)) if e.id in is_drawn else e for e in entries), problem)


def _answered(group: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Task id -> the runs that answered it."""
    ids = dict.fromkeys(task for entry in group for task in entry.split.task_ids)
    return {task: [entry for entry in group if task in entry.split.solved] for task in ids}


def _outcome(task: str, entries: Sequence[Scored]) -> str:
    """A key of OUTCOMES. Where answers are hidden, wrong is not known, and such a run does not count."""
    solved = {entry.split.solved[task] for entry in entries if not entry.split.has_hidden_answers}
    return "unknown" if not solved else "some" if len(solved) > 1 else "all" if solved == {True} else "none"


def _addresses(split: str, tasks: Iterable[str]) -> dict[str, str]:
    """Task id -> file below the folder of compare.html; ids that would share a file get a number."""
    stems: dict[str, str] = {}
    for task in tasks:
        stem = _file_name(task)
        number = sum(re.fullmatch(rf"{re.escape(stem)}(~\d+)?", other) is not None for other in stems.values())
        stems[task] = f"{stem}~{number + 1}" if number else stem
    return {task: f"tasks/{_file_name(split)}/{stem}.html" for task, stem in stems.items()}


def _file_name(text: str) -> str:
    """Letters, digits, _ and - alone, and not long."""
    return re.sub(r"[^\w-]", "_", text)[:100]


def _entry(task: str, entries: list[Scored], address: str) -> TaskEntry:
    solvers = tuple(e for e in entries if e.split.solved[task])
    return TaskEntry(task, _outcome(task, entries), tuple(entries), solvers, quote(address))


def _load_tasks(name: str, group: Sequence[Scored], wanted: set[str]) -> tuple[dict[str, ArcTask], str]:
    """The wanted tasks from the sources that the evaluations were made with, then from those of the runs, and the first reason
    why a source could not be read."""
    # evaluate.py can score other tasks than the run's; scores that were taken during training have no config of their own.
    settings = [entry.split.record.get("config", {}) for entry in group] + [entry.run.settings for entry in group]
    return find_tasks(settings, name, wanted)


def _drawn(entry: TaskEntry, task: ArcTask | None) -> TaskEntry:
    """The entry with its pictures."""
    tests = tuple(_test(entry.id, number, task, entry.answered) for number in _numbers(entry.id, entry.answered))
    return replace(entry, demos=demo_pictures(task) if task else (), tests=tests)


def _numbers(task_id: str, entries: Sequence[Scored]) -> list[int]:
    """Of the task's test inputs."""
    return sorted({number for entry in entries for task, number in entry.split.predictions if task == task_id})


def _known(task: ArcTask | None, number: int) -> tuple[Grid | None, Grid | None]:
    """Input and truth of a test input, as far as the source has them."""
    test = task.tests[number] if task is not None and number < len(task.tests) else None
    return (None, None) if test is None else (test.input, test.output)


def _test(task_id: str, number: int, task: ArcTask | None, entries: Sequence[Scored]) -> AnsweredTest:
    given, truth = _known(task, number)
    found = [(e, e.split.predictions[task_id, number]) for e in entries if (task_id, number) in e.split.predictions]
    grids = [g for g in (given, truth) if g is not None]
    grids += [c.grid for _, p in found for c in p.candidates[:2] if c.grid is not None]
    cell = cell_px(max((max(grid.shape) for grid in grids), default=1), TEST_SIZE)
    answers = _grouped_answers(found, truth, cell)
    return AnsweredTest(
        input=grid_svg(given, cell) if given is not None else None,
        truth=grid_svg(truth, cell) if truth is not None else None,
        answers=answers[:_SHOWN_ANSWERS],
        num_left_out=len(answers[_SHOWN_ANSWERS:]),
    )


def _grouped_answers(found: list[tuple[Scored, PredictedTest]], truth: Grid | None, cell: int) -> tuple[Answer, ...]:
    """Equal grids once, right ones first, then by the number of runs that gave them."""
    groups: dict[tuple[bool, object], list[tuple[Scored, PredictedTest]]] = {}
    for entry, predicted in found:
        chosen = _chosen(predicted)
        key = (predicted.is_right, None if chosen is None else _grid_key(chosen.grid))
        groups.setdefault(key, []).append((entry, predicted))
    order = sorted(groups.items(), key=lambda item: (not item[0][0], -len(item[1])))
    return tuple(_answer(members, truth, cell) for _, members in order)


def _grid_key(grid: Grid | None) -> object:
    return "no grid" if grid is None else (grid.shape, grid.tobytes())


def _place(predicted: PredictedTest) -> int:
    """Of the attempt that is shown: the right one, else the first."""
    return predicted.truth_rank if predicted.is_right and predicted.truth_rank is not None else 0


def _chosen(predicted: PredictedTest) -> Candidate | None:
    place = _place(predicted)
    return predicted.candidates[place] if place < len(predicted.candidates) else None


def _answer(members: list[tuple[Scored, PredictedTest]], truth: Grid | None, cell: int) -> Answer:
    predicted = members[0][1]
    candidate, view = _chosen(predicted), None
    if candidate is not None:
        view = attempt_view(candidate, truth, predicted.all_votes, cell)
        if predicted.num_votes is None and predicted.num_candidates > len(predicted.candidates):  # those of the others are lost
            view = replace(view, support=(f"{candidate.votes} votes", view.support[1]))
    return Answer(tuple(entry for entry, _ in members), _place(predicted), predicted.is_right, view)


@dataclass(frozen=True, slots=True)
class CandidateView:
    """picture: refers to a grid that is drawn once on the page; None: it showed no grid."""

    picture: Markup | None
    is_right: bool
    support: str


@dataclass(frozen=True, slots=True)
class RunAnswers:
    """All kept candidates of one run for a test input. num_left_out: those that predictions.jsonl does not hold."""

    run: Scored
    is_right: bool
    place: str
    candidates: tuple[CandidateView, ...]
    num_left_out: int


@dataclass(frozen=True, slots=True)
class TaskTest:
    """One test input on the page of its task. shapes: id -> what is drawn, once for each different grid."""

    input: Markup | None
    truth: Markup | None
    shapes: dict[str, Markup]
    rows: tuple[RunAnswers, ...]


def task_addresses(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """(split, task id) -> address of the task's page, for every task that any run answered."""
    found = {name: _addresses(name, _answered(group)) for name, group in _groups(runs).items()}
    return {(name, task): quote(address) for name, addresses in found.items() for task, address in addresses.items()}


def task_pages(runs: Sequence[Run], back: str = "compare.html") -> dict[PurePosixPath, str]:
    """Path below the folder of the page `back` -> page, for every task that any run answered."""
    pages: dict[PurePosixPath, str] = {}
    for name, group in _groups(runs).items():
        answered = _answered(group)
        tasks, problem = _load_tasks(name, group, set(answered))
        for task_id, address in _addresses(name, answered).items():
            task = tasks.get(task_id)
            entry = _entry(task_id, answered[task_id], address)
            numbers = _numbers(task_id, entry.answered)
            pages[PurePosixPath(address)] = page(
                "task.html.j2", entry=entry, split=name, back=back, outcome=OUTCOMES[entry.outcome],
                problem=problem if task is None else "",
                demos=demo_pictures(task) if task else (),
                tests=[_task_test(task_id, number, task, entry.answered) for number in numbers],
            )  # fmt: skip
    return pages


def _task_test(task_id: str, number: int, task: ArcTask | None, entries: Sequence[Scored]) -> TaskTest:
    given, truth = _known(task, number)
    shapes: dict[str, Markup] = {}
    ids: dict[object, str] = {}

    def reference(grid: Grid) -> Markup:
        key = _grid_key(grid)
        if key not in ids:
            ids[key] = f"grid-{number}-{len(ids)}"
            is_like_truth = truth is not None and truth.shape == grid.shape
            shapes[ids[key]] = grid_shapes(grid, grid != truth if is_like_truth else None)
        return grid_frame(grid, cell_px(max(grid.shape), DEMO_SIZE), Markup('<use href="#{}"/>').format(ids[key]))

    rows = []
    for entry in entries:
        predicted = entry.split.predictions.get((task_id, number))
        if predicted is not None:
            rows.append(_run_answers(entry, predicted, reference))
    cell = cell_px(max((max(g.shape) for g in (given, truth) if g is not None), default=1), TEST_SIZE)
    pictures = [None if grid is None else grid_svg(grid, cell) for grid in (given, truth)]
    return TaskTest(pictures[0], pictures[1], shapes, tuple(rows))


def _run_answers(entry: Scored, predicted: PredictedTest, reference: Reference) -> RunAnswers:
    views = tuple(
        CandidateView(
            picture=None if candidate.grid is None else reference(candidate.grid),
            is_right=place == predicted.truth_rank,
            support=f"{candidate.votes} vote{'' if candidate.votes == 1 else 's'}, {candidate.confidence:.2f}",
        )
        for place, candidate in enumerate(predicted.candidates)
    )
    rank = predicted.truth_rank
    place = "" if entry.split.has_hidden_answers else "truth absent" if rank is None else f"truth at place {rank + 1}"
    return RunAnswers(entry, predicted.is_right, place, views, predicted.num_candidates - len(predicted.candidates))
