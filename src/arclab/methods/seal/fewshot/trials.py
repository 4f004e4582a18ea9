"""Trials: what a model answers to a task after it was trained on it as a self-edit says, each kept as a line.

    trials = Trials(config, adapted_of(config, 0), run.path / TRIALS, progress)
    found = trials.of([(task, edit), (task, None)])        # {(task id, edit.key): Trial}; None: the model as it is

What a trial comes to depends on the model, the task, the self-edit and the seed alone, so equal self-edits of a task are tried
once. With trials_at_once=N the adapters of N trials are trained in one batch, which changes roundings. The model is loaded when
the first trial is missing, trained in place, and put back (arclab.lm.training.inner); trained weights are kept nowhere. A
training that leaves nothing to train on, or that is not finite, earns nothing whatever the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.compose import flat
from arclab.config.llm_schema import HOW_MODELS_RUN, HfModelConfig
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.config.seal_schema import AdaptKind
from arclab.data.tasks import ArcTask
from arclab.lm.hf import load_hf
from arclab.lm.hf_loading import model_identity
from arclab.methods.seal.fewshot.edits import SelfEdit
from arclab.methods.seal.solver import TaskRecord, TaskTrainer, digest_of, parse_record, record_as_json
from arclab.results.attempts import Candidate
from arclab.results.scoring import rank_of_truth
from arclab.runs.console import progress_bar
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.worklist import ItemKind, Worklist, read_items

TRIALS = "trials.jsonl"
TRIAL_ITEMS = ItemKind(holds="trials", again="it is tried again", elsewhere="choose another name=")
PLAIN = "none"  # in place of a self-edit's key: the model as it is
_ATTEMPTS = 2
Key = tuple[str, str]  # task id, key of the self-edit
# What a self-edit says, and what is said elsewhere.
_FREE = (
    "solver.loss", "solver.adaptation.lr", "solver.adaptation.epochs", "solver.demonstrations", "solver.kind",
    *(f"solver.pseudo_tasks.{name}" for name in ("basic", "size", "chain", "repeat")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """right: of each test input, whether one of the two attempts is its output. is_solved: all are."""

    record: TaskRecord
    right: tuple[bool, ...]

    @property
    def is_solved(self) -> bool:
        return bool(self.right) and all(self.right)

    @property
    def reward(self) -> float:
        """Of the self-edit: 1 if the task was solved by what it asked for."""
        return float(self.is_solved and not self.record.problem)


def trial_of(task: ArcTask, record: TaskRecord) -> Trial:
    return Trial(record, tuple(is_right(candidates, task, number) for number, candidates in enumerate(record.tests)))


def is_right(candidates: Sequence[Candidate], task: ArcTask, number: int) -> bool:
    truth = task.tests[number].output
    return truth is not None and rank_of_truth(candidates[:_ATTEMPTS], truth) is not None


class Trials:
    """path: the file that they are kept in. known: files of earlier stages, whose trials count if they were made alike."""

    def __init__(
        self, config: SealFewshotConfig, model: HfModelConfig, path: Path, progress: WorkProgress, known: Iterable[Path] = ()
    ) -> None:
        self._config, self._model, self._progress = config, model, progress
        settings = trial_settings(config, model)
        self._worklist = Worklist(path, settings, TRIAL_ITEMS)
        self._records: dict[str, TaskRecord] = {}
        for other in known:
            made_with, records = read_items(other, parse_record, TRIAL_ITEMS)
            if made_with == settings:
                self._records |= records
        self._records |= self._worklist.load(parse_record)
        self._trainer: TaskTrainer | None = None

    def of(self, wanted: Iterable[tuple[ArcTask, SelfEdit | None]]) -> dict[Key, Trial]:
        """ToldToEnd: what is tried is kept. ValueError: the model cannot be used."""
        places = {(task.id, PLAIN if edit is None else edit.key): (task, edit) for task, edit in wanted}
        missing = [key for key, (task, _) in places.items() if not self._is_known(key, task)]
        at_once = self._config.trials_at_once
        with progress_bar(total=len(places), desc="trying self-edits", unit="trial", disable=False) as bar:
            num_done = len(places) - len(missing)
            bar.update(num_done)
            for start in range(0, len(missing), at_once):
                if self._progress.is_told:
                    raise ToldToEnd(f"{num_done} of {len(places)} trials are made")
                keys = missing[start : start + at_once]
                for key, record in zip(keys, self._tried([places[key] for key in keys]), strict=True):
                    self._records["/".join(key)] = record
                    self._worklist.add("/".join(key), self._line(*places[key], record))
                num_done += len(keys)
                bar.update(len(keys))
                self._progress.report(self._progress.num_steps * num_done // len(places))
        return {key: trial_of(task, self._records["/".join(key)]) for key, (task, _) in places.items()}

    def _is_known(self, key: Key, task: ArcTask) -> bool:
        record = self._records.get("/".join(key))
        return record is not None and record.digest == digest_of(task, task)

    def _tried(self, wanted: Sequence[tuple[ArcTask, SelfEdit | None]]) -> list[TaskRecord]:
        if self._trainer is None:
            self._trainer = TaskTrainer(load_hf(self._model), self._config.seed, is_replication=self._config.compat is not None)
        solver = self._config.solver
        plain = replace(solver, adaptation=replace(solver.adaptation, kind=AdaptKind.none))
        settings = [(task, plain if edit is None else edit.applied(solver)) for task, edit in wanted]
        told = self._progress.require_not_told
        if self._config.trials_at_once > 1:
            return self._trainer.answered_together([(task, task, each) for task, each in settings], told)
        return [self._trainer.answered(task, task, each, told) for task, each in settings]

    def _line(self, task: ArcTask, edit: SelfEdit | None, record: TaskRecord) -> dict[str, Any]:
        """For who reads the file: what was tried and what came of it, beside the record."""
        trial = trial_of(task, record)
        config = None if edit is None else edit.as_json()
        return {"task": task.id, "config": config, "right": list(trial.right), "reward": trial.reward, **record_as_json(record)}


def trial_settings(config: SealFewshotConfig, model: HfModelConfig) -> Mapping[str, Any]:
    """Everything that decides a trial but the task and the self-edit."""
    found: dict[str, Any] = {"seed": config.seed, "lm (content)": model_identity(model.name)}
    if model.adapter:
        found["lm.adapter (content)"] = model_identity(model.adapter)
    if config.compat is not None:
        found["compat"] = config.compat.value
    free = ("lm.name", "lm.adapter", *(f"lm.{key}" for key in HOW_MODELS_RUN), *_FREE)
    for part, node in (("lm", model), ("solver", config.solver)):
        found |= {f"{part}.{key}": value for key, value in flat(node).items() if f"{part}.{key}" not in free}
    return found


def pooled(trials: Sequence[Trial], num_tests: int) -> list[list[Candidate]]:
    """The candidates of several trials of a task, by the votes of all together: for each test input, best first."""
    found = []
    for number in range(num_tests):
        votes: dict[tuple[tuple[int, ...], bytes], Candidate] = {}
        for trial in trials:
            for candidate in trial.record.tests[number] if trial.record.tests else ():
                if candidate.grid is not None:
                    key = candidate.grid.shape, candidate.grid.tobytes()
                    before = votes.get(key)
                    count = candidate.votes + (0 if before is None else before.votes)
                    votes[key] = replace(candidate, votes=count, log_likelihood=None)
        found.append(sorted(votes.values(), key=lambda candidate: -candidate.votes))
    return found
