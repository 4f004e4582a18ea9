"""Checkpoints of a run, for any method: folders that are whole or not there, every byte of which is checked when it is read.

    folder = CheckpointFolder(run.checkpoints, keep_last=2)
    temporary = folder.begin(step)                            # an empty folder; write files into it, tensors with save_tensors
    folder.commit(temporary, {"step": step, "lr": 0.1})       # the folder step_00001234, and state.json in it

    checkpoint = newest_checkpoint(run.path)                  # ValueError: none; folder.steps() is empty then
    state = read_state(checkpoint)                            # the values of commit(), and files and digests
    tensors = load_tensors(checkpoint, "model.safetensors", state)

A checkpoint is written under a temporary name, synced and renamed, so that a kill at any moment leaves whole ones; older ones
go only afterwards. state.json has the size and the SHA-256 of every file, and one of itself; checkpoints that were written
before there were digests are checked by size alone. Whatever is missing, cut short or changed by so much as a bit is a
ValueError that names the file. One process begins and commits, of several ranks rank 0; others may write files in between.

What the files mean is the method's own affair (arclab.methods.recursive.training.checkpoint for the recursive models).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arclab.files import DamagedFile, naming, read_object, step_folders

STATE_FILE = "state.json"
OLDER = "remove that folder to use the one before it"
_TEMPORARY = ".writing_"


class CheckpointFolder:
    """The checkpoints of one run: write, find, thin out. keep_last: how many stay, at least 1."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def steps(self) -> list[int]:
        return [int(path.name.removeprefix("step_")) for path in step_folders(self.folder)]

    def begin(self, step: int) -> Path:
        """An empty temporary folder for a new checkpoint; leftovers of killed writers are removed."""
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        temporary = self.folder / f"{_TEMPORARY}{step:08d}"
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, temporary: Path, state: dict[str, Any], *, best_step: int | None = None) -> None:
        """Write state.json, make everything durable and give the folder its name; then drop what is no longer kept. state: what
        read_state() is to give again, of values that JSON can hold; its "step" names the folder. best_step: a step to keep
        although it is old."""
        files = sorted(temporary.iterdir())
        sizes, digests = ({p.name: f(p) for p in files} for f in (lambda p: p.stat().st_size, file_digest))
        content = sealed({**state, "files": sizes, "digests": digests})
        with naming(temporary / STATE_FILE):
            (temporary / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _sync(file)
        final = self.path(state["step"])
        assert not final.exists(), f"step {state['step']} is saved twice"
        os.replace(temporary, final)
        _sync(self.folder)
        for step in self.steps()[: -self.keep_last]:
            if step != best_step:
                self._remove(self.path(step))

    def _remove(self, path: Path) -> None:
        """Take its name away first: a kill while its files go must not leave a part of it that looks whole."""
        doomed = path.with_name(f"{_TEMPORARY}{path.name}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors; ValueError with the remedy if the disk is full, OSError that names the file for anything else of the
    kind."""
    try:
        with naming(file):
            save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, file)
    except (SafetensorError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error) or "StorageFull" in str(error):
            raise ValueError(
                f"the disk is full: {file.parent.parent} has no room for a checkpoint; free space and run the same command "
                "again (the previous checkpoint is intact)."
            ) from error
        raise


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
    stamps (sentences that every result must carry; [] if none were kept)."""
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


def checked_file(checkpoint: Path, name: str, state: dict[str, Any]) -> Path:
    """The path of a file of the checkpoint, after its size and digest were compared with those in state.json."""
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
        return load_file(checked_file(checkpoint, name, state))
    except SafetensorError as error:
        raise ValueError(f"checkpoint {checkpoint}: {name} is damaged ({error}); {OLDER}.") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
