"""The schema of stage=grpo of self_improve.py method=program_edit: reinforcement, the curriculum, and how long a model thinks.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from arclab.config.memgen_schema import LoraConfig
from arclab.config.rl_schema import AdvantageScale, GrpoLoss, LrSchedule, broken_groups, broken_temperature
from arclab.config.rules import at_least
from arclab.config.schema import SplitName


class BestBy(Enum):
    """By what a checkpoint is the best one, on the held-out tasks: start programs put right, or what an edit adds."""

    solved_share = "solved_share"
    mean_delta = "mean_delta"


class CurriculumKind(Enum):
    """uniform: every task as often. adaptive: tasks that go leave, hard ones come more often. rounds: the easiest tasks first,
    the next ones once these go; inside a round as adaptive."""

    uniform = "uniform"
    adaptive = "adaptive"
    rounds = "rounds"


@dataclass(kw_only=True, slots=True)
class EditGrpoConfig:
    """GRPO: group_size edits of each of prompts_per_step start programs, of all ranks; the reward is what an edit adds. steps:
    0 leaves the stage out. updates_per_rollout: steps on the same edits. clip_low, clip_high: how far the probability of a
    token may move below and above what it was. beta: weight of the KL divergence from the model that the stage begins with.
    vllm_url: of a vLLM server that draws the edits (arclab.lm.training.served), so that ranks only train; null: they draw, too.
    mask_truncated: replies that were cut are no part of the loss. refills: how often a group of equal rewards is drawn anew,
    with another start program. shuffle_rewards: the control, in which rewards are dealt out at random. A step is computed in
    grad_accumulation pieces. Every eval_every steps, and before the first, start programs of eval_tasks tasks (null: all) of
    eval_split are edited eval_samples times: best_by says which checkpoint is kept as the best one, and becomes the model.
    lora: an adapter that is merged then; null: all weights are trained, in float32."""

    steps: int
    prompts_per_step: int
    group_size: int
    updates_per_rollout: int
    grad_accumulation: int
    lr: float
    schedule: LrSchedule
    warmup_steps: int
    weight_decay: float
    clip_norm: Optional[float]
    lora: Optional[LoraConfig] = None  # so that runs of before can be read
    loss: GrpoLoss
    scale_rewards: AdvantageScale
    clip_low: float
    clip_high: float
    beta: float
    temperature: float
    max_new_tokens: int
    vllm_url: Optional[str]
    mask_truncated: bool
    refills: int
    shuffle_rewards: bool
    eval_every: int
    eval_split: SplitName
    eval_tasks: Optional[int]
    eval_samples: int
    best_by: BestBy
    checkpoint_every: int
    keep_last: int
    log_every: int
    health_every: int
    stop_when_unhealthy: bool

    def check(self, path: str) -> list[str]:
        problems = broken_groups(path, self) + broken_temperature(path, self.temperature)
        problems += at_least(
            path, 1, grad_accumulation=self.grad_accumulation, eval_every=self.eval_every, eval_samples=self.eval_samples,
            checkpoint_every=self.checkpoint_every, keep_last=self.keep_last, log_every=self.log_every,
            health_every=self.health_every,
        )  # fmt: skip
        problems += at_least(path, 0, steps=self.steps, lr=self.lr, warmup_steps=self.warmup_steps)
        problems += at_least(path, 0, weight_decay=self.weight_decay)
        problems += [] if self.eval_tasks is None else at_least(path, 1, eval_tasks=self.eval_tasks)
        rows = self.prompts_per_step * self.group_size
        if self.grad_accumulation >= 1 and rows % self.grad_accumulation:
            problems.append(
                f"{path}.prompts_per_step x {path}.group_size = {rows} must be divisible by "
                f"{path}.grad_accumulation={self.grad_accumulation}; change one of them."
            )
        if self.eval_split is SplitName.train:
            problems.append(
                f"{path}.eval_split=train is what is trained on, and would keep what is learned by heart; use validation."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class EditCurriculumConfig:
    """Which tasks the groups are of. augment: hard tasks are also shown in other views and colours, and with generated pairs
    (RE-ARC) where there are any. rounds: of kind=rounds. start_from: a curriculum.json of an earlier run on the same tasks;
    null: that of the round before, if there is one."""

    kind: CurriculumKind
    augment: bool
    rounds: int
    start_from: Optional[str]

    def check(self, path: str) -> list[str]:
        return at_least(path, 1, rounds=self.rounds)


@dataclass(kw_only=True, slots=True)
class ThinkingConfig:
    """How many tokens the model thinks before each program. Where it closes its thinking before min_tokens, or has not
    reconsidered, "Wait" is put in, num_waits times at most; at max_tokens the closing tag is. max_new_tokens of a sampling is
    then that of the program alone."""

    min_tokens: int
    max_tokens: int
    num_waits: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, min_tokens=self.min_tokens, num_waits=self.num_waits)
        problems += at_least(path, 1, max_tokens=self.max_tokens)
        if self.min_tokens > self.max_tokens:
            problems.append(f"{path}.min_tokens={self.min_tokens} is above {path}.max_tokens={self.max_tokens}; lower it.")
        return problems
