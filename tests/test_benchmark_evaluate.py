"""The comparison of evaluation rules: the same answers are recognised, and a saved table says what was measured."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.data.tasks import ArcTask, Pair
from arclab.methods.recursive.encoders.demo_tokens import DemoTokens
from arclab.methods.recursive.evaluation import rules_stamps
from arclab.methods.recursive.run import pretrain
from arclab.results.attempts import Attempts, Candidate
from benchmarks import evaluate

from .methods.recursive.common import setup

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
    pretrain(tiny("trainer.steps=1"))
    parsed = evaluate.parse(
        ["--checkpoint", f"{tmp_path}/runs/quickstart/t", "--tasks", "1", "--augmentations", "1", "--paths", "fast"]
    )
    result = evaluate.run(parsed)
    assert [row["path"] for row in result["paths"]] == ["published", "fast"] and result["tasks"] == 1
    page = evaluate.markdown(result)
    assert "| published |" in page and "python -m benchmarks.evaluate --tasks 1" in page and "compiled" not in page


def test_compile_reaches_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., ExperimentConfig]
) -> None:
    pretrain(tiny("trainer.steps=1"))
    compiled: list[object] = []
    monkeypatch.setattr(evaluate, "compile_model", compiled.append)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--compile", "--save", "other"])
    plain = ["--checkpoint", f"{tmp_path}/runs/quickstart/t", "--tasks", "1", "--augmentations", "0", "--paths", "fast"]
    evaluate.run(evaluate.parse(plain))
    assert compiled == []
    page = evaluate.markdown(evaluate.run(evaluate.parse([*plain, "--compile"])))
    assert len(compiled) == 1 and "compiled layers" in page and "`python -m benchmarks.evaluate --compile`" in page


def test_results_name_rules_that_are_not_the_published_ones(tiny: Callable[..., ExperimentConfig]) -> None:
    assert rules_stamps(tiny()) == ()
    (stamp,) = rules_stamps(tiny("evaluation.halting=early", "evaluation.canvas=bucketed"))
    assert stamp == "not the published evaluation: evaluation.halting=early, evaluation.canvas=bucketed"


def test_the_first_etrm_computes_all_slots_at_every_step_for_the_same_answers(tiny: Callable[..., ExperimentConfig]) -> None:
    config = tiny("halting.halt_max_steps=3", "dataset.max_demos=10")
    model, _, batch = setup(config)
    first = evaluate.FirstEtrm(deepcopy(model), config.dataset.max_demos)
    encoded = []
    (tokens_of,) = (m for m in first.model.modules() if isinstance(m, DemoTokens))
    tokens_of.register_forward_hook(lambda module, given, out: encoded.append(out.shape[:2]))
    expected = model.predict(batch)
    reading = first.read(batch).rows(torch.arange(len(batch)))
    latents, output = first.start(batch.inputs_BS, reading), None
    for _ in range(3):
        latents, reading, *output = first.refine(latents, batch.inputs_BS, reading)
    assert output is not None
    torch.testing.assert_close(tuple(output), expected, atol=1e-4, rtol=1e-4)
    tokens = sum(rows * length for rows, length in encoded)
    assert tokens == 3 * len(batch) * 10 * encoded[0][1]  # whole canvases only, in every slot, at every step


@pytest.mark.parametrize(("encoder", "regime"), [("puzzle_table", "puzzle_id"), ("recurrent", "few_shot")])
def test_first_etrm_is_refused_where_it_means_nothing(
    tmp_path: Path, tiny: Callable[..., ExperimentConfig], encoder: str, regime: str
) -> None:
    config = tiny(f"encoder={encoder}", f"dataset.regime={regime}", "trainer.steps=1")
    pretrain(config)
    parsed = evaluate.parse(["--checkpoint", f"{tmp_path}/runs/quickstart/t", "--tasks", "1", "--paths", "first_etrm"])
    with pytest.raises(
        ValueError, match=f"first_etrm is for encoders without a state of their own, and this run has {encoder}"
    ):
        evaluate.run(parsed)
