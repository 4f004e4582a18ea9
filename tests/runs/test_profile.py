"""trainer.profile writes a trace and a page; running out of memory is a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arclab.config.compose import ConfigError
from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.run import pretrain
from arclab.runs.memory import advice_if_out_of_memory

Tiny = Callable[..., ExperimentConfig]
SIX = ("trainer.steps=6", "trainer.checkpoint_every=6")


def test_profile_says_where_a_step_goes(tiny: Tiny) -> None:
    config = tiny(*SIX, "trainer.profile=true")
    pretrain(config)
    folder = Path(config.runs_dir) / "quickstart" / "t" / "profile"
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"arclab.encoder forward", "arclab.decoder forward", "arclab.backward"} <= names
    page = (folder / "profile.md").read_text()
    parts = {name: float(share) for name, share in re.findall(r"\| ([a-z ]+) \| [0-9.]+ \| ([0-9.-]+) % \|", page)}
    assert {"encoder forward", "decoder forward", "losses", "backward", "gradients and optimiser", "averages"} <= parts.keys()
    assert parts["backward"] > 5 and parts["decoder forward"] > 5 and sum(parts.values()) < 101
    assert re.search(r"GFLOP/s here \(float32\)", page) and "Peak memory" in page


def test_without_the_key_nothing_is_recorded(tiny: Tiny) -> None:
    config = tiny(*SIX)
    pretrain(config)
    assert not (Path(config.runs_dir) / "quickstart" / "t" / "profile").exists()
    with pytest.raises(ConfigError, match=r"trainer\.profile=true needs trainer\.steps=4 to be at least 6"):
        tiny("trainer.profile=true")


def test_out_of_memory_names_the_settings_to_change() -> None:
    with (
        pytest.raises(ValueError, match=r"machine ran out of memory; lower it \(.*can't allocate memory"),
        advice_if_out_of_memory("lower it"),
    ):
        torch.empty(2**58, dtype=torch.uint8)
    with (
        pytest.raises(ValueError, match=r"the GPU ran out of memory; lower it \(full\)\."),
        advice_if_out_of_memory("lower it"),
    ):
        raise torch.OutOfMemoryError("full.\nmore")
    with pytest.raises(RuntimeError, match="other"), advice_if_out_of_memory("lower it"):
        raise RuntimeError("other")


def test_a_run_out_of_memory_ends_with_that_sentence(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from arclab.methods.recursive.training import trainer

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(trainer, "train_step", full)
    config = tiny(*SIX)
    with pytest.raises(ValueError, match=r"trainer\.grad_accumulation=1 .*trainer\.canvas=bucketed.*trainer\.batch_size=8"):
        pretrain(config)
    status = json.loads((Path(config.runs_dir) / "quickstart" / "t" / "status.json").read_text())
    assert status["state"] == "FAILED" and "trainer.batch_size=8" in status["message"]
