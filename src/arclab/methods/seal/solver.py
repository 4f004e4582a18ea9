"""Test-time training as a solver: for each task a model is adapted, answers, and is put back; a line of a file for each.

    solver = AdaptingSolver(config, model, worklist, progress)
    attempts = solver.solve(tasks)

Tasks whose line is there are not tried again. A task that leaves nothing to train on (one demonstration, grids too large for
the context), or whose training came to what is not finite, is answered by the model as it is: its line says why, the results
count it. A task whose prompt does not fit is skipped, and wrong.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arclab.config.adaptation_schema import ShownTask
from arclab.config.compose import ConfigError
from arclab.config.seal_schema import AdaptingSolverConfig, AdaptKind, EvaluateTestTimeTrainingConfig
from arclab.data.augment import visible_pairs
from arclab.data.tasks import ArcTask, parse_grid
from arclab.lm.hf import HfModel
from arclab.lm.training.inner import Fitted, InnerAdapter, Job
from arclab.methods.seal.answering import Answer, Answerer, View, views_of
from arclab.methods.seal.pseudo_tasks import ChosenRows, chosen_rows
from arclab.methods.seal.replication import padded_rows, published_row
from arclab.methods.seal.task_text import training_row
from arclab.results.attempts import Attempts, Candidate
from arclab.runs.console import progress_bar
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.worklist import ItemKind, Line, Worklist

TASKS = "tasks.jsonl"
TASK_ITEMS = ItemKind(id_key="task", holds="answers", again="its task is answered again")


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One line. digest: of what is shown of the task, and of the one that was trained on. skipped: why it was not tried.
    problem: why the model was not adapted. tests: for each test input its candidates, best first. num_made: pseudo-tasks there
    were; num_too_long: of those looked at, that did not fit."""

    digest: str
    skipped: str = ""
    problem: str = ""
    tests: tuple[tuple[Candidate, ...], ...] = ()
    losses: tuple[float, ...] = ()
    num_rows: int = 0
    num_views: int = 0
    num_made: int = 0
    num_too_long: int = 0
    num_replies: int = 0
    num_no_grid: int = 0
    num_cut: int = 0
    num_silent: int = 0
    num_tokens: int = 0
    fit_tokens: int = 0
    fit_padding: int = 0
    fit_s: float = 0.0
    answer_s: float = 0.0


_KINDS: dict[str, Any] = {
    "digest": str, "skipped": str, "problem": str, "tests": list, "losses": list[float], "fit_s": float, "answer_s": float,
    **{name: int for name in TaskRecord.__slots__ if name.startswith("num_")}, "fit_tokens": int, "fit_padding": int,
}  # fmt: skip


def parse_record(record: dict[str, Any], line: Line) -> TaskRecord:
    """DamagedFile: no line of this kind."""
    line.require(record, _KINDS)
    tests = tuple(tuple(_candidate(each, line) for each in test) for test in record["tests"])
    values = {key: record[key] for key in _KINDS if key not in ("tests", "losses")}
    return TaskRecord(**values, tests=tests, losses=tuple(record["losses"]))


def _candidate(record: Any, line: Line) -> Candidate:
    kinds: dict[str, Any] = {"grid": list, "votes": int, "confidence": float, "log_likelihood": float | None}
    if not isinstance(record, dict):
        raise line.damaged("a candidate is no object")
    line.require(record, kinds)
    try:
        grid = parse_grid(record["grid"], "a candidate")
    except ValueError as error:
        raise line.damaged(str(error).rstrip(".")) from error
    return Candidate(grid, record["votes"], record["confidence"], record["log_likelihood"])


