"""Health while training: real tiny runs with a broken encoder are named early, told everywhere, and stopped if asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive import decoder
from arclab.methods.recursive.encoders.base import TaskContext
from arclab.methods.recursive.encoders.standard import StandardEncoder
from arclab.methods.recursive.health import Kind, RecursiveRules
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.runs.monitor import HealthMonitor, UnhealthyRun
from arclab.runs.ranks import Ranks

from ..conftest import ROOT, TINY, script_env

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))
SHORT = ("trainer.steps=20", "trainer.checkpoint_every=100", "trainer.log_every=10", "trainer.health_every=10",
         "encoder.context.gain=1.0")  # fmt: skip
ORIGINAL = StandardEncoder.forward


def detached(self: StandardEncoder, *args: Any) -> TaskContext:
    """What the first recurrent ETRM did: the context comes from a detached state."""
    return TaskContext(ORIGINAL(self, *args).tokens_BTD.detach())


def constant(self: StandardEncoder, *args: Any) -> TaskContext:
    """The same context for every task, with all the gradient one could wish for."""
    tokens = ORIGINAL(self, *args).tokens_BTD
    return TaskContext(tokens.mean(0, keepdim=True).expand_as(tokens))


def rows_of(config: ExperimentConfig) -> list[dict[str, Any]]:
    return read_rows(folder_of(config) / "metrics.jsonl")


def folder_of(config: ExperimentConfig) -> Path:
    return Path(config.runs_dir) / config.experiment_name / config.name


def status_of(config: ExperimentConfig) -> dict[str, Any]:
    return json.loads((folder_of(config) / "status.json").read_text())


@pytest.mark.parametrize(
    ("forward", "kind"), [(detached, Kind.starved), (constant, Kind.collapsed)], ids=["detached", "constant"]
)
def test_a_broken_encoder_is_named_at_step_10(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, forward: Any, kind: Kind
) -> None:
    monkeypatch.setattr(StandardEncoder, "forward", forward)
    config = tiny(*SHORT, "trainer.log_every=7")
    with caplog.at_level("INFO", logger="arclab"):
        pretrain_in_ranks(config, CPU)
    (row,) = [r for r in rows_of(config) if r["_step"] == 10]  # judged at step 10 whatever log_every is
    assert (row["health"], row["health_level"]) == (kind.value, "bad")
    assert row["health_note"] in next(
        r.getMessage() for r in caplog.records if r.getMessage().startswith(f"step 10: {kind.value}")
    )
    assert "health" not in next(r for r in rows_of(config) if r["_step"] == 7)
    if kind is Kind.starved:
        assert row["grad/encoder_norm"] == 0 < row["grad/adapter_norm"]


def test_an_intact_encoder_is_neither(tiny: Tiny) -> None:
    """The control: the same run without the fault has no bad verdict."""
    pretrain_in_ranks(config := tiny(*SHORT), CPU)
    judged = [r for r in rows_of(config) if "health" in r]
    assert [r["_step"] for r in judged] == [10, 20] and all(r["health_level"] != "bad" for r in judged)


def test_verdicts_reach_status_and_alerts(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """status.json says the newest verdict while the run goes; W&B hears of it once, not at every check."""
    alerts: list[tuple[str, str, bool]] = []
    messages: list[str] = []
    monkeypatch.setattr(MetricLogger, "alert", lambda self, title, text, *, is_bad: alerts.append((title, text, is_bad)))
    monkeypatch.setattr(StandardEncoder, "forward", detached)
    original = HealthMonitor.observe

    def spy(self: HealthMonitor, *args: Any) -> Any:
        messages.append(status_of(config)["message"])
        return original(self, *args)

    monkeypatch.setattr(HealthMonitor, "observe", spy)
    config = tiny(*SHORT, "trainer.checkpoint_every=5")
    pretrain_in_ranks(config, CPU)
    assert messages[-1].startswith("step 10: STARVED grad/encoder_norm 0 < 0.05: ")
    ((title, text, is_bad),) = alerts
    assert title == "quickstart/t: STARVED" and text.startswith("step 10: STARVED") and is_bad


def test_wandb_gets_the_alert(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real client, offline: the alert, the verdict in the summary, and the dashboard's file."""
    monkeypatch.setattr(StandardEncoder, "forward", detached)
    config = tiny(*SHORT, "wandb.mode=offline")
    pretrain_in_ranks(config, CPU)
    (file,) = folder_of(config).glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    for text in ("quickstart/t: STARVED", "health_level", "workspace.json"):
        assert text.encode() in written, text
    assert (folder_of(config) / "workspace.json").is_file()


