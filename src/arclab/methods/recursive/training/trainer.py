"""Training the recursive model: what arclab.runs.loop drives.

    training = train(config, model, data, run, ranks, score=..., stamps=...)

The same command continues from the newest checkpoint; with trainer.save_carry the continued run is bit-identical to an
uninterrupted one (same machine, CPU, fp32). It does not choose tasks or score predictions: `score` is handed in and called with
averaged weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from arclab.config.schema import ExperimentConfig
from arclab.data.codec import decode_anywhere
from arclab.data.sampler import Batch, Cursors, TrainingData, batch_loader
from arclab.data.tasks import Grid
from arclab.methods.recursive.compiled import compile_model, uncompiled
from arclab.methods.recursive.health import RecursiveRules
from arclab.methods.recursive.model import DTYPES, RecursiveModel
from arclab.methods.recursive.training.checkpoint import TrainingProgress
from arclab.methods.recursive.training.parts import batch_parts
from arclab.methods.recursive.training.state import Training, averaged_weights, save_checkpoint, start_training
from arclab.methods.recursive.training.step import table_schedule, train_step
from arclab.methods.recursive.training.sums import StepSums
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.metrics.tables import TABLE_ROWS, Prediction
from arclab.metrics.wandb_run import start_wandb
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.console import progress_bar
from arclab.runs.folder import RunDir
from arclab.runs.loop import Loop
from arclab.runs.monitor import HealthMonitor
from arclab.runs.preempt import StopRequest
from arclab.runs.profile import StepProfiler
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals, ignore_stop_signals

log = logging.getLogger(__name__)
# Metrics of the scored tasks (registered names) and a few predictions for eval_predictions.
Score = Callable[[], tuple[dict[str, float], list[Prediction]]]
# Names that say whose number it is, beside those of the experiment guide, under which dashboards know them.
_CLEAR_NAMES = {"grad/decoder_norm": "grad/inner_norm", "train/decoder_lr": "train/lr"}


class RecursiveTrainer:
    """arclab.runs.loop.Trainer of TRM and ETRM. batches: what remains of the run, each with the cursors after it."""

    shown: Mapping[str, str] = {"exact": "train/exact_accuracy", "loss": "train/lm_loss", "steps": "train/steps"}
    finite = ("train/lm_loss", "grad/total_norm")
    divergence_remedy = "lower decoder.optim.lr and encoder.optim.lr, or set trainer.clip_norm=1.0"

    def __init__(
        self,
        config: ExperimentConfig,
        training: Training,
        folder: CheckpointFolder,
        batches: Iterator[tuple[Cursors, list[Batch]]],
        data: TrainingData,
        ranks: Ranks,
        score: Score | None,
    ) -> None:
        self._config, self._training, self._folder, self._batches = config, training, folder, batches
        self._data, self._ranks, self._score = data, ranks, score
        self._sums, self._stats = StepSums(ranks.device), dict[str, Tensor]()

    @property
    def step(self) -> int:
        return self._training.progress.step

    @property
    def rows_per_step(self) -> int:
        return self._config.trainer.num_rows

    @property
    def can_evaluate(self) -> bool:
        return self._score is not None

    def train_step(self, votes: list[Tensor]) -> None:
        cursors, batches = next(self._batches)
        batches = [batch.to(self._ranks.device) for batch in batches]
        self._stats = train_step(self._config, self._training, batches, self._ranks, self._sums, votes)
        self._training.progress.cursors = cursors

    def metrics(self) -> dict[str, float]:
        """train/* over the interval and all ranks, grad/* and encoder statistics of the last step."""
        metrics = self._sums.take(self._ranks)
        encoder_names = [name for name in self._stats if name.startswith("train/encoder")]
        encoder_values = [self._stats[name].clone() for name in encoder_names]
        self._ranks.sum_(encoder_values)
        metrics |= {n: v.item() / self._ranks.world_size for n, v in zip(encoder_names, encoder_values, strict=True)}
        metrics |= {name: value.item() for name, value in self._stats.items() if name.startswith("grad/")}
        metrics |= self._schedule()
        return metrics | {clear: metrics[guide] for clear, guide in _CLEAR_NAMES.items() if guide in metrics}

    def _schedule(self) -> dict[str, float]:
        metrics = {}
        for group in self._training.optimizer.param_groups:
            lr_name = "train/lr" if group["name"] == "decoder" else "train/encoder_lr"
            metrics[lr_name] = group["lr"]
            metrics[f"train/{group['name']}_frozen"] = float(group["frozen"])
        if self._training.model.puzzle_table is not None:
            metrics["train/encoder_lr"], is_frozen = table_schedule(self._config, self.step)
            metrics["train/encoder_frozen"] = float(is_frozen)
        return metrics

    def last_norms(self) -> dict[str, float]:
        return {"grad/total_norm": float(self._stats["grad/total_norm"])}

    def evaluate(self, logger: MetricLogger | None) -> dict[str, float]:
        """Score averaged weights; remember the best; show a few predictions of scored and of training rows."""
        assert self._score is not None
        training, progress = self._training, self._training.progress
        with averaged_weights(training.model, training.ema) as model, uncompiled():
            metrics, predictions = self._score()
            if logger is not None and training.carries:
                rows = training.carries[0].data
                logger.table(progress.step, "train_predictions", _training_predictions(model, rows, self._data))
        if logger is not None:
            logger.table(progress.step, "eval_predictions", predictions)
        value = metrics.get(self._config.selection_metric)  # absent if no answer of the scored tasks is known
        if value is not None and (progress.best_score is None or value >= progress.best_score):
            progress.best_score, progress.best_step = value, progress.step
        shown = ("all.exact_accuracy", "ARC/pass@1", "ARC/pass@2")
        log.info("step %d: %s", progress.step, ", ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics))
        return metrics

    def save(self, runtime_s: float) -> None:
        self._training.progress.runtime_s = runtime_s
        save_checkpoint(self._config, self._training, self._folder, self._ranks)


def train(
    config: ExperimentConfig, model: RecursiveModel, data: TrainingData, run: RunDir, ranks: Ranks,
    *, score: Score | None, stamps: list[str], signals: StopSignals | None = None,
) -> Training:  # fmt: skip
    """Train to config.trainer.steps, from wherever the run folder stands. ValueError if the loss stops being finite;
    UnhealthyRun, with a checkpoint saved, if trainer.stop_when_unhealthy is set and health says so. Ends early, with a
    checkpoint, on a signal or a file PREEMPT."""
    trainer = config.trainer
    _require_even_share(config, ranks)
    model.to(ranks.device)
    training, folder = start_training(config, model, batch_parts(config, data, ranks), run, ranks, stamps)
    if trainer.compile:
        compile_model(model)
    progress = training.progress
    loader = batch_loader(
        training.parts,
        progress.cursors,
        ranks.rows,
        num_batches=trainer.steps - progress.step,
        num_workers=trainer.num_workers,
        pin_memory=ranks.device.type == "cuda",
        worker_init=ignore_stop_signals,
    )
    logger = _open_logger(config, training.model, data, run, progress) if ranks.is_main else None
    monitor = _monitor(config, run, ranks, progress.step) if ranks.is_main else None
    recursive = RecursiveTrainer(config, training, folder, iter(loader), data, ranks, score)
    bar = progress_bar(total=trainer.steps, initial=progress.step, desc=config.name, unit="step", disable=not ranks.is_main)
    profiler = StepProfiler(
        run.path / "profile", ranks, is_on=trainer.profile, rows_per_rank=trainer.num_rows // ranks.world_size,
        dtype=DTYPES[trainer.precision],
    )  # fmt: skip
    with bar, logger or nullcontext(), profiler:
        Loop(
            trainer,
            recursive,
            run,
            ranks,
            logger=logger,
            monitor=monitor,
            stop=StopRequest(run, ranks, signals),
            profiler=profiler,
            bar=bar,
        ).run()
    return training


def _require_even_share(config: ExperimentConfig, ranks: Ranks) -> None:
    trainer = config.trainer
    if trainer.num_rows % (ranks.world_size * trainer.grad_accumulation):
        raise ValueError(
            f"trainer.batch_size={trainer.num_rows} must be divisible by ranks x trainer.grad_accumulation = "
            f"{ranks.world_size} x {trainer.grad_accumulation}; change one of them."
        )


def _monitor(config: ExperimentConfig, run: RunDir, ranks: Ranks, step: int) -> HealthMonitor:
    trainer, rows = config.trainer, read_rows(run.metrics)
    rows_per_rank = trainer.num_rows // (ranks.world_size * trainer.grad_accumulation)
    return HealthMonitor(RecursiveRules.of(config, rows_per_rank=rows_per_rank, rows=rows), trainer.health_every, rows, step)


def _open_logger(
    config: ExperimentConfig, model: RecursiveModel, data: TrainingData, run: RunDir, progress: TrainingProgress
) -> MetricLogger:
    """A log that begins with what the run starts from."""
    wandb_run = start_wandb(config, run.path, progress.run_id)
    # A run killed before its first checkpoint starts again with the row of step 0.
    kept_until = progress.step if progress.step > 0 else -1
    logger = MetricLogger(run.metrics, wandb_run, resume_step=kept_until, runtime_s=progress.runtime_s)
    if progress.step == 0:
        logger.write(0, {"num_train_tasks": float(len(data.space.tasks)), **_start(model)})
    return logger


def _start(model: RecursiveModel) -> dict[str, float]:
    start = model.num_parameters
    if model.adapter is not None:
        start["context_gain"] = model.adapter.gain.item()
    return start


def _training_predictions(model: RecursiveModel, rows: Batch, data: TrainingData) -> list[Prediction]:
    """What the model makes of the first rows in flight, as they were augmented; translated grids are cut out by their PAD."""
    rows = rows.rows(0, TABLE_ROWS)
    tokens_BS = model.predict(rows)[0].argmax(-1).to(torch.uint8)
    canvas = math.isqrt(rows.inputs_BS.shape[1])

    def grid(tokens_S: Tensor) -> Grid | None:
        return decode_anywhere(tokens_S.cpu().numpy(), canvas)

    predictions = []
    for b in range(len(rows)):
        given, truth = grid(rows.inputs_BS[b]), grid(rows.labels_BS[b])
        assert given is not None
        predictions.append(Prediction(data.space.tasks[int(rows.task_id_B[b])].id, b, given, truth, grid(tokens_BS[b])))
    return predictions
