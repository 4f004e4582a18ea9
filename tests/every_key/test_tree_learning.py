"""What a config of self_improve.py method=tree_search says is what happens: each key of the rounds changes what its row says.

What is trained is recorded where training begins. Keys of the search, the prompt, the model and the data are the same code as in
evaluations, and are tried there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_run
from arclab.config.llm_schema import HfModelConfig
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.config.tree_search_schema import EvaluateTreeSearchConfig
from arclab.lm.training import model_folder
from arclab.lm.training import scratch as scratch_module
from arclab.methods.tree_search.learning import sft as sft_module
from arclab.methods.tree_search.learning import values as values_module
from arclab.methods.tree_search.learning.sft import _base, _Teacher, _toy_lessons
from arclab.methods.tree_search.learning.teaching import Lesson, split_of, taught_rows
from arclab.methods.tree_search.learning.values import Reader
from arclab.methods.tree_search.steps import Steps
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks

from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests, shown_here

RANKS = Ranks(0, 1, torch.device("cpu"))
ROUNDS, CURATION, OUTCOMES, GENERATED, TEACHING, VALUES = (
    f"methods/tree_search/learning/test_{name}.py::test_{test}"
    for name, test in (
        ("rounds", "a_round_goes_from_trees_to_a_judged_policy"),
        ("curation", "the_funnel_by_hand"),
        ("outcomes", "margin_outcomes_and_number_are_limits"),
        ("generated", "the_stage_teaches_programs_with_generated_examples"),
        ("teaching", "held_out_lessons_are_whole_tasks_or_examples_of_known_ones"),
        ("values", "the_next_round_asks_it"),
    )
)
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj"]}
# settings: of the training. cadence: how often it does what. rows: what is taught. network: what is trained. lessons, base: what
# the first policy is made of. split: what is held out. value: of the reward model's training.
TABLE: Table = {
    "sft.steps": (9, "cadence"),
    "sft.batch_size": (7, "settings"),
    "sft.grad_accumulation": (2, "settings"),
    "sft.lr": (0.5, "settings"),
    "sft.warmup_steps": (3, "settings"),
    "sft.weight_decay": (0.1, "settings"),
    "sft.clip_norm": (0.3, "settings"),
    "sft.checkpoint_every": (5, "cadence value"),
    "sft.log_every": (3, "cadence value"),
    "sft.eval_every": (4, "cadence"),
    "sft.mark_tokens": (True, "rows network"),
    "sft.lora": (LORA, "network"),
    "sft.task_share": (0.5, "split"),
    "sft.example_share": (0.5, "split"),
    "scratch.source": ("toy:color_map?tasks=9&side=3&colors=3&palette=6&demos=1&split=train&seed=2", "lessons base"),
    "scratch.num_layers": (1, "base"),
    "scratch.width": (32, "base"),
    "scratch.num_heads": (2, "base"),
    "scratch.context": (200, "base"),
    "scratch.vocab_size": (300, "base"),
    "reward_model.batch_size": (4, "value"),
    "reward_model.lr": (0.5, "value"),
    "reward_model.warmup_steps": (3, "value"),
    "seed": (5, "settings split base value"),
    "num_threads": (2, "cadence value"),
}
FOLLOWS: dict[str, str] = {}
OTHERS: Table = {
    **dict.fromkeys(("experiment_name", "name", "runs_dir", "stage", "rounds", "device"), (None, ROUNDS)),
    **dict.fromkeys(("criterion.metric", "criterion.threshold", "criterion.phase"), (None, ROUNDS)),
    "round": (None, "runs/test_stages.py::test_lines_of_a_file_wait_for_the_stage_before"),
    **{f"scratch.{key}": (None, "every_key/test_tree_learning.py::test_a_first_policy_is_made_as_it_is_told")
       for key in ("wrong_share", "steps", "mistake_steps", "batch_size", "lr", "warmup_steps")},
    "collect.split": (None, "methods/tree_search/learning/test_rounds.py::test_stages_that_cannot_be_say_so"),
    "collect.max_tasks": (None, "every_key/test_tree_learning.py::test_tasks_and_programs_are_as_many_as_it_says"),
    **dict.fromkeys(("collect.min_margin", "collect.min_outcomes", "collect.max_pairs"), (None, OUTCOMES)),
    **dict.fromkeys((f"curate.{key}" for key in ("max_length_ratio", "num_best", "num_short", "num_kept")), (None, CURATION)),
    "curate.generated_inputs": (None, "methods/tree_search/learning/test_generated.py::test_pairs_come_from_a_folder_of_the_released_form"),
    "augment.source": (None, "methods/tree_search/learning/test_generated.py::test_pairs_come_from_a_folder_of_the_released_form"),
    "augment.num_examples": (None, GENERATED),
    "sft.twin": (None, ROUNDS),
    **{f"sft.lora.{key}": (None, "methods/tree_search/learning/test_rounds.py::test_an_adapter_is_merged_at_the_end") for key in LORA},
    "reward_model.steps": (None, VALUES),
    "reward_model.held_out": (None, "methods/tree_search/learning/test_values.py::test_held_out_pairs_are_of_other_tasks"),
    "reward_model.is_used": (None, "every_key/test_tree_learning.py::test_tasks_and_programs_are_as_many_as_it_says"),
    "reward_model.shuffle_labels": (None, "lm/training/test_preference.py::test_separable_pairs_are_learned_and_shuffled_ones_are_not"),
    **{f"evaluate.{key}": (None, "every_key/test_tree_learning.py::test_tasks_and_programs_are_as_many_as_it_says")
       for key in ("split", "max_tasks", "num_programs", "baselines")},
    "launch.gpus": (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started"),
}  # fmt: skip


def test_every_key_has_a_row() -> None:
    """Of the keys that evaluations do not have."""
    shared = leaves(EvaluateTreeSearchConfig) - {"seed", "num_threads", "name", "runs_dir"}
    own = {
        key
        for key in leaves(TreeLearningConfig)
        if key not in shared and not key.startswith(("launch.", "dataset.", "sandbox."))
    }
    require_a_row_for_each(own | {"launch.gpus", "sft.lora"}, TABLE, OTHERS)
    require_the_named_tests(OTHERS)


def config_of(**changes: Any) -> TreeLearningConfig:
    from omegaconf import OmegaConf

    config = compose_run(
        "self_improve_tree_search",
        ["experiment=search_quickstart", "name=t", "sft.steps=2", "scratch.source='toy:color_map?tasks=6&side=3&colors=3&palette=6&demos=1&split=train'",
         "sft.lora=null", "reward_model.steps=2", "reward_model.batch_size=2", "num_threads=1", "sft.task_share=0.2"],
    )  # fmt: skip
    for key, value in changes.items():
        node: Any = config
        *path, last = key.split(".")
        for part in path:
            node = getattr(node, part)
        if last == "lora":
            from arclab.config.memgen_schema import LoraConfig

            value = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LoraConfig), value))
        setattr(node, last, value)
    return config


class Stopped(RuntimeError):
    pass


def parts(config: TreeLearningConfig, folder: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """What there is just before training begins."""
    seen: Parts = {}

    def record(network: Any, rows: Sequence[Any], settings: Any, where: Any, **given: Any) -> int:
        seen["settings"] = asdict(settings)
        seen["cadence"] = asdict(where.cadence)
        seen["rows"] = list(rows)
        seen["network"] = sorted(name for name, p in network.named_parameters() if p.requires_grad), len(given["tokenizer"])
        raise Stopped

    def record_value(network: Any, rows: Sequence[Any], settings: Any, where: Any, **given: Any) -> int:
        seen["value"] = asdict(settings), asdict(where.cadence), list(rows)
        raise Stopped

    monkeypatch.setattr(model_folder, "sft", record)
    monkeypatch.setattr(values_module, "prefer", record_value)
    monkeypatch.setattr(scratch_module, "build_tiny", lambda folder, **sizes: seen.update(base=sizes))
    run, stop, steps = RunDir(folder), None, Steps.of(config.solver.steps)
    stop = StopRequest(run, RANKS, None)
    assert isinstance(config.lm, HfModelConfig)
    given = replace(config.lm, name=str(tiny_lm))
    lessons = _toy_lessons(config, 0.0)
    seen["lessons"] = [(lesson.id, lesson.written) for lesson in lessons]
    taught = _toy_lessons(config_of(), 0.0)
    examples = [*taught, *[Lesson(each.id, each.origin, each.prompt, f"{each.written} ", 1.0) for each in taught]]
    split = split_of(examples, config.sft.task_share, config.sft.example_share, config.seed)
    seen["split"] = [lesson.id for lesson in split.taught], [lesson.id for lesson in split.examples]
    with pytest.raises(Stopped):
        _Teacher(config, config.sft, run, "model", RANKS, stop).teach(
            given, partial(taught_rows, lessons=taught, steps=steps), split
        )
    _base(config, run, lessons)
    with pytest.raises(Stopped):
        reader = Reader(None, "", None, 2)
        values_module._train(config, torch.nn.Linear(1, 1), [], reader, run, RANKS, stop)
    return seen


@pytest.fixture(scope="module")
def base(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    with pytest.MonkeyPatch.context() as patch:
        return parts(config_of(), tmp_path_factory.mktemp("base"), tiny_lm, patch)


@pytest.mark.parametrize("key", shown_here(TABLE))
def test_a_key_changes_what_its_row_says(
    key: str, base: Parts, tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = TABLE[key]
    now = parts(config_of(**{key: value}), tmp_path, tiny_lm, monkeypatch)
    assert differences(base, now) == effect(what, FOLLOWS)


def test_a_first_policy_is_made_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right programs first, then mistakes; each as long, as wide and as fast as its keys say."""
    from arclab.launch.start import start

    made: list[Any] = []

    def teach(self: Any, given: HfModelConfig, rows_of: Any, split: Any) -> None:
        lessons = rows_of.keywords["lessons"]
        made.append(
            (self._which, self._wished.steps, self._wished.batch_size, self._wished.lr, self._wished.warmup_steps, lessons)
        )
        (self._run.path / self._which).mkdir()

    monkeypatch.setattr(sft_module._Teacher, "teach", teach)
    keys = ["scratch.steps=11", "scratch.mistake_steps=7", "scratch.batch_size=5", "scratch.lr=0.25", "scratch.warmup_steps=3"]
    common = ["experiment=search_quickstart", f"runs_dir={tmp_path}", "stage=start", "scratch.wrong_share=0.9"]
    assert start("self_improve.py", [*common, "name=a", *keys]) == 0
    assert [each[:5] for each in made] == [(".clean", 11, 5, 0.25, 3), ("model", 7, 5, 0.25, 3)]
    right, wrong = (each[5] for each in made)
    same = sum(a.written == b.written for a, b in zip(right, wrong, strict=True))
    assert [a.prompt for a in right] == [b.prompt for b in wrong] and same < len(right) / 10
    made.clear()
    assert start("self_improve.py", [*common, "name=b", *keys, "scratch.mistake_steps=0"]) == 0
    assert [each[:2] for each in made] == [(".clean", 11)] and (tmp_path / "search_quickstart/b/round_0/start/model").is_dir()


def test_tasks_and_programs_are_as_many_as_it_says() -> None:
    from arclab.methods.tree_search.learning.evaluate import search_of
    from arclab.methods.tree_search.learning.policy import named_tasks, training_tasks
    from arclab.methods.tree_search.learning.values import is_used

    config = config_of(**{"collect.max_tasks": 3, "evaluate.max_tasks": 2})
    assert len(training_tasks(config)) == 3 and len(training_tasks(config_of())) == 400
    assert len(named_tasks(config, config.evaluate.split.value, "evaluate.split", config.evaluate.max_tasks)) == 2
    limited = {"search.num_programs": 9, "search.num_draws": 8, "evaluate.num_programs": None}
    assert [
        (search.num_programs, search.num_draws)
        for change in ({}, {"evaluate.num_programs": 5}, {"evaluate.baselines": True})
        for search in [search_of(config_of(**limited | change))]
    ] == [(9, 8), (5, 8), (9, None)]
    assert is_used(config, 1) and not is_used(config, 0) and not is_used(config_of(**{"reward_model.is_used": False}), 1)
