"""The one training loop, for TRM and ETRM, on one process or on every rank of a torchrun job.

    result = train(config, model, data, run, ranks, score=..., stamps=...)

One optimiser step is one supervision step of every row: rows that halted take new examples, the others go on. The rows of a
batch come in parts (trainer.canvas): one, or one for each canvas, whose gradients are summed. Gradients are
summed over ranks (arclab.training.reduction) and divided by the global batch, then measured, then clipped. The same command continues from the newest
checkpoint; with trainer.save_carry the continued run is bit-identical to an uninterrupted one (same machine, CPU, fp32).
Told to end (arclab.training.preempt), all ranks save after the same step and train() returns early.
It does not choose tasks or score predictions: `score` is handed in and called with averaged weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function
from tqdm import tqdm

from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.schema import ExperimentConfig
from arclab.console import progress_bar
from arclab.data.codec import decode_anywhere
from arclab.data.sampler import Batch, Cursors, Part, TrainingData, batch_loader
from arclab.data.tasks import Grid
from arclab.interrupt import StopSignals
from arclab.metrics.health import Level
from arclab.metrics.logger import MetricLogger
from arclab.metrics.tables import TABLE_ROWS, Prediction
from arclab.metrics.wandb_run import start_wandb
from arclab.models.auxiliary import AUXILIARY, auxiliary_losses, auxiliary_weights
from arclab.models.compiled import compile_model, uncompiled
from arclab.models.encoders import TaskContext
from arclab.models.halting import draw_min_steps, most_steps
from arclab.models.losses import RowLosses, has_new_colors, row_losses
from arclab.models.recursive import PART, RecursiveModel, StepOutput
from arclab.ranks import Ranks
from arclab.rundir import RunDir, State
from arclab.runlock import keeper
from arclab.training.checkpoint import (
    CheckpointFolder,
    Progress,
)  # fmt: skip
from arclab.training.monitor import HealthMonitor, UnhealthyRun, is_due
from arclab.training.optim import AdamATan2, lr_factor, sign_sgd_rows
from arclab.training.parts import batch_parts
from arclab.training.preempt import StopRequest
from arclab.training.profile import StepProfiler
from arclab.training.state import Training, averaged_weights, save_checkpoint, start_training

log = logging.getLogger(__name__)
# Metrics of the scored tasks (registered names) and a few predictions for eval_predictions.
Score = Callable[[], tuple[dict[str, float], list[Prediction]]]
SELECTION_METRIC = "all.exact_accuracy"


def schedule(config: ExperimentConfig, optimizer: AdamATan2, step: int) -> None:
    """Set every group's learning rate for optimiser step `step` (1 upwards); a frozen group is skipped."""
    factor = lr_factor(config.trainer, step)
    for group in optimizer.param_groups:
        group["lr"] = group["optim"].lr * factor
        init_until = config.decoder_init.frozen_until() if group["name"] == "decoder" else 0
        group["frozen"] = step <= max(group["optim"].freeze_steps, init_until)


