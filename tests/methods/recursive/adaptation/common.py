"""A tiny ETRM and a tiny TRM on toy tasks, and the settings of an adaptation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from arclab.config.adaptation_schema import (
    LowRankConfig,
    ShownTask,
    StagedAdaptationConfig,
    TableStart,
    WeightAdaptationConfig,
    WeightParts,
    WeightsConfig,
)
from arclab.config.schema import ExperimentConfig
from arclab.data.augment import ViewRule
from arclab.data.synthetic import load_toy
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.adaptation.tasks import TaskAdapter
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.runs.ranks import Ranks

from ....conftest import compose

CPU = Ranks(0, 1, torch.device("cpu"))
TASKS = load_toy("toy:color_map?tasks=4&side=3&colors=3&palette=4&demos=3&split=train")
TINY = ["experiment=toy_control", "decoder.width=16", "decoder.num_heads=2", "decoder.num_layers=1", "trainer.num_threads=1"]
TABLE = ["encoder=puzzle_table", "dataset.regime=puzzle_id", "dataset.num_augmentations=2", "evaluation.num_augmentations=2"]
_OWN = {
    "embeddings": (WeightAdaptationConfig, {}),
    "weights": (WeightsConfig, {"lr": 0.01, "parts": WeightParts.all}),
    "lora": (LowRankConfig, {"lr": 0.01, "parts": WeightParts.decoder, "rank": 2}),
    "embeddings_then_weights": (StagedAdaptationConfig, {"lr": 0.01, "share": 0.25}),
}


def etrm(*overrides: str) -> tuple[ExperimentConfig, RecursiveModel]:
    config = compose("pretrain_encoder", [*TINY, *overrides])
    torch.manual_seed(0)
    return config, build_model(config, 1)


def trm(num_puzzles: int = 20) -> tuple[ExperimentConfig, RecursiveModel]:
    """With a table whose vectors are all different."""
    config = compose("pretrain_encoder", [*TINY, *TABLE, "encoder.optim.lr=0.05"])
    torch.manual_seed(0)
    model = build_model(config, num_puzzles)
    assert model.puzzle_table is not None
    model.puzzle_table.weight.normal_(std=0.1)
    return config, model


def wanted(kind: str, **changes: Any) -> WeightAdaptationConfig:
    """Eight small steps of one kind."""
    schema, own = _OWN[kind]
    settings = schema(
        kind=kind, steps=8, rows_per_step=6, table_lr=None, start=TableStart.mean, demonstrations=ShownTask.own, joint=False,
        min_wins=None, **own
    )  # fmt: skip
    return replace(settings, **changes)


def adapter_of(
    config: ExperimentConfig, model: RecursiveModel, settings: WeightAdaptationConfig, scored: list[ArcTask] = TASKS,
    trained_rows: dict[str, int] | None = None,
) -> TaskAdapter:  # fmt: skip
    return TaskAdapter(
        model, config, settings, scored, trained_rows or {}, ViewRule.content, first_step=1000, ranks=CPU
    )  # fmt: skip


def tensors(model: RecursiveModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ, the table left out."""
    assert before.keys() == after.keys()
    return {name for name in before if name != "puzzle_table.weight" and not torch.equal(before[name], after[name])}
