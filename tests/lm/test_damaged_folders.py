"""Folders of adapters and of fine-tunings with damaged files: one sentence that names the folder, and nothing lost by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as example_settings

from arclab.config.llm_schema import HfModelConfig
from arclab.files import DamagedFile
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.training.finetune import _require_same

from ..damage import REPEATED, damaged_bytes, damaged_json, outcome_or_sentence


@pytest.fixture(scope="module")
def model(hf_config: Callable[..., HfModelConfig]) -> HfModel:
    return load_hf(hf_config())


@pytest.fixture
def adapter(model: HfModel, tmp_path: Path) -> Path:
    with model.new_adapter(rank=1, alpha=2, target_modules=["q_proj"]) as trainable:
        trainable.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_loaded_or_named(model: HfModel, adapter: Path, name: str) -> None:
    """And the model is as it was before, whatever was in the way."""
    path = adapter / name
    whole = path.read_bytes()
    before = {key: value.clone() for key, value in model._model.state_dict().items()}

    @given(content=damaged_json(json.loads(whole)) if name.endswith(".json") else damaged_bytes(whole))
    @example_settings(REPEATED, max_examples=20)
    def check(content: bytes) -> None:
        path.write_bytes(content)

        def load() -> None:
            with model.adapter(adapter):
                pass

        outcome_or_sentence(load, adapter)

    check()
    after: dict[str, Any] = model._model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    path.write_bytes(whole)
    with model.adapter(adapter):
        pass


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"[" * 100_000, b'{"peft_type": "LORA", "peft_type": "IA3"}'])
def test_an_adapter_whose_settings_are_none(model: HfModel, adapter: Path, content: bytes) -> None:
    (adapter / "adapter_config.json").write_bytes(content)
    with (
        pytest.raises(DamagedFile, match=r"adapter_config\.json is damaged \(.*; copy the whole folder again\.$"),
        model.adapter(adapter),
    ):
        pass


@given(content=damaged_json({"model": "abc", "seed": 3, "steps": 8}))
@REPEATED
def test_a_damaged_record_of_a_training_is_no_other_training(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "finetuned.json").write_bytes(content)
    outcome_or_sentence(lambda: _require_same(tmp_path, {"model": "abc", "seed": 3, "steps": 8}), tmp_path)
