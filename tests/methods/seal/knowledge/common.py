"""A small request for the inner loop, and items to ask about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arclab.config.seal_knowledge_schema import Style
from arclab.config.seal_schema import AdaptKind, InnerConfig
from arclab.methods.seal.knowledge.engine import Asked, Request

ADAPTATION = InnerConfig(
    kind=AdaptKind.lora, rank=8, alpha=16.0, target_modules=None, lr=1e-2, epochs=30, batch_size=4, warmup_steps=0,
    weight_decay=0.0, clip_norm=1.0,
)  # fmt: skip


def request(*sequences: str, id: str = "a", questions: tuple[Asked, ...] = (), **how: Any) -> Request:
    adaptation = replace(ADAPTATION, **how)
    return Request(id, sequences, questions or (Asked("Oro", "Who is the mayor?"),), adaptation, Style.completion, 8, 1)