def record_as_json(record: TaskRecord) -> dict[str, Any]:
    tests = [[{**asdict(c), "grid": None if c.grid is None else c.grid.tolist()} for c in test] for test in record.tests]
    return {**{name: getattr(record, name) for name in _KINDS}, "tests": tests}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A task before it is trained on. room: tokens of a reply. skipped: why it is not tried. problem: why it is not trained
    on."""

    task: ArcTask
    config: AdaptingSolverConfig
    digest: str
    answerer: Answerer
    views: Sequence[View]
    room: int
    skipped: str
    problem: str
    chosen: ChosenRows


class TaskTrainer:
    """Adapts a model to a task, lets it answer, and puts it back. seed: of everything that is drawn. is_replication: texts and
    padding as in arclab.methods.seal.replication."""

    def __init__(self, model: HfModel, seed: int, *, is_replication: bool = False) -> None:
        self._model, self._seed, self._inner = model, seed, InnerAdapter(model, seed)
        self._is_replication = is_replication

    def answered(
        self, task: ArcTask, trained: ArcTask, wanted: AdaptingSolverConfig, before_step: Callable[[], None]
    ) -> TaskRecord:
        """trained: the task whose demonstrations are trained on. before_step: may end a training by what it raises. ValueError:
        the model cannot be used."""
        prepared = self._prepared(task, trained, wanted)
        if prepared.skipped:
            return TaskRecord(prepared.digest, skipped=prepared.skipped)
        with self._inner.fit(prepared.chosen.rows, wanted.adaptation, self._seed, before_step) as fitted:
            return self._answered(prepared, fitted)

    def answered_together(
        self, wanted: Sequence[tuple[ArcTask, ArcTask, AdaptingSolverConfig]], before_step: Callable[[], None]
    ) -> list[TaskRecord]:
        """The same for several (task, trained, settings), whose LoRA adapters are trained in one batch and answer one after the
        other. Equal to answered up to the rounding of a larger batch."""
        prepared = [self._prepared(*each) for each in wanted]
        jobs = [Job(each.chosen.rows, each.config.adaptation, self._seed) for each in prepared if each.chosen.rows]
        with self._inner.fit_together(jobs, before_step) as adapted:
            trained, records = iter(adapted), list[TaskRecord]()
            for each in prepared:
                if each.skipped:
                    records.append(TaskRecord(each.digest, skipped=each.skipped))
                elif not each.chosen.rows:
                    records.append(self._answered(each, Fitted()))
                else:
                    one = next(trained)
                    with one.in_use():
                        records.append(self._answered(each, one.fitted))
        return records

    def _prepared(self, task: ArcTask, trained: ArcTask, wanted: AdaptingSolverConfig) -> _Prepared:
        digest, answerer = digest_of(task, trained), Answerer(self._model, wanted, self._seed)
        views = views_of(task, wanted.views, self._seed)
        room, skipped = answerer.room(task, views)
        chosen, problem = ChosenRows([], [], 0, 0), ""
        if not skipped and wanted.adaptation.kind is not AdaptKind.none:
            chosen = self._chosen(trained, wanted)
            problem = "" if chosen.rows else _nothing_to_train_on(trained, chosen)
        return _Prepared(task, wanted, digest, answerer, views, room, skipped, problem, chosen)

    def _answered(self, prepared: _Prepared, fitted: Fitted) -> TaskRecord:
        """By the model as it now is."""
        began_s, chosen = time.monotonic(), prepared.chosen
        answers = prepared.answerer.answer(prepared.task, prepared.views, prepared.room)
        return TaskRecord(
            prepared.digest, problem=prepared.problem or fitted.problem,
            tests=tuple(tuple(each.candidates) for each in answers), losses=fitted.losses, num_views=len(prepared.views),
            num_rows=len(chosen.rows), num_made=chosen.num_made, num_too_long=chosen.num_too_long, **_sums(answers),
            fit_tokens=fitted.num_tokens, fit_padding=fitted.num_padding, fit_s=fitted.seconds,
            answer_s=time.monotonic() - began_s,
        )  # fmt: skip

    def _chosen(self, trained: ArcTask, wanted: AdaptingSolverConfig) -> ChosenRows:
        row_of = published_row if self._is_replication else training_row
        chosen = chosen_rows(
            trained, wanted.pseudo_tasks, self._seed, lambda made: row_of(self._model, made, wanted.text, wanted.loss)
        )
        return replace(chosen, rows=padded_rows(chosen.rows, self._model.pad_id)) if self._is_replication else chosen


class AdaptingSolver:
    """progress: hears of tasks that are done, and may end the work."""

    def __init__(
        self, config: EvaluateTestTimeTrainingConfig, model: HfModel, worklist: Worklist, progress: WorkProgress | None
    ) -> None:
        self._wanted, self._worklist, self._progress = config.solver, worklist, progress
        self._at_once = config.tasks_at_once
        self._trainer = TaskTrainer(model, config.seed)
        self.records: dict[str, TaskRecord] = {}

    def solve(
        self, tasks: Sequence[ArcTask], scored: Sequence[ArcTask] | None = None, *, show_progress: bool = False
    ) -> Attempts:
        """scored: all tasks of the evaluation, where this process answers a share of them; None: these. ValueError: the model
        cannot be used. ToldToEnd: the progress said so, and what is done is kept."""
        kept = self._worklist.load(parse_record)
        pairs = [(task, trained_on(task, scored or tasks, self._wanted.demonstrations)) for task in tasks]
        missing = [(task, other) for task, other in pairs if not _is_of(kept.get(task.id), task, other)]
        num_done = len(tasks) - len(missing)
        with progress_bar(total=len(tasks), desc="training on tasks", unit="task", disable=not show_progress) as bar:
            bar.update(num_done)
            for start in range(0, len(missing), self._at_once):
                self._require_going_on(num_done, len(tasks))
                some = missing[start : start + self._at_once]
                for (task, _), record in zip(some, self._answered(some), strict=True):
                    self._worklist.add(task.id, record_as_json(record))
                    kept[task.id] = record
                num_done += len(some)
                bar.update(len(some))
                if self._progress is not None:
                    self._progress.report(num_done)
        self.records |= {task.id: kept[task.id] for task in tasks}
        return attempts_of(
            tasks,
            self.records,
            is_adapting=self._wanted.adaptation.kind is not AdaptKind.none,
        )

    def _answered(self, some: Sequence[tuple[ArcTask, ArcTask]]) -> list[TaskRecord]:
        if self._at_once > 1:
            return self._trainer.answered_together([(*pair, self._wanted) for pair in some], self._before_step)
        return [self._trainer.answered(*pair, self._wanted, self._before_step) for pair in some]

    def _before_step(self) -> None:
        if self._progress is not None:
            self._progress.require_not_told()

    def _require_going_on(self, num_done: int, num_tasks: int) -> None:
        if self._progress is not None and self._progress.is_told:
            raise ToldToEnd(f"{num_done} of {num_tasks} tasks are answered")


def trained_on(task: ArcTask, scored: Sequence[ArcTask], shown: ShownTask) -> ArcTask:
    """The task whose demonstrations are trained on before this one is answered. ConfigError: there is no other."""
    if shown is ShownTask.own:
        return task
    if len(scored) < 2:
        raise ConfigError(
            "solver.demonstrations=other_task needs another scored task, and one alone is scored; raise max_tasks, or use "
            "solver.demonstrations=own."
        )
    number = next(number for number, each in enumerate(scored) if each.id == task.id)
    return scored[(number + 1) % len(scored)]


def _is_of(record: TaskRecord | None, task: ArcTask, trained: ArcTask) -> bool:
    return record is not None and record.digest == digest_of(task, trained)


def digest_of(task: ArcTask, trained: ArcTask) -> str:
    """What an answer was made from."""
    shown = [[grid.tolist() for grid in pair] for each in (task, trained) for pair in visible_pairs(each)]
    return hashlib.sha256(repr((trained.id, shown)).encode()).hexdigest()[:16]


def _nothing_to_train_on(task: ArcTask, chosen: ChosenRows) -> str:
    if chosen.num_too_long:
        return f"all {chosen.num_made} pseudo-tasks are longer than the context"
    return f"{len(task.demos)} demonstrations leave no pseudo-task with solver.pseudo_tasks.min_demos shown"


def _sums(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        name: sum(getattr(answer, name) for answer in answers)
        for name in ("num_replies", "num_no_grid", "num_cut", "num_silent", "num_tokens")
    }


def attempts_of(tasks: Sequence[ArcTask], records: Mapping[str, TaskRecord], *, is_adapting: bool) -> Attempts:
    """The answers, and the metrics ttt/*."""
    attempts = Attempts({}, skipped={task.id: records[task.id].skipped for task in tasks if records[task.id].skipped})
    for task in tasks:
        tests = records[task.id].tests or tuple(() for _ in task.tests)
        attempts.candidates |= {(task.id, number): list(candidates) for number, candidates in enumerate(tests)}
    tried = [records[task.id] for task in tasks if not records[task.id].skipped]
    if not tried:
        return attempts
    num_replies = sum(record.num_replies for record in tried)
    found = {
        "replies": float(num_replies),
        "silent_share": sum(r.num_silent for r in tried) / sum(r.num_views * len(r.tests) for r in tried),
        "candidates": float(np.mean([len(test) for record in tried for test in record.tests])),
        "tokens": float(sum(record.num_tokens for record in tried)),
        "answer_s": float(np.mean([record.answer_s for record in tried])),
    }
    if num_replies:
        found["no_grid_share"] = sum(record.num_no_grid for record in tried) / num_replies
    if is_adapting:
        found |= _of_training(tried)
    attempts.statistics = {f"ttt/{name}": value for name, value in found.items()}
    return attempts


def _of_training(tried: Sequence[TaskRecord]) -> dict[str, float]:
    found = {
        "unadapted_share": float(np.mean([bool(record.problem) for record in tried])),
        "pseudo_tasks": float(np.mean([record.num_rows for record in tried])),
        "too_long_share": sum(r.num_too_long for r in tried) / max(1, sum(r.num_too_long + r.num_rows for r in tried)),
        "fit_s": float(np.mean([record.fit_s for record in tried])),
    }
    fitted = [record for record in tried if record.losses and not record.problem]
    if fitted:
        found["loss_first"] = float(np.mean([record.losses[0] for record in fitted]))
        found["loss_last"] = float(np.mean([record.losses[-1] for record in fitted]))
        found["padding_share"] = sum(r.fit_padding for r in fitted) / sum(r.fit_tokens for r in fitted)
        found["fit_tokens_per_s"] = sum(r.fit_tokens - r.fit_padding for r in fitted) / max(1e-9, sum(r.fit_s for r in fitted))
    return found


def worklist_in(folder: Path, settings: Mapping[str, Any]) -> Worklist:
    return Worklist(folder / TASKS, settings, TASK_ITEMS)
