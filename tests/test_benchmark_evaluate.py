"""The comparison of evaluation rules: the same answers are recognised, and a saved table says what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks import evaluate

from arclab import app
from arclab.config.schema import ExperimentConfig
from arclab.data.tasks import ArcTask, Pair
from arclab.solvers.base import Attempts, Candidate

GRIDS = [np.full((2, 2), value, dtype=np.uint8) for value in range(3)]
STATISTICS = {"all.count": 6.0, "eval/rerun_share": 0.5, "eval/rows_share": 0.25, "all.steps": 3.0}


def measured(name: str, seconds: float, *best: int | None) -> evaluate.Measured:
    candidates = {("a", n): [Candidate(None if b is None else GRIDS[b], 3, 0.5)] for n, b in enumerate(best)}
    return evaluate.Measured(name, seconds, Attempts(candidates, STATISTICS))


def test_record_compares_with_the_published_rules() -> None:
    task = ArcTask("a", (Pair(GRIDS[0], GRIDS[1]),), (Pair(GRIDS[0], GRIDS[1]), Pair(GRIDS[0], GRIDS[2])), "here")
    base, fast = measured("published", 8.0, 1, None), measured("fast", 2.0, 1, 2)
    assert evaluate.same_first(base.attempts, base.attempts).n == 2
    row = evaluate.record(fast, base, [task])
    assert row["times_faster"] == 4.0 and row["same_first"]["n"] == 1 and row["reruns"] == 3 and row["rows"] == 6
    assert row["pass@2"]["n"] == 1.0 and evaluate.record(base, base, [task])["pass@2"]["n"] == 0.5


def test_small_run_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., ExperimentConfig]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--tasks", "1", "--augmentations", "1"])
    app.pretrain(tiny("trainer.steps=1"))
    parsed = evaluate.parse(
        ["--checkpoint", f"{tmp_path}/runs/quickstart/t", "--tasks", "1", "--augmentations", "1", "--paths", "fast"]
    )
    result = evaluate.run(parsed)
    assert [row["path"] for row in result["paths"]] == ["published", "fast"] and result["tasks"] == 1
    assert "| published |" in evaluate.markdown(result) and "python -m benchmarks.evaluate --tasks 1" in evaluate.markdown(
        result
    )


def test_results_name_rules_that_are_not_the_published_ones(tiny: Callable[..., ExperimentConfig]) -> None:
    assert app._rules_stamp(tiny()) == ()
    (stamp,) = app._rules_stamp(tiny("evaluation.halting=early", "evaluation.canvas=bucketed"))
    assert stamp == "not the published evaluation: evaluation.halting=early, evaluation.canvas=bucketed"
