"""Optimiser steps on the demonstrations of some tasks, with the losses and the optimiser of the run.

    figures = train(model, config, wanted, rows, seed=0, first_step=1000, device=device)      # {"adapt/loss_before": ..., ...}

A step is arclab.methods.recursive.training.step.train_step: rows stay in flight until they halt (with the exploration of the
run), auxiliary losses have the weights that they had at the end of its training, gradients are clipped as in the run. Other
than there, rates are constant, nothing is frozen but what the adaptation leaves alone, and the contrastive loss, which needs
other tasks to compare with, is left out. So are inner steps: the adapted model answers from contexts that are not moved.
Weights are not averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from arclab.config.adaptation_schema import (
    LowRankConfig,
    StagedAdaptationConfig,
    WeightAdaptationConfig,
    WeightParts,
    WeightsConfig,
)
from arclab.config.encoder_schema import PuzzleTableConfig, TaskEncoderConfig
from arclab.config.schema import CanvasRule, DecoderInitConfig, ExperimentConfig, InitKind
from arclab.data.sampler import Batch, Part, TrainingData
from arclab.methods.recursive.adaptation.low_rank import low_rank
from arclab.methods.recursive.adaptation.rows import DemonstrationRows
from arclab.methods.recursive.cost import ModelSize, Placement, training_cost
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.training.checkpoint import TrainingProgress
from arclab.methods.recursive.training.state import Training, build_optimizer
from arclab.methods.recursive.training.step import noise_generator, train_step
from arclab.methods.recursive.training.sums import StepSums
from arclab.runs.cost import Cost
from arclab.runs.ranks import Ranks

FIGURES = ("adapt/loss_before", "adapt/loss_after", "adapt/shared", "adapt/seconds")


def train(
    model: RecursiveModel, config: ExperimentConfig, wanted: WeightAdaptationConfig, rows: DemonstrationRows, *,
    seed: int, first_step: int, device: torch.device, before_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """Change the model, on its device. config: of the run; seed: of noise and exploration; first_step: how far the run was
    trained; before_step: may end it by what it raises, which leaves the model half trained. Returns the FIGURES."""
    start, originals = time.monotonic(), rows.originals().to(device)
    before = question_loss(model, originals, wanted.rows_per_step, before_step)
    trained = training_config(config, wanted, seed)
    if wanted.steps == 0:
        pass  # not even W + 0, which turns a -0.0 round
    elif isinstance(wanted, LowRankConfig):
        with low_rank(_parts(model, wanted.parts), wanted.rank, noise_generator((seed, first_step), device)) as parameters:
            _steps(trained, model, rows, first_step, device, [(wanted.steps, parameters)], before_step)
    else:
        _steps(trained, model, rows, first_step, device, _phases(model, wanted), before_step)
    after = question_loss(model, originals, wanted.rows_per_step, before_step)
    return dict(zip(FIGURES, (before, after, rows.shared_share, time.monotonic() - start), strict=True))


def training_config(config: ExperimentConfig, wanted: WeightAdaptationConfig, seed: int) -> ExperimentConfig:
    """The settings of the run with those of the adaptation in their place."""
    trainer = replace(
        config.trainer, batch_size=wanted.rows_per_step, grad_accumulation=1, warmup_steps=0, lr_min_ratio=1.0, ema_decay=0.0,
        ema_warmup=False,
    )  # fmt: skip
    decoder, encoder = replace(config.decoder), replace(config.encoder)
    decoder.optim = replace(decoder.optim, freeze_steps=0, lr=_given(wanted.weights_lr, decoder.optim.lr))
    is_table = isinstance(encoder, PuzzleTableConfig)
    rate = wanted.table_lr if is_table else wanted.weights_lr
    encoder.optim = replace(encoder.optim, freeze_steps=0, lr=_given(rate, encoder.optim.lr))
    if isinstance(encoder, TaskEncoderConfig):
        encoder.contrastive = replace(encoder.contrastive, weight=0.0)
        encoder.inner_steps = 0
    return replace(
        config, seed=seed, trainer=trainer, decoder=decoder, encoder=encoder, halting=replace(config.halting, single_steps=0),
        decoder_init=DecoderInitConfig(kind=InitKind.scratch, path=None, freeze_steps=0),
    )  # fmt: skip


def with_adaptation(
    cost: Cost, config: ExperimentConfig, wanted: WeightAdaptationConfig, size: ModelSize, data: TrainingData, place: Placement
) -> Cost:
    """The cost of an evaluation with that of one optimiser step of the adaptation."""
    trained = training_config(config, wanted, config.seed)
    trained = replace(trained, trainer=replace(trained.trainer, canvas=CanvasRule.full))
    step = training_cost(trained, size, data, (), replace(place, num_ranks=1))
    memory = max(cost.memory_bytes, step.memory_bytes)
    return replace(
        cost, memory_bytes=memory, step_flops=step.step_flops, step_traffic=step.step_traffic, step_kernels=step.step_kernels
    )


def steps_of_rank(wanted: WeightAdaptationConfig, num_tasks: int, num_ranks: int) -> int:
    """Optimiser steps of the rank that has most of them."""
    return wanted.steps * (1 if wanted.joint else math.ceil(num_tasks / num_ranks))


def _given(wanted: float | None, of_the_run: float) -> float:
    return of_the_run if wanted is None else wanted


def _parts(model: RecursiveModel, parts: WeightParts) -> list[nn.Module]:
    encoder = [part for part in (model.encoder, model.adapter) if part is not None]
    return {
        WeightParts.all: [model.decoder, *encoder], WeightParts.decoder: [model.decoder], WeightParts.encoder: encoder,
    }[parts]  # fmt: skip


def _phases(model: RecursiveModel, wanted: WeightAdaptationConfig) -> list[tuple[int, list[nn.Parameter]]]:
    """(steps, the parameters that are trained). The rows of a puzzle table are trained in each."""
    if isinstance(wanted, StagedAdaptationConfig):
        alone = round(wanted.share * wanted.steps)
        return [(alone, []), (wanted.steps - alone, list(model.parameters()))]
    parts = _parts(model, wanted.parts) if isinstance(wanted, WeightsConfig) else []
    return [(wanted.steps, [p for part in parts for p in part.parameters()])]


def _steps(
    config: ExperimentConfig, model: RecursiveModel, rows: DemonstrationRows, first_step: int, device: torch.device,
    phases: Sequence[tuple[int, list[nn.Parameter]]], before_step: Callable[[], None],
) -> None:  # fmt: skip
    alone, num_rows = Ranks(0, 1, device), config.trainer.num_rows
    progress = TrainingProgress(first_step, (), 0, 0.0, "", None, [], None, None)
    ema = Ema(model, 0.0, warmup=False)
    training = Training([Part(rows.data, 0, num_rows, 1.0)], model, build_optimizer(config, model), ema, None, progress)
    sums = StepSums(device)
    for num_steps, parameters in phases:
        with _only_training(model, parameters):
            for _ in range(num_steps):
                before_step()
                train_step(config, training, [rows.next(num_rows).to(device)], alone, sums, [])


@contextmanager
def _only_training(model: RecursiveModel, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters alone: what stands still costs nothing, and takes no part in the norm of clipping."""
    needed = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in needed:
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, is_needed in needed.items():
            parameter.requires_grad_(is_needed)


def question_loss(
    model: RecursiveModel, rows: Batch, num_rows: int, before_part: Callable[[], None] = lambda: None
) -> float:  # fmt: skip
    """Mean cross-entropy of a cell after all supervision steps; num_rows at once. before_part: may end it."""
    total = 0.0
    for start in range(0, len(rows), num_rows):
        before_part()
        part = rows.rows(start, start + num_rows)
        total += float(_answer_loss(model, part).double().sum())
    return total / len(rows)


def _answer_loss(model: RecursiveModel, rows: Batch) -> Tensor:
    logits_BSV, q_halt_B = model.predict(rows)
    return row_losses(logits_BSV, q_halt_B, rows.labels_BS).lm
