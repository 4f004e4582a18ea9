"""Auxiliary losses of encoders, per row, so that a weight means the same at any batch size.

kl               from the variational encoders themselves; its weight grows from 0 over kl.anneal_steps
contrastive      supervised-contrastive (arXiv 2004.11362) on pooled contexts, task ids as labels; the two views of a task are
                 two disjoint halves of a row's demonstrations, or the row and a random dihedral view and recolouring
                 of it; other rows of the task in the batch are positives too
reconstruction   leave-one-out: one random demonstration is the query, the others are the demonstrations, one decoder step
A row that cannot take part (a single demonstration where two are needed) has loss 0. All draws come from `noise`.
Shapes: B rows, K demonstration slots, D width.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from arclab.config.encoder_schema import ContrastiveView, EncoderConfig, KlConfig, TaskEncoderConfig
from arclab.data.augment import NUM_DIHEDRAL
from arclab.data.codec import FIRST_COLOR
from arclab.data.sampler import Batch
from arclab.data.tasks import NUM_COLORS
from arclab.methods.recursive.encoders import Demonstrations, TaskContext
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.token_views import dihedral_views, recolored

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
    config: TaskEncoderConfig, model: RecursiveModel, data: Batch, context: TaskContext, noise: torch.Generator,
    identities_BCC: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """name -> (B,) for every loss that is on; `context` is the one the step has already computed for the rows of `data`, whose
    colours have these identities (see Carry)."""
    losses = dict(context.aux_losses)
    if config.contrastive.weight > 0:
        losses["contrastive"] = contrastive_rows(config, model, data, context, noise, identities_BCC)
    if config.reconstruction.weight > 0:
        losses["reconstruction"] = reconstruction_rows(model, data, noise, identities_BCC)
    return losses


def _random_order(data: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rank of every slot in a random order of the row's demonstrations (B, K), number of them (B, 1)); empty slots last."""
    slots = torch.arange(data.demo_inputs_BKS.shape[1], device=data.num_demos_B.device)
    keys = torch.rand(len(data), len(slots), generator=noise, device=slots.device)
    keys = torch.where(slots[None] < data.num_demos_B[:, None], keys, 2.0)
    return keys.argsort(1).argsort(1), data.num_demos_B[:, None]


def contrastive_rows(
    config: TaskEncoderConfig, model: RecursiveModel, data: Batch, context: TaskContext, noise: torch.Generator,
    identities_BCC: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(B,) supervised-contrastive loss of each row's anchors."""
    assert model.encoder is not None
    if config.contrastive.view is ContrastiveView.augmentations:
        # An encoder with a state has refined it over some steps in `context`: both views start anew, or they would differ by
        # that.
        first = (
            context if context.state is None
            else model.encoder(Demonstrations.from_batch(data, identities_BCC), model.decoder.dtype, noise=noise)
        )  # fmt: skip
        second = model.encoder(augmented(data, noise, identities_BCC), model.decoder.dtype, noise=noise)
        takes_part_B = torch.ones_like(data.num_demos_B, dtype=torch.bool)
    else:
        first, second = (
            model.encoder(Demonstrations.select(data, valid_BK, identities_BCC), model.decoder.dtype, noise=noise)
            for valid_BK in _halves(data, noise)
        )
        takes_part_B = data.num_demos_B > 1
    z = torch.cat([_pooled(first), _pooled(second)])
    loss, has_positive = supervised_contrastive(z, data.task_id_B.repeat(2), config.contrastive.temperature)
    per_row_B = reduce(torch.where(has_positive, loss, 0.0), "(view b) -> b", "mean", view=2)
    return torch.where(takes_part_B, per_row_B, 0.0)


def _halves(data: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random disjoint halves of each row's demonstrations (B, K); both are the same one where there is only one."""
    rank_BK, count_B1 = _random_order(data, noise)
    half_B1 = (count_B1 + 1) // 2
    first_BK = rank_BK < half_B1
    return first_BK, torch.where(count_B1 > 1, (rank_BK >= half_B1) & (rank_BK < count_B1), first_BK)


def augmented(data: Batch, noise: torch.Generator, identities_BCC: Tensor | None = None) -> Demonstrations:
    """The rows' demonstrations under one random dihedral view and colour permutation a row, colour 0 kept.

    Views that would push a translated grid of the row off the canvas are not drawn; the row's own view may be.
    """
    demos = Demonstrations.from_batch(data, identities_BCC)
    num_rows, canvas = len(data), math.isqrt(data.inputs_BS.shape[1])
    grids_GNS = torch.stack([demos.inputs_NS, demos.outputs_NS])
    views_GNSV = torch.stack([dihedral_views(grids_NS, canvas) for grids_NS in grids_GNS])
    cells_GNV = (views_GNSV >= FIRST_COLOR).sum(2)
    fits_NV = (cells_GNV == cells_GNV[..., :1]).all(0)
    fits_BV = (demos.unpack(fits_NV) | ~demos.valid_BK[..., None]).all(1)
    keys_BV = torch.rand(num_rows, NUM_DIHEDRAL, generator=noise, device=fits_BV.device)
    view_B = keys_BV.masked_fill(~fits_BV, -1.0).argmax(1)
    nonzero_BC = torch.rand(num_rows, NUM_COLORS - 1, generator=noise, device=fits_BV.device).argsort(1) + 1
    colors_BC = torch.cat([torch.zeros_like(nonzero_BC[:, :1]), nonzero_BC], dim=1)
    row_N = demos.row_N
    index = view_B[row_N][None, :, None, None].expand(2, -1, views_GNSV.shape[2], 1)
    inputs_NS, outputs_NS = (recolored(g, colors_BC[row_N], canvas) for g in views_GNSV.gather(3, index)[..., 0])
    return replace(demos, inputs_NS=inputs_NS, outputs_NS=outputs_NS)


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


def reconstruction_rows(
    model: RecursiveModel, data: Batch, noise: torch.Generator, identities_BCC: Tensor | None = None
) -> Tensor:
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
    context = model.encoder(Demonstrations.select(data, rest_BK, identities_BCC), model.decoder.dtype, noise=noise)
    logits_BSV, q_halt_B = model.first_step(question, context, identities_BCC)
    return torch.where(several_B1[:, 0], row_losses(logits_BSV, q_halt_B, question.labels_BS).lm, 0.0)
