"""One optimiser step of the recursive model, for TRM and ETRM, on one process or on every rank of a torchrun job.

    stats = train_step(config, training, batches, ranks, sums, votes)

One optimiser step is one supervision step of every row: rows that halted take new examples, the others go on. The rows of a
batch come in parts (trainer.canvas): one, or one for each canvas, whose gradients are summed. Gradients are summed over ranks
(arclab.runs.reduction) and divided by the global batch, then measured, then clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch, Part
from arclab.methods.recursive.auxiliary import auxiliary_losses, auxiliary_weights
from arclab.methods.recursive.encoders import TaskContext
from arclab.methods.recursive.halting import draw_min_steps, most_steps
from arclab.methods.recursive.losses import RowLosses, row_losses
from arclab.methods.recursive.model import Carry, RecursiveModel, StepOutput
from arclab.methods.recursive.search.inner_steps import inner_steps_of
from arclab.methods.recursive.training.optim import AdamATan2, lr_factor, sign_sgd_rows
from arclab.methods.recursive.training.state import Training
from arclab.methods.recursive.training.sums import StepSums
from arclab.runs.profile import PART
from arclab.runs.ranks import Ranks


def schedule(config: ExperimentConfig, optimizer: AdamATan2, step: int) -> None:
    """Set every group's learning rate for optimiser step `step` (1 upwards); a frozen group is skipped."""
    factor = lr_factor(config.trainer, step)
    for group in optimizer.param_groups:
        group["lr"] = group["optim"].lr * factor
        init_until = config.decoder_init.frozen_until() if group["name"] == "decoder" else 0
        group["frozen"] = step <= max(group["optim"].freeze_steps, init_until)


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
    max_steps, move = most_steps(config.halting, step), inner_steps_of(config.encoder, model)
    puzzle_rows: list[tuple[Tensor, Tensor]] = []
    contexts: dict[Part, TaskContext] = {}
    for i, piece in enumerate(pieces):
        noise = noise_generator((config.seed, step, ranks.rank, i), ranks.device)
        training.carries[i], output = model(training.carries[i], piece.rows, piece.min_steps_B, noise, max_steps, move)
        if output.context is not None:
            contexts[piece.part] = output.context
        with record_function(PART + "losses"):
            losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
            total, auxiliary = _total_loss(config, model, training.carries[i], output, losses, noise, step)
        if training.reduction is not None and i == len(pieces) - 1:
            training.reduction.begin()
        with record_function(PART + "backward"):
            (total * (piece.part.weight / trainer.num_rows)).backward()
        with record_function(PART + "metrics"):
            auxiliary |= {} if move is None else move.losses
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
    config: ExperimentConfig,
    model: RecursiveModel,
    carry: Carry,
    output: StepOutput,
    losses: RowLosses,
    noise: torch.Generator,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over rows of all losses with their weights, and the auxiliary ones by name, each (B,)."""
    total = losses.total(config.halting.halt_loss_weight)
    if output.context is None or not isinstance(config.encoder, TaskEncoderConfig):
        return total, {}
    auxiliary = auxiliary_losses(config.encoder, model, carry.data, output.context, noise, carry.identities_BCC)
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
    if config.trainer.clip_norm > 0 and grads:  # none where the vectors of a table are all that learns
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
    lr, is_frozen = table_schedule(config, step)
    if not is_frozen:
        sign_sgd_rows(model.puzzle_table.weight, ids, grads, lr, config.encoder.optim.weight_decay)
    return {"grad/puzzle_norm": grads.norm()}


def table_schedule(config: ExperimentConfig, step: int) -> tuple[float, bool]:
    """(Learning rate, frozen?) of a puzzle table at optimiser step `step`."""
    optim = config.encoder.optim
    return optim.lr * lr_factor(config.trainer, step), step <= optim.freeze_steps
