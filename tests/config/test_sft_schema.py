"""What every stage that fine-tunes says of it is checked alike."""

from __future__ import annotations

import pytest

from arclab.config.compose import ConfigError, compose_run

BROKEN_LORA = "lora={rank: 0, alpha: 8, dropout: 0.0, target_modules: [q_proj]}"


@pytest.mark.parametrize(
    ("entry", "group"),
    [
        ("self_improve_tree_search", "sft"),
        ("self_improve_program_edit", "sft"),
        ("self_improve_program_edit", "grpo"),
        ("self_improve_seal_fewshot", "restem"),
    ],
)
def test_an_adapter_of_rank_0_is_refused_in_one_sentence(entry: str, group: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose_run(entry, ["lm=tiny", "dataset=toy", "name=a", f"{group}.{BROKEN_LORA}"])
    assert str(refused.value).count(f"{group}.lora.rank=0 must be at least 1") == 1


@pytest.mark.parametrize(
    ("entry", "group"),
    [
        ("self_improve_tree_search", "sft"),
        ("self_improve_program_edit", "sft"),
        ("self_improve_seal_fewshot", "restem"),
        ("self_improve_seal_knowledge", "sft"),
    ],
)
@pytest.mark.parametrize(("key", "value"), [("steps", "0"), ("batch_size", "0"), ("lr", "-1"), ("checkpoint_every", "0")])
def test_the_training_is_checked(entry: str, group: str, key: str, value: str) -> None:
    data = [] if entry.endswith("knowledge") else ["dataset=toy"]
    with pytest.raises(ConfigError, match=rf"{group}\.{key}={value}"):
        compose_run(entry, ["lm=tiny", "name=a", *data, f"{group}.{key}={value}"])
