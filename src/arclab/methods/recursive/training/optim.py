"""Optimisers: those of the published TRM (AdamATan2 for the network, sign-SGD for the rows of a puzzle table), and Muon.

AdamATan2 replaces Adam's m / (sqrt(v) + eps) by atan2(m, sqrt(v)), which needs no epsilon and bounds every update by
lr * pi / 2. The rule is that of the package adam-atan2 0.0.3, including its bias corrections (see _update). Muon is for
comparison and for encoders that stand on a plateau for long (docs/LOG.md); it is not what the published systems used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from arclab.config.schema import TrainerConfig

_MOMENTUM = 0.95
_UPDATE_RMS = 0.2
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_MUON_EPS = 1e-7


class AdamATan2:
    """p *= 1 - lr * wd; p -= lr / (1 - beta1^t) * atan2(m, sqrt(v) / sqrt(1 - beta2^t)), m and v plain moving averages.

    params: parameters, or groups with settings of their own, as torch's optimisers take them. It is none of them: their base
    class imports the whole compiler, one to two seconds at the start of every process that trains.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        given = list(params)
        groups = given if all(isinstance(group, dict) for group in given) else [{"params": given}]
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.state[p] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        beta1, beta2 = group["betas"]
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for state in states:
            state["step"] += 1
        # One launch for all parameters wherever torch has it: many are small, and launches are what a small update costs on a
        # GPU.
        denominators = torch._foreach_sqrt(v)
        torch._foreach_mul_(denominators, [1 / math.sqrt(1 - beta2 ** s["step"]) for s in states])
        updates = [torch.atan2(m_p, d_p) for m_p, d_p in zip(m, denominators, strict=True)]
        for step in {s["step"] for s in states}:  # nearly always one: a parameter without a gradient has done fewer
            chosen = [i for i, s in enumerate(states) if s["step"] == step]
            rate = group["lr"] / (1 - beta1**step)
            torch._foreach_sub_([params[i] for i in chosen], [updates[i] for i in chosen], alpha=rate)


class Muon(AdamATan2):
    """The given matrices move along their orthogonalised momentum (Jordan 2024, kellerjordan.github.io/posts/muon), all else as
    AdamATan2.

    An update is lr * 0.2 * sqrt(longer side) times a matrix whose singular values are about 1, which gives its entries the root
    mean square of one of Adam's (arXiv 2502.16982): learning rates and weight decay mean the same for both.
    """

    def __init__(
        self, params: Iterable[Any], matrices: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, lr, betas, weight_decay)
        self._matrices = {id(matrix) for matrix in matrices}

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        others = [p for p in params if id(p) not in self._matrices]
        if others:
            super()._update(others, group)
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in params:
            if id(p) in self._matrices:
                by_shape.setdefault(p.shape, []).append(p)
        for matrices in by_shape.values():
            self._update_matrices(matrices, group)

    def _update_matrices(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape, orthogonalised together."""
        for p in matrices:
            if not self.state[p]:
                self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        grads = [p.grad for p in matrices if p.grad is not None]
        momenta = [self.state[p]["exp_avg"] for p in matrices]
        torch._foreach_lerp_(momenta, grads, 1 - _MOMENTUM)
        moves = orthogonalised(torch.stack(grads).lerp(torch.stack(momenta), _MOMENTUM))  # Nesterov's look ahead
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(matrices, list(moves), alpha=group["lr"] * _UPDATE_RMS * math.sqrt(max(matrices[0].shape)))


def orthogonalised(x_NRC: Tensor) -> Tensor:
    """(N, R, C) with the singular vectors of x and singular values between about 0.7 and 1.2, by five Newton-Schulz steps."""
    is_tall = x_NRC.shape[1] > x_NRC.shape[2]
    y = x_NRC.transpose(1, 2) if is_tall else x_NRC
    y = y / (torch.linalg.matrix_norm(y, keepdim=True) + _MUON_EPS)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        a, b, c = _NEWTON_SCHULZ
        gram = y @ y.transpose(1, 2)
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.transpose(1, 2) if is_tall else y


@torch.no_grad()
def sign_sgd_rows(table: Tensor, ids_B: Tensor, grads_BD: Tensor, lr: float, weight_decay: float) -> None:
    """In place, for the rows of the batch: p = p * (1 - lr * wd) - lr * sign(g), gradients of a repeated row summed first."""
    # Rows of one id are numbered alike by sorting; unique() would wait for the device, to learn how many ids there are.
    order_B = ids_B.argsort(stable=True)
    sorted_B = ids_B[order_B]
    is_new_B = torch.cat([torch.zeros_like(sorted_B[:1]), (sorted_B[1:] != sorted_B[:-1]).to(sorted_B.dtype)])
    place_B = torch.empty_like(ids_B).scatter_(0, order_B, is_new_B.cumsum(0))
    summed = torch.zeros(grads_BD.shape, dtype=table.dtype, device=table.device)
    summed.index_add_(0, place_B, grads_BD.to(table.dtype))
    table[ids_B] = table[ids_B] * (1 - lr * weight_decay) - lr * summed[place_B].sign()


def lr_factor(config: TrainerConfig, step: int) -> float:
    """Multiplier of every learning rate for optimiser step `step` (1 upwards): linear warm-up, then cosine to lr_min_ratio."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr_min_ratio + (1 - config.lr_min_ratio) * cosine
