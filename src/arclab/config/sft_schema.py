"""The schema of supervised fine-tuning in a stage of self_improve.py: what every method says of it.

Rules as in schema.py: values live in conf/, check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from arclab.config.memgen_schema import LoraConfig
from arclab.config.rules import at_least, sized


@dataclass(kw_only=True, slots=True)
class StageSftConfig:
    """steps, batch_size, lr, warmup_steps, weight_decay: of the training. log_every, checkpoint_every: in steps."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    weight_decay: float
    log_every: int
    checkpoint_every: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, steps=self.steps, log_every=self.log_every, checkpoint_every=self.checkpoint_every)
        problems += sized(path, 1, batch_size=self.batch_size)
        return problems + at_least(path, 0, lr=self.lr, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay)


@dataclass(kw_only=True, slots=True)
class AdapterSftConfig(StageSftConfig):
    """lora: an adapter is trained, and merged into the weights at the end; null: all weights are trained, in float32. (The
    default is for runs that were made before it was a key.)"""

    lora: Optional[LoraConfig] = None
