"""A tiny random reasoner with memory. Its adapter is made non-zero, so that the weaver differs from the reasoner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from arclab.lm.switched import LoraSettings, adapter_parameters
from arclab.methods.memgen.generation import InsertionRule
from arclab.methods.memgen.insertions import InsertionLimits
from arclab.methods.memgen.model import WEAVER, MemGenModel, MemGenSettings
from arclab.methods.memgen.weaver import WeaverSizes

Build = Callable[..., MemGenModel]
LORA = LoraSettings(rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj"))


def reasoner_of(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def build(tiny_lm: Path) -> Build:
    """build(fast=False, lora=LORA, adapted=True)."""

    def make(*, fast: bool = False, lora: LoraSettings = LORA, adapted: bool = True, other: bool = False) -> MemGenModel:
        settings = MemGenSettings(WeaverSizes(prompt=4, inference=3), lora, fast)
        weaver_model = reasoner_of(tiny_lm) if other else None
        model = MemGenModel(reasoner_of(tiny_lm), settings, seed=0, weaver_model=weaver_model)
        if adapted:
            generator = torch.Generator().manual_seed(0)
            for parameter in adapter_parameters(model.backbone.written_by, WEAVER).values():
                parameter.data.normal_(0.0, 0.05, generator=generator)
        return model

    return make


@pytest.fixture
def rule() -> InsertionRule:
    """Every tenth token is a delimiter, four tokens end an answer."""
    table_V = torch.zeros(512, dtype=torch.bool)
    table_V[::10] = True
    return InsertionRule(table_V, InsertionLimits(max_prompt=1, max_inference=3), frozenset(range(101, 105)), pad_id=0)


def some_ids(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]
