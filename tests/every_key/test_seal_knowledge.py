"""Every key of self_improve.py method=seal_knowledge: what it changes, or the test that shows it."""

from __future__ import annotations

from functools import cache

import pytest

from arclab.config.compose import compose_run, flat
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.methods.seal.knowledge.cpt import WITH, pooled
from arclab.methods.seal.knowledge.items import load_items
from arclab.methods.seal.knowledge.passages import Item
from arclab.methods.seal.knowledge.prompts import edit_prompt, question_prompt
from arclab.methods.seal.knowledge.select import selected
from arclab.methods.seal.knowledge.sft import scratch_lessons
from arclab.methods.seal.knowledge.trials import first_trials, request_of

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
SCRATCH = "scratch={seed: 7, num_passages: 20, wrong_share: 0.5, width: 8, num_layers: 1, num_heads: 1, context: 64, vocab_size: 300, steps: 1, batch_size: 1, lr: 0.1, warmup_steps: 0}"
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
    **{
        f"query.adaptation.{key}": (value, "requests")
        for key, value in {
            "kind": "full", "rank": 3, "alpha": 3.0, "target_modules": "[q_proj]", "lr": 0.02, "epochs": 5, "batch_size": 7,
            "warmup_steps": 5, "weight_decay": 0.5, "clip_norm": 5.0,
        }.items()
    },
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
STAGES = "methods/seal/knowledge/test_stages.py"
CONTINUAL = "methods/seal/knowledge/test_continual.py"
ADAPTATION = (
    "kind",
    "rank",
    "alpha",
    "target_modules",
    "lr",
    "epochs",
    "batch_size",
    "warmup_steps",
    "weight_decay",
    "clip_norm",
)
TRIALS = "methods/seal/knowledge/test_trials.py"
ROUND = f"{STAGES}::test_a_round_leaves_its_files_and_a_server_makes_the_same_trials"
ELSEWHERE: Table = {
    **dict.fromkeys(("stage", "rounds", "experiment_name", "name", "runs_dir", "device", "num_threads"), (None, ROUND)),
    **{f"criterion.{key}": (None, ROUND) for key in ("metric", "threshold", "phase")},
    "select.drop_weight": (None, f"{TRIALS}::test_a_gain_can_be_lessened_by_what_other_items_lose"),
    **{f"cpt.adaptation.{key}": (None, f"{CONTINUAL}::test_all_items_at_once_are_learned") for key in ADAPTATION},
    **{f"continual.{key}": (None, f"{CONTINUAL}::test_edits_are_learned_one_after_the_other_and_a_kill_changes_nothing") for key in ("num_sequences", "num_edits")},
    **{f"sft.{key}": (None, ROUND) for key in ("steps", "batch_size", "lr", "warmup_steps", "weight_decay", "log_every", "checkpoint_every")},
    **{
        f"scratch.{key}": (None, "experiments/test_seal_knowledge.py::test_the_quickstart_passes")
        for key in ("width", "num_layers", "num_heads", "context", "vocab_size", "steps", "batch_size", "lr", "warmup_steps")
    },
    "data.source": (None, "methods/seal/knowledge/test_items.py::test_splits_and_rounds_share_no_item"),
    "data.hub_split": (None, "methods/seal/knowledge/test_items.py::test_rows_of_squad_become_items"),
    "generate.num_completions": (None, ROUND),
    "generate.retries": (None, f"{STAGES}::test_empty_completions_are_drawn_again_alone"),
    **{f"generate.sampling.{key}": (None, ROUND) for key in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")},
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
    require_a_row_for_each(known, KEYS, ELSEWHERE, shared)
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
