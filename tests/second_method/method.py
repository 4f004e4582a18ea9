"""A method of its own, as small as it can be: a line y = a x + b, fitted by gradient descent. It touches nothing outside its folder but
a row of entries.py, and still has a run folder, a lock, resume by the same command, status, metrics and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Optional

import torch
from torch import Tensor

from arclab.config.launch_schema import LaunchConfig
from arclab.config.run import CriterionConfig, DeviceChoice, TrainingConfig, WandbConfig
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder, load_tensors, read_state, save_tensors
from arclab.runs.console import progress_bar
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RecordFailure, RunFolder, finish, in_ranks
from arclab.runs.loop import Loop
from arclab.runs.preempt import StopRequest
from arclab.runs.profile import StepProfiler
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

X, Y = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0, 7.0])


@dataclass(kw_only=True, slots=True)
class LineTrainerConfig:
    steps: int
    num_threads: Optional[int]
    device: DeviceChoice
    log_every: int
    eval_every: int
    checkpoint_every: int
    health_every: int
    stop_when_unhealthy: bool
    lr: float


@dataclass(kw_only=True, slots=True)
class LineConfig(TrainingConfig):
    FREE_KEYS: ClassVar[tuple[str, ...]] = ("launch.", "wandb.", "trainer.log_every")
    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    launch: LaunchConfig
    criterion: Optional[CriterionConfig]
    wandb: WandbConfig
    trainer: LineTrainerConfig


class LineTrainer:
    rows_per_step, can_evaluate = 4, False
    shown: Mapping[str, str] = {"loss": "train/lm_loss"}
    finite = ("train/lm_loss",)
    divergence_remedy = "lower trainer.lr"

    def __init__(self, config: LineConfig, run: RunDir, ranks: Ranks) -> None:
        self.step, self.loss, self._lr, self._ranks = 0, 0.0, config.trainer.lr, ranks
        self.weights = torch.zeros(2, requires_grad=True)
        self._checkpoints = CheckpointFolder(run.checkpoints, keep_last=1)
        if steps := self._checkpoints.steps():
            self.step, path = steps[-1], self._checkpoints.path(steps[-1])
            self.weights = load_tensors(path, "model.safetensors", read_state(path))["weights"].requires_grad_()

    def train_step(self, votes: list[Tensor]) -> None:
        loss = (self.weights[0] * X + self.weights[1] - Y).square().mean()
        (gradient,) = torch.autograd.grad(loss, self.weights)
        self._ranks.sum_([gradient, *votes])
        with torch.no_grad():
            self.weights -= self._lr * gradient / self._ranks.world_size
        self.step, self.loss = self.step + 1, loss.item()

    def metrics(self) -> dict[str, float]:
        return {"train/lm_loss": self.loss}

    def last_norms(self) -> dict[str, float]:
        return self.metrics()

    def evaluate(self, logger: MetricLogger | None) -> dict[str, float]:
        return {}

    def save(self, runtime_s: float) -> None:
        if self._ranks.is_main:
            temporary = self._checkpoints.begin(self.step)
            save_tensors({"weights": self.weights}, temporary / "model.safetensors")
            self._checkpoints.commit(temporary, {"step": self.step})


def pretrain(config: LineConfig, given: RunDir | None = None) -> int:
    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _train(config, ranks, signals, folder)

    return in_ranks(work, config, given, config.trainer.device, config.trainer.num_threads)


def _train(config: LineConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    run = folder.run
    with folder.building(), folder.held(config, ()) as is_finished:
        if is_finished:
            return State.done
        with RecordFailure(run):
            trainer = LineTrainer(config, run, ranks)
            logger = MetricLogger(run.metrics, None, resume_step=trainer.step, runtime_s=0.0) if ranks.is_main else None
            profiler = StepProfiler(run.path / "profile", ranks, is_on=False, rows_per_rank=4, dtype=torch.float32)
            with (
                progress_bar(total=config.trainer.steps, desc="line", unit="step", disable=True) as bar,
                logger or nullcontext(),
                profiler,
            ):
                stop = StopRequest(run, ranks, signals)
                Loop(
                    config.trainer, trainer, run, ranks, logger=logger, monitor=None, stop=stop, profiler=profiler, bar=bar,
                ).run()  # fmt: skip
            return finish(config, run, ranks, trainer.step, lambda: "")
