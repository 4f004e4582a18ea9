"""text_config("gsm8k", "dataset.sample=true"): an option of the group dataset with overrides, as Hydra composes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from arclab.config.compose import _compose, to_typed
from arclab.config.text_schema import TextDatasetConfig

TextConfig = Callable[..., TextDatasetConfig]


@dataclass(kw_only=True, slots=True)
class Root:
    dataset: TextDatasetConfig


@pytest.fixture(scope="session")
def text_config(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    conf = tmp_path_factory.mktemp("conf")
    (conf / "root.yaml").write_text("defaults:\n  - dataset: ???\n  - _self_\n")

    @cache  # Hydra takes a quarter of a second each time
    def build(option: str, *overrides: str) -> TextDatasetConfig:
        node = _compose("root", [f"dataset={option}", *overrides], conf)
        return to_typed(node, Root).dataset

    return build
