"""The page of a run at the end of its training: score, health, predicted grids, curves, settings.

    path = write_training_report(RunDir(Path("runs/quickstart/a")))      # runs/quickstart/a/report.html

Everything is read from the run folder. The score is the newest that training itself measured: evaluate.py, which scores all
tasks with all votes, writes a page of its own. It judges nothing; health and the criterion were judged before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from arclab.data.tasks import parse_grid
from arclab.files import DamagedFile, read_object, require_kinds, write_atomically
from arclab.pages.report import (
    FEW_ROWS,
    HEADLINES,
    MAX_POINTS,
    TEST_SIZE,
    ScoreRow,
    attempt_view,
    cell_px,
    curve_svgs,
    grid_svg,
    score_rows,
)
from arclab.pages.templating import page
from arclab.pages.tracking import convergence, issues, percent
from arclab.results.attempts import Candidate
from arclab.results.reading import Run, read_runs
from arclab.runs.folder import RunDir

_TABLE = "eval_predictions.json"
_REMEDY = "remove it; the page is made without it"
_PREDICTED = {"task": str, "test": int, "input": list, "truth": list | None, "predicted": list | None}


def write_training_report(run: RunDir) -> Path:
    """report.html in the run folder; returns its path. DamagedFile: a file of the run cannot be read."""
    path = run.path / "report.html"
    write_atomically(path, render_training_report(read_runs([run.path])[0]))
    return path


def render_training_report(run: Run) -> str:
    """The whole page as one HTML string without any reference to another file."""
    own = run.own_scores
    prediction_step, predictions = _predictions(run.path / _TABLE)
    return page(
        "training.html.j2",
        title=(str(run.settings.get("experiment_name")), str(run.settings.get("name"))),
        step=run.step,
        stamps=run.own_stamps,
        facts=_facts(run),
        criterion=(run.criterion or {}).get("sentence", ""),
        issues=[text for text in issues(run) if text not in (run.state, *run.stamps)],
        scores=_scores(run),
        score_step="" if own is None else f"{own[0]:,}",
        split="" if own is None else own[1],
        folder=run.path,
        predictions=predictions,
        prediction_step=prediction_step,
        curves=curve_svgs(run.rows, run.step),
        num_rows=len(run.rows),
        few_rows=FEW_ROWS,
        max_points=MAX_POINTS,
        origin={key: str(value) for key, value in run.provenance.items() if key not in ("notes", "earlier")},
        settings=run.settings,
    )


def _facts(run: Run) -> dict[str, str]:
    """What was trained and how it ended, label -> value, in reading order."""
    accuracy = run.train_exact
    health = (run.health or "not judged").split(": ")
    return {
        "dataset": str(run.settings.get("dataset.name", "not recorded")),
        "encoder": str(run.settings.get("encoder.kind", "none")),
        "seed": str(run.settings.get("seed", "not recorded")),
        "steps": f"{run.step:,}",
        "health": ": ".join(health[:2]),  # without the advice
        "train/exact_accuracy, last": percent(accuracy, run.last("num_train_tasks")) if accuracy else "not logged",
        "steps to 90 %": convergence(run).split(" (")[0],
        "started": str(run.provenance.get("started", "not recorded")),
    }


def _scores(run: Run) -> Sequence[ScoreRow]:
    shares = {} if run.own_scores is None else run.own_scores[2]
    return score_rows({name: shares[name] for name in HEADLINES if name in shares})


@dataclass(frozen=True, slots=True)
class PredictionView:
    """One row of eval_predictions.json. Pictures are None where an answer is hidden, or where no grid was predicted."""

    task: str
    number: int
    is_right: bool | None
    input: Markup
    truth: Markup | None
    predicted: Markup | None
    remark: str


def _predictions(path: Path) -> tuple[int, list[PredictionView]]:
    """(step, views); none before training has scored a task."""
    if not path.is_file():
        return 0, []
    table = read_object(path, {"step": int, "predictions": list[dict]}, remedy=_REMEDY)
    return table["step"], [_view(record, path) for record in table["predictions"]]


def _view(record: dict[str, Any], path: Path) -> PredictionView:
    require_kinds(record, _PREDICTED, path, remedy=_REMEDY)
    try:
        given = parse_grid(record["input"], "input")
        truth, predicted = (None if (rows := record[key]) is None else parse_grid(rows, key) for key in ("truth", "predicted"))
    except ValueError as error:
        raise DamagedFile(path, str(error).rstrip("."), remedy=_REMEDY) from error
    cell = cell_px(max(max(grid.shape) for grid in (given, truth, predicted) if grid is not None), (96, *TEST_SIZE[1:]))
    attempt = attempt_view(Candidate(predicted, 1, 1.0), truth, 1, cell)
    return PredictionView(
        record["task"], record["test"], attempt.is_right, grid_svg(given, cell),
        None if truth is None else grid_svg(truth, cell), attempt.picture, attempt.remark,
    )  # fmt: skip
