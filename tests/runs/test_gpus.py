"""Shards of one machine take its GPUs in turn: whatever starts their ranks and their servers passes it on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arclab.config.compose import compose_run
from arclab.config.launch_schema import LaunchConfig, ShardsOn
from arclab.launch.torchrun import worker_environment
from arclab.runs.gpus import gpus_of, visible_gpus

EXAMPLE = ["solver=program_sampling", "lm=tiny", "dataset=toy"]


@pytest.fixture
def launch() -> LaunchConfig:
    return compose_run("evaluate_programs", EXAMPLE).launch


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A driver that knows so many GPUs."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nseq 0 {count - 1}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_shards_of_one_machine_take_its_gpus_in_turn(
    launch: LaunchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, 3)
    shards = [replace(launch, shards=4, shard=number) for number in range(4)]
    assert [worker_environment(shard)["CUDA_VISIBLE_DEVICES"] for shard in shards] == ["0", "1", "2", "0"]
    assert [gpus_of(replace(shard, gpus=2)) for shard in shards] == [["0", "1"], ["2", "0"], ["1", "2"], ["0", "1"]]
    assert gpus_of(replace(shards[1], gpus=5)) == ["2", "0", "1"], "no GPU twice"
    assert gpus_of(replace(shards[1], cpus=1)) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert [gpus_of(shard) for shard in shards] == [["GPU-a"], ["GPU-b"], ["GPU-a"], ["GPU-b"]]


def test_others_see_what_they_were_given(launch: LaunchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is no shard, and an element of an array, to which SLURM has given GPUs."""
    machine(tmp_path, monkeypatch, 3)
    assert gpus_of(launch) is gpus_of(replace(launch, shards=2)) is None
    assert gpus_of(replace(launch, shards=2, shard=1, shards_on=ShardsOn.slurm)) is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert visible_gpus() == [] and gpus_of(replace(launch, shards=2, shard=1)) is None
