"""Every key of self_improve.py method=seal_knowledge: what it changes, or the test that shows it.

Models are recorders, and training is: what they are asked for is compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from arclab.config.compose import compose_run, flat
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import OnReply, Prompt, Reply, Samplings, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.lm.training.finetune import FinetuneSettings
from arclab.methods.seal.knowledge import cpt as cpt_module
from arclab.methods.seal.knowledge import sft as sft_module
from arclab.methods.seal.knowledge.cpt import WITH, pooled
from arclab.methods.seal.knowledge.engine import Outcome, Request
from arclab.methods.seal.knowledge.items import load_items
from arclab.methods.seal.knowledge.passages import Item
from arclab.methods.seal.knowledge.prompts import edit_prompt, question_prompt
from arclab.methods.seal.knowledge.select import selected
from arclab.methods.seal.knowledge.sft import scratch_lessons
from arclab.methods.seal.knowledge.trials import first_trials, request_of

from ..methods.seal.knowledge.common import SCRATCH
from .table import Parts, Table, differences, leaves, require_a_row_for_each, require_the_named_tests

BASE = [
    "method=seal_knowledge",
    "lm=tiny",
    "name=a",
    "data.num_train=4",
    "data.num_test=2",
    "rounds=2",
    "query.repetitions=2",
    "query.more_repetitions=1",
]
ADAPTATION = {
    "kind": "full", "rank": 3, "alpha": 3.0, "target_modules": "[q_proj]", "lr": 0.02, "epochs": 5, "batch_size": 7,
    "warmup_steps": 5, "weight_decay": 0.5, "clip_norm": 5.0,
}  # fmt: skip
# items: what is worked on. pooled: what is trained on at once. prompts: what is asked. trials: what is tried. requests: how. selection: what is learned. lessons: of a model from nothing.
KEYS: Table = {
    "data.seed": (1, "items prompts trials requests pooled"),
    "data.num_train": (3, "items prompts trials requests"),
    "data.num_test": (1, "items"),
    "data.num_facts": (5, "items prompts trials requests lessons pooled"),
    "data.split": ("test", "prompts trials requests pooled"),
    "style": ("chat", "prompts requests lessons"),
    "generate.kind": ("rewrite", "prompts lessons"),
    "query.split_lines": (False, "trials requests"),
    "query.repetitions": (1, "trials requests"),
    "query.passage_alone": (False, "trials requests"),
    "query.passage_repeated": (True, "trials requests"),
    "query.other_item": (True, "trials requests"),
    "query.num_retained": (2, "requests"),
    "query.max_new_tokens": (7, "requests"),
    **{f"query.adaptation.{key}": (value, "requests") for key, value in ADAPTATION.items()},
    "seed": (5, "requests selection"),
    "round": (1, "prompts trials requests pooled"),
    "select.rule": ("best", "selection"),
    "select.top_k": (2, "selection"),
    "select.min_gain": (0.6, "selection"),
    "cpt.split_lines": (True, "pooled"),
    "scratch.seed": (8, "lessons"),
    "scratch.num_passages": (10, "lessons"),
    "scratch.wrong_share": (0.0, "lessons"),
}  # fmt: skip
# What stages ask of models. drawing: how many completions, and how. settings: of a training, which decide its weights. cadence:
# of its run. device: that the model which learns is loaded to. base: of a model from nothing. requests: trainings on all items.
ASKED: dict[str, Table] = {
    "generate": {
        "generate.num_completions": (2, "drawing"),
        **{
            f"generate.sampling.{key}": (value, "drawing")
            for key, value in {"max_new_tokens": 7, "temperature": 0.3, "top_p": 0.5, "top_k": 3, "min_p": 0.1}.items()
        },
        "seed": (5, "drawing"),
    },
    "sft": {
        "sft.steps": (7, "cadence"),
        "sft.log_every": (3, "cadence"),
        "sft.checkpoint_every": (3, "cadence"),
        "sft.batch_size": (2, "settings"),
        "sft.lr": (0.5, "settings"),
        "sft.warmup_steps": (3, "settings"),
        "sft.weight_decay": (0.5, "settings"),
        "seed": (5, "settings"),
        "device": ("cpu", "device"),
    },
    "start": {
        "scratch.width": (16, "base"),
        "scratch.num_layers": (2, "base"),
        "scratch.num_heads": (2, "base"),
        "scratch.context": (32, "base"),
        "scratch.vocab_size": (280, "base"),
        "scratch.steps": (7, "cadence"),
        "scratch.batch_size": (2, "settings"),
        "scratch.lr": (0.5, "settings"),
        "scratch.warmup_steps": (3, "settings"),
    },
    "cpt": {f"cpt.adaptation.{key}": (value, "requests") for key, value in ADAPTATION.items()},
}
STAGES = "methods/seal/knowledge/test_stages.py"
CONTINUAL = "methods/seal/knowledge/test_continual.py"
TRIALS = "methods/seal/knowledge/test_trials.py"
ROUND = f"{STAGES}::test_a_round_leaves_its_files_and_a_server_makes_the_same_trials"
ELSEWHERE: Table = {
    **dict.fromkeys(("stage", "rounds", "experiment_name", "name", "runs_dir", "num_threads"), (None, ROUND)),
    **{f"criterion.{key}": (None, ROUND) for key in ("metric", "threshold", "phase")},
    "select.drop_weight": (None, f"{TRIALS}::test_a_gain_can_be_lessened_by_what_other_items_lose"),
    **{f"continual.{key}": (None, f"{CONTINUAL}::test_edits_are_learned_one_after_the_other_and_a_kill_changes_nothing") for key in ("num_sequences", "num_edits")},
    "data.source": (None, "methods/seal/knowledge/test_items.py::test_splits_and_rounds_share_no_item"),
    "data.hub_split": (None, "methods/seal/knowledge/test_items.py::test_rows_of_squad_become_items"),
    "generate.retries": (None, f"{STAGES}::test_empty_completions_are_drawn_again_alone"),
    "query.more_repetitions": (None, f"{TRIALS}::test_the_two_best_are_tried_again_and_the_winner_is_measured_on_what_did_not_choose_it"),
    "query.grader.kind": (None, f"{TRIALS}::test_rules_of_grading"),
    "query.grader.threshold": (None, f"{TRIALS}::test_rules_of_grading"),
    "query.server": (None, ROUND),
    "query.timeout_s": (None, "methods/seal/knowledge/test_server.py::test_nobody_there_and_an_address_that_is_none_are_sentences"),
    "serve.address": (None, "methods/seal/knowledge/test_server.py::test_nobody_there_and_an_address_that_is_none_are_sentences"),
    "serve.keys": (None, "methods/seal/knowledge/test_server.py::test_who_has_no_key_is_not_heard"),
    "serve.heartbeat_s": (None, "methods/seal/knowledge/test_server.py::test_who_waits_hears_how_far_it_is_and_who_has_gone_is_not_missed"),
    "serve.max_bytes": (None, "methods/seal/knowledge/test_server.py::test_a_message_that_is_too_large_is_not_read"),
    "serve.num_kept": (None, "methods/seal/knowledge/test_server.py::test_a_request_that_is_sent_again_is_worked_on_once"),
}  # fmt: skip


def test_every_key_has_a_row() -> None:
    known = leaves(SealKnowledgeConfig)
    shared = {key: (None, "every_key/test_programs.py::test_every_key_has_a_row") for key in known if key.startswith("lm.")}
    shared |= {
        key: (None, f"{TRIALS}::test_a_grader_without_a_key_is_a_sentence")
        for key in known
        if key.startswith("query.grader.model.")
    }
    shared |= {
        key: (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started")
        for key in known
        if key.startswith("launch.")
    }
    require_a_row_for_each(known, KEYS, *ASKED.values(), ELSEWHERE, shared)
    require_the_named_tests({**ELSEWHERE, **shared})


def asked(*overrides: str) -> Parts:
    config = compose_run("self_improve_seal_knowledge", [*BASE, SCRATCH, "select.rule=shuffled", "stage=query", *overrides])
    assert isinstance(config, SealKnowledgeConfig) and config.scratch is not None
    items = load_items(config.data, config.rounds)
    own = items.of_round(config.data.split, config.round, config.data.num_train)
    gains = {(str(item), str(edit)): ((3 * item + 5 * edit) % 7) / 7 for item in range(5) for edit in range(3)}
    trials = first_trials(config, own, {item.id: [f"{item.id}\nb", "c"] for item in own})
    return {
        "items": items,
        "prompts": [_prompts(config, item) for item in own],
        "trials": [(trial.key, trial.sequences) for trial in trials],
        "requests": [request_of(config, trial, "model") for trial in trials],
        "selection": selected(gains, {str(n): ["a", "b", "c"] for n in range(5)}, config.select, config.seed),
        "pooled": pooled(WITH, config, own[:2], {item.id: ["a\nb"] for item in own}),
        "lessons": scratch_lessons(config.scratch, config),
    }  # fmt: skip


def _prompts(config: SealKnowledgeConfig, item: Item) -> object:
    return edit_prompt(item, config.generate.kind, config.style), question_prompt(
        item.title, item.questions[0].text, config.style
    )


@cache
def base() -> Parts:
    return asked()


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_its_row_says(key: str) -> None:
    value, what = KEYS[key]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    assert str(flat(compose_run("self_improve_seal_knowledge", [*BASE, SCRATCH, "select.rule=shuffled"]))[key]) != str(value)
    assert differences(base(), asked(f"{key}={text}")) == set(what.split())


class Recorder(ScriptedModel):
    def __init__(self, notes: Parts) -> None:
        super().__init__(["a line"])
        self._notes = notes

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        self._notes["drawing"].append((num_samples, sampling))
        return super().generate(prompts, num_samples, sampling, on_reply)


def asked_by(stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Parts:
    """What a stage asks models and trainings for."""
    notes: Parts = {"drawing": [], "settings": [], "cadence": [], "device": [], "base": [], "requests": []}

    def train(model: object, output: Path, rows: Sequence[object], settings: FinetuneSettings, stop: object) -> None:
        cadence = {key: getattr(settings, key) for key in ("steps", "save_every", "log_every")}
        notes["cadence"].append(cadence)
        notes["settings"].append({key: value for key, value in asdict(settings).items() if key not in cadence})
        output.mkdir()

    def build(path: Path, *, texts: object, **sizes: int) -> None:
        path.mkdir()
        notes["base"].append(sizes)

    def answer(request: Request) -> Outcome:
        notes["requests"].append(request.adaptation)
        return Outcome(("x",) * len(request.questions), 1, 1, 1, 0, None, 0.0, "")

    with monkeypatch.context() as patch:
        folder.mkdir()
        patch.chdir(folder)
        patch.setattr(started, "load_language_model", lambda config: Recorder(notes))
        patch.setattr(sft_module, "load_hf", lambda config: notes["device"].append(config.device))
        patch.setattr(sft_module, "finetune", train)
        patch.setattr(sft_module, "build_tiny", build)
        patch.setattr(cpt_module, "asked_of", lambda *_: answer)
        common = [*BASE, *([SCRATCH] if stage == "start" else [])]
        if stage == "cpt":
            start("self_improve.py", [*common, "stage=generate"])
        if stage == "sft":
            _write_selected(folder / "runs/seal_knowledge/a/round_0/select")
        start("self_improve.py", [*common, f"stage={stage}", *overrides])
    return notes


def _write_selected(folder: Path) -> None:
    folder.mkdir(parents=True)
    row = {"item": "passages_0_00000", "edit": "0", "gain": 1.0, "text": "a line"}
    (folder / "sft.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "manifest.json").write_text("{}")


@pytest.fixture(scope="module")
def bases() -> dict[str, Parts]:
    """What each stage asks for with the base, by its name, once somebody has asked."""
    return {}


@pytest.mark.parametrize(("stage", "key"), [(name, key) for name, table in ASKED.items() for key in table])
def test_a_key_of_a_stage_changes_what_its_row_says(
    stage: str, key: str, bases: dict[str, Parts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = ASKED[stage][key]
    assert str(flat(compose_run("self_improve_seal_knowledge", [*BASE, SCRATCH]))[key]) != str(value)
    if stage not in bases:
        bases[stage] = asked_by(stage, tmp_path / "base", monkeypatch)
    assert differences(bases[stage], asked_by(stage, tmp_path / "other", monkeypatch, f"{key}={value}")) == set(what.split())
