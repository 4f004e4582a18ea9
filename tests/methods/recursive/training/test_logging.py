"""What training logs, and that numbers which are not finite end it with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.data.tasks import Pair
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training import step as step_module
from arclab.methods.recursive.training.optim import lr_factor
from arclab.methods.recursive.training.state import Training
from arclab.methods.recursive.training.trainer import train
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.metrics.tables import Prediction
from arclab.results.criterion import require_answers
from arclab.runs.folder import RunDir, open_run

from .common import CPU, run_training

Tiny = Callable[..., ExperimentConfig]


def test_divergence_stops_with_the_reason(tiny: Tiny) -> None:
    setting = build_setting(config := tiny())
    model = build_model(config, 1)
    with torch.no_grad():
        model.decoder.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"training diverged: train/lm_loss is nan at step 1; lower"):
        train(config, model, setting.data, open_run(config, ()), CPU, score=None, stamps=[])


def test_a_diverged_step_is_not_saved_though_no_row_is_logged(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth step is logged and every one saved: the last good checkpoints must outlive the bad step."""
    apply = step_module._apply_gradients

    def poisoned(config: ExperimentConfig, training: Training, *rest: Any) -> dict[str, torch.Tensor]:
        if training.progress.step == 2:
            for p in training.model.parameters():
                p.grad = torch.full_like(p, float("nan"))
        return apply(config, training, *rest)

    monkeypatch.setattr(step_module, "_apply_gradients", poisoned)
    config = tiny("trainer.steps=8", "trainer.log_every=10", "trainer.checkpoint_every=1")
    with pytest.raises(ValueError, match=r"training diverged: grad/total_norm is nan at step 3"):
        run_training(config)
    assert sorted(path.name for path in RunDir(config.folder).checkpoints.iterdir()) == ["step_00000001", "step_00000002"]


def test_an_evaluation_without_known_answers_does_not_end_the_run(tiny: Tiny) -> None:
    """Kaggle's hidden answers: there is nothing to score and nothing to remember as the best, and training goes on."""
    config = tiny("trainer.eval_every=1", "trainer.steps=2")
    setting = build_setting(config)
    scores: list[int] = []

    def score() -> tuple[dict[str, float], list[Prediction]]:
        scores.append(1)
        return {"all.count": 8.0, "all.labelled": 0.0}, []

    training = train(config, build_model(config, 1), setting.data, open_run(config, ()), CPU, score=score, stamps=[])
    assert len(scores) == 2 and training.progress.step == 2 and training.progress.best_score is None
    hidden = [replace(task, tests=tuple(Pair(p.input, None) for p in task.tests)) for task in setting.scored]
    judged = tiny("trainer.eval_every=1", "criterion={metric:all.exact_accuracy,threshold:0.9,phase:p}")
    require_answers(judged, setting.scored)
    with pytest.raises(ValueError, match=r"no answer of the 2 scored tasks \(evaluation\.split=train\) is known"):
        require_answers(judged, hidden)


def test_every_training_metric_of_the_guide_is_logged(tiny: Tiny) -> None:
    config = tiny("trainer.steps=5", "halting.halt_max_steps=2")
    run_training(config)
    rows = read_rows(Path(config.runs_dir) / "quickstart/t/metrics.jsonl")
    logged = set().union(*rows)
    guide = {
        "accuracy", "exact_accuracy", "lm_loss", "q_halt_loss", "q_halt_accuracy", "steps", "lr", "count", "decoder_frozen",
        "encoder_cross_sample_var", "encoder_output_mean", "encoder_output_norm", "encoder_output_std", "encoder_token_std",
    }  # fmt: skip
    assert {f"train/{n}" for n in guide} | {"grad/encoder_norm", "grad/inner_norm", "grad/total_norm", "num_params"} <= logged
    assert {"_step", "_runtime", "_timestamp"} <= set(rows[0])


def test_a_puzzle_table_logs_its_learning_rate_and_rest(tiny: Tiny) -> None:
    """By the schedule of the whole run, and 1 for as long as no vector moves."""
    config = tiny(
        "trainer.steps=4",
        "trainer.log_every=1",
        "trainer.warmup_steps=4",
        "encoder.optim.freeze_steps=2",
        "trainer.eval_every=0",
        trm=True,
    )
    run_training(config)
    rows = [row for row in read_rows(Path(config.runs_dir) / "quickstart/t/metrics.jsonl") if row["_step"] > 0]
    assert [row["train/encoder_frozen"] for row in rows] == [1, 1, 0, 0]
    assert [row["train/encoder_lr"] for row in rows] == [
        config.encoder.optim.lr * lr_factor(config.trainer, n) for n in (1, 2, 3, 4)
    ]
    assert len({row["train/encoder_lr"] for row in rows}) > 1


def test_unregistered_metric_is_refused(tmp_path: Path) -> None:
    with (
        MetricLogger(tmp_path / "m.jsonl", None, resume_step=0, runtime_s=0) as log,
        pytest.raises(AssertionError, match="lm_los"),
    ):
        log.write(1, {"train/lm_los": 1.0})
