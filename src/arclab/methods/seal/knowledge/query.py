"""stage=query: what is each completion worth? The model is trained on it, and asked what the passage says without the passage.

    query(config, ranks, signals, folder)       # writes results.jsonl, results.json, metrics.jsonl, report.html

Every trial is kept as it is made (trials.jsonl), and so is what the model answers as it is (baseline.jsonl, by its content and
the question): the same command goes on after a kill. With query.server the trials are made by a server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_knowledge_schema import NO_SERVER, SealKnowledgeConfig
from arclab.lm.hf import load_hf
from arclab.lm.hf_loading import model_identity
from arclab.methods.seal.knowledge.client import server_asked
from arclab.methods.seal.knowledge.engine import Engine, Outcome, Request
from arclab.methods.seal.knowledge.generate import COMPLETIONS, require_completions
from arclab.methods.seal.knowledge.grading import Answer, Grader
from arclab.methods.seal.knowledge.messages import outcome_of
from arclab.methods.seal.knowledge.passages import Item, Question
from arclab.methods.seal.knowledge.policy import items_at, policy_inputs, policy_of
from arclab.methods.seal.knowledge.report import judged, metrics_of, write_report
from arclab.methods.seal.knowledge.trials import (
    ROWS,
    Row,
    Trial,
    first_trials,
    further_trials,
    request_of,
    write_rows,
)
from arclab.metrics.logger import MetricLogger
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import ItemKind, Line, Worklist

_TRIALS, _BASELINE = "trials.jsonl", "baseline.jsonl"
_TRIAL_ITEMS = ItemKind(holds="trials made", again="its trial is made again")
Ask = Callable[[Request], Outcome]


def query(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    items = items_at(config)
    inputs = {"completions": config.file_of("generate", config.round, COMPLETIONS), **policy_inputs(config)}
    wished = config.query
    per_item = config.generate.num_completions + wished.passage_alone + wished.passage_repeated + wished.other_item
    num_trials = len(items) * per_item * wished.repetitions

    def work(run: RunDir, progress: WorkProgress) -> Made:
        completions = require_completions(inputs["completions"], items)
        grader = Grader(config.query.grader, run.path)
        with ExitStack() as stack:
            rows = _Querying(config, run, progress, asked_of(config, run, progress, stack), grader).rows(items, completions)
        write_rows(run.path / ROWS, rows)
        found = metrics_of(rows, config.query.adaptation.batch_size)
        with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
            logger.write(config.round, found)
        result = judged(config, run, run)
        write_report(config, run, rows, result)
        counts = {name.removeprefix("knowledge/"): value for name, value in found.items()}
        told = f"closed-book accuracy {_percent(counts['base_accuracy'])} as it is, {_percent(counts['accuracy'])} adapted"
        return Made(outputs=[run.path / ROWS], counts=counts, message=told + (f"; {result}" if result else ""))

    return make_stage(config, ranks, signals, folder, inputs, num_trials, work)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def asked_of(config: SealKnowledgeConfig, run: RunDir, progress: WorkProgress, stack: ExitStack) -> Ask:
    """Who makes the trials: this process, or a server. ToldToEnd: the run is told to end."""
    if config.query.server != NO_SERVER:
        client = stack.enter_context(server_asked(config, run.path))
        return lambda request: client.ask(request, progress.require_not_told)
    policy = policy_of(config, config.round)
    assert isinstance(policy, HfModelConfig), "the schema refuses others"
    engine = Engine(load_hf(policy))
    return lambda request: engine.answer(request, progress.require_not_told)


class _Querying:
    """One stage at work."""

    def __init__(self, config: SealKnowledgeConfig, run: RunDir, progress: WorkProgress, ask: Ask, grader: Grader) -> None:
        self._config, self._run, self._progress, self._ask, self._grader = config, run, progress, ask, grader
        self._model = model_identity(policy_of(config, config.round).name)
        settings = {
            "lm.name (content)": self._model,
            "style": config.style.value,
            "max_new_tokens": config.query.max_new_tokens,
        }
        self._baselines = Worklist(run.path / _BASELINE, settings)
        settings = settings | {"seed": config.seed, "round": config.round, "num_retained": config.query.num_retained}
        how = {f"adaptation.{key}": str(value) for key, value in asdict(config.query.adaptation).items()}
        self._trials = Worklist(run.path / _TRIALS, settings | how, _TRIAL_ITEMS)
        self._made: dict[str, tuple[str, Outcome]] = {}

    def rows(self, items: Sequence[Item], completions: dict[str, list[str]]) -> list[Row]:
        base = self._base(items)
        self._made = self._trials.load(_parse_trial)
        trials = first_trials(self._config, items, completions)
        rows = self._graded(trials, base, 0)
        if self._config.query.more_repetitions:
            more = further_trials(self._config, rows, items, completions)
            rows += self._graded(more, base, len(trials))
        return rows

    def _base(self, items: Sequence[Item]) -> dict[str, list[str]]:
        """{item id: what the model answers as it is}. Each question is asked once."""
        known = self._baselines.load(_parse_base)
        for item in items:
            keys = [_question_key(item, number) for number in range(len(item.questions))]
            if any(key not in known for key in keys):
                self._require_time("the model is asked as it is")
                outcome = self._ask(request_of(self._config, Trial(item, "base", 0, ()), self._model))
                answers = dict(zip(keys, outcome.texts, strict=True))
                self._baselines.add_all({key: {"answer": answer} for key, answer in answers.items()})
                known |= answers
        return {item.id: [known[_question_key(item, n)] for n in range(len(item.questions))] for item in items}

    def _graded(self, trials: Sequence[Trial], base: dict[str, list[str]], num_before: int) -> list[Row]:
        for number, trial in enumerate(trials):
            self._progress.report(num_before + number)
            if self._made.get(trial.key, ("", None))[0] != trial.digest:
                self._require_time(f"{num_before + number} trials are made")
                outcome = self._ask(request_of(self._config, trial, self._model))
                self._trials.add(trial.key, {"sequences": trial.digest, **asdict(outcome)})
                self._made[trial.key] = (trial.digest, outcome)
        asked = [(trial, self._made[trial.key][1]) for trial in trials]
        right = self._grades([(trial, outcome.texts) for trial, outcome in asked])
        known = self._grades(
            [(trial, [text for item in (trial.item, *trial.others) for text in base[item.id]]) for trial, _ in asked]
        )
        return [
            _row(trial, outcome, base[trial.item.id], own, as_it_is)
            for (trial, outcome), own, as_it_is in zip(asked, right, known, strict=True)
        ]

    def _grades(self, answered: Sequence[tuple[Trial, Sequence[str]]]) -> list[list[bool | None]]:
        """All at once, so that a model that grades has many to work on."""
        flat = [
            Answer(question.text, question.answer, given)
            for trial, texts in answered
            for question, given in zip(_questions(trial), texts, strict=True)
        ]
        grades = iter(self._grader.grades(flat))
        return [[next(grades) for _ in texts] for _, texts in answered]

    def _require_time(self, told: str) -> None:
        if self._progress.is_told:
            raise ToldToEnd(told)


def _row(
    trial: Trial, outcome: Outcome, base_answers: list[str], right: list[bool | None], base: list[bool | None]
) -> Row:  # fmt: skip
    own = len(trial.item.questions)
    return Row(
        trial.item.id, trial.edit, trial.repetition, [question.text for question in trial.item.questions],
        list(outcome.texts[:own]), right[:own], base_answers, base[:own], outcome.num_sequences, outcome.num_steps,
        outcome.num_tokens, outcome.num_padding, outcome.loss, outcome.train_s, outcome.problem, right[own:], base[own:],
    )  # fmt: skip


def _questions(trial: Trial) -> list[Question]:
    return [question for item in (trial.item, *trial.others) for question in item.questions]


def _question_key(item: Item, number: int) -> str:
    return hashlib.sha256(json.dumps([item.title, item.questions[number].text]).encode()).hexdigest()[:24]


def _parse_base(record: dict[str, Any], line: Line) -> str:
    line.require(record, {"answer": str})
    return record["answer"]


def _parse_trial(record: dict[str, Any], line: Line) -> tuple[str, Outcome]:
    line.require(record, {"sequences": str})
    return record["sequences"], outcome_of(record, line.path)
