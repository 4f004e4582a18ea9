"""When a row stops being refined: by its halt logit, by the step limit, and how training explores longer runs.

Rule (TRM): training halts a row at halt_max_steps or when its halt logit is positive; with probability
halt_exploration_prob the row must first reach m ~ U{2..halt_max_steps}. Evaluation always runs halt_max_steps.
For the first single_steps optimiser steps (ours; published: 0) every row halts after one step, so that each of them brings new
tasks. The draws depend on (seed, step) alone, so that resuming and sharding change nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from arclab.config.schema import HaltingConfig


def most_steps(config: HaltingConfig, step: int) -> int:
    """The step limit of a row in optimiser step `step` (1 upwards)."""
    return 1 if step <= config.single_steps else config.halt_max_steps


def draw_min_steps(config: HaltingConfig, num_rows: int, seed: int, step: int) -> Tensor:
    """(num_rows,) int64: the least number of steps of each row in this call; 0 where it does not explore."""
    rng = np.random.default_rng([seed, 3, step])
    explores = rng.random(num_rows) < config.halt_exploration_prob
    most = most_steps(config, step)
    minimum = rng.integers(2, most + 1, size=num_rows) if most > 1 else 0
    return torch.from_numpy(np.where(explores, minimum, 0).astype(np.int64))


def halts(max_steps: int, steps_B: Tensor, q_halt_B: Tensor, min_steps_B: Tensor) -> Tensor:
    """(B,) bool: which rows stop after having done steps_B steps, in training."""
    return ((steps_B >= max_steps) | (q_halt_B > 0)) & (steps_B >= min_steps_B)
