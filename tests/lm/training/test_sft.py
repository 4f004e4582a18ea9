"""Supervised fine-tuning with trl: what a step is, whatever it is computed in, and that it is a run's."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arclab.config.run import DeviceChoice
from arclab.lm.training import sft as sft_module
from arclab.lm.training.health import LanguageRules
from arclab.lm.training.rows import IGNORED, collate
from arclab.lm.training.sft import ROW_WEIGHT, SftSettings, Where, advantage_weights, sft
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.runs.folder import RunDir
from arclab.runs.monitor import HealthMonitor, UnhealthyRun
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import start_ranks
from tests.conftest import ROOT

SETTINGS = SftSettings(
    batch_size=4, grad_accumulation=1, lr=1e-3, warmup_steps=0, schedule="constant_with_warmup", weight_decay=0.0, clip_norm=None, seed=0
)  # fmt: skip


@dataclass(slots=True)
class Cadence:
    steps: int = 2
    num_threads: int | None = None
    device: DeviceChoice = DeviceChoice.cpu
    log_every: int = 1
    eval_every: int = 0
    checkpoint_every: int = 1
    health_every: int = 1
    stop_when_unhealthy: bool = False


class All:
    def __init__(self, model: Any) -> None:
        self.model = model

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(tensors, strict=False)


def rows() -> list[dict[str, list[int]]]:
    """Of unequal lengths: a mean of means would not be the mean over tokens."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt, reply in [(3, 1), (2, 9), (5, 4), (1, 6), (4, 2), (2, 7), (6, 3), (2, 2)]:
        ids = torch.randint(3, 250, (prompt + reply,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return found


def train(
    tiny_lm: Path, folder: Path, settings: SftSettings = SETTINGS, cadence: Cadence | None = None, **given: Any
) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    ranks, run = start_ranks(DeviceChoice.cpu), RunDir(folder)
    folder.mkdir(exist_ok=True)
    with MetricLogger(run.metrics, None, resume_step=10**6, runtime_s=0.0) as logger:
        where = Where(
            cadence=cadence or Cadence(), run=run, ranks=ranks, stop=StopRequest(run, ranks, None), logger=logger,
            monitor=HealthMonitor(LanguageRules(), (cadence or Cadence()).health_every, (), 0), title="t",
            keep_last=given.get("keep_last", 1), selection_metric=given.get("selection_metric"),
        )  # fmt: skip
        sft(
            model, given.get("rows", rows()), settings, where, pad_id=0, weights=All(model), evaluate=given.get("evaluate"), record={},
            tokenizer=AutoTokenizer.from_pretrained(tiny_lm), divergence_remedy="lower lr",
        )  # fmt: skip
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_a_step_in_pieces_is_the_step_and_the_loss_is_the_mean_over_tokens(tiny_lm: Path, tmp_path: Path) -> None:
    whole = train(tiny_lm, tmp_path / "whole")
    pieces = train(tiny_lm, tmp_path / "pieces", replace(SETTINGS, grad_accumulation=4))
    start = AutoModelForCausalLM.from_pretrained(tiny_lm)
    moved = [name for name, value in start.named_parameters() if not torch.equal(value, whole[name])]
    assert len(moved) == len(whole)
    for name, value in whole.items():
        torch.testing.assert_close(value, pieces[name], atol=2e-5, rtol=1e-3, msg=name)
    first, second = (read_rows(tmp_path / name / "metrics.jsonl")[0] for name in ("whole", "pieces"))
    assert first["train/lm_loss"] == pytest.approx(second["train/lm_loss"], rel=1e-4)
    assert first["grad/total_norm"] == pytest.approx(second["grad/total_norm"], rel=1e-4)


def test_only_the_reply_is_learned(tiny_lm: Path, tmp_path: Path) -> None:
    """A row without supervised tokens moves nothing; labels of the prompt would."""
    silent = [{"input_ids": row["input_ids"], "labels": [IGNORED] * len(row["labels"])} for row in rows()]
    start = AutoModelForCausalLM.from_pretrained(tiny_lm)
    ended = train(tiny_lm, tmp_path / "silent", rows=silent)
    assert all(torch.equal(value, ended[name]) for name, value in start.named_parameters())


def test_weighted_rows_give_the_loss_and_the_gradient_computed_by_hand(tiny_lm: Path, tmp_path: Path) -> None:
    """exp(gain / beta), clipped, by the mean; then a sum over tokens of weight x nll by the number of supervised tokens."""
    gains = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2.0]
    weights = advantage_weights(gains, beta=0.5, most=3.0)
    raw = [math.exp(2 * gain) for gain in gains[:6]] + [3.0, 3.0]  # exp(1.2) and exp(4) are above 3
    assert weights == pytest.approx([8 * each / sum(raw) for each in raw]) and weights == sorted(weights)
    assert advantage_weights([1e6, 0.0], 1e-3, 5.0) == pytest.approx([2 * 5 / 6, 2 / 6])
    weighted = [row | {ROW_WEIGHT: [weight]} for row, weight in zip(rows(), weights, strict=True)]
    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    terms, num_tokens = [], 0
    for row, weight in zip(rows(), weights, strict=True):
        logprobs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORED]
        terms += [-weight * logprobs[place - 1, row["labels"][place]] for place in places]
        num_tokens += len(places)
    loss = torch.stack(terms).sum() / num_tokens
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    for name, pieces in (("whole", 1), ("pieces", 4)):
        train(
            tiny_lm, tmp_path / name, replace(SETTINGS, batch_size=8, grad_accumulation=pieces), Cadence(steps=1), rows=weighted
        )
        (found,) = read_rows(tmp_path / name / "metrics.jsonl")
        assert found["train/lm_loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert found["grad/total_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_a_batch_that_cannot_be_split_is_refused(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"trainer.batch_size=4 must be divisible by ranks x trainer.grad_accumulation = 1 x 3"
    ):
        train(tiny_lm, tmp_path / "a", replace(SETTINGS, grad_accumulation=3))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training diverged: .* at step \d+; lower lr"):
        train(tiny_lm, tmp_path / "a", replace(SETTINGS, lr=1e30), Cadence(steps=6))
    assert [path.name for path in (tmp_path / "a/checkpoints").iterdir() if path.name.startswith("step_")] in (
        [],
        ["step_00000001"],
    )


def test_padding_that_is_also_the_end_mark_keeps_its_loss() -> None:
    batch = collate(
        [{"input_ids": [5, 2], "labels": [IGNORED, 2]}, {"input_ids": [5, 6, 2], "labels": [IGNORED, 6, 2]}], pad_id=2
    )
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 6, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_cadence_says_when_to_log_judge_score_and_save(tiny_lm: Path, tmp_path: Path) -> None:
    scored: list[int] = []

    def evaluate(step: int, logger: MetricLogger | None) -> dict[str, float]:
        scored.append(step)
        return {"text/accuracy": step / 10}

    cadence = Cadence(steps=7, log_every=2, eval_every=4, checkpoint_every=3, health_every=5)
    train(tiny_lm, tmp_path / "a", cadence=cadence, evaluate=evaluate, keep_last=2)
    found = {row["_step"]: row for row in read_rows(tmp_path / "a/metrics.jsonl")}
    assert scored == [4, 7] and list(found) == [2, 3, 4, 5, 6, 7]  # what is saved is logged too
    assert [step for step, row in found.items() if "text/accuracy" in row] == [4, 7] and found[4]["text/accuracy"] == 0.4
    assert [step for step, row in found.items() if "health" in row] == [5]
    assert sorted(path.name for path in (tmp_path / "a/checkpoints").glob("step_*")) == ["step_00000006", "step_00000007"]

    falling = lambda step, logger: {"text/accuracy": 1 - step / 10}  # noqa: E731
    train(tiny_lm, tmp_path / "b", cadence=cadence, evaluate=falling, keep_last=1, selection_metric="text/accuracy")
    assert sorted(path.name for path in (tmp_path / "b/checkpoints").glob("step_*")) == ["step_00000004", "step_00000007"]


def test_a_run_that_no_gradient_reaches_is_stopped_if_it_may_be(tiny_lm: Path, tmp_path: Path) -> None:
    silent = [{"input_ids": row["input_ids"], "labels": [IGNORED] * len(row["labels"])} for row in rows()]
    with pytest.raises(UnhealthyRun, match=r"DEAD grad/total_norm 0 < 1e-07"):
        train(tiny_lm, tmp_path / "a", cadence=Cadence(steps=6, stop_when_unhealthy=True), rows=silent)
    assert [path.name for path in (tmp_path / "a/checkpoints").glob("step_*")] == [
        "step_00000002"
    ]  # the second time it is said
    train(tiny_lm, tmp_path / "b", cadence=Cadence(steps=3), rows=silent)  # goes on where it may not


def test_verdicts_on_a_language_model() -> None:
    def judged(*losses: float, norm: float = 1.0) -> str:
        rules = LanguageRules()
        return rules.judge(
            [{"_step": n, "train/lm_loss": loss, "grad/total_norm": norm} for n, loss in enumerate(losses)]
        ).kind.value

    assert judged(2.0, 1.0, 1.9) == "HEALTHY" and judged(2.0, 1.0, 2.1) == "DIVERGING"
    assert judged(1.0, float("nan")) == "DIVERGING" and judged(1.0, norm=0.0) == "DEAD"


@pytest.mark.parametrize(("key", "value"), [
    ("lr", 5e-3), ("warmup_steps", 7), ("schedule", "cosine"),
    ("weight_decay", 0.3), ("clip_norm", 0.25), ("seed", 9), ("batch_size", 2),
])  # fmt: skip
def test_every_setting_changes_the_weights(tiny_lm: Path, tmp_path: Path, key: str, value: Any) -> None:
    """grad_accumulation does not: see the first test."""
    base = train(tiny_lm, tmp_path / "base", cadence=Cadence(steps=3))
    other = train(tiny_lm, tmp_path / "other", replace(SETTINGS, **{key: value}), Cadence(steps=3))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in base.items())


