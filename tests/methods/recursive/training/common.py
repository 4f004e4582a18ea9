"""Training as the tests of this folder start it, and comparing what it leaves."""

from __future__ import annotations

import torch

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training.state import Training
from arclab.methods.recursive.training.trainer import train
from arclab.runs.folder import open_run
from arclab.runs.ranks import Ranks

CPU = Ranks(0, 1, torch.device("cpu"))


def run_training(config: ExperimentConfig) -> Training:
    setting = build_setting(config)
    torch.manual_seed(config.seed)
    model = build_model(config, setting.data.space.num_puzzles)
    return train(config, model, setting.data, open_run(config, ()), CPU, score=None, stamps=[])


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
