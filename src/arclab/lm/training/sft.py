"""Supervised fine-tuning with trl, for whatever trains: loss on the answer's tokens, and the life of a run.

    step = sft(
        model, rows, settings, where, pad_id=0, weights=weights, evaluate=None, record={}, tokenizer=tokenizer,
        divergence_remedy="lower trainer.lr",
    )

The model is one of transformers, or anything that trl's SFTTrainer takes; what wants a gradient is trained. rows hold
input_ids and labels (IGNORED where no loss is), and may hold `plan`; they are padded on the right. The loss is the mean over
all supervised tokens of a step, whatever the number of ranks and of pieces that a step is computed in. A row may hold
`row_weight`, [w]: then the terms of its tokens count w times, and all rows of the training must hold one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from arclab.config.run import Cadence, DeviceChoice
from arclab.lm.training.life import Evaluate, LivesInRun, RunLife, Weights
from arclab.lm.training.rows import Row, collate
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.console import progress_bar
from arclab.runs.folder import RunDir
from arclab.runs.monitor import HealthMonitor
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks

ROW_WEIGHT = "row_weight"
_FIELDS = {field.name for field in fields(SFTConfig)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """Of every training with trl. A step is computed in grad_accumulation pieces. schedule: of transformers
    (constant_with_warmup, cosine, linear). clip_norm: None does not clip. deepspeed: a configuration file of DeepSpeed. key:
    the node of the configuration that these come from, for messages."""

    grad_accumulation: int
    lr: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    clip_norm: float | None
    seed: int
    deepspeed: str | None = None
    key: str = "trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings(StepSettings):
    """batch_size: rows of all ranks in a step."""

    batch_size: int


@dataclass(slots=True)
class StageCadence:
    """Of a training that is no run of its own: neither scored nor judged."""

    steps: int
    num_threads: int | None
    device: DeviceChoice
    log_every: int
    checkpoint_every: int
    eval_every: int = 0
    health_every: int = 10**9
    stop_when_unhealthy: bool = False


@dataclass(frozen=True, slots=True)
class Where:
    """The run that a training belongs to. selection_metric: the share by which a checkpoint is the best one, and kept; None:
    none is."""

    cadence: Cadence
    run: RunDir
    ranks: Ranks
    stop: StopRequest
    logger: MetricLogger | None
    monitor: HealthMonitor | None
    title: str
    keep_last: int
    selection_metric: str | None = None


class _Sft(LivesInRun, SFTTrainer):
    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        """The trainer's own loss is the sum of -log_probs by the number of supervised tokens; weights go into the former."""
        if ROW_WEIGHT not in inputs:
            return super().compute_loss(model, inputs, *given, **named)
        weights_B1 = inputs.pop(ROW_WEIGHT)[:, :1]

        def weighted(**asked: Any) -> Any:
            output = model(**asked)
            output.log_probs = output.log_probs * weights_B1
            return output

        called: Any = weighted  # the trainer only calls it
        return super().compute_loss(called, inputs, *given, **named)


def advantage_weights(gains: Sequence[float], beta: float, most: float) -> list[float]:
    """exp(gain / beta), at most `most`, divided by their mean, so that the size of a step does not depend on beta."""
    raw = [min(most, math.exp(min(gain / beta, 700.0))) for gain in gains]
    return [weight * len(raw) / sum(raw) for weight in raw]


def sft(
    model: Any, rows: Sequence[Row], settings: SftSettings, where: Where, *, pad_id: int, weights: Weights,
    evaluate: Evaluate | None, record: Mapping[str, Any], tokenizer: Any, divergence_remedy: str,
) -> int:  # fmt: skip
    """Train from wherever the run's folder stands, to cadence.steps or to where it is told to end; returns that step.
    ValueError: see LivesInRun.go_on, and a batch that cannot be split."""
    ranks, cadence = where.ranks, where.cadence
    per_piece, left = divmod(settings.batch_size, ranks.world_size * settings.grad_accumulation)
    if left or not per_piece:
        raise ValueError(
            f"{settings.key}.batch_size={settings.batch_size} must be divisible by ranks x {settings.key}.grad_accumulation = "
            f"{ranks.world_size} x {settings.grad_accumulation}; change one of them."
        )
    _require_deepspeed(settings)
    folder = CheckpointFolder(where.run.checkpoints, where.keep_last)
    done = folder.steps()[-1] if folder.steps() else 0
    with progress_bar(total=cadence.steps, initial=done, desc=where.title, unit="step", disable=not ranks.is_main) as bar:
        life = RunLife(
            cadence, where.run, ranks, logger=where.logger, monitor=where.monitor, stop=where.stop, bar=bar,
            evaluate=evaluate, rows_per_step=settings.batch_size, divergence_remedy=divergence_remedy,
        )  # fmt: skip
        trainer = _Sft(
            model=model,
            args=_arguments(settings, where, per_piece),
            train_dataset=Dataset.from_list(list(rows)),
            data_collator=lambda batch: collate(batch, pad_id),
            processing_class=tokenizer,
        )
        return trainer.live(folder, weights, ranks, life, record, where.selection_metric).go_on()


def _require_deepspeed(settings: SftSettings) -> None:
    """ValueError: its file or its package is not there."""
    if settings.deepspeed is None:
        return
    if not Path(settings.deepspeed).is_file():
        raise ValueError(
            f"trainer.deepspeed={settings.deepspeed} is not a file; give a configuration of DeepSpeed as JSON, or null."
        )
    if find_spec("deepspeed") is None:
        raise ValueError(
            f"trainer.deepspeed={settings.deepspeed} needs the package deepspeed: pip install deepspeed, or set "
            "trainer.deepspeed=null."
        )


def _arguments(settings: SftSettings, where: Where, per_piece: int) -> SFTConfig:
    return SFTConfig(
        **step_arguments(settings, where, per_piece),
        packing=False,
        padding_free=False,
        max_length=None,
        loss_type="nll",
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def step_arguments(settings: StepSettings, where: Where, per_piece: int) -> dict[str, Any]:
    """Arguments of every trainer of trl. per_piece: rows of one rank at a time. trl's and transformers' defaults change between
    versions: what matters is written out."""
    renamed = "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"
    return {
        renamed: False,
        "output_dir": str(where.run.checkpoints),
        "max_steps": where.cadence.steps,
        "per_device_train_batch_size": per_piece,
        "gradient_accumulation_steps": settings.grad_accumulation,
        "learning_rate": settings.lr,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip_norm or 0.0,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "optim": "adamw_torch",
        "bf16": False,
        "fp16": False,
        "deepspeed": settings.deepspeed,
        "use_cpu": where.ranks.device.type == "cpu",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        # Every trained weight gets a gradient in every step; a search for those that do not costs time.
        "ddp_find_unused_parameters": False,
    }
