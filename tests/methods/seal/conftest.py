"""The tiny language model as transformers loads it, for tests of methods that train it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice

from ...conftest import TINY_LM_SIZES

if TYPE_CHECKING:
    from arclab.lm.hf import HfModel


@pytest.fixture(scope="session")
def seal_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for a task and its instructions."""
    from arclab.lm.tiny import build_tiny, default_texts

    folder = tmp_path_factory.mktemp("seal_lm") / "tiny"
    build_tiny(folder, texts=default_texts(), seed=0, **{**TINY_LM_SIZES, "context": 2048})
    return folder


@pytest.fixture(scope="session")
def lm_config(seal_lm: Path) -> Callable[..., HfModelConfig]:
    def build(**changes: Any) -> HfModelConfig:
        fields = {
            "kind": "hf", "name": str(seal_lm), "max_context": None, "thinking": None, "adapter": None, "dtype": Dtype.float32,
            "attention": LmAttention.sdpa, "device": DeviceChoice.cpu, "batch_size": 8,
        }  # fmt: skip
        return HfModelConfig(**{**fields, **changes})

    return build


@pytest.fixture
def model(lm_config: Callable[..., HfModelConfig]) -> HfModel:
    """A fresh one for each test: they train it."""
    from arclab.lm.hf import load_hf

    return load_hf(lm_config())
