"""Results of made-up methods on a few toy tasks, written as every evaluation writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Grid
from arclab.pages.publish import publish
from arclab.results.attempts import Attempts, Candidate
from arclab.results.writing import Evaluation, Subject
from arclab.runs.folder import RunDir, State

SOURCE = "toy:color_map?tasks=6&side=3&colors=3&palette=4&demos=2&split=test"
OTHER_SOURCE = SOURCE.replace("split=test", "split=validation")
# (votes, confidence, is it right?) of each candidate, best first
Answers = Sequence[tuple[int, float, bool]]


def wrong(task: ArcTask, number: int, place: int = 0) -> Grid:
    """Grids of the shape of the truth that it cannot be, another one for each place; the same for every method."""
    truth = task.tests[number].output
    shape = task.tests[number].input.shape if truth is None else truth.shape
    return np.full((shape[0], shape[1] + 1 + place), 7, dtype=np.uint8)


def candidates(task: ArcTask, number: int, answers: Answers) -> list[Candidate]:
    found = []
    for place, (votes, confidence, is_right) in enumerate(answers):
        truth = task.tests[number].output
        assert truth is not None or not is_right
        found.append(Candidate(truth if is_right else wrong(task, number, place), votes, confidence))
    return found


def make_result(
    folder: Path, answer: Callable[[int], Answers], *, source: str = SOURCE, label: str = "made", num_tasks: int = 6,
    stamps: tuple[str, ...] = (), hide: bool = False, settings: dict[str, Any] | None = None, **record: Any,
) -> Path:  # fmt: skip
    """answer: number of the task -> its candidates. hide: answers are not known. settings: of the method, by dotted key.
    record: fields of metrics.json."""
    tasks = load_source(source)[:num_tasks]
    if hide:
        tasks = [replace(task, tests=tuple(replace(test, output=None) for test in task.tests)) for task in tasks]
    found = {
        (task.id, number): candidates(task, number, answer(place))
        for place, task in enumerate(tasks)
        for number in range(len(task.tests))
    }
    key = "dataset.validation_sources" if source == OTHER_SOURCE else "dataset.eval_sources"
    split = "validation" if source == OTHER_SOURCE else "evaluation"
    settings = {key: [source], "dataset.name": "toy", **(settings or {})}
    fields = {"split": split, "dataset": "toy", "solver": label, **record}
    subject = Subject((label, folder.name), {}, {}, fields, settings)
    publish(Evaluation(subject, tasks, Attempts(found), stamps, (), {"command": "made"}), folder)
    RunDir(folder).write_status(State.done, num_tasks)
    return folder


RIGHT: Answers = [(3, 0.9, True)]
SECOND: Answers = [(2, 0.8, False), (1, 0.4, True)]
WRONG: Answers = [(3, 0.3, False)]
