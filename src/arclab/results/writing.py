"""What an evaluation leaves behind: metrics.json, predictions.jsonl, submission.json and its page in one folder.

All files are first written beside their place and then renamed, so that an interrupted evaluation leaves the old results.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arclab.config.compose import flat
from arclab.config.schema import ExperimentConfig, SplitName
from arclab.data.tasks import ArcTask, Grid, tasks_digest
from arclab.files import naming, read_object, require_kinds
from arclab.metrics.names import REGISTRY
from arclab.results.attempts import Attempts, Candidate
from arclab.results.scoring import Share, score, truth_ranks
from arclab.runs.choice import Choice
from arclab.runs.folder import RunDir

# Kaggle wants two attempts for every test input; a missing one is this grid.
_NO_ATTEMPT = [[0]]
KEPT_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table that a method adds to its page. rows: texts, the first one says what the row is of. note: below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True, slots=True)
class ResultPicture:
    """A picture that a method adds to its page. svg: an element that is drawn from numbers; it is put there as it is. note:
    below it."""

    title: str
    svg: str
    note: str


@dataclass(frozen=True, slots=True)
class Exhibits:
    """What a method adds to its page, below the scores."""

    tables: tuple[ResultTable, ...] = ()
    pictures: tuple[ResultPicture, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """What was scored, in the words of its method. title: two parts. facts: shown at the top of the report. origin: where it
    lies. record: its own fields of metrics.json. settings: every key of its configuration. tables, pictures: below the
    scores."""

    title: tuple[str, str]
    facts: dict[str, str]
    origin: dict[str, str]
    record: dict[str, Any]
    settings: dict[str, Any]
    training: TrainingCurves | None = None
    tables: tuple[ResultTable, ...] = ()
    pictures: tuple[ResultPicture, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingCurves:
    """The metrics.jsonl of the run, and the step of the scored checkpoint."""

    metrics: Path
    step: int


@dataclass(frozen=True)
class Evaluation:
    """One scored subject. stamps: sentences that must stand beside every number; notes: what happened to the data."""

    subject: Subject
    tasks: Sequence[ArcTask]
    attempts: Attempts
    stamps: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @cached_property
    def shares(self) -> dict[str, Share]:
        return score(self.tasks, self.attempts)

    @property
    def num_hidden(self) -> int:
        """Tasks with a test output that is not there: predicted, and not scored."""
        return sum(any(test.output is None for test in task.tests) for task in self.tasks)

    @cached_property
    def truth_ranks(self) -> dict[str, list[int | None]]:
        """Task id -> 0-based place of the right grid per test input, None where it is absent."""
        return truth_ranks(self.tasks, self.attempts)


def checkpoint_subject(
    config: ExperimentConfig, run: RunDir, choice: Choice, weights: str, label: str | None = None
) -> Subject:
    """A trained recursive model. weights: ema or raw. label: what was scored, by which results are told apart; None: the
    split."""
    evaluation, dataset = config.evaluation, config.dataset
    facts = {
        "dataset": f"{dataset.name} / {evaluation.split.value}",
        "step": f"{choice.step:,} ({choice.reason})",
        "weights": weights,
        "augmentations": str(evaluation.num_augmentations),
        "encoder": config.encoder.kind,
        "seed": str(config.seed),
    }
    record = {
        "split": label or evaluation.split.value,
        "dataset": dataset.name,
        "sources": _sources(config),
        "max_side": dataset.max_side,
        "num_augmentations": evaluation.num_augmentations,
        "checkpoint": str(choice.path),
        "step": choice.step,
        "chosen": choice.reason,
        "weights": weights,
        "seed": config.seed,
    }
    origin = {"checkpoint": str(choice.path), "run folder": str(run.path)}
    title = (config.experiment_name, config.name)
    return Subject(title, facts, origin, record, flat(config), TrainingCurves(run.metrics, choice.step))


def _sources(config: ExperimentConfig) -> list[str]:
    """Where the tasks of evaluation.split come from."""
    dataset, split = config.dataset, config.evaluation.split
    if split is SplitName.evaluation:
        return list(dataset.eval_sources)
    ids = dataset.train_ids if split is SplitName.train else dataset.validation_ids
    chosen = [] if ids is None else [f"id list {ids}"]
    if split is SplitName.train:
        return [*dataset.train_sources, *chosen]
    return [*(dataset.train_sources if chosen else ()), *chosen, *dataset.validation_sources]


def write_results(result: Evaluation, folder: Path, pages: Mapping[str, str]) -> None:
    """All files, or none of them: an error leaves the earlier results as they were. OSError names a file of the folder.

    pages: {file name: text} of what people look at (arclab.pages.report), written together with the results.
    """
    predictions = "".join(json.dumps(r) + "\n" for r in prediction_records(result))
    record = {**metrics_record(result), "predictions_sha256": hashlib.sha256(predictions.encode()).hexdigest()}
    # all are made, and lie on the disk, before the first takes its place; metrics.json is what makes them an evaluation
    texts = {
        **pages,
        "submission.json": json.dumps(submission(result.tasks, result.attempts)) + "\n",
        "predictions.jsonl": predictions,
        "metrics.json": json.dumps(record, indent=1) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as beside:
        for name, text in texts.items():
            with naming(folder / name):
                (Path(beside) / name).write_text(text, encoding="utf-8")
        _replace_together(Path(beside), folder, list(texts))


def _replace_together(beside: Path, folder: Path, names: Sequence[str]) -> None:
    """Move the files beside into the folder; if one of them cannot be moved, all are as before. A kill in between leaves some
    of both: metrics.json comes last and has the checksum of its predictions, by which readers notice."""
    for name in names:
        if (folder / name).is_file():
            with naming(folder / name):
                shutil.copyfile(folder / name, beside / f"{name}.earlier")
    with ExitStack() as undo:
        for name in names:
            earlier = beside / f"{name}.earlier"
            if earlier.is_file():
                undo.callback(os.replace, earlier, folder / name)
            else:
                undo.callback((folder / name).unlink, missing_ok=True)
            os.replace(beside / name, folder / name)
        undo.pop_all()


def require_no_larger(folder: Path, num_tasks: int, num_augmentations: int, label: str | None = None) -> None:
    """ValueError if the folder holds an evaluation of more tasks, or of more copies of each: a quick look must not replace
    it; or one of other data. label: see checkpoint_subject."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={folder} is a file; give a folder.")
    path = folder / "metrics.json"
    if not path.is_file():
        return
    held = {"num_tasks": 0, "num_augmentations": 0, "split": "", **read_object(path)}  # sampled programs have no copies
    require_kinds(held, {"num_tasks": int, "num_augmentations": int, "split": str}, path)
    if label is not None and held["split"] not in ("", label):
        raise ValueError(
            f"{folder} holds the results of {held['split']}, which those of {label} would replace; give another name= or "
            "output_dir=, or remove that folder first."
        )
    tasks, copies = held["num_tasks"], held["num_augmentations"]
    if tasks > num_tasks or copies > num_augmentations:
        raise ValueError(
            f"{folder} holds the results of {tasks} tasks with {copies} augmented copies of each, which these of {num_tasks} "
            f"tasks with {num_augmentations} would replace; give another output_dir=, or remove that folder first."
        )


