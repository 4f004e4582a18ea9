"""Auxiliary losses of encoders, per row, so that a weight means the same at any batch size.

kl               from the variational encoders themselves; its weight grows from 0 over kl.anneal_steps
contrastive      supervised-contrastive (arXiv 2004.11362) on pooled contexts, task ids as labels; the two views of a task are
                 two disjoint halves of a row's demonstrations, or different rows of one task in the batch
reconstruction   leave-one-out: one random demonstration is the query, the others are the demonstrations, one decoder step
A row that cannot take part (a single demonstration, no positive in the batch) has loss 0. All draws come from `noise`.
Shapes: B rows, K demonstration slots, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from arclab.config.encoder_schema import ContrastiveView, EncoderConfig, KlConfig, TaskEncoderConfig
from arclab.data.sampler import Batch
from arclab.models.encoders import Demonstrations, TaskContext
from arclab.models.losses import row_losses
from arclab.models.recursive import RecursiveModel

AUXILIARY = ("kl", "contrastive", "reconstruction")


def auxiliary_weights(config: EncoderConfig, step: int) -> dict[str, float]:
    """Weights of the auxiliary losses that are on at optimiser step `step` (1 upwards)."""
    if not isinstance(config, TaskEncoderConfig):
        return {}
    weights = {"contrastive": config.contrastive.weight, "reconstruction": config.reconstruction.weight}
    kl = getattr(config, "kl", None)
    if isinstance(kl, KlConfig):
        weights["kl"] = kl.weight * (min(1.0, step / kl.anneal_steps) if kl.anneal_steps > 0 else 1.0)
    return {name: weight for name, weight in weights.items() if weight > 0 or name == "kl"}


def auxiliary_losses(
    config: TaskEncoderConfig, model: RecursiveModel, data: Batch, context: TaskContext, noise: torch.Generator
) -> dict[str, Tensor]:
    """name -> (B,) for every loss that is on; `context` is the one the step has already computed for the rows of `data`."""
    losses = dict(context.aux_losses)
    if config.contrastive.weight > 0:
        losses["contrastive"] = contrastive_rows(config, model, data, context, noise)
    if config.reconstruction.weight > 0:
        losses["reconstruction"] = reconstruction_rows(model, data, noise)
    return losses


def _random_order(data: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rank of every slot in a random order of the row's demonstrations (B, K), number of them (B, 1)); empty slots last."""
    slots = torch.arange(data.demo_inputs_BKS.shape[1], device=data.num_demos_B.device)
    keys = torch.rand(len(data), len(slots), generator=noise, device=slots.device)
    keys = torch.where(slots[None] < data.num_demos_B[:, None], keys, 2.0)
    return keys.argsort(1).argsort(1), data.num_demos_B[:, None]


def contrastive_rows(
    config: TaskEncoderConfig, model: RecursiveModel, data: Batch, context: TaskContext, noise: torch.Generator
) -> Tensor:
    """(B,) supervised-contrastive loss of each row's anchors."""
    temperature = config.contrastive.temperature
    if config.contrastive.view is ContrastiveView.augmentations:
        loss_B, has_positive_B = supervised_contrastive(_pooled(context), data.task_id_B, temperature)
        return torch.where(has_positive_B, loss_B, 0.0)
    rank_BK, count_B1 = _random_order(data, noise)
    half_B1 = (count_B1 + 1) // 2
    first_BK = rank_BK < half_B1
    second_BK = torch.where(
        count_B1 > 1, (rank_BK >= half_B1) & (rank_BK < count_B1), first_BK
    )  # one demonstration: masked below
    assert model.encoder is not None
    pooled = [
        _pooled(model.encoder(Demonstrations.select(data, valid_BK), model.decoder.dtype, noise=noise))
        for valid_BK in (first_BK, second_BK)
    ]
    loss, has_positive = supervised_contrastive(torch.cat(pooled), data.task_id_B.repeat(2), temperature)
    per_row = torch.where(has_positive, loss, 0.0).view(2, -1).mean(0)
    return torch.where(data.num_demos_B > 1, per_row, 0.0)


def _pooled(context: TaskContext) -> Tensor:
    return F.normalize(context.summary_BTD.float().mean(1), dim=-1)


def supervised_contrastive(z_AD: Tensor, label_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """((A,) loss of each anchor, (A,) whether it has a positive): -mean over positives of log softmax over all others."""
    itself = torch.eye(len(z_AD), dtype=torch.bool, device=z_AD.device)
    logits = (z_AD @ z_AD.T / temperature).masked_fill(itself, -torch.inf)
    log_p = logits.log_softmax(1).masked_fill(itself, 0.0)
    positive = (label_A[:, None] == label_A[None]) & ~itself
    count = positive.sum(1)
    return -(log_p * positive).sum(1) / count.clamp(min=1), count > 0


def reconstruction_rows(model: RecursiveModel, data: Batch, noise: torch.Generator) -> Tensor:
    """(B,) cross-entropy of one held-out demonstration's output, predicted in one decoder step from the others."""
    rank_BK, count_B1 = _random_order(data, noise)
    several_B1 = count_B1 > 1
    held_out_B = rank_BK.argmin(1)
    rest_BK = (rank_BK < count_B1) & (~several_B1 | (rank_BK > 0))
    rows = torch.arange(len(data), device=held_out_B.device)
    question = replace(
        data, inputs_BS=data.demo_inputs_BKS[rows, held_out_B], labels_BS=data.demo_outputs_BKS[rows, held_out_B]
    )
    assert model.encoder is not None
    context = model.encoder(Demonstrations.select(data, rest_BK), model.decoder.dtype, noise=noise)
    logits_BSV, q_halt_B = model.first_step(question, context)
    return torch.where(several_B1[:, 0], row_losses(logits_BSV, q_halt_B, question.labels_BS).lm, 0.0)
