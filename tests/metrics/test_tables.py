"""The prediction tables and the metric definitions that W&B is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from arclab.data.tasks import COLORS
from arclab.metrics.names import REGISTRY
from arclab.metrics.tables import Prediction, picture, wandb_table
from arclab.metrics.wandb_run import start_wandb

from ..conftest import TINY, compose

GRID = np.array([[1, 2], [3, 0]], dtype=np.uint8)
CELL = 8


def rgb(color: int) -> list[int]:
    return [int(COLORS[color][i : i + 2], 16) for i in (1, 3, 5)]


def test_a_picture_shows_input_truth_and_prediction_side_by_side() -> None:
    predicted = np.array([[5]], dtype=np.uint8)
    pixels = picture(Prediction("t", 0, GRID, GRID.T, predicted))
    assert pixels.shape == (2 * CELL, 2 * CELL + CELL + 2 * CELL + CELL + CELL, 3)
    assert pixels[0, 0].tolist() == rgb(1) and pixels[0, CELL].tolist() == rgb(2) and pixels[CELL, 0].tolist() == rgb(3)
    assert pixels[0, 4 * CELL].tolist() == rgb(3)  # the truth's second column
    assert pixels[0, 6 * CELL].tolist() == rgb(5) and pixels[CELL, 6 * CELL].tolist() == [255, 255, 255]


def test_the_table_has_a_picture_in_every_row() -> None:
    table = wandb_table([Prediction("a", 0, GRID, GRID, GRID), Prediction("b", 1, GRID, None, None)])
    assert [row[:3] for row in table.data] == [["a", 0, True], ["b", 1, None]]
    assert all(isinstance(row[3], wandb.Image) for row in table.data)


class FakeRun:
    url = "https://wandb.example/r/1"

    def __init__(self) -> None:
        self.defined: dict[str, str] = {}

    def define_metric(self, name: str, *, summary: str) -> None:
        self.defined[name] = summary

    def save(self, *_: Any, **__: Any) -> None: ...


def test_every_registered_metric_is_defined_with_its_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun())
    run = start_wandb(compose("pretrain_encoder", [*TINY, "wandb.mode=offline"]), tmp_path, "1")
    assert run is not None and run.defined.keys() == REGISTRY.keys()
    assert run.defined["train/exact_accuracy"] == "max,last" and run.defined["train/lm_loss"] == "min,last"
    assert run.defined["train/steps"] == "last" and FakeRun.url in (tmp_path / "wandb.json").read_text()