def metrics_record(result: Evaluation) -> dict[str, Any]:
    """Every metric, shares as n, N, value and interval, with what is needed to trace them."""
    statistics = {name: value for name, value in result.attempts.statistics.items() if math.isfinite(value)}
    assert statistics.keys() <= REGISTRY.keys() and result.shares.keys() <= REGISTRY.keys()
    shares = {
        name: {
            "n": s.n,
            "N": s.total,
            "value": s.value if s.total else None,
            "interval95": list(s.interval) if s.total else None,
        }
        for name, s in result.shares.items()
    }
    return {
        "tasks_digest": tasks_digest(result.tasks),
        "num_tasks": len(result.tasks),
        "num_hidden": result.num_hidden,
        "stamps": list(result.stamps),
        "notes": list(result.notes),
        **result.subject.record,
        "scores": shares,
        "statistics": statistics,
        "provenance": result.provenance,
        "config": result.subject.settings,
    }


def _rows(grid: Grid | None) -> list[list[int]] | None:
    return None if grid is None else grid.tolist()


def _candidate(candidate: Candidate) -> dict[str, Any]:
    record = {"grid": _rows(candidate.grid), "votes": candidate.votes, "confidence": round(candidate.confidence, 6)}
    likelihood = candidate.log_likelihood
    return record if likelihood is None else record | {"log_likelihood": round(likelihood, 6)}


def prediction_records(result: Evaluation) -> list[dict[str, Any]]:
    """One record per test input: its best candidates with votes, how many there were, and where the truth stands."""
    records = []
    for task in result.tasks:
        for number in range(len(task.tests)):
            candidates = result.attempts.candidates[task.id, number]
            places = result.truth_ranks.get(task.id)
            records.append(
                {
                    "task": task.id,
                    "test": number,
                    "candidates": [_candidate(c) for c in candidates[:KEPT_CANDIDATES]],
                    "num_candidates": len(candidates),
                    "num_votes": sum(candidate.votes for candidate in candidates),
                    "truth_rank": None if places is None else places[number],
                }
            )
    return records


def submission(tasks: Sequence[ArcTask], attempts: Attempts) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Kaggle format: for every task a list, per test input, of attempt_1 and attempt_2."""

    def attempt(task_id: str, number: int, place: int) -> list[list[int]]:
        candidates = attempts.candidates[task_id, number]
        grid = candidates[place].grid if place < len(candidates) else None
        return _rows(grid) or _NO_ATTEMPT

    return {
        task.id: [{f"attempt_{k + 1}": attempt(task.id, n, k) for k in (0, 1)} for n in range(len(task.tests))]
        for task in tasks
    }