def test_stop_when_unhealthy_is_what_stops(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starved at two checks in a row: stopped at the second with a checkpoint; without the setting the run goes on."""
    monkeypatch.setattr(StandardEncoder, "forward", detached)
    long = (*SHORT, "trainer.steps=40")
    pretrain_in_ranks(config := tiny(*long, "name=goes_on"), CPU)
    assert status_of(config)["state"] == "DONE"
    config = tiny(*long, "trainer.stop_when_unhealthy=true")
    for _ in range(2):  # the same command again says the same and trains nothing
        with pytest.raises(ValueError, match=r"step 20: STARVED grad/encoder_norm 0 < 0.05: .*stopped by trainer.stop_when"):
            pretrain_in_ranks(config, CPU)
        status = status_of(config)
        assert (status["state"], status["step"]) == ("STOPPED", 20) and status["message"].startswith("step 20: STARVED")
        assert rows_of(config)[-1]["_step"] == 20
        assert (folder_of(config) / "checkpoints" / "step_00000020").is_dir()
    pretrain_in_ranks(tiny(*long), CPU)
    assert status_of(config)["state"] == "DONE" and rows_of(config)[-1]["_step"] == 40


def test_a_resumed_run_remembers_its_last_verdict(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starved at step 10, killed, resumed, starved at step 20: that is two in a row."""
    monkeypatch.setattr(StandardEncoder, "forward", detached)
    config = tiny(*SHORT, "trainer.checkpoint_every=10", "trainer.stop_when_unhealthy=true")
    original = HealthMonitor.observe

    def killed(self: HealthMonitor, metrics: dict[str, float], step: int) -> Any:
        if step == 20:
            raise KeyboardInterrupt
        return original(self, metrics, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HealthMonitor, "observe", killed)
        pretrain_in_ranks(config, CPU)
    with pytest.raises(UnhealthyRun, match="step 20: STARVED"):
        pretrain_in_ranks(config, CPU)


STOPPING_SCRIPT = """
from arclab.config.compose import compose, run_main
from arclab.methods.recursive.encoders.base import TaskContext
from arclab.methods.recursive.encoders.standard import StandardEncoder
from arclab.methods.recursive.run import pretrain
original = StandardEncoder.forward
StandardEncoder.forward = lambda self, *args: TaskContext(original(self, *args).tokens_BTD.detach())
run_main(lambda argv: pretrain(compose("pretrain_encoder", argv)))
"""


@pytest.mark.parametrize(
    "launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")], ids=["one", "two"]
)
@pytest.mark.slow
def test_a_stopped_run_exits_non_zero(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    """One sentence and a non-zero exit; under torchrun every rank stops at the same step, none hangs."""
    script = tmp_path / "stopping.py"
    script.write_text(STOPPING_SCRIPT)
    command = [
        sys.executable,
        *launcher,
        str(script),
        *TINY,
        *SHORT,
        f"runs_dir={tmp_path}",
        "name=t",
        "trainer.stop_when_unhealthy=true",
    ]
    result = subprocess.run(command, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode != 0
    assert "error: step 20: STARVED grad/encoder_norm 0 < 0.05" in result.stderr
    assert json.loads((tmp_path / "quickstart/t/status.json").read_text())["state"] == "STOPPED"


def test_divergence_is_a_verdict_and_a_failure(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is not finite is judged at once, before the run fails with its reason."""
    original = decoder.Decoder.forward
    monkeypatch.setattr(
        decoder.Decoder, "forward", lambda self, *args: (lambda z, x, q: (z, x * float("nan"), q))(*original(self, *args))
    )
    with pytest.raises(ValueError, match="training diverged"):
        pretrain_in_ranks(config := tiny("trainer.steps=3"), CPU)
    (row,) = [r for r in rows_of(config) if r["_step"] == 1]
    assert (row["health"], row["train/lm_loss"]) == ("DIVERGED", None)
    assert status_of(config)["state"] == "FAILED" and "training diverged" in status_of(config)["message"]


def test_forced_halts_are_those_against_the_halt_logit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bias at -5 every row is halted by the limit; with a head that says stop, none is."""
    shares = {}
    for bias in (-5.0, 50.0):
        monkeypatch.setattr(decoder, "_Q_BIAS", bias)
        pretrain_in_ranks(config := tiny("halting.halt_exploration_prob=0.0", "trainer.steps=4", f"name=q{bias:.0f}"), CPU)
        shares[bias] = [r["train/forced_halt_share"] for r in rows_of(config) if "train/forced_halt_share" in r]
    assert set(shares[-5.0]) == {1.0} and set(shares[50.0]) == {0.0}


def test_the_monitor_keeps_the_rows_that_a_long_run_is_judged_by(tiny: Tiny) -> None:
    """A window of the first phase's length would hold nothing to compare the newest steps with."""
    config = tiny("trainer.steps=100000", "trainer.batch_size=32")
    rules = RecursiveRules.of(config, rows_per_rank=32, rows=[])
    monitor = HealthMonitor(rules, config.trainer.health_every, [], 0)
    said = {}
    for step in range(100, 20_001, 100):
        row = {"train/exact_accuracy": min(step, 12_000) / 24_000, "train/accuracy": 0.9, "train/lm_loss": 0.5, "train/count": 32.0, "train/steps": 2.0,
               "train/encoder_cross_sample_var": 0.5, "grad/encoder_norm": 0.5, "grad/total_norm": 1.0}  # fmt: skip
        verdict = monitor.observe(row, step)
        said[step] = None if verdict is None else verdict.kind
    assert {said[step] for step in (600, 5000, 12_000)} == {Kind.healthy} and said[20_000] is Kind.stuck
