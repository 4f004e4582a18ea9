"""A tiny model, its data and a batch, away from the start at which nothing halts and all queries look alike."""

from __future__ import annotations

import torch
from torch import nn

from arclab.config.compose import freeze
from arclab.config.dataset_schema import DatasetConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch, Cursor, TrainingData, build_training_data
from arclab.data.splits import load_tasks
from arclab.methods.recursive.model import RecursiveModel, build_model

ROWS = 12


_cache: dict[str, TrainingData] = {}


def _data(key: str, config: DatasetConfig) -> TrainingData:
    """Training data is read-only and slow to load, so equal settings share it."""
    if key not in _cache:
        _cache[key] = build_training_data(load_tasks(config).train, (), config, 0)
    return _cache[key]


def setup(config: ExperimentConfig) -> tuple[RecursiveModel, TrainingData, Batch]:
    data = _data(freeze(config).split("dataset:")[1].split("trainer:")[0], config.dataset)
    torch.manual_seed(0)
    model = build_model(config, data.space.num_puzzles)
    with torch.no_grad():
        model.decoder.q_head.weight.normal_(std=0.5)
        model.decoder.q_head.bias.zero_()
        for name, parameter in model.named_parameters():
            if name.endswith(("queries", "cls")):
                parameter.normal_()
            if name.endswith("logvar.weight"):
                nn.init.normal_(parameter, std=0.1)
    return model, data, data.batch(Cursor.first(0), ROWS, 0, ROWS)
