"""Test-time training as pages: one for each task, and one that lists them.

    python -m arclab.pages test_time_training FOLDER [--output FOLDER]      # of evaluate.py solver=test_time_training

Writes FOLDER/pages/<task>.html and FOLDER/pages/index.html. A page shows the candidates with their votes and probabilities, the
loss of the training, and pseudo-tasks, which are made again from the settings. An evaluation that goes on can be looked at.
Whether an answer is right is shown where the truth is known.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from arclab.config.compose import ConfigError, thaw_run
from arclab.config.seal_schema import AdaptKind, EvaluateTestTimeTrainingConfig
from arclab.data.tasks import ArcTask, Pair
from arclab.files import sentence_for, write_atomically
from arclab.methods.seal.pseudo_tasks import chosen_rows
from arclab.methods.seal.solver import TASK_ITEMS, TASKS, TaskRecord, parse_record, trained_on
from arclab.pages.report import TEST_SIZE, AttemptView, attempt_view, cell_px, demo_pictures, grid_svg
from arclab.pages.templating import page
from arclab.results.attempts import Candidate
from arclab.results.scoring import rank_of_truth
from arclab.runs.console import setup_logging
from arclab.runs.worklist import read_items
from arclab.solvers.evaluation import scored_tasks

log = logging.getLogger(__name__)
_SHOWN_PSEUDO_TASKS = 24
_WIDTH, _HEIGHT, _LEFT, _FOOT = 640, 200, 52, 26  # of the curve of losses, in px
_ROUND = 3  # digits of probabilities


@dataclass(frozen=True, slots=True)
class _CandidateView:
    """numbers: votes, mean probability, mean log-probability over views."""

    view: AttemptView
    numbers: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _TestView:
    input: Markup | None
    truth: Markup | None
    candidates: list[_CandidateView]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m arclab.pages test_time_training", description="A page for each task.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results of evaluate.py solver=test_time_training")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: FOLDER/pages)")
    arguments = parser.parse_args(argv)
    setup_logging()
    log.info("wrote %s", write_task_pages(arguments.folder, arguments.output or arguments.folder / "pages"))
    return 0


def write_task_pages(folder: Path, output: Path) -> Path:
    """The page that lists the tasks. ConfigError: there are no answers in the folder."""
    if not (folder / TASKS).is_file():
        raise ConfigError(f"{folder} has no {TASKS}; give a folder that evaluate.py solver=test_time_training has written.")
    _, records = read_items(folder / TASKS, parse_record, TASK_ITEMS)
    if not records:
        raise ConfigError(
            f"{folder / TASKS} has no task that can be read; wait for the first one, or run the evaluation again."
        )
    config = thaw_run(folder / "config.yaml")
    assert isinstance(config, EvaluateTestTimeTrainingConfig), "no other entry writes this file"
    tasks, problem = _tasks_of(config)
    places = {task.id: number for number, task in enumerate(tasks)}
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (task_id, record) in enumerate(records.items()):
        name = f"task_{number:04}.html"  # an id may hold what no file name can
        place = places.get(task_id)
        task = None if place is None else tasks[place]
        trained = None if place is None else trained_on(tasks[place], tasks, config.solver.demonstrations)
        write_atomically(output / name, render_task(task_id, record, task, trained, config, problem=problem))
        rows.append({"address": name, "task": task_id, "facts": facts_of(record, task)})
    write_atomically(output / "index.html", page("listing.html.j2", rows=rows, title=folder.name, kicker="Test-time training"))
    return output / "index.html"


def _tasks_of(config: EvaluateTestTimeTrainingConfig) -> tuple[tuple[ArcTask, ...], str]:
    """The tasks that were scored, and why they are not there."""
    try:
        return scored_tasks(config)[0], ""
    except (OSError, ValueError) as error:
        return (), sentence_for(error) or "they cannot be read"


def render_task(
    task_id: str, record: TaskRecord, task: ArcTask | None, trained: ArcTask | None, config: EvaluateTestTimeTrainingConfig, *,
    problem: str = "",
) -> str:  # fmt: skip
    """The page of a task. task None: its grids are missing, for the reason in `problem`. trained: the task that was trained
    on."""
    notes = [f"Inputs and truth are missing: {problem or 'the task is in none of the sources'}."] if task is None else []
    notes += [f"It was not tried: {record.skipped}"] if record.skipped else []
    notes += [f"The model answered as it is: {record.problem}."] if record.problem else []
    if (
        trained is not None
        and task is not None
        and trained.id != task.id
        and config.solver.adaptation.kind is not AdaptKind.none
    ):
        notes.append(f"A control: it was trained on the demonstrations of {trained.id}.")
    shown = [] if trained is None or not record.num_rows else _pseudo_tasks(trained, config)
    left_out = "Some of these may have been left out, as they did not fit into the context." if record.num_too_long else ""
    return page(
        "test_time_training.html.j2", task_id=task_id, facts=facts_of(record, task), notes=notes, index="index.html",
        demos=() if task is None else demo_pictures(task), tests=_tests(record, task), losses=losses_svg(record.losses),
        pseudo=[(made.id, demo_pictures(_with_question(made))) for made in shown], num_rows=record.num_rows,
        pseudo_note=left_out,
    )  # fmt: skip


def facts_of(record: TaskRecord, task: ArcTask | None) -> dict[str, str]:
    """What became of a task, in words."""
    return {
        "first answer": _verdict(record, task),
        "candidates": ", ".join(str(len(test)) for test in record.tests) or "none",
        "replies": f"{record.num_replies:,}",
        "no grid": f"{record.num_no_grid:,}",
        "pseudo-tasks": f"{record.num_rows:,} of {record.num_made:,}",
        "steps": f"{len(record.losses):,}",
        "loss": f"{record.losses[0]:.2f} to {record.losses[-1]:.2f}" if record.losses else "none",
        "training, s": f"{record.fit_s:,.1f}",
        "answering, s": f"{record.answer_s:,.1f}",
    }


def _verdict(record: TaskRecord, task: ArcTask | None) -> str:
    if record.skipped:
        return "not tried"
    truths = [] if task is None else [test.output for test in task.tests]
    if not truths or any(truth is None for truth in truths):
        return "truth not known"
    right = [
        bool(test) and rank_of_truth(test[:1], truth) == 0
        for test, truth in zip(record.tests, truths, strict=True) if truth is not None
    ]  # fmt: skip
    return "right" if all(right) else "wrong"


def _tests(record: TaskRecord, task: ArcTask | None) -> list[_TestView]:
    found = []
    for number, candidates in enumerate(record.tests):
        test = None if task is None else task.tests[number]
        grids = [c.grid for c in candidates if c.grid is not None] + ([] if test is None else [test.input])
        grids += [] if test is None or test.output is None else [test.output]
        cell = cell_px(max([max(grid.shape) for grid in grids] or [1]), TEST_SIZE)
        truth = None if test is None else test.output
        views = [_CandidateView(attempt_view(c, truth, 0, cell), _numbers(c)) for c in candidates]
        found.append(
            _TestView(
                None if test is None else grid_svg(test.input, cell), None if truth is None else grid_svg(truth, cell), views
            )
        )
    return found


def _numbers(candidate: Candidate) -> tuple[str, str, str]:
    likelihood = candidate.log_likelihood
    return (
        str(candidate.votes),
        f"{candidate.confidence:.{_ROUND}f}",
        "not computed" if likelihood is None else f"{likelihood:.{_ROUND}f}",
    )


def _pseudo_tasks(trained: ArcTask, config: EvaluateTestTimeTrainingConfig) -> list[ArcTask]:
    return chosen_rows(trained, config.solver.pseudo_tasks, config.seed, lambda _: {}).tasks[:_SHOWN_PSEUDO_TASKS]


def _with_question(made: ArcTask) -> ArcTask:
    """Its question among its demonstrations, to be drawn."""
    pairs: tuple[Pair, ...] = made.pairs
    return ArcTask(made.id, pairs, made.tests, made.source)


def losses_svg(losses: Sequence[float]) -> Markup:
    """A curve with the first and the last loss beside it; nothing for fewer than two steps."""
    if len(losses) < 2:
        return Markup("")
    high = max(losses) or 1.0
    step = (_WIDTH - _LEFT - 8) / (len(losses) - 1)
    points = " L".join(f"{_LEFT + n * step:.1f} {8 + (_HEIGHT - 8) * (1 - loss / high):.1f}" for n, loss in enumerate(losses))
    label = f"loss of {len(losses)} steps, from {losses[0]:.3f} to {losses[-1]:.3f}"
    return Markup(
        f'<svg class="losses" viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{label}">'
        f'<path class="axis" d="M{_LEFT} 8V{_HEIGHT}H{_WIDTH - 8}"/><path d="M{points}"/>'
        f'<text x="{_LEFT - 6}" y="18" text-anchor="end">{high:.2f}</text>'
        f'<text x="{_LEFT - 6}" y="{_HEIGHT}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT + 20}">step 1</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT + 20}" text-anchor="end">step {len(losses)}</text></svg>'
    )
