"""Success criteria: PASS and FAIL with n/N and an interval over independent units, wherever a user looks for them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from arclab.config.compose import ConfigError
from arclab.config.run import CriterionConfig
from arclab.config.schema import SplitName
from arclab.results.criterion import judge_criterion, require_measurable
from arclab.results.scoring import wilson

from ..conftest import ROOT, TINY, compose

Run = Callable[..., subprocess.CompletedProcess[str]]
PHASE_1 = CriterionConfig(metric="all.exact_accuracy", threshold=0.9, phase="phase 1")


def row(step: int, exact: float, **others: float) -> dict[str, float]:
    return {"_step": step, "all.exact_accuracy": exact, "all.count": 288.0, "ARC/tasks": 32.0, **others}


def test_the_newest_evaluation_decides() -> None:
    rows = [row(500, 0.95), row(1000, 0.5), {"_step": 1010, "train/exact_accuracy": 1.0}]
    result = judge_criterion(PHASE_1, rows)
    assert not result.passed and (result.step, result.n, result.N) == (1000, 144, 288)
    assert str(result).startswith("FAIL (phase 1): all.exact_accuracy 144/288 augmented test inputs = 50.0 % [")
    assert judge_criterion(PHASE_1, rows[:1]).passed


def test_the_interval_counts_tasks_and_not_their_copies() -> None:
    result = judge_criterion(PHASE_1, [row(10, 0.875)])
    assert result.interval95 == pytest.approx(wilson(28, 32))
    assert result.interval95[1] > 0.9 and str(result).endswith("below 90 % (the interval contains the threshold)")


def test_exactly_the_threshold_passes() -> None:
    criterion = CriterionConfig(metric="ARC/pass@1", threshold=0.25, phase="p")
    result = judge_criterion(criterion, [row(10, 0.0, **{"ARC/pass@1": 0.25})])
    assert result.passed and (result.n, result.N) == (8, 32) and "at least 25 %" in str(result)


def test_rows_of_training_and_no_measurement() -> None:
    criterion = CriterionConfig(metric="train/exact_accuracy", threshold=0.9, phase="p")
    result = judge_criterion(criterion, [{"_step": 10, "train/exact_accuracy": 0.9375, "train/count": 64.0}])
    assert result.passed and (result.n, result.N) == (60, 64)
    never = judge_criterion(criterion, [{"_step": 0}])
    assert not never.passed and "never measured" in str(never)


@pytest.mark.parametrize("metric", ["all.exact_acuracy", "train/lm_loss", "grad/total_norm", "encoder/swap_drop"])
def test_a_metric_that_cannot_be_judged_is_refused(metric: str) -> None:
    config = compose(
        "pretrain_encoder", [*TINY, "trainer.eval_every=2", f"criterion={{metric:{metric},threshold:0.9,phase:p}}"]
    )
    with pytest.raises(ValueError, match=f"criterion.metric={metric} is not a share .* use one of train/exact_accuracy"):
        require_measurable(config)


def test_a_metric_that_is_never_measured_is_refused() -> None:
    config = compose("pretrain_encoder", [*TINY, "criterion={metric:all.exact_accuracy,threshold:0.9,phase:p}"])
    with pytest.raises(ValueError, match=r"trainer.eval_every=0 has none; set it above 0"):
        require_measurable(config)


def test_typos_in_the_criterion() -> None:
    with pytest.raises(ConfigError, match=r"unknown key criterion.treshold; did you mean criterion.threshold\?"):
        compose("pretrain_encoder", ["criterion={metric:all.accuracy,treshold:0.9,phase:p}"])
    with pytest.raises(ConfigError, match=r"criterion.threshold=90.0 must be between 0.0 and 1.0"):
        compose("pretrain_encoder", ["criterion={metric:all.accuracy,threshold:90,phase:p}"])


def test_the_phases_of_the_guide() -> None:
    one, two = (compose("pretrain_encoder", [f"experiment={name}"]) for name in ("phase1_overfit", "phase2_generalise"))
    assert one.criterion is not None and two.criterion is not None
    for config in (one, two):
        require_measurable(config)
        assert (config.halting.halt_max_steps, config.halting.halt_exploration_prob) == (16, 0.5)
        assert (config.trainer.batch_size, config.trainer.clip_norm) == (256, 1.0)
    assert (one.criterion.threshold, one.evaluation.split, one.dataset.train_ids) == (0.9, SplitName.train, "overfit32")
    assert (two.criterion.threshold, two.evaluation.split, two.dataset.train_ids) == (0.05, SplitName.evaluation, None)
    assert compose("pretrain_encoder", []).criterion is None


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, "PASS"), (1.0, "FAIL")])
def test_a_run_says_pass_or_fail_everywhere(run_in_process: Run, tmp_path: Path, threshold: float, expected: str) -> None:
    criterion = f"criterion={{metric:all.exact_accuracy,threshold:{threshold},phase:smoke}}"
    result = run_in_process("pretrain_encoder.py", *TINY, "trainer.steps=2", "trainer.eval_every=2", f"runs_dir={tmp_path}", "name=t", criterion)  # fmt: skip
    assert result.returncode == 0, result.stderr  # a FAIL is a result, not a failure
    run = tmp_path / "quickstart" / "t"
    record, status = json.loads((run / "criterion.json").read_text()), json.loads((run / "status.json").read_text())
    assert record["result"] == expected and record["N"] > 0 and record["interval_over"] == "2 tasks"
    assert status["state"] == "DONE" and status["message"] == record["sentence"]
    assert record["sentence"].startswith(f"{expected} (smoke): all.exact_accuracy ") and record["sentence"] in result.stderr


@pytest.mark.parametrize("experiment", ["phase1_overfit", "phase2_generalise"])
def test_every_halting_option_takes_effect_in_the_phases(experiment: str) -> None:
    """An experiment that sets halting keys of its own would silently win over halting=explore07."""
    for option in sorted((ROOT / "conf/halting").glob("*.yaml")):
        halting = compose("pretrain_encoder", [f"experiment={experiment}", f"halting={option.stem}"]).halting
        wanted = yaml.safe_load(option.read_text())
        assert {key: getattr(halting, key) for key in wanted} == wanted


def test_the_interval_of_training_rows_counts_tasks() -> None:
    """512 rows of 32 tasks are no 512 trials."""
    criterion = CriterionConfig(phase="p", metric="train/exact_accuracy", threshold=0.9)
    row = {"_step": 9, "train/exact_accuracy": 0.75, "train/count": 512.0}
    few, unknown = judge_criterion(criterion, [{"_step": 0, "num_train_tasks": 32.0}, row]), judge_criterion(criterion, [row])
    assert (few.n, few.N, few.num_independent, few.independent) == (
        384,
        512,
        32,
        "training tasks",
    ) and unknown.num_independent == 512
    assert few.interval95[0] < unknown.interval95[0] < 0.75
