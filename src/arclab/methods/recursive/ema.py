"""Exponential moving average of parameters, with a warm-up so that a short run is not an average with its random start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WARMUP_OFFSET = 10.0


class Ema:
    """shadow = decay * shadow + (1 - decay) * parameter; with warm-up decay is at most (1 + n) / (10 + n) at update n."""

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool) -> None:
        self.decay, self.warmup, self.num_updates = decay, warmup, 0
        self.shadow: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def current_decay(self) -> float:
        n = self.num_updates
        return min(self.decay, (1 + n) / (_WARMUP_OFFSET + n)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.num_updates += 1
        decay = self.current_decay()
        parameters = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [parameters[name] for name in self.shadow], 1.0 - decay)
