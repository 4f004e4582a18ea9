"""Reading what training has saved: a run at one of its checkpoints, its configuration, weights and record of training tasks.

    run = TrainedRun.open(folder)                              # a run folder (its newest checkpoint), or a checkpoint folder
    run.config, run.state["step"], run.record()
    model = run.model(WeightsKind.ema, num_puzzles=1)

    state = read_state(checkpoint)                             # the parts, for a run that continues from its own checkpoint
    tensors = load_tensors(checkpoint, "model.safetensors", state)

Whatever is missing, cut short or changed by so much as a bit is a ValueError that names the file. state.json has the size and
the SHA-256 of every file, and one of itself; checkpoints that were written before there were digests are checked by size alone.
arclab.methods.recursive.training.checkpoint writes these folders.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from arclab.config.compose import identity, thaw
from arclab.config.schema import ExperimentConfig, WeightsKind
from arclab.data.record import TASKS_FILE, DataRecord, parse_record
from arclab.files import DamagedFile, difference, read_object, step_folders
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.runs.folder import RunDir

STATE_FILE = "state.json"
WEIGHT_FILES = ("model.safetensors", "ema.safetensors")  # the second one replaces parameters of the first by their averages
OLDER = "remove that folder to use the one before it"


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of a run folder or a checkpoint folder: the given one, else the newest of the run."""
    if (folder / STATE_FILE).is_file():
        return folder
    steps = step_folders(folder / "checkpoints")
    if not steps:
        raise ValueError(
            f"checkpoint {folder} has no checkpoints/step_* and is none itself; give a run folder or one of its checkpoints."
        )
    return steps[-1]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """The state with a digest of its own."""
    return {**state, "digest": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint folder, as plain values: at least step, files (name -> bytes), digests (name -> SHA-256) and
    stamps."""
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"checkpoint {checkpoint} has no state.json; give a run folder or one of its checkpoints/step_* folders."
        )
    state = read_object(path, remedy=OLDER)
    digest = state.pop("digest", None)
    if digest is not None and sealed(state)["digest"] != digest:
        raise DamagedFile(path, "its content is not what was written", remedy=OLDER)
    state.setdefault("digests", {})
    state.setdefault("stamps", [])
    is_right = {
        "step": type(state.get("step")) is int and state["step"] >= 0,
        "files": _maps_names_to(int, state.get("files")),
        "digests": _maps_names_to(str, state["digests"]),
        "settings": isinstance(state.get("settings"), dict | None),
        "stamps": isinstance(state["stamps"], list) and all(isinstance(stamp, str) for stamp in state["stamps"]),
    }
    wrong = [key for key, value in is_right.items() if not value]
    if wrong:
        raise DamagedFile(path, f"{wrong[0]} is not what it should be", remedy=OLDER)
    return state


def _maps_names_to(kind: type, value: Any) -> bool:
    return isinstance(value, dict) and all(type(v) is kind for v in value.values())


def other_settings(state: dict[str, Any], config: ExperimentConfig) -> str:
    """Where the settings that a checkpoint was made with are not those of config; empty if they are, or were not kept.

    Keys that only one of them has were added or dropped by a newer version, and tell nothing.
    """
    saved, now = state.get("settings") or {}, identity(config)
    shared = saved.keys() & now.keys()
    other = difference({key: saved[key] for key in shared}, {key: now[key] for key in shared})
    return f"was made with {other}" if other else ""


def _checked(checkpoint: Path, name: str, state: dict[str, Any]) -> Path:
    """A file of the checkpoint, after its size and digest were compared with those in state.json."""
    path = checkpoint / name
    expected, actual = state["files"].get(name), path.stat().st_size if path.is_file() else None
    if actual is None or actual != expected:
        why = "missing" if actual is None else f"truncated ({actual} of {expected} bytes)"
        raise ValueError(f"checkpoint {checkpoint}: {name} is {why}; {OLDER}.")
    if name in state["digests"] and file_digest(path) != state["digests"][name]:
        raise ValueError(f"checkpoint {checkpoint}: {name} is damaged (its bytes are not those that were written); {OLDER}.")
    return path


def load_tensors(checkpoint: Path, name: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """One file of tensors of a checkpoint."""
    try:
        return load_file(_checked(checkpoint, name, state))
    except SafetensorError as error:
        raise ValueError(f"checkpoint {checkpoint}: {name} is damaged ({error}); {OLDER}.") from error


def load_record(checkpoint: Path, state: dict[str, Any]) -> DataRecord | None:
    """The record of the training tasks; None if the checkpoint was written before there were records."""
    return parse_record(_checked(checkpoint, TASKS_FILE, state)) if TASKS_FILE in state["files"] else None


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
    """A run at one of its checkpoints. folder: as it was given; state: see read_state."""

    folder: Path
    checkpoint: Path
    config: ExperimentConfig
    state: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TrainedRun:
        """A run folder at its newest checkpoint, or a checkpoint folder. ValueError if the checkpoint was made with another
        configuration than the one in its run folder: with other cycles, heads or seed its weights would be scored as something
        that they were not trained to be."""
        checkpoint = newest_checkpoint(folder)
        path = _run_dir(checkpoint).config
        config, state = thaw(path), read_state(checkpoint)
        if why := other_settings(state, config):
            raise ValueError(
                f"checkpoint {checkpoint} {why}: it is not of the run that {path} describes; put it back into its own run "
                "folder, or restore that file."
            )
        return cls(folder, checkpoint, config, state)

    @property
    def run(self) -> RunDir:
        return _run_dir(self.checkpoint)

    def record(self) -> DataRecord | None:
        """See load_record."""
        return load_record(self.checkpoint, self.state)

    def tensors(self, weights: WeightsKind) -> dict[str, Tensor]:
        """Raw or averaged weights by name. Only parameters are averaged: the rest is the same in both."""
        raw, averaged = WEIGHT_FILES
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
