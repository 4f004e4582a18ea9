"""kill -9 in the middle of a round: the same command finishes it, and what it leaves is what an undisturbed round leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..kills import TIMEOUT_S, begun, killed_once, lines

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


@pytest.mark.slow
def test_a_round_that_is_killed_twice_leaves_what_an_undisturbed_one_leaves(overrides: list[str], tmp_path: Path) -> None:
    whole, broken = (tmp_path / f"seal_fewshot/{name}/round_0" for name in ("a", "b"))
    overrides = [*overrides, *KEYS]
    other = [*overrides, "name=b"]
    trials, checkpoints = broken / "adapt/trials.jsonl", broken / "restem/.making-twin/checkpoints"
    killed_once(other, lambda: trials.is_file() and trials.read_bytes().count(b"\n") >= 3)
    assert not (broken / "adapt/manifest.json").exists()
    killed_once(other, lambda: len([path for path in checkpoints.glob("*") if not path.name.startswith(".")]) >= 1)
    assert (broken / "adapt/manifest.json").exists() and not (broken / "restem/manifest.json").exists()
    for command in (other, overrides):
        assert begun(command).wait(TIMEOUT_S) == 0
    for name in EQUAL:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    for name in TIMED:
        assert lines(broken / name) == lines(whole / name), name
