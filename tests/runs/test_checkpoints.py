"""Checkpoints of any method: what was written comes back, old ones go, and the best one stays. Damage: see test_saved.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arclab.runs.checkpoints import CheckpointFolder, load_tensors, newest_checkpoint, read_state, save_tensors


def save(folder: CheckpointFolder, step: int, best_step: int | None = None) -> None:
    temporary = folder.begin(step)
    save_tensors({"w": torch.full((2,), float(step), requires_grad=True)}, temporary / "model.safetensors")
    (temporary / "nodes.jsonl").write_text("{}\n")
    folder.commit(temporary, {"step": step, "lr": 0.5, "seen": (1, 2)}, best_step=best_step)


def test_the_last_ones_and_the_best_one_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2)
    with pytest.raises(ValueError, match=r"has no checkpoints/step_\* and is none itself"):
        newest_checkpoint(tmp_path)
    for step in (1, 2, 3, 4):
        save(folder, step, best_step=1)
    folder.begin(5)  # killed while it is written
    assert folder.steps() == [1, 3, 4] and newest_checkpoint(tmp_path) == folder.path(4) == newest_checkpoint(folder.path(4))
    state = read_state(folder.path(4))
    assert (state["step"], state["lr"], state["seen"], state["files"]["nodes.jsonl"]) == (4, 0.5, [1, 2], 3)
    assert load_tensors(folder.path(4), "model.safetensors", state)["w"].tolist() == [4.0, 4.0]
    save(folder, 5)
    assert sorted(path.name for path in folder.folder.iterdir()) == ["step_00000004", "step_00000005"]


def test_a_file_that_another_one_took_the_place_of_is_named(tmp_path: Path) -> None:
    """Of the same size, and whole: only its digest tells."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2)
    save(folder, 1)
    save(folder, 2)
    (folder.path(2) / "model.safetensors").write_bytes((folder.path(1) / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"step_00000002: model\.safetensors is damaged .*use the one before it"):
        load_tensors(folder.path(2), "model.safetensors", read_state(folder.path(2)))
