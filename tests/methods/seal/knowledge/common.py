"""A small request for the inner loop, and a tiny model from nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arclab.config.seal_knowledge_schema import Style
from arclab.config.seal_schema import AdaptKind, InnerConfig
from arclab.methods.seal.knowledge.engine import Asked, Request

SCRATCH = (
    "scratch={seed: 7, num_passages: 20, wrong_share: 0.5, width: 8, num_layers: 1, num_heads: 1, context: 64, "
    "vocab_size: 300, steps: 1, batch_size: 1, lr: 0.1, warmup_steps: 0}"
)
ADAPTATION = InnerConfig(
    kind=AdaptKind.lora, rank=8, alpha=16.0, target_modules=None, lr=1e-2, epochs=30, batch_size=4, warmup_steps=0,
    weight_decay=0.0, clip_norm=1.0,
)  # fmt: skip


def request(*sequences: str, id: str = "a", questions: tuple[Asked, ...] = (), **how: Any) -> Request:
    adaptation = replace(ADAPTATION, **how)
    return Request(id, sequences, questions or (Asked("Oro", "Who is the mayor?"),), adaptation, Style.completion, 8, 1)
