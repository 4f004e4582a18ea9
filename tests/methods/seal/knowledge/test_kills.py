"""kill -9 in the middle of a round: the same command finishes it, and what it leaves is what an undisturbed round leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..kills import TIMEOUT_S, begun, killed_once, lines
from .test_stages import SMALL

# Of a round's folder. Lines with seconds are compared without them.
EQUAL = ["generate/splits.json", "select/sft.jsonl", "select/selection.json", "sft/model/model.safetensors", "sft/trained.json"]
TIMED = ["generate/completions.jsonl", "query/baseline.jsonl", "query/trials.jsonl", "query/results.jsonl"]


@pytest.mark.slow
def test_a_round_that_is_killed_twice_leaves_what_an_undisturbed_one_leaves(seal_lm: Path, tmp_path: Path) -> None:
    overrides = [
        *SMALL, "lm=tiny", "lm.device=cpu", f"lm.name={seal_lm}", f"runs_dir={tmp_path}", "num_threads=1", "query.repetitions=2", "query.more_repetitions=1",
        "sft.steps=40", "sft.checkpoint_every=2",
    ]  # fmt: skip
    whole, broken = (tmp_path / f"seal_knowledge/{name}/round_0" for name in ("a", "b"))
    trials, checkpoints = broken / "query/trials.jsonl", broken / "sft/.model.training/checkpoints"
    other = [*overrides, "name=b"]
    killed_once(other, lambda: trials.is_file() and trials.read_bytes().count(b"\n") >= 4)  # the first line: settings
    assert not (broken / "query/manifest.json").exists()
    made = trials.read_bytes()
    killed_once(other, lambda: any(not path.name.startswith(".") for path in checkpoints.glob("*")))
    assert trials.read_bytes().startswith(made[: made.rindex(b"\n") + 1]), "what was tried is not tried again"
    assert (broken / "select/manifest.json").exists() and not (broken / "sft/manifest.json").exists()
    for command in (other, overrides):
        assert begun(command).wait(TIMEOUT_S) == 0
    for name in EQUAL:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    for name in TIMED:
        assert lines(broken / name) == lines(whole / name), name
