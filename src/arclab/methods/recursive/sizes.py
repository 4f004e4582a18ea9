"""How many parameters the model of a configuration has, from the model itself, built without memory for its weights; and what
its run needs.

    count_sizes(config, {})            # the same, and the numbers of arclab.runs.cost.Cost
    count_parameters(config, {})       # {"model": 6829058, "encoder": 0, "decoder": 6829058, "puzzle_table": 448512512}

It does not load a checkpoint. A puzzle table has a row for each augmented puzzle, so its tasks are loaded to count them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from arclab.config.compose import flat
from arclab.config.dataset_schema import Regime
from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.run import DeviceChoice
from arclab.config.schema import AttentionKernel, ExperimentConfig
from arclab.methods.recursive.cost import ModelSize, Placement, training_cost
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import Setting, build_setting

# What decides the number of augmented puzzles. With `encoder.`, `decoder.` and COST_KEYS it is Entry.sizes_keys; a test
# compares them.
PUZZLE_KEYS = ("dataset.", "evaluation.split", "evaluation.max_tasks", "seed")
# What decides a step and an evaluation beside those.
COST_KEYS = (
    "halting.", "evaluation.", "trainer.batch_size", "trainer.grad_accumulation", "trainer.canvas", "trainer.precision",
    "trainer.compile", "trainer.recompute", "trainer.device", "launch.gpus", "launch.cpus", "launch.nodes",
)  # fmt: skip


def count_sizes(config: ExperimentConfig, shared: dict[str, Any]) -> dict[str, int]:
    """By part, as count_parameters, with the cost of the run. ValueError, OSError: its tasks cannot be loaded."""
    counts, setting = count_parameters(config, shared), _setting(config, shared)
    is_on_gpu = config.launch.gpus > 0 or config.trainer.device is DeviceChoice.cuda
    place = Placement("cuda" if is_on_gpu else "cpu", config.launch.num_ranks)
    size = ModelSize(counts["model"], counts["puzzle_table"])
    return counts | training_cost(config, size, setting.data, setting.scored, place).counts()


def count_parameters(config: ExperimentConfig, shared: dict[str, Any]) -> dict[str, int]:
    """By part. encoder: everything between the demonstrations and the decoder's prefix. model: encoder and decoder; the puzzle
    table, whose vectors are no parameters for torch, stands beside it. shared: what calls of one process share (numbers of
    puzzles). ValueError, OSError: the tasks of a puzzle table cannot be loaded."""
    num_puzzles = 0 if isinstance(config.encoder, TaskEncoderConfig) else _num_puzzles(config, shared)
    # The kernel has no weights, and its package may be missing where runs are only planned.
    config = replace(config, decoder=replace(config.decoder, attention=AttentionKernel.sdpa))
    with torch.device("meta"):
        model = build_model(config, num_puzzles)
    decoder, whole = _count(model.decoder.parameters()), _count(model.parameters())
    table = 0 if model.puzzle_table is None else model.puzzle_table.weight.numel()
    return {"model": whole, "encoder": whole - decoder, "decoder": decoder, "puzzle_table": table}


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _num_puzzles(config: ExperimentConfig, shared: dict[str, Any]) -> int:
    return _setting(config, shared).record.num_puzzles


def _setting(config: ExperimentConfig, shared: dict[str, Any]) -> Setting:
    """Loads each data set once; for an encoder a single view of each task: views change neither shapes nor numbers."""
    if config.dataset.regime is Regime.few_shot:
        config = replace(config, dataset=replace(config.dataset, num_augmentations=min(1, config.dataset.num_augmentations)))
    keys = {key: value for key, value in flat(config).items() if key.startswith(PUZZLE_KEYS)}
    key = json.dumps(keys, sort_keys=True)
    if key not in shared:
        shared[key] = build_setting(config)
    return shared[key]
