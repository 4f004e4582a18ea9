"""Two iterations with a model and a chat template from elsewhere: SmolLM2, two toy tasks, three self-edits of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.files import read_lines, read_object
from arclab.launch.start import start
from arclab.lm.smollm2 import FOLDER, INSTALL
from arclab.methods.seal.fewshot.records import read_outcomes
from arclab.runs.stages import read_counts

from ....conftest import ROOT

SMALL = [
    "max_tasks=2", "solver.pseudo_tasks.max_count=3", "solver.adaptation.batch_size=3", "solver.adaptation.rank=16", "solver.adaptation.alpha=32",
    "adapted=first", "propose.decoding=constrained", "propose.min_lr=1e-3", "propose.max_steps=6", "propose.max_draws=12", "evaluate.num_edits=1",
    "evaluate.max_tasks=1", "restem.steps=2", "restem.lora.rank=4", "default_edit.num_train_epochs=1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / FOLDER).is_dir(), reason=f"{FOLDER} is not there; run: {INSTALL}")
def test_two_iterations_of_smollm2(overrides: list[str], tmp_path: Path) -> None:
    """Every self-edit that it chooses the values of is valid; what works is learned, and the next iteration begins with that."""
    tiny = ("lm=", "lm.name=", "restem.", "solver.adaptation.", "propose.", "evaluate.", "max_tasks", "default_edit.num")
    kept = [word for word in overrides if not word.startswith(tiny)]
    assert (
        start(
            "self_improve.py", [*kept, "lm=smollm2_135m", f"lm.name={ROOT / FOLDER}", *SMALL, "propose.num_edits=3", "rounds=2"]
        )
        == 0
    )
    root = tmp_path / "seal_fewshot/a"
    for number in (0, 1):
        counts = read_counts(root / f"round_{number}/propose")
        assert counts["ok"] == 6 and counts["bad_json"] == counts["bad_schema"] == 0
        rows = [row for row in read_lines(root / f"round_{number}/propose/proposals.jsonl") if "settings" not in row]
        assert {row["decoding"] for row in rows} == {"constrained"}
        outcomes = read_outcomes(root / f"round_{number}/adapt/outcomes.jsonl")
        assert all(each.loss_last is not None and not each.problem for each in outcomes if each.verdict == "ok")
        assert read_counts(root / f"round_{number}/select")["kept"] >= 1
    first, second = (read_object(root / f"round_{number}/restem/trained.json")["content"] for number in (0, 1))
    assert first != second
