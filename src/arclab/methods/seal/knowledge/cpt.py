"""stage=cpt: all passages, and what was written about them, in one training; then the questions of all, without passages.

    cpt(config, ranks, signals, folder)       # writes results.json, report.html

Each item gives all its completions and its passage once. With query.passage_alone the passages alone are trained on too, from
the same weights. Each of these trainings is kept once its answers are there (trainings.jsonl); one that is broken off is begun
again. With query.server a server makes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from arclab.config.compose import flat
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.files import write_atomically
from arclab.lm.hf_loading import model_identity
from arclab.methods.seal.knowledge.engine import Asked, Outcome, Request, seed_of
from arclab.methods.seal.knowledge.generate import COMPLETIONS, require_completions
from arclab.methods.seal.knowledge.grading import Answer, Grader
from arclab.methods.seal.knowledge.messages import outcome_of
from arclab.methods.seal.knowledge.passages import Item
from arclab.methods.seal.knowledge.policy import items_at, policy_inputs, policy_of
from arclab.methods.seal.knowledge.prompts import training_sequences
from arclab.methods.seal.knowledge.query import asked_of
from arclab.methods.seal.knowledge.report import BASE, Condition, condition, condition_record, condition_table
from arclab.methods.seal.knowledge.trials import Row
from arclab.pages.rounds import RoundsPage, render_rounds
from arclab.results.writing import ResultTable
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import ItemKind, Line, Worklist

ALONE, WITH = "passages alone", "passages and completions"
_TRAININGS = "trainings.jsonl"
_KIND = ItemKind(holds="trainings", again="it is trained again")


def cpt(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    items = items_at(config)
    inputs = {"completions": config.file_of("generate", config.round, COMPLETIONS), **policy_inputs(config)}
    names = [ALONE, WITH] if config.query.passage_alone else [WITH]

    def work(run: RunDir, progress: WorkProgress) -> Made:
        completions = require_completions(inputs["completions"], items)
        outcomes = _outcomes(config, run, progress, items, {name: pooled(name, config, items, completions) for name in names})
        grader = Grader(config.query.grader, run.path)
        base = _graded(items, outcomes[BASE], grader)
        rows = {name: _rows(items, outcomes[name], _graded(items, outcomes[name], grader), base) for name in names}
        found = [condition(BASE, rows[WITH], as_it_is=True), *(condition(name, own) for name, own in rows.items())]
        _write(config, run, found, rows, outcomes)
        counts = {"base_accuracy": found[0].share.value, "accuracy": found[-1].share.value, "macro_accuracy": found[-1].macro}
        told = ", ".join(f"{each.name} {each.share}" for each in found)
        return Made(outputs=[run.path / "results.json"], counts=counts, message=f"closed-book accuracy: {told}")

    return make_stage(config, ranks, signals, folder, inputs, len(names) + 1, work)


def pooled(
    name: str, config: SealKnowledgeConfig, items: Sequence[Item], completions: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The sequences of a training: those of all items, each passage once."""
    found: list[str] = []
    for item in items:
        texts = [text for text in completions[item.id] if text] if name == WITH else []
        each = [training_sequences(item, text, config.cpt.split_lines)[:-1] for text in texts]
        found += [*(text for sequences in each for text in sequences), *training_sequences(item, "", config.cpt.split_lines)]
    return tuple(found)


