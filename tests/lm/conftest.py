"""A tiny language model in a folder, made once and loaded once for each file of tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice
from arclab.lm.language_model import FinishReason, Message, Prompt, Reply, Sampling

if TYPE_CHECKING:
    from arclab.lm.hf import HfModel

    from .endpoint_server import FakeServer

Config = Callable[..., HfModelConfig]


@pytest.fixture
def tiny_copy(tiny_lm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_lm, tmp_path / "copy"))


@pytest.fixture(scope="session")
def hf_config(tiny_lm: Path) -> Callable[..., HfModelConfig]:
    """hf_config(key=value, ...): the tiny model on the CPU."""

    def build(**changes: Any) -> HfModelConfig:
        fields = {
            "kind": "hf", "name": str(tiny_lm), "max_context": None, "thinking": None, "adapter": None, "dtype": Dtype.float32,
            "attention": LmAttention.sdpa, "device": DeviceChoice.cpu, "batch_size": 4,
        }  # fmt: skip
        return HfModelConfig(**{**fields, **changes})

    return build


@pytest.fixture(scope="module")
def model(hf_config: Config) -> HfModel:
    from arclab.lm.hf import HfModel  # seconds that tests of endpoints need not spend
    from arclab.lm.models import load_language_model

    loaded = load_language_model(hf_config())
    assert isinstance(loaded, HfModel)
    return loaded


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    from .endpoint_server import FakeServer  # which imports from here

    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.reset()
    return running


def sampling(**changes: Any) -> Sampling:
    fields = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "stop": (), "seed": 0}
    return Sampling(**{**fields, **changes})


def user(text: str) -> Prompt:
    return (Message("user", text),)


PROMPTS: list[Prompt] = [
    user("0 1 2\n3 4 5"),
    (Message("system", "write programs"), Message("user", "def solve(grid): " * 9)),
    user("x"),
]


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def texts(replies: list[Reply]) -> list[list[tuple[str, FinishReason, int]]]:
    return [[(c.text, c.finish_reason, c.num_tokens) for c in reply.completions] for reply in replies]
