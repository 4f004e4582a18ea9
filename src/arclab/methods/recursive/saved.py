"""Reading what training has saved: a run at one of its checkpoints, its configuration, weights and record of training tasks.

    run = TrainedRun.open(folder)                              # a run folder (its newest checkpoint), RUN@best, or a checkpoint
    run.config, run.state["step"], run.record()
    model = run.model(WeightsKind.ema, num_puzzles=1)

    state = read_state(checkpoint)                             # the parts, for a run that continues from its own checkpoint
    tensors = load_tensors(checkpoint, "model.safetensors", state)

Whatever is missing, cut short or changed is a ValueError that names the file: arclab.runs.checkpoints reads the parts, and
arclab.methods.recursive.training.checkpoint says what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from arclab.config.compose import STEPS, identity, thaw
from arclab.config.schema import ExperimentConfig, WeightsKind
from arclab.data.record import TASKS_FILE, DataRecord, parse_record
from arclab.files import difference
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.runs.checkpoints import checked_file, load_tensors, read_state
from arclab.runs.choice import Choice, choose_checkpoint
from arclab.runs.folder import RunDir

WEIGHT_FILES = ("model.safetensors", "ema.safetensors")  # the second one replaces parameters of the first by their averages


def other_settings(state: dict[str, Any], config: ExperimentConfig) -> str:
    """Where the settings that a checkpoint was made with are not those of config; empty if they are, or were not kept.

    Keys that only one of them has were added or dropped by a newer version, and tell nothing. A run that was trained longer has
    checkpoints of fewer steps.
    """
    saved, now = state.get("settings") or {}, identity(config)
    shared = saved.keys() & now.keys()
    if STEPS in shared and config.begins_as(saved[STEPS]):
        shared -= {STEPS}
    other = difference({key: saved[key] for key in shared}, {key: now[key] for key in shared})
    return f"was made with {other}" if other else ""


def load_record(checkpoint: Path, state: dict[str, Any]) -> DataRecord | None:
    """The record of the training tasks; None if the checkpoint was written before there were records."""
    return parse_record(checked_file(checkpoint, TASKS_FILE, state)) if TASKS_FILE in state["files"] else None


def is_release(state: dict[str, Any]) -> bool:
    """Was the checkpoint made by arclab.methods.recursive.release: averaged weights and nothing to train on with?"""
    return state.get("is_release") is True


def fill_model(model: RecursiveModel, tensors: dict[str, Tensor], checkpoint: Path) -> None:
    """Copy the tensors of a checkpoint into a model; ValueError if it is of another shape."""
    own = model.state_dict()
    table = "puzzle_table.weight"
    if table in own and table in tensors and len(own[table]) != len(tensors[table]):
        raise ValueError(
            f"the puzzle table of checkpoint {checkpoint} has {len(tensors[table])} vectors, and the tasks that load now need "
            f"{len(own[table])}; put the tasks back as they were when it was trained."
        )
    wrong = [
        n for n in sorted(own.keys() | tensors.keys()) if n not in own or n not in tensors or own[n].shape != tensors[n].shape
    ]
    if wrong:
        raise ValueError(
            f"checkpoint {checkpoint} is of another architecture: tensor {wrong[0]} does not fit ({len(wrong)} differ); use "
            "the config.yaml it was trained with."
        )
    model.load_state_dict(tensors)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run at one of its checkpoints. folder: as it was given; state: see read_state; choice: why this checkpoint."""

    folder: Path
    checkpoint: Path
    config: ExperimentConfig
    state: dict[str, Any]
    choice: Choice

    @classmethod
    def open(cls, folder: Path) -> TrainedRun:
        """A run folder at its newest checkpoint, or at that of @best, @last or @STEP behind its name, or a checkpoint folder.
        ValueError if the checkpoint was made with another configuration than the one in its run folder: with other cycles,
        heads or seed its weights would be scored as something that they were not trained to be."""
        choice = choose_checkpoint(folder, lambda run: thaw(run / "config.yaml").selection_metric)
        checkpoint = choice.path
        path = _run_dir(checkpoint).config
        config, state = thaw(path), read_state(checkpoint)
        if why := other_settings(state, config):
            raise ValueError(
                f"checkpoint {checkpoint} {why}: it is not of the run that {path} describes; put it back into its own run "
                "folder, or restore that file."
            )
        return cls(folder, checkpoint, config, state, choice)

    @property
    def run(self) -> RunDir:
        return _run_dir(self.checkpoint)

    def record(self) -> DataRecord | None:
        """See load_record."""
        return load_record(self.checkpoint, self.state)

    def tensors(self, weights: WeightsKind) -> dict[str, Tensor]:
        """Raw or averaged weights by name. Only parameters are averaged: the rest is the same in both, and in the one file of a
        release."""
        raw, averaged = WEIGHT_FILES
        if is_release(self.state):
            if weights is WeightsKind.raw:
                raise ValueError(
                    f"checkpoint {self.checkpoint} is a release, which has averaged weights alone; use weights=ema."
                )
            return load_tensors(self.checkpoint, averaged, self.state)
        tensors = load_tensors(self.checkpoint, raw, self.state)
        return tensors if weights is WeightsKind.raw else tensors | load_tensors(self.checkpoint, averaged, self.state)

    def model(self, weights: WeightsKind, num_puzzles: int = 1) -> RecursiveModel:
        """A new model of the configuration with these weights, on the CPU. num_puzzles: rows of the puzzle table, if it has
        one. Draws from torch's generator, as every new model does."""
        model = build_model(self.config, num_puzzles)
        fill_model(model, self.tensors(weights), self.checkpoint)
        return model


def _run_dir(checkpoint: Path) -> RunDir:
    return RunDir(checkpoint.parent.parent)