def test_a_file_for_deepspeed_is_needed_and_the_package(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.deepspeed=nothing.json is not a file; give a configuration"):
        train(tiny_lm, tmp_path / "a", replace(SETTINGS, deepspeed="nothing.json"))
    file = tmp_path / "zero2.json"
    file.write_text("{}")
    if find_spec("deepspeed") is None:
        with pytest.raises(ValueError, match=r"needs the package deepspeed: pip install deepspeed"):
            train(tiny_lm, tmp_path / "b", replace(SETTINGS, deepspeed=str(file)))


def test_the_shipped_zero2_settings_take_every_auto_from_the_run(tmp_path: Path) -> None:
    """By transformers' own rules; deepspeed itself is not needed for that."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    # Without deepspeed transformers' class has no base, so that its rules are put on accelerate's here.
    rules = {name: value for name, value in vars(HfTrainerDeepSpeedConfig).items() if not name.startswith("__")}
    filled: Any = type("Filled", (HfDeepSpeedConfig,), rules)(str(ROOT / "conf/deepspeed/zero2.json"))
    filled.mismatches = []
    ranks, run = start_ranks(DeviceChoice.cpu), RunDir(tmp_path)
    where = Where(cadence=Cadence(), run=run, ranks=ranks, stop=StopRequest(run, ranks, None), logger=None, monitor=None, title="t", keep_last=1)  # fmt: skip
    arguments = sft_module._arguments(replace(SETTINGS, clip_norm=0.5), where, SETTINGS.batch_size // 2)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    filled.trainer_config_process(arguments)
    filled.trainer_config_finalize(arguments, model, 10)
    settings = filled.config
    assert "auto" not in json.dumps(settings)
    assert settings["zero_optimization"]["stage"] == 2 and settings["gradient_clipping"] == 0.5
    assert settings["train_micro_batch_size_per_gpu"] == SETTINGS.batch_size // 2
