"""stage=continual: one edit after the other in one model, and what it still knows of the passages before.

    continual(config, ranks, signals, folder)       # writes sequences.jsonl, results.json, report.html

Of each sequence the model as it is answers the questions of all items. Then, item by item, the model as it is by then writes
about the passage, is trained on that and the passage, the adapter is added to the weights in float32, and all items so far are
asked about without their passages. Adapters are kept until their sequence is done, with what was answered: the same command
goes on after a kill, and what it makes is what an undisturbed run makes, bit for bit. The page is made by continual_page.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.files import difference, require_kinds, write_atomically
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.hf_loading import model_identity
from arclab.methods.seal.knowledge.continual_page import Matrix, continual_page, continual_record
from arclab.methods.seal.knowledge.engine import Asked, Engine, Request, seed_of
from arclab.methods.seal.knowledge.generate import drawn
from arclab.methods.seal.knowledge.grading import Answer, Grader
from arclab.methods.seal.knowledge.passages import Item
from arclab.methods.seal.knowledge.policy import items_at, policy_inputs, policy_of
from arclab.methods.seal.knowledge.prompts import training_sequences
from arclab.runs.checkpoints import CheckpointFolder, load_tensors, read_state, save_tensors
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import ItemKind, Line, Worklist

_SEQUENCES = "sequences.jsonl"
_ADAPTER = "adapter.safetensors"
_KIND = ItemKind(holds="sequences of edits", again="its sequence is made again")


@dataclass(frozen=True, slots=True)
class Edit:
    """text: what the model wrote; "" of the model as it is, and where nothing came. answers: of the items so far, the model as
    it is: of all. problem: why nothing was learned."""

    text: str
    answers: list[list[str]]
    loss: float | None
    num_tokens: int
    train_s: float
    problem: str


def continual(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    wished, items = config.continual, items_at(config)[: config.continual.num_items]
    size = wished.num_edits

    def work(run: RunDir, progress: WorkProgress) -> Made:
        making, grader = _Making(config, run, progress), Grader(config.query.grader, run.path)
        groups = [items[start : start + size] for start in range(0, len(items), size)]
        sequences = [making.sequence(number, group) for number, group in enumerate(groups)]
        matrices = [_matrix(group, edits, grader) for group, edits in zip(groups, sequences, strict=True)]
        record = continual_record(matrices)
        edits = [[asdict(edit) for edit in each] for each in sequences]
        whole = record | {"items": [[item.id for item in group] for group in groups], "edits": edits}
        write_atomically(run.path / "results.json", json.dumps(whole, indent=1) + "\n")
        write_atomically(run.path / "report.html", continual_page(config, matrices, _stamps(sequences, matrices)))
        shown = {name: f"{100 * record[name]:.1f} %" for name in ("base", "learned", "final", "forgetting")}
        told = (
            f"accuracy as it is {shown['base']}, right after an item's edit {shown['learned']}, after all edits "
            f"{shown['final']}; forgotten {shown['forgetting']}"
        )
        return Made(outputs=[run.path / "results.json"], counts={name: record[name] for name in shown}, message=told)

    return make_stage(config, ranks, signals, folder, policy_inputs(config), wished.num_sequences * (size + 1), work)


class _Making:
    """One stage at work."""

    def __init__(self, config: SealKnowledgeConfig, run: RunDir, progress: WorkProgress) -> None:
        self._config, self._run, self._progress = config, run, progress
        policy = policy_of(config, config.round)
        assert isinstance(policy, HfModelConfig), "the schema refuses others"
        self._policy = policy
        wished = config.query
        self._settings = {
            "lm.name (content)": model_identity(policy.name), "style": config.style.value, "seed": config.seed,
            "generate.kind": config.generate.kind.value, "split_lines": wished.split_lines,
            "num_edits": config.continual.num_edits, "max_new_tokens": wished.max_new_tokens,
            **{f"adaptation.{key}": str(value) for key, value in asdict(wished.adaptation).items()},
        }  # fmt: skip
        self._worklist = Worklist(run.path / _SEQUENCES, self._settings, _KIND)
        self._done = self._worklist.load(_parse_sequence)

    def sequence(self, number: int, items: Sequence[Item]) -> list[Edit]:
        """What the model as it is answers, and after each edit."""
        folder, before = self._run.path / f"sequence_{number}", number * (len(items) + 1)
        if str(number) not in self._done:
            model, steps = load_hf(self._policy), CheckpointFolder(folder, len(items) + 1)
            engine, edits = Engine(model), list[Edit]()
            for step in range(len(items) + 1):
                self._progress.report(before + step)
                if self._progress.is_told:
                    raise ToldToEnd(f"{before + step} answers and edits are made")
                if step in steps.steps():
                    edits.append(self._read(steps.path(step), engine))
                else:
                    edits.append(self._made(number, step, items, model, engine, steps))
            self._worklist.add(str(number), {"edits": [asdict(edit) for edit in edits]})
            self._done[str(number)] = edits
        shutil.rmtree(folder, ignore_errors=True)
        return self._done[str(number)]

    def _made(
        self, number: int, step: int, items: Sequence[Item], model: HfModel, engine: Engine, steps: CheckpointFolder
    ) -> Edit:  # fmt: skip
        """step 0: nothing is trained."""
        config, place = self._config, f"{number}/{step}"
        seed, asked = seed_of(config.seed, config.round, "continual", place), items[:step] if step else items
        text = self._written(model, items[step - 1], seed) if step else ""
        sequences = training_sequences(items[step - 1], text, config.query.split_lines) if step else []
        questions = tuple(Asked(item.title, question.text) for item in asked for question in item.questions)
        request = Request(
            place, tuple(sequences), questions, config.query.adaptation, config.style, config.query.max_new_tokens, seed
        )
        outcome, learned = engine.edit(request, self._progress.require_not_told)
        texts = iter(outcome.texts)
        answers = [[next(texts) for _ in item.questions] for item in asked]
        edit = Edit(text, answers, outcome.loss, outcome.num_tokens, outcome.train_s, outcome.problem)
        temporary = steps.begin(step)
        save_tensors(learned, temporary / _ADAPTER)
        steps.commit(temporary, {"step": step, "settings": self._settings, "edit": asdict(edit)})
        return edit

    def _written(self, model: HfModel, item: Item, seed: int) -> str:
        """By the model as it is by now; "" if nothing came of all attempts: then the passage alone is learned."""
        one = replace(self._config, seed=seed, generate=replace(self._config.generate, num_completions=1))
        ((texts, _),) = drawn(one, model, [item])
        return texts[0]

    def _read(self, path: Path, engine: Engine) -> Edit:
        """What was made before, learned again from its adapter."""
        state = read_state(path)
        if other := difference(state.get("settings") or {}, self._settings):
            raise ConfigError(f"{path} was made with {other}; remove {self._run.path}, or choose another name=.")
        engine.edit_again(self._config.query.adaptation, load_tensors(path, _ADAPTER, state))
        return _edit_in(state["edit"], path)


def _edit_in(record: dict[str, Any], path: Path) -> Edit:
    kinds = {"text": str, "answers": list[list], "loss": float | None, "num_tokens": int, "train_s": float, "problem": str}
    require_kinds(record, kinds, path)
    return Edit(**{key: record[key] for key in kinds})


def _parse_sequence(record: dict[str, Any], line: Line) -> list[Edit]:
    line.require(record, {"edits": list[dict]})
    return [_edit_in(each, line.path) for each in record["edits"]]


def _matrix(items: Sequence[Item], edits: Sequence[Edit], grader: Grader) -> Matrix:
    """Of each row the grades of the items that it asks about."""
    flat = [
        Answer(question.text, question.answer, given)
        for edit in edits
        for item, texts in zip(items, edit.answers, strict=False)
        for question, given in zip(item.questions, texts, strict=True)
    ]
    grades = iter(grader.grades(flat))
    return [[[next(grades) for _ in texts] for texts in edit.answers] for edit in edits]


def _stamps(sequences: Sequence[Sequence[Edit]], matrices: Sequence[Matrix]) -> list[str]:
    edits, found = [edit for each in sequences for edit in each[1:]], list[str]()
    if ungraded := sum(grade is None for matrix in matrices for row in matrix for cell in row for grade in cell):
        found.append(f"{ungraded} answers are ungraded and count in no share")
    if failed := sum(bool(edit.problem) for edit in edits):
        found.append(f"{failed} edits were not finite, and nothing was learned from them")
    if empty := sum(not edit.text for edit in edits):
        found.append(f"{empty} edits have nothing written: the passage alone was learned")
    return found
