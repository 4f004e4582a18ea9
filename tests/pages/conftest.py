"""Small real runs, trained and evaluated through app, that tests of comparison pages may change."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_evaluate
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.results.reading import Run, read_runs
from arclab.runs.ranks import Ranks

from ..conftest import TINY, compose

CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two runs, a and b (another gain), trained for four steps and scored on their four training tasks."""
    root = tmp_path_factory.mktemp("runs")
    for name, gain in (("a", 0.1), ("b", 0.7)):
        overrides = [
            f"runs_dir={root}",
            f"name={name}",
            f"encoder.context.gain={gain}",
            "evaluation.max_tasks=4",
            "trainer.eval_every=4",
        ]
        pretrain_in_ranks(compose("pretrain_encoder", [*TINY, *overrides]), CPU)
        evaluate_in_ranks(compose_evaluate([f"checkpoint={root}/quickstart/{name}"]), CPU)
    return root / "quickstart"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "quickstart"))


def load(folder: Path, *names: str) -> list[Run]:
    return read_runs([folder / name for name in names])


def set_ranks(run: Path, ranks: dict[str, list[int | None]], split: str = "train") -> None:
    """Write predictions and scores in which the truth of each test input has this place."""
    target = run / "evaluation" / split
    lines = [
        {"task": t, "test": i, "candidates": [{"grid": [[place or 0, 1]], "votes": 3, "confidence": 0.5}] * 2, "num_candidates": 2, "truth_rank": place}
        for t, places in ranks.items()
        for i, place in enumerate(places)
    ]  # fmt: skip
    if split != "train":
        shutil.copytree(run / "evaluation/train", target)
    (target / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    solved = sum(all(p is not None and p < 2 for p in places) for places in ranks.values())
    record = json.loads((target / "metrics.json").read_text())
    record["scores"] = {name: {"n": solved, "N": len(ranks)} for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")}
    record |= {"split": split, "predictions_sha256": hashlib.sha256((target / "predictions.jsonl").read_bytes()).hexdigest()}
    (target / "metrics.json").write_text(json.dumps(record))


CRITERION = {
    "result": "PASS", "phase": "phase 1", "metric": "all.exact_accuracy", "threshold": 0.9, "value": 1.0, "n": 8.0, "N": 8,
    "counted": "augmented test inputs", "interval95": [0.5, 1.0], "interval_over": "4 tasks", "step": 4, "sentence": "PASS",
}  # fmt: skip


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def field(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name).strip()