def _outcomes(
    config: SealKnowledgeConfig, run: RunDir, progress: WorkProgress, items: Sequence[Item],
    sequences: Mapping[str, tuple[str, ...]],
) -> dict[str, Outcome]:  # fmt: skip
    """Of the model as it is, and of each training. ToldToEnd: the run is told to end."""
    model = model_identity(policy_of(config, config.round).name)
    settings = {
        "lm.name (content)": model, "style": config.style.value, "max_new_tokens": config.query.max_new_tokens,
        "seed": config.seed, **{f"adaptation.{key}": str(value) for key, value in asdict(config.cpt.adaptation).items()},
    }  # fmt: skip
    worklist = Worklist(run.path / _TRAININGS, settings, _KIND)
    done = worklist.load(_parse)
    questions = tuple(Asked(item.title, question.text) for item in items for question in item.questions)
    with ExitStack() as stack:
        ask = None
        for number, (name, texts) in enumerate({BASE: (), **sequences}.items()):
            progress.report(number)
            digest = hashlib.sha256(json.dumps([model, texts, settings, [asdict(q) for q in questions]]).encode()).hexdigest()
            if done.get(name, ("", None))[0] != digest:
                ask = ask or asked_of(config, run, progress, stack)
                seed = seed_of(config.seed, config.round, "cpt", name)
                outcome = ask(
                    Request(
                        digest[:24], texts, questions, config.cpt.adaptation, config.style, config.query.max_new_tokens, seed
                    )
                )
                worklist.add(name, {"digest": digest, **asdict(outcome)})
                done[name] = (digest, outcome)
    return {name: done[name][1] for name in (BASE, *sequences)}


def _parse(record: dict[str, Any], line: Line) -> tuple[str, Outcome]:
    line.require(record, {"digest": str})
    return record["digest"], outcome_of(record, line.path)


def _graded(items: Sequence[Item], outcome: Outcome, grader: Grader) -> list[bool | None]:
    questions = [question for item in items for question in item.questions]
    return grader.grades(
        [Answer(question.text, question.answer, given) for question, given in zip(questions, outcome.texts, strict=True)]
    )


def _rows(
    items: Sequence[Item], outcome: Outcome, right: Sequence[bool | None], base: Sequence[bool | None]
) -> list[Row]:  # fmt: skip
    """A row of each item; the cost stands in each, since it is one training."""
    found, start = list[Row](), 0
    for item in items:
        own = slice(start, start + len(item.questions))
        start = own.stop
        found.append(
            Row(
                item.id, "all", 0, [question.text for question in item.questions], list(outcome.texts[own]), list(right[own]),
                [], list(base[own]), outcome.num_sequences, outcome.num_steps, outcome.num_tokens, outcome.num_padding,
                outcome.loss, outcome.train_s, outcome.problem, [], [],
            )
        )  # fmt: skip
    return found


def _write(
    config: SealKnowledgeConfig, run: RunDir, found: Sequence[Condition], rows: Mapping[str, Sequence[Row]],
    outcomes: Mapping[str, Outcome],
) -> None:  # fmt: skip
    trainings = {name: replace(outcome, texts=()) for name, outcome in outcomes.items() if name != BASE}
    record = {
        "conditions": [condition_record(each) for each in found],
        "items": {name: [asdict(row) for row in own] for name, own in rows.items()},
        "trainings": {name: asdict(outcome) for name, outcome in trainings.items()},
    }
    write_atomically(run.path / "results.json", json.dumps(record, indent=1) + "\n")
    cost = ResultTable(
        "Cost of a training",
        ("trained on", "sequences", "steps", "tokens", "of them padding", "training", "loss of the last epoch"),
        tuple(
            (
                name, f"{each.num_sequences:,}", f"{each.num_steps:,}", f"{each.num_tokens:,}",
                f"{100 * each.num_padding / max(1, each.num_tokens):.1f} %", f"{each.train_s:.1f} s",
                "" if each.loss is None else f"{each.loss:.3f}",
            )
            for name, each in trainings.items()
        ),
        "All items are learned in one training, from the same weights each time.",
    )  # fmt: skip
    failed = [f"{name}: {each.problem}; it answered as it is" for name, each in trainings.items() if each.problem]
    page = RoundsPage(
        title=(config.experiment_name, f"{config.name}, all passages at once"),
        facts={
            "data": config.data.source, "items": str(len(rows[WITH])), "kind": config.generate.kind.value,
            "trained": config.cpt.adaptation.kind.value, "grader": config.query.grader.kind.value, "seed": str(config.seed),
        },
        criterion="",
        stamps=failed,
        tables=[condition_table(found, "Every question is asked once of each."), cost],
        histograms=[],
        settings=flat(config),
    )  # fmt: skip
    write_atomically(run.path / "report.html", render_rounds(page))
