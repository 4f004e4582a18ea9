"""What a config of evaluate.py solver=program_sampling says is what runs: changing any key changes what is asked or left behind.

The language model is a recorder: it is built from the model group, and notes the prompts and settings that reach it. What the
model's own keys do is in tests/lm/test_hf.py and test_endpoint.py, what the limits do in tests/programs/sandbox/test_sandbox.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_evaluate, flat, known_keys
from arclab.config.llm_schema import EvaluateProgramsConfig, Isolation, ModelConfig, SandboxConfig
from arclab.launch.start import start
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_sampling import run as evaluate_programs
from arclab.programs.sandbox import pool as sandbox_module

TOY = "toy:color_map?tasks=4&side=4&colors=4&palette=6&demos=3"
BASE = [
    "solver=program_sampling", "model=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]', "sandbox.num_workers=1", "num_threads=1",
]  # fmt: skip
# Another valid value for each key.
ALTERNATIVES: dict[str, Any] = {
    "solver.num_samples": 2, "solver.prompt.grid_format": "pipes", "solver.prompt.instructions": False, "solver.prompt.show_tests": False,
    "solver.prompt.show_shapes": False, "solver.prompt.entry": "transform", "solver.sampling.max_new_tokens": 7, "solver.sampling.temperature": 0.3,
    "solver.sampling.top_p": 0.5, "solver.sampling.top_k": 3, "solver.sampling.min_p": 0.1, "model.name": "other", "model.max_context": 77,
    "model.thinking": True, "model.adapter": "some", "model.dtype": "bfloat16", "model.attention": "eager", "model.device": "cpu", "model.batch_size": 3,
    "sandbox.num_workers": 2, "sandbox.cpu_s": 1, "sandbox.wall_s": 1.5, "sandbox.memory_mb": 128, "sandbox.stdout_bytes": 9,
    "sandbox.min_isolation": "limits", "split": "validation", "max_tasks": 1, "output_dir": "elsewhere", "name": "other", "runs_dir": "elsewhere", "seed": 5, "num_threads": 2,
    "dataset.eval_sources": [f"{TOY}&split=test&seed=3"], "dataset.max_eval_tasks": 2,
}  # fmt: skip
ELSEWHERE = {
    "solver.kind": "names the solver; there is one so far",
    "model.kind": "chooses between the groups of keys: test_compose.py",
    **{f"model.{key}": "of model=endpoint: tests/lm/test_endpoint.py" for key in (
        "base_url", "api_key_env", "timeout_s", "max_retries", "backoff_s", "num_parallel",
    )},
    **{f"dataset.{key}": "the same data code as for runs: test_every_key.py" for key in (
        "name", "train_sources", "validation_sources", "validation_ids", "train_ids", "max_train_tasks", "regime", "query_rule", "canvas",
        "num_augmentations", "translate", "max_demos",
    )},
}  # fmt: skip
NODES = {"solver", "model", "dataset", "sandbox", "solver.prompt", "solver.sampling"}


def test_every_key_has_another_value() -> None:
    known = {key for key in known_keys(EvaluateProgramsConfig) if not key.startswith("launch")}  # tests/launch/test_launch.py
    assert known == {*ALTERNATIVES, *ELSEWHERE, *NODES}


@cache
def settings() -> dict[str, Any]:
    return flat(compose_evaluate(BASE))


@pytest.fixture(scope="module")
def shared() -> Iterator[sandbox_module.Sandbox]:
    """The sandbox of the base, for all keys that are not its own."""
    config = compose_evaluate(BASE)
    assert isinstance(config, EvaluateProgramsConfig)
    with sandbox_module.open_sandbox(config.sandbox) as opened:
        yield opened


def asked(overrides: Sequence[str], monkeypatch: pytest.MonkeyPatch, folder: Path, shared: sandbox_module.Sandbox) -> list[Any]:
    """Everything that an evaluation asks of model and sandbox, and the files it leaves."""
    notes: list[Any] = []

    class Recorder(ScriptedModel):
        def generate(
            self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
        ) -> list[Reply]:
            notes.append((prompts, num_samples, sampling))
            return super().generate(prompts, num_samples, sampling, on_reply)

    def load(config: ModelConfig) -> Recorder:
        notes.append(("model", flat(config)))  # pyright: ignore[reportArgumentType]
        return Recorder(["def solve(I):\n    return I\n\ndef transform(I):\n    return I\n"] * 99)

    def open_sandbox(config: SandboxConfig) -> AbstractContextManager[sandbox_module.Sandbox]:
        is_base = not any(override.startswith("sandbox.") for override in overrides)
        opened = shared if is_base else sandbox_module.open_sandbox(config)
        notes.append((opened.limits, opened._num_workers, opened._min_isolation))
        return nullcontext(opened) if is_base else opened

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(evaluate_programs, "load_language_model", load)
        patch.setattr(evaluate_programs, "open_sandbox", open_sandbox)
        patch.setattr(torch, "set_num_threads", lambda number: notes.append(("threads", number)))
        patch.setattr("arclab.pages.report.render_report", lambda result: "")
        start("evaluate.py", [*BASE, *overrides])
    return [*notes, sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shared: sandbox_module.Sandbox) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        return asked([], patch, tmp_path_factory.mktemp("base"), shared)


@pytest.mark.parametrize("key", ALTERNATIVES)
def test_a_key_changes_what_is_asked(
    key: str, base: list[Any], shared: sandbox_module.Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    value = ALTERNATIVES[key]
    text = "[" + ",".join(f'"{item}"' for item in value) + "]" if isinstance(value, list) else str(value)
    assert settings()[key] != value, "the other value is the same"
    assert asked([f"{key}={text}"], monkeypatch, tmp_path, shared) != base


def test_the_same_settings_ask_the_same(
    base: list[Any], shared: sandbox_module.Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert asked([], monkeypatch, tmp_path, shared) == base
    assert Isolation.seccomp in base[1]
