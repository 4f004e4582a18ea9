"""What the schemas of every method that learns by reinforcement with groups of rollouts share: words, and rules of the keys.

Rules as in schema.py: check functions return broken rules as sentences.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from arclab.config.rules import at_least, within


class LrSchedule(Enum):
    """Names of transformers; all begin with a rise over warmup_steps."""

    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"


class GrpoLoss(Enum):
    """How the terms of tokens become one loss. dapo: mean over all tokens of a step. grpo: mean over rollouts of the mean over
    their tokens. dr_grpo: sum over tokens, by rollouts x max_new_tokens."""

    dapo = "dapo"
    grpo = "grpo"
    dr_grpo = "dr_grpo"


class AdvantageScale(Enum):
    """Advantages are divided by the standard deviation of rewards in their group, in the batch, or by none."""

    group = "group"
    batch = "batch"
    none = "none"


class Groups(Protocol):
    """Keys of a node that says how groups of rollouts are drawn, and what a step does with them."""

    prompts_per_step: int
    group_size: int
    updates_per_rollout: int
    max_new_tokens: int
    refills: int
    beta: float
    clip_low: float
    clip_high: float


def broken_groups(path: str, wished: Groups) -> list[str]:
    problems = at_least(
        path, 1, prompts_per_step=wished.prompts_per_step, updates_per_rollout=wished.updates_per_rollout,
        max_new_tokens=wished.max_new_tokens,
    )  # fmt: skip
    problems += at_least(path, 0, beta=wished.beta, clip_high=wished.clip_high)
    problems += within(path, 0, 10, refills=wished.refills) + within(path, 0.0, 1.0, clip_low=wished.clip_low)
    if wished.group_size < 2:
        problems.append(
            f"{path}.group_size={wished.group_size} must be at least 2, so that a rollout has others to be compared with."
        )
    return problems


def broken_temperature(path: str, temperature: float) -> list[str]:
    if temperature > 0:
        return []
    return [f"{path}.temperature={temperature} must be above 0: rollouts must differ; use 1.0."]
