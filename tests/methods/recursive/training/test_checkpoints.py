"""Checkpoints of training: which are kept, what a full disk, a kill or damage leaves, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training.checkpoint import progress_from
from arclab.methods.recursive.training.parts import batch_parts
from arclab.methods.recursive.training.state import _require_same_parts, averaged_weights
from arclab.methods.recursive.training.trainer import train
from arclab.metrics.logger import read_rows
from arclab.metrics.tables import Prediction
from arclab.runs.checkpoints import load_tensors, read_state
from arclab.runs.folder import RunDir, open_run
from arclab.runs.ranks import Ranks

from .common import CPU, identical, run_training

Tiny = Callable[..., ExperimentConfig]


def test_retention_keeps_the_last_and_the_best(tiny: Tiny) -> None:
    config = tiny("trainer.steps=8", "trainer.checkpoint_every=1", "trainer.keep_last=2", "trainer.eval_every=2")
    setting = build_setting(config)
    model = build_model(config, 1)
    scores = iter([0.1, 0.9, 0.3, 0.2])

    def score() -> tuple[dict[str, float], list[Prediction]]:
        return {"all.exact_accuracy": next(scores)}, []

    run = open_run(config, ())
    training = train(config, model, setting.data, run, CPU, score=score, stamps=[])
    assert (training.progress.best_step, training.progress.best_score) == (4, 0.9)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_00000004", "step_00000007", "step_00000008"]


def test_averaged_weights_are_exchanged_and_given_back(tiny: Tiny) -> None:
    training = run_training(tiny("trainer.steps=2"))
    raw = {n: p.clone() for n, p in training.model.named_parameters()}
    shadow = {n: t.clone() for n, t in training.ema.shadow.items()}
    with averaged_weights(training.model, training.ema) as model:
        assert identical(dict(model.named_parameters()), shadow)
    assert identical(dict(training.model.named_parameters()), raw) and identical(training.ema.shadow, shadow)
    assert not identical(raw, shadow)


def test_full_disk_leaves_the_previous_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """On a real small file system where the tests may mount one; the message names the remedy and nothing is lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        config = tiny("trainer.steps=6", "trainer.checkpoint_every=2", "trainer.keep_last=5", f"runs_dir={disk}", "name=full")
        with pytest.raises(ValueError, match=r"the disk is full.*previous checkpoint is intact"):
            run_training(config)
        folder = disk / "quickstart" / "full" / "checkpoints"
        kept = sorted(p for p in folder.iterdir() if p.name.startswith("step_"))
        assert kept
        state = read_state(kept[-1])
        assert load_tensors(kept[-1], "model.safetensors", state)
        shutil.rmtree(kept[0])
        if len(kept) > 1:
            assert progress_from(state).step == 2 * len(kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_only_whole_ones(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removal is cut short after one file: what still has a checkpoint's name is complete, and the rest is swept up later."""
    config = tiny("trainer.steps=6", "trainer.checkpoint_every=1", "trainer.keep_last=2")
    original = shutil.rmtree

    def cut_short(path: Path) -> None:
        next(Path(path).glob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", cut_short)
        run_training(config)
    folder = Path(config.runs_dir) / "quickstart/t/checkpoints"
    whole = sorted(folder.glob("step_*"))
    assert [p.name for p in whole] == ["step_00000002", "step_00000003"]
    for path in whole:
        assert all((path / name).stat().st_size == size for name, size in read_state(path)["files"].items())
    assert shutil.rmtree is original
    run_training(config)
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000005", "step_00000006"]


def test_a_run_keeps_its_id_even_if_it_is_killed_before_its_first_checkpoint(tiny: Tiny) -> None:
    """And it has each step once, the row of step 0 too."""
    config = tiny("trainer.steps=2")
    early = open_run(config).run_id
    run = open_run(config)
    run.metrics.write_text('{"_step": 0, "num_params": 1.0}\n{"_step": 1}\n')
    run_training(config)
    assert [row["_step"] for row in read_rows(run.metrics)] == [0, 1, 2]
    assert read_state(run.checkpoints / "step_00000002")["run_id"] == early == run.run_id


def test_truncated_checkpoint_is_named(tiny: Tiny) -> None:
    config = tiny("trainer.steps=2")
    run_training(config)
    file = Path(config.runs_dir) / "quickstart/t/checkpoints/step_00000002/model.safetensors"
    os.truncate(file, 1000)
    with pytest.raises(ValueError, match=r"model.safetensors is truncated \(1000 of \d+ bytes\); remove that folder"):
        run_training(tiny("trainer.steps=2"))


def test_a_checkpoint_of_an_older_version_is_refused_in_one_sentence(tiny: Tiny) -> None:
    config = tiny("trainer.steps=2")
    run_training(config)
    file = Path(config.runs_dir) / "quickstart/t/checkpoints/step_00000002/state.json"
    state = json.loads(file.read_text())
    del state["cursors"], state["digest"]
    file.write_text(json.dumps(state))
    with pytest.raises(
        ValueError, match=r"step 2 was written by an older version .*no cursors.*start the run under another name"
    ):
        run_training(tiny("trainer.steps=2"))


def test_rows_in_flight_of_other_canvases_are_not_continued(tiny: Tiny) -> None:
    """A canvas has a multiple of ranks x pieces of rows: with two ranks this batch of 18 has 10 and 8 rows instead of 9 and 9."""
    common = ("trainer.canvas=bucketed", "trainer.batch_size=18")
    run_training(config := tiny(*common, "trainer.steps=2"))
    longer = tiny(*common, "trainer.steps=3")
    setting, run = build_setting(longer), RunDir(config.folder)
    two = Ranks(0, 2, torch.device("cpu"))
    parts = batch_parts(longer, setting.data, two)
    assert [part.num_rows for part in parts] != [part.num_rows for part in batch_parts(longer, setting.data, CPU)]
    files = [load_file(run.checkpoints / "step_00000002" / "carry_rank0.safetensors")]
    _require_same_parts(files, batch_parts(longer, setting.data, CPU), longer, CPU)
    with pytest.raises(ValueError, match=r"rows of its canvases in flight, saved by 1 rank\(s\), but 2 rank"):
        _require_same_parts(files, parts, longer, two)
