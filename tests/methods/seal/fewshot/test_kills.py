"""kill -9 in the middle of a round: the same command finishes it, and what it leaves is what an undisturbed round leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arclab.files import read_lines

from ....conftest import ROOT

# The model itself chooses: nothing is scripted in another process.
KEYS = [
    "grid={augmentations: [none], strategies: [train_using_output_tokens], learning_rates: [1e-2], num_train_epochs: [25]}",
    "propose.decoding=constrained", "propose.max_steps=10000", "restem.twin=true", "restem.steps=40", "restem.checkpoint_every=2", "stage=round",
]  # fmt: skip
# Of a round's folder. Lines with seconds are compared without them.
EQUAL = [
    "propose/final_configs_and_indices.json", "adapt/final_results.json", "adapt/submission.json", "select/sft.jsonl", "select/twin.jsonl",
    "restem/model/model.safetensors", "restem/twin/model.safetensors", "restem/trained.json", "evaluate/scores.json", "evaluate/table.md",
    "evaluate/submission.json",
]  # fmt: skip
TIMED = ["propose/proposals.jsonl", "adapt/trials.jsonl", "adapt/outcomes.jsonl", "evaluate/outcomes.jsonl"]
_TIMEOUT_S = 600


def begun(overrides: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "self_improve.py", *overrides, *KEYS], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def killed_once(overrides: list[str], is_time: Callable[[], bool]) -> None:
    process, until_s = begun(overrides), time.monotonic() + _TIMEOUT_S
    try:
        while not is_time():
            assert process.poll() is None and time.monotonic() < until_s, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def lines(path: Path) -> list[dict[str, Any]]:
    """In the order of their ids: what is tried again after a kill stands behind the rest."""
    times = ("seconds", "fit_s", "answer_s", "crc32")
    rows = [{key: value for key, value in row.items() if key not in times} for row in read_lines(path)]
    return sorted((row for row in rows if "settings" not in row), key=lambda row: json.dumps(row, sort_keys=True))


@pytest.mark.slow
def test_a_round_that_is_killed_twice_leaves_what_an_undisturbed_one_leaves(overrides: list[str], tmp_path: Path) -> None:
    whole, broken = (tmp_path / f"seal_fewshot/{name}/round_0" for name in ("a", "b"))
    other = [*overrides, "name=b"]
    trials, checkpoints = broken / "adapt/trials.jsonl", broken / "restem/.making-twin/checkpoints"
    killed_once(other, lambda: trials.is_file() and trials.read_bytes().count(b"\n") >= 3)
    assert not (broken / "adapt/manifest.json").exists()
    killed_once(other, lambda: len([path for path in checkpoints.glob("*") if not path.name.startswith(".")]) >= 1)
    assert (broken / "adapt/manifest.json").exists() and not (broken / "restem/manifest.json").exists()
    for command in (other, overrides):
        assert begun(command).wait(_TIMEOUT_S) == 0
    for name in EQUAL:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    for name in TIMED:
        assert lines(broken / name) == lines(whole / name), name