class StepSums:
    """Sums of train/* numerators since the last log, kept on the device: reading them is the only synchronisation."""

    NAMES = ("train/count", "train/new_colors_count", "train/new_colors_exact", "new_colors", "train/accuracy", "train/exact_accuracy", "train/q_halt_accuracy", "train/steps",
             "train/forced_halt_share", "train/lm_loss", "train/q_halt_loss", *(f"train/{name}_loss" for name in AUXILIARY),
             "counted", "rows")  # fmt: skip

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.auxiliary: Set[str] = set()

    def add(
        self, output: StepOutput, inputs_BS: Tensor, losses: RowLosses, auxiliary: dict[str, Tensor], weight: float = 1.0
    ) -> None:
        """weight: of a row in the loss. Small canvases get more rows than their share of the tasks, which count the less."""
        counted = output.halted_B & losses.has_labels
        new_colors_B = counted & has_new_colors(inputs_BS, output.labels_BS)
        # A row that halts against its halt logit was halted by the limit.
        forced_B = output.q_halt_B.detach() <= 0
        per_row = (losses.accuracy, losses.exact, losses.q_halt_correct, output.steps_B, forced_B)
        new_colors = [new_colors_B.sum(), (new_colors_B & losses.exact).sum(), new_colors_B.sum()]
        sums = [counted.sum(), *new_colors, *(torch.where(counted, x, 0).sum() for x in per_row)]
        sums += [losses.lm.detach().sum(), losses.q_halt.detach().sum()]
        sums += [auxiliary[name].detach().sum() if name in auxiliary else counted.new_zeros(()) for name in AUXILIARY]
        sums += [counted.sum(), torch.full((), len(counted), device=counted.device)]  # filled there: nothing to copy
        self.auxiliary = auxiliary.keys()
        stacked = torch.stack([s.double() for s in sums])
        stacked[2:] *= weight  # all but how many rows there were
        self.sums += stacked

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Metrics over all ranks, then start again. Shares are left out while no row has halted."""
        ranks.sum_([self.sums])
        values = dict(zip(self.NAMES, self.sums.tolist(), strict=True))
        self.sums.zero_()
        counted, rows = values.pop("counted"), values.pop("rows")
        values = {n: v for n, v in values.items() if n[6:-5] not in AUXILIARY or n[6:-5] in self.auxiliary}
        metrics = {"train/count": values.pop("train/count")}
        new_count, new_exact, new_rows = (
            values.pop(n) for n in ("train/new_colors_count", "train/new_colors_exact", "new_colors")
        )
        if new_rows > 0:
            metrics |= {"train/new_colors_count": new_count, "train/new_colors_exact": new_exact / new_rows}
        for name, value in values.items():
            if name.endswith("loss"):
                metrics[name] = value / rows
            elif counted > 0:
                metrics[name] = value / counted
        return metrics


def encoder_stats(contexts: Sequence[TaskContext]) -> dict[str, Tensor]:
    """The guide's encoder statistics of one batch (the last micro-batch of each of its parts, this rank's rows), as tensors."""
    if not contexts:
        return {}
    tokens_BTD = torch.cat([context.summary_BTD.detach().float() for context in contexts])
    kls = [context.kl_B for context in contexts if context.kl_B is not None]
    kl = {"train/encoder_kl": torch.cat(kls).mean()} if kls else {}
    # Divided by B - 1: the limits of health must not depend on how many rows a micro-batch has.
    deviations = (tokens_BTD - tokens_BTD.mean(0)).square().sum(0).mean() / max(1, len(tokens_BTD) - 1)
    return kl | {
        "train/encoder_cross_sample_var": deviations,
        "train/encoder_output_mean": tokens_BTD.mean(),
        "train/encoder_output_std": tokens_BTD.std(),
        "train/encoder_output_norm": tokens_BTD.norm(dim=-1).mean(),
        "train/encoder_token_std": tokens_BTD.std(dim=1).mean() if tokens_BTD.shape[1] > 1 else tokens_BTD.new_zeros(()),
    }


def noise_generator(key: tuple[int, ...], device: torch.device) -> torch.Generator:
    """The source of all noise of one micro-batch: a function of (seed, step, rank, micro-batch), so nothing has to be saved."""
    seed = np.random.SeedSequence([4, *key]).generate_state(2).astype(np.uint64)
    return torch.Generator(device).manual_seed(int(seed[0] << np.uint64(31) | seed[1] >> np.uint64(1)))


@dataclass(slots=True)
class _Piece:
    """A micro-batch: rows of one part on this rank, and how many supervision steps each must at least do."""

    part: Part
    rows: Batch
    min_steps_B: Tensor


def _micro_batches(
    config: ExperimentConfig, parts: Sequence[Part], batches: Sequence[Batch], ranks: Ranks, step: int
) -> list[_Piece]:
    """grad_accumulation pieces of each part. What a row draws depends on its number in the batch, not on ranks or pieces."""
    trainer, pieces = config.trainer, []
    min_steps_B = draw_min_steps(config.halting, trainer.num_rows, config.seed, step)
    for part, batch in zip(parts, batches, strict=True):
        first, end = (part.start + row for row in ranks.rows(part.num_rows))
        own_B = ranks.send(min_steps_B[first:end])
        size = len(batch) // trainer.grad_accumulation
        for i in range(trainer.grad_accumulation):
            rows = slice(i * size, (i + 1) * size)
            pieces.append(_Piece(part, batch.rows(rows.start, rows.stop), own_B[rows]))
    return pieces


def train_step(
    config: ExperimentConfig, training: Training, batches: Sequence[Batch], ranks: Ranks, sums: StepSums, votes: list[Tensor]
) -> dict[str, Tensor]:
    """One optimiser step on this rank's rows of each part; returns gradient norms and encoder statistics. votes are summed over
    ranks in place."""
    trainer, progress, model = config.trainer, training.progress, training.model
    step = progress.step + 1
    schedule(config, training.optimizer, step)
    pieces = _micro_batches(config, training.parts, batches, ranks, step)
    if training.carries is None:
        training.carries = [model.initial_carry(piece.rows) for piece in pieces]
    max_steps = most_steps(config.halting, step)
    puzzle_rows: list[tuple[Tensor, Tensor]] = []
    contexts: dict[Part, TaskContext] = {}
    for i, piece in enumerate(pieces):
        noise = noise_generator((config.seed, step, ranks.rank, i), ranks.device)
        training.carries[i], output = model(training.carries[i], piece.rows, piece.min_steps_B, noise, max_steps)
        if output.context is not None:
            contexts[piece.part] = output.context
        with record_function(PART + "losses"):
            losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
            total, auxiliary = _total_loss(config, model, training.carries[i].data, output, losses, noise, step)
        if training.reduction is not None and i == len(pieces) - 1:
            training.reduction.begin()
        with record_function(PART + "backward"):
            (total * (piece.part.weight / trainer.num_rows)).backward()
        with record_function(PART + "metrics"):
            sums.add(output, training.carries[i].data.inputs_BS, losses, auxiliary, piece.part.weight)
        if output.puzzle_rows_BD is not None:
            assert output.puzzle_rows_BD.grad is not None
            puzzle_rows.append((training.carries[i].data.puzzle_id_B, output.puzzle_rows_BD.grad))
    stats = encoder_stats(list(contexts.values()))
    with record_function(PART + "gradients and optimiser"):
        stats |= _apply_gradients(config, training, ranks, votes)
        if puzzle_rows:
            stats |= _update_table(config, model, puzzle_rows, ranks, step)
    with record_function(PART + "averages"):
        training.ema.update(model)
    progress.step = step
    return stats


def _total_loss(
    config: ExperimentConfig, model: RecursiveModel, rows: Batch, output: StepOutput, losses: RowLosses, noise: torch.Generator, step: int
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Sum over rows of all losses with their weights, and the auxiliary ones by name, each (B,)."""
    total = losses.total(config.halting.halt_loss_weight)
    if output.context is None or not isinstance(config.encoder, TaskEncoderConfig):
        return total, {}
    auxiliary = auxiliary_losses(config.encoder, model, rows, output.context, noise)
    weights = auxiliary_weights(config.encoder, step)
    return total + sum((weights[name] * rows_B.sum() for name, rows_B in auxiliary.items()), torch.zeros_like(total)), auxiliary


