"""Every key of trainer=grpo changes what its row says, and nothing else of what is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run
from arclab.lm.tiny import build_tiny
from arclab.lm.training import grpo as grpo_module
from arclab.methods.memgen import interaction, reinforcement, run
from arclab.methods.memgen.generation import Answer

from .table import Parts, Table, differences, effect, require_the_named_tests, shown_here

SMALL = [
    "wandb.mode=disabled", "name=a", "dataset=arithmetic", "dataset.num_train=12", "dataset.num_validation=4", "dataset.num_test=4",
    "trainer=grpo", "trainer.steps=2", "trainer.prompts_per_step=2", "trainer.device=cpu", "lm=tiny", "lm.device=cpu",
    "dataset.max_steps=1", "trainer.max_new_tokens=8", "trainer.eval_every=0", "trainer.sft_steps=1",
]  # fmt: skip
RUN = "methods/memgen/test_reinforcement.py::"
# training: what trl is told and the settings beside it. groups: how rollouts become a step. drawn: how they are sampled.
# rewards: what for. taught: the supervised stage before.
TABLE: Table = {
    "trainer.steps": (3, "training"),
    "trainer.grad_accumulation": (2, "training"),
    "trainer.lr": (0.5, "training"),
    "trainer.schedule": ("linear", "training"),
    "trainer.warmup_steps": (1, "training"),
    "trainer.weight_decay": (0.2, "training"),
    "trainer.clip_norm": (0.5, "training"),
    "trainer.prompts_per_step": (4, "training"),
    "trainer.group_size": (4, "training groups"),
    "trainer.updates_per_rollout": (2, "training"),
    "trainer.loss": ("grpo", "training"),
    "trainer.scale_rewards": ("none", "training"),
    "trainer.clip_low": (0.1, "training"),
    "trainer.clip_high": (0.3, "training"),
    "trainer.beta": (0.1, "training"),
    "trainer.temperature": (0.5, "training drawn"),
    "trainer.max_new_tokens": (9, "training drawn"),
    "trainer.mask_truncated": (False, "groups"),
    "trainer.refills": (2, "groups"),
    "trainer.boxed_reward": (0.5, "rewards"),
    "trainer.shuffle_rewards": (True, "groups"),
    "trainer.sft_steps": (3, "taught"),
    "trainer.sft_batch_size": (3, "taught"),
    "trainer.sft_lr": (0.5, "taught"),
}
OTHERS: Table = {
    "trainer.kind": (None, "config/test_compose.py::test_an_option_of_another_script_is_refused_with_those_that_fit"),
    "trainer.sparsity_weight": (
        None,
        "methods/memgen/test_trigger_training.py::test_what_is_rewarded_and_drawn_changes_the_decisions",
    ),
    "memgen.weaver.start_from": (None, f"{RUN}test_it_begins_with_the_weaver_of_a_run"),
}
# Of test_memgen.py's tables, which are of trainer=sft: what only trainer=grpo has.
OF_GRPO: Table = {**{key: row for key, row in TABLE.items() if key not in (
    "trainer.steps", "trainer.grad_accumulation", "trainer.lr", "trainer.schedule", "trainer.warmup_steps", "trainer.weight_decay",
    "trainer.clip_norm",
)}, **OTHERS}  # fmt: skip


def looked_at(overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """What a run builds and is told, up to where trl would train."""
    config: Any = compose_run("pretrain_memgen", [*SMALL, f"runs_dir={folder}", *overrides])
    found: Parts = {"drawn": [], "taught": []}

    def sft(model: Any, rows: Any, settings: Any, where: Any, **given: Any) -> int:
        found["taught"] = [settings, where.cadence.steps]
        return where.cadence.steps

    def grpo(model: Any, drawer: Any, settings: Any, where: Any, **given: Any) -> int:
        size = drawer.settings.group_size
        per_piece = grpo_module._rows_per_piece(settings, size, 1)
        arguments = grpo_module._arguments(settings, where, per_piece, size).to_dict()
        found["training"] = [settings, {key: value for key, value in arguments.items() if not key.endswith("dir")}]
        found["groups"] = drawer.settings
        found["rewards"] = {name: weight for name, (weight, _) in drawer._rewards.items()}
        drawer._roll_out(drawer._prompts[:1], [0])
        return where.cadence.steps

    def generate(
        model: Any, prompts: Any, rule: Any, sampling: Any, seeds: Any, refine: Any, *, is_tempered: bool, is_over: Any
    ) -> list[Answer]:
        assert is_tempered
        found["drawn"].append([[list(prompt) for prompt in prompts], rule.limits, rule.trigger.name, sampling, list(seeds)])
        return [Answer(tokens=[5], logprobs=[-1.0]) for _ in prompts]

    with monkeypatch.context() as patch:
        patch.setattr(run, "grpo", grpo)
        patch.setattr(reinforcement, "sft", sft)
        patch.setattr(interaction, "generate", generate)
        run.pretrain(config)
    return found


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "base"
    build_tiny(folder, texts=["a, b. c"], seed=0, num_layers=1, width=16, num_heads=2, context=1024, vocab_size=300)
    return f"lm.name={folder}"


@pytest.fixture(scope="module")
def base(lm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with pytest.MonkeyPatch.context() as patch:
        yield looked_at([lm], tmp_path_factory.mktemp("base"), patch)


def test_rollouts_ask_the_trigger(base: Parts, lm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences(base, looked_at([lm, "memgen/trigger=never"], tmp_path, monkeypatch)) == {"drawn"}


def test_the_named_tests_are_there() -> None:
    require_the_named_tests(OTHERS)


@pytest.mark.parametrize("key", shown_here(TABLE))
def test_a_key_changes_what_its_row_says(
    key: str, base: Parts, lm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = TABLE[key]
    assert differences(base, looked_at([lm, f"{key}={value}"], tmp_path, monkeypatch)) == effect(what, {})
