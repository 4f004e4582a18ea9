"""Tasks that one training teaches at once, and a command of the stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.scripted import ScriptedModel
from arclab.methods.seal.fewshot import evaluate as evaluate_module

from ..test_solver import write_tasks

TRAIN, TEST = ([[1, 2]], [[3, 3]]), ([[4, 4, 4]], [[5, 6, 5]], [[7]])


def edit(
    lr: object, epochs: object, sets: tuple[str, ...] = (), strategy: str = "train_using_output_tokens", **more: Any
) -> str:
    """A self-edit as a model writes it."""
    flags = {f"use_{name}_augmentations": name in sets for name in ("basic", "size", "chain", "repeat")}
    return json.dumps(
        {"data_generation": flags, "training": {"strategy": strategy, "learning_rate": lr, "num_train_epochs": epochs, **more}}
    )


GOOD, BAD = edit(1e-2, 25), edit(1e-6, 1)
Stage = Callable[..., int]


@pytest.fixture
def overrides(seal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)
    train = write_tasks(tmp_path / "train.json", TRAIN)
    train.write_text(json.dumps({f"train{id_[1:]}": task for id_, task in json.loads(train.read_text()).items()}))
    test = write_tasks(tmp_path / "test.json", TEST, num_demos=3)
    return [
        "method=seal_fewshot", "lm=tiny", f"lm.name={seal_lm}", "lm.device=cpu", "device=cpu", "dataset=toy", "dataset.validation_sources=[]",
        f'dataset.train_sources=["file:{train}"]', f'dataset.eval_sources=["file:{test}"]', f"runs_dir={tmp_path}", "name=a", "num_threads=1",
        "solver.text.instructions=false", "solver.text.grid_format=digits", "solver.max_new_tokens=8", "solver.decode=greedy",
        "solver.rescore=votes", "solver.views.count=1", "solver.views.dihedral=false", "solver.views.colors=false",
        "solver.pseudo_tasks.permutations=0", "solver.adaptation.rank=8", "solver.adaptation.alpha=32", "solver.adaptation.batch_size=9",
        "solver.adaptation.warmup_steps=0", "propose.num_edits=3", "propose.max_draws=5", "evaluate.num_edits=2", "evaluate.max_tasks=2",
        "restem.steps=8", "restem.batch_size=2", "restem.lr=3e-3", "restem.warmup_steps=0", "restem.lora=null", "restem.checkpoint_every=4",
        "default_edit.learning_rate=1e-6", "default_edit.num_train_epochs=1", "default_edit.augmentations=none",
    ]  # fmt: skip


@pytest.fixture
def stage(overrides: list[str]) -> Stage:
    def run(name: str, *more: str) -> int:
        return start("self_improve.py", [*overrides, f"stage={name}", *more])

    return run


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScriptedModel]:
    """The proposer is a scripted one, whatever lm says. What is adapted is a real model."""

    def use(*replies: str, **more: Any) -> ScriptedModel:
        model = ScriptedModel(list(replies), **more)
        for module in (started, evaluate_module):
            monkeypatch.setattr(module, "load_language_model", lambda config: model)
        return model

    return use


Script = Callable[..., ScriptedModel]


def folder(root: Path, name: str, number: int = 0) -> Path:
    return root / f"seal_fewshot/a/round_{number}" / name