def _apply_gradients(config: ExperimentConfig, training: Training, ranks: Ranks, votes: list[Tensor]) -> dict[str, Tensor]:
    """Sum over ranks, measure, clip, step: in this order, so that norms mean the same on any number of ranks."""
    optimizer = training.optimizer
    grads = _grads(p for group in optimizer.param_groups for p in group["params"])
    if training.reduction is None:
        ranks.sum_([*grads, *votes])
    else:
        training.reduction.finish()
        ranks.sum_(votes)
    # The adapter apart from the encoder: its gain learns even where nothing flows back into the encoder.
    model = training.model
    parts = {"grad/inner_norm": model.decoder, "grad/encoder_norm": model.encoder, "grad/adapter_norm": model.adapter}
    norms = {name: _grad_norm(part.parameters(), ranks.device) for name, part in parts.items() if part is not None}
    # What stands still takes no part in the total: a frozen decoder must not shrink the encoder's gradient by its own.
    total = _grad_norm((p for group in optimizer.param_groups if not group["frozen"] for p in group["params"]), ranks.device)
    factor = torch.ones_like(total)
    if config.trainer.clip_norm > 0:
        factor = (config.trainer.clip_norm / (total + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, factor)
    for group in optimizer.param_groups:
        if group["frozen"]:
            for p in group["params"]:
                p.grad = None
    optimizer.step()
    optimizer.zero_grad()
    return {"grad/total_norm": total, "grad/clip_factor": factor, **norms}


def _grads(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _grad_norm(params: Iterable[Tensor], device: torch.device) -> Tensor:
    grads = _grads(params)
    return nn.utils.get_total_norm(grads) if grads else torch.zeros((), device=device)


def _update_table(
    config: ExperimentConfig, model: RecursiveModel, rows: list[tuple[Tensor, Tensor]], ranks: Ranks, step: int
) -> dict[str, Tensor]:
    """Sign-SGD on the puzzle rows of the global batch, the same on every rank."""
    assert model.puzzle_table is not None
    ids = ranks.concatenate(torch.cat([ids for ids, _ in rows]))
    grads = ranks.concatenate(torch.cat([grads for _, grads in rows]))
    lr, is_frozen = _table_schedule(config, step)
    if not is_frozen:
        sign_sgd_rows(model.puzzle_table.weight, ids, grads, lr, config.encoder.optim.weight_decay)
    return {"grad/puzzle_norm": grads.norm()}


def _table_schedule(config: ExperimentConfig, step: int) -> tuple[float, bool]:
    """(Learning rate, frozen?) of a puzzle table at optimiser step `step`."""
    optim = config.encoder.optim
    return optim.lr * lr_factor(config.trainer, step), step <= optim.freeze_steps


def train(
    config: ExperimentConfig, model: RecursiveModel, data: TrainingData, run: RunDir, ranks: Ranks,
    *, score: Score | None, stamps: list[str], signals: StopSignals | None = None,
) -> Training:  # fmt: skip
    """Train to config.trainer.steps, from wherever the run folder stands. ValueError if the loss stops being finite;
    UnhealthyRun, with a checkpoint saved, if trainer.stop_when_unhealthy is set and health says so. Ends early, with a checkpoint,
    on a signal or a file PREEMPT."""
    trainer = config.trainer
    if trainer.num_rows % (ranks.world_size * trainer.grad_accumulation):
        raise ValueError(
            f"trainer.batch_size={trainer.num_rows} must be divisible by ranks x trainer.grad_accumulation = "
            f"{ranks.world_size} x {trainer.grad_accumulation}; change one of them."
        )
    model.to(ranks.device)
    parts = batch_parts(config, data, ranks)
    training, folder = start_training(config, model, parts, run, ranks, stamps)
    if trainer.compile:
        compile_model(model)
    progress = training.progress
    loader = batch_loader(
        parts, progress.cursors, ranks.rows, num_batches=trainer.steps - progress.step, num_workers=trainer.num_workers,
        pin_memory=ranks.device.type == "cuda",
    )  # fmt: skip
    logger = _open_logger(config, training.model, data, run, progress) if ranks.is_main else None
    monitor = HealthMonitor(config, run, ranks, progress.step) if ranks.is_main else None
    stop, require_held = StopRequest(run, ranks, signals), keeper(run)
    bar = progress_bar(total=trainer.steps, initial=progress.step, desc=config.name, unit="step", disable=not ranks.is_main)
    try:
        with logger or _Nothing(), StepProfiler(config, run, ranks) as profiler:
            _loop(config, training, folder, loader, data, run, ranks, logger, monitor, score, stop, bar, profiler, require_held)
    finally:
        bar.close()
    return training


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _open_logger(
    config: ExperimentConfig, model: RecursiveModel, data: TrainingData, run: RunDir, progress: Progress
) -> MetricLogger:
    """A log that begins with what the run starts from."""
    wandb_run = start_wandb(config, run.path, progress.run_id)
    # A run killed before its first checkpoint starts again with the row of step 0.
    kept_until = progress.step if progress.step > 0 else -1
    logger = MetricLogger(run.metrics, wandb_run, resume_step=kept_until, runtime_s=progress.runtime_s)
    if progress.step == 0:
        logger.write(0, {"num_train_tasks": float(len(data.members_M)), **_start(model)})
    return logger


def _loop(
    config: ExperimentConfig, training: Training, folder: CheckpointFolder,
    loader: torch.utils.data.DataLoader[tuple[Cursors, list[Batch]]], data: TrainingData, run: RunDir, ranks: Ranks,
    logger: MetricLogger | None, monitor: HealthMonitor | None, score: Score | None, stop: StopRequest, bar: tqdm,  # pyright: ignore[reportMissingTypeArgument]
    profiler: StepProfiler, require_held: Callable[[], None],
) -> None:  # fmt: skip
    trainer, progress = config.trainer, training.progress
    sums = StepSums(ranks.device)
    if logger is not None:
        run.write_status(State.running, progress.step)
    last_log_step, last_log_time = progress.step, time.monotonic()
    for cursors, batches in loader:
        votes = stop.vote(progress.step + 1)
        stats = train_step(config, training, [batch.to(ranks.device) for batch in batches], ranks, sums, votes)
        profiler.step()
        progress.cursors = cursors
        step, is_last = progress.step, progress.step == trainer.steps
        bar.update()
        row: dict[str, float] = {}
        if step % trainer.log_every == 0 or is_last or is_due(config, step):
            elapsed = time.monotonic() - last_log_time
            row = _step_metrics(config, training, sums, stats, ranks)
            row["timing/train_samples_per_s"] = (step - last_log_step) * trainer.num_rows / max(elapsed, 1e-9)
            last_log_step, last_log_time = step, time.monotonic()
            shown = {"exact": "train/exact_accuracy", "loss": "train/lm_loss", "steps": "train/steps"}
            bar.set_postfix({k: f"{row[n]:.3f}" for k, n in shown.items() if n in row}, refresh=False)
        is_eval = score is not None and trainer.eval_every > 0 and (step % trainer.eval_every == 0 or is_last)
        if is_eval:
            assert score is not None
            row |= _evaluate(training, score, data, logger)
            last_log_step, last_log_time = step, time.monotonic()
        if logger is not None and monitor is not None and row:
            require_held()
            _log_row(row, step, logger, monitor, run)
        _require_finite(row, step)
        unhealthy, is_told = _stop_reason(config, monitor, step, ranks), stop.is_agreed(votes)
        if step % trainer.checkpoint_every == 0 or is_last or is_eval or unhealthy or is_told:
            _require_finite(
                {"grad/total_norm": float(stats["grad/total_norm"])}, step
            )  # good checkpoints must outlive a bad step
            if logger is not None:
                if not run.config.is_file():
                    raise ValueError(
                        f"the run folder {run.path} was moved or emptied while the run trains; put it back and give the command again."
                    )
                require_held()
                progress.runtime_s = logger.runtime_s
            save_checkpoint(config, training, folder, ranks)
            if monitor is not None:
                run.write_status(State.running, step, monitor.message)
        if unhealthy:
            raise UnhealthyRun(unhealthy)
        if is_told:
            break


def _log_row(row: dict[str, float], step: int, logger: MetricLogger, monitor: HealthMonitor, run: RunDir) -> None:
    """The row with the verdict of a health check, which also goes to status.json and, if it is bad news, to W&B."""
    verdict = monitor.observe(row, step)
    if verdict is None:
        logger.write(step, row)
        return
    logger.write(step, row, {"health": verdict.kind.value, "health_level": verdict.level.value, "health_note": str(verdict)})
    if monitor.is_news(verdict):
        logger.alert(
            f"{run.path.parent.name}/{run.path.name}: {verdict.kind.value}", monitor.message, is_bad=verdict.level is Level.bad
        )
    run.write_status(State.running, step, monitor.message)


def _stop_reason(config: ExperimentConfig, monitor: HealthMonitor | None, step: int, ranks: Ranks) -> str | None:
    """Rank 0 decides and every rank stops; nobody talks unless the run may be stopped and health is due."""
    if not config.trainer.stop_when_unhealthy or not is_due(config, step):
        return None
    return ranks.gather_objects(monitor.stop if monitor is not None else None)[0]


def _start(model: RecursiveModel) -> dict[str, float]:
    start = {"num_params": float(sum(p.numel() for p in model.parameters()))}
    if model.puzzle_table is not None:
        start["num_puzzle_params"] = float(model.puzzle_table.weight.numel())
    if model.adapter is not None:
        start["context_gain"] = model.adapter.gain.item()
    return start


def _step_metrics(
    config: ExperimentConfig, training: Training, sums: StepSums, stats: dict[str, Tensor], ranks: Ranks
) -> dict[str, float]:
    """train/* over the interval and all ranks, grad/* and encoder statistics of the last step."""
    metrics = sums.take(ranks)
    encoder_names = [name for name in stats if name.startswith("train/encoder")]
    encoder_values = [stats[name].clone() for name in encoder_names]
    ranks.sum_(encoder_values)
    metrics |= {n: v.item() / ranks.world_size for n, v in zip(encoder_names, encoder_values, strict=True)}
    metrics |= {name: value.item() for name, value in stats.items() if name.startswith("grad/")}
    for group in training.optimizer.param_groups:
        lr_name = "train/lr" if group["name"] == "decoder" else "train/encoder_lr"
        metrics[lr_name] = group["lr"]
        metrics[f"train/{group['name']}_frozen"] = float(group["frozen"])
    if training.model.puzzle_table is not None:
        metrics["train/encoder_lr"], is_frozen = _table_schedule(config, training.progress.step)
        metrics["train/encoder_frozen"] = float(is_frozen)
    return metrics


def _require_finite(metrics: dict[str, float], step: int) -> None:
    bad = [name for name in ("train/lm_loss", "grad/total_norm") if not math.isfinite(metrics.get(name, 0.0))]
    if bad:
        raise ValueError(
            f"training diverged: {bad[0]} is {metrics[bad[0]]} at step {step}; lower decoder.optim.lr and encoder.optim.lr, or "
            "set trainer.clip_norm=1.0, and start a run with another name."
        )


def _evaluate(training: Training, score: Score, data: TrainingData, logger: MetricLogger | None) -> dict[str, float]:
    """Score averaged weights; remember the best; show a few predictions of scored and of training rows."""
    progress = training.progress
    with averaged_weights(training.model, training.ema) as model, uncompiled():
        metrics, predictions = score()
        if logger is not None and training.carries:
            logger.table(progress.step, "train_predictions", _training_predictions(model, training.carries[0].data, data))
    if logger is not None:
        logger.table(progress.step, "eval_predictions", predictions)
    value = metrics.get(SELECTION_METRIC)  # absent if no answer of the scored tasks is known
    if value is not None and (progress.best_score is None or value >= progress.best_score):
        progress.best_score, progress.best_step = value, progress.step
    shown = (SELECTION_METRIC, "ARC/pass@1", "ARC/pass@2")
    log.info("step %d: %s", progress.step, ", ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics))
    return metrics


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
