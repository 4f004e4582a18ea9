"""What a config of evaluate.py solver=test_time_training says is what runs: each key changes what its row says, and only that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run, flat
from arclab.config.llm_schema import ModelConfig
from arclab.config.seal_schema import EvaluateTestTimeTrainingConfig, InnerConfig
from arclab.files import read_lines
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.hf import HfModel
from arclab.lm.language_model import Prompt
from arclab.lm.training.inner import Fitted, InnerAdapter
from arclab.lm.training.rows import Row

from ..methods.seal.common import Stub
from .table import Parts, Table, differences, leaves, require_a_row_for_each, require_the_named_tests

TOY = "toy:color_map?tasks=4&side=3&colors=3&palette=6&demos=3"
BASE = [
    "solver=test_time_training", "lm=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}&split=train"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]', "max_tasks=2", "solver.pseudo_tasks.max_count=5000", "solver.views.count=4",
]  # fmt: skip
# rows: what is trained on. training: how. prompts: what is asked. drawing: how it is answered. answers: what comes of it. files: names of what is left.
KEYS: Table = {
    "solver.text.grid_format": ("pipes", "rows prompts answers"),
    "solver.text.instructions": (False, "rows prompts"),
    "solver.loss": ("last_output", "rows"),
    "solver.pseudo_tasks.leave_out": ("[1]", "rows"),
    "solver.pseudo_tasks.min_demos": (2, "rows"),
    "solver.pseudo_tasks.basic": (False, "rows"),
    "solver.pseudo_tasks.size": (False, "rows"),
    "solver.pseudo_tasks.chain": (False, "rows"),
    "solver.pseudo_tasks.repeat": (False, "rows"),
    "solver.pseudo_tasks.permutations": (2, "rows"),
    "solver.pseudo_tasks.permute_colors": (False, "rows"),
    "solver.pseudo_tasks.max_count": (7, "rows"),
    "solver.adaptation.kind": ("full", "training files"),
    "solver.adaptation.rank": (3, "training"),
    "solver.adaptation.alpha": (3.0, "training"),
    "solver.adaptation.target_modules": ("[q_proj]", "training"),
    "solver.adaptation.lr": (0.02, "training"),
    "solver.adaptation.epochs": (5, "training"),
    "solver.adaptation.batch_size": (7, "training"),
    "solver.adaptation.warmup_steps": (5, "training"),
    "solver.adaptation.weight_decay": (0.5, "training"),
    "solver.adaptation.clip_norm": (5.0, "training"),
    "solver.demonstrations": ("other_task", "rows"),
    "solver.views.count": (3, "prompts answers"),
    "solver.views.dihedral": (False, "prompts answers"),
    "solver.views.colors": (False, "prompts answers"),
    "solver.views.order": (False, "prompts"),
    "solver.decode": ("greedy", "drawing answers files"),
    "solver.samples": (2, "drawing answers"),
    "solver.temperature": (0.3, "drawing"),
    "solver.threshold": (0.3, "drawing answers"),
    "solver.max_new_tokens": (7, "drawing"),
    "solver.rescore": ("votes", "answers files"),
    "solver.max_candidates": (1, "answers"),
    "lm.name": ("other", "model files"),
    "max_tasks": (1, "rows training prompts drawing answers"),
    "split": ("validation", "rows prompts answers files"),
    "seed": (5, "rows training prompts answers"),
    "name": ("other", "files"),
    "runs_dir": ("elsewhere", "files"),
    "output_dir": ("elsewhere", "files"),
}
SAMPLED = ("solver.samples", "solver.temperature")  # keys of decode=sample


def _others() -> Table:
    known = leaves(EvaluateTestTimeTrainingConfig)
    of = {
        "dataset.": "every_key/test_programs.py::test_every_key_has_a_row",
        "lm.": "every_key/test_programs.py::test_every_key_has_a_row",
        "launch.": "launch/test_launch.py::test_every_launch_key_changes_what_is_started",
    }
    found: Table = {
        key: (None, what) for prefix, what in of.items() for key in known if key.startswith(prefix) and key not in KEYS
    }
    return {
        **found,
        "solver.kind": (None, "methods/seal/test_solver.py::test_what_cannot_be_is_a_sentence"),
        "tasks_at_once": (None, "methods/seal/test_solver.py::test_tasks_together_are_the_tasks_one_by_one"),
        "num_threads": (None, "every_key/test_programs.py::test_a_key_changes_what_its_row_says"),
    }


def test_every_key_has_a_row() -> None:
    others = _others()
    require_a_row_for_each(leaves(EvaluateTestTimeTrainingConfig), KEYS, others)
    require_the_named_tests(others)


class Recorder(Stub, HfModel):
    """Answers alike in every view, so that what is turned back differs; likes some texts better than others."""

    network = None

    def __init__(self) -> None:
        replies = [[("1 1", 0.5), ("2\n1", 0.25), ("3", 0.2)]] * 3 + [[("4 1", 0.5), ("3", 0.15)]]
        super().__init__(replies, lambda prompt, text: -float(sum(text.encode()) % 7))

    @property
    def num_parameters(self) -> int:
        return 1


@cache
def settings() -> dict[str, Any]:
    return flat(compose_run("evaluate_test_time_training", BASE))


def asked(folder: Path, *overrides: str) -> Parts:
    """Everything that a run asks of the model and of the inner loop, what comes of it, and the files it leaves."""
    folder.mkdir()
    notes: Parts = {"rows": [], "training": [], "model": []}
    models: list[Recorder] = []

    def load(config: ModelConfig) -> Recorder:
        notes["model"].append(config.name)
        models.append(Recorder())
        return models[-1]

    @contextmanager
    def fit(self: InnerAdapter, rows: Sequence[Row], config: InnerConfig, seed: int, before_step: Any) -> Iterator[Fitted]:
        notes["rows"].append(rows)
        notes["training"].append((asdict(config), seed))
        yield Fitted()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(started, "load_language_model", load)
        patch.setattr("arclab.pages.report.render_report", lambda result: "")
        patch.setattr(InnerAdapter, "fit", fit)
        start("evaluate.py", [*BASE, *overrides])
    (model,) = models
    prompts: list[Prompt] = model.asked
    (file,) = folder.rglob("tasks.jsonl")
    answers = [row["tests"] for row in read_lines(file) if "settings" not in row]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {**notes, "prompts": prompts, "drawing": [model.samplings, model.thresholds], "answers": answers, "files": files}


@pytest.fixture(scope="module")
def bases() -> dict[str, Parts]:
    return {}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_its_row_says(key: str, tmp_path: Path, bases: dict[str, Parts]) -> None:
    value, what = KEYS[key]
    assert settings()[key] != value, "the other value is the same"
    decode = "solver.decode=sample" if key in SAMPLED else "solver.decode=dfs"
    if decode not in bases:
        bases[decode] = asked(tmp_path / "base", decode)
    given = f"{key}={str(value).lower() if isinstance(value, bool) else value}"
    assert differences(bases[decode], asked(tmp_path / "other", decode, given)) == set(what.split())
