"""The schema of the group trainer of pretrain_memgen.py: supervised fine-tuning, or reinforcement learning, by its kind.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from arclab.config.rl_schema import AdvantageScale, GrpoLoss, LrSchedule, broken_groups, broken_temperature
from arclab.config.rules import at_least, sized
from arclab.config.run import DeviceChoice


@dataclass(kw_only=True, slots=True)
class MemGenTrainerConfig:
    """What every kind has. A step is computed in grad_accumulation pieces. The default of kind is for runs made before it was
    a key."""

    UNSAID_KIND: ClassVar[str] = "sft"

    kind: str = UNSAID_KIND
    steps: int
    grad_accumulation: int
    lr: float
    schedule: LrSchedule
    warmup_steps: int
    weight_decay: float
    clip_norm: Optional[float]
    eval_every: int
    checkpoint_every: int
    keep_last: int
    log_every: int
    health_every: int
    stop_when_unhealthy: bool
    num_threads: Optional[int]
    device: DeviceChoice

    def check(self, path: str) -> list[str]:
        problems = at_least(
            path, 1, steps=self.steps, grad_accumulation=self.grad_accumulation, checkpoint_every=self.checkpoint_every,
            keep_last=self.keep_last, log_every=self.log_every, health_every=self.health_every,
        )  # fmt: skip
        problems += sized(path, 1, num_threads=self.num_threads)
        problems += at_least(path, 0, eval_every=self.eval_every, warmup_steps=self.warmup_steps, lr=self.lr)
        return problems + at_least(path, 0, weight_decay=self.weight_decay)

    def _check_pieces(self, path: str, rows: int, named: str) -> list[str]:
        if self.grad_accumulation < 1 or rows % self.grad_accumulation == 0:
            return []
        return [f"{named} must be divisible by {path}.grad_accumulation={self.grad_accumulation}; change one of them."]


@dataclass(kw_only=True, slots=True)
class SftConfig(MemGenTrainerConfig):
    """Supervised fine-tuning. batch_size: rows of a step, of all ranks. shuffle_targets: the control in which every question is
    taught with the reply of another one."""

    batch_size: int
    shuffle_targets: bool
    deepspeed: Optional[str]

    def check(self, path: str) -> list[str]:
        problems = MemGenTrainerConfig.check(self, path) + sized(path, 1, batch_size=self.batch_size)
        return problems + self._check_pieces(path, self.batch_size, f"{path}.batch_size={self.batch_size}")


@dataclass(kw_only=True, slots=True)
class GrpoConfig(MemGenTrainerConfig):
    """Reinforcement learning with GRPO: group_size rollouts for each of prompts_per_step questions, of all ranks.
    updates_per_rollout: steps on the same rollouts. clip_low, clip_high: how far the probability of a token may move below and
    above what it was. beta: weight of the KL divergence from the reasoner without memory. mask_truncated: replies that were cut
    are no part of the loss. refills: how often a group of equal rewards is drawn anew, with another question. boxed_reward:
    added to the reward of a reply that has a boxed answer, right or wrong. shuffle_rewards: the control, in which rewards are
    dealt out at random. sft_steps: supervised steps of a stage before (0: none), with sft_batch_size rows and sft_lr."""

    prompts_per_step: int
    group_size: int
    updates_per_rollout: int
    loss: GrpoLoss
    scale_rewards: AdvantageScale
    clip_low: float
    clip_high: float
    beta: float
    temperature: float
    max_new_tokens: int
    mask_truncated: bool
    refills: int
    boxed_reward: float
    shuffle_rewards: bool
    sft_steps: int
    sft_batch_size: int
    sft_lr: float

    def check(self, path: str) -> list[str]:
        problems = MemGenTrainerConfig.check(self, path) + broken_groups(path, self)
        problems += at_least(path, 1, sft_batch_size=self.sft_batch_size)
        problems += at_least(path, 0, boxed_reward=self.boxed_reward, sft_steps=self.sft_steps, sft_lr=self.sft_lr)
        problems += self._check_temperature(path)
        rows = self.prompts_per_step * self.group_size
        return problems + self._check_pieces(path, rows, f"{path}.prompts_per_step x {path}.group_size = {rows}")

    def _check_temperature(self, path: str) -> list[str]:
        return broken_temperature(path, self.temperature)


@dataclass(kw_only=True, slots=True)
class TriggerGrpoConfig(GrpoConfig):
    """GRPO of the trigger: what is drawn and learned are its decisions; weaver and reasoner are frozen. temperature: of tokens;
    0 is greedy, and rollouts differ in their decisions alone. beta: weight of the KL divergence from the untrained trigger.
    sft_steps: of the weaver, before. sparsity_weight: of what is taken from the reward for each insertion beyond the rate at
    which good rollouts insert (see arclab.methods.memgen.sparsity)."""

    sparsity_weight: float

    def check(self, path: str) -> list[str]:
        return GrpoConfig.check(self, path) + at_least(path, 0, sparsity_weight=self.sparsity_weight)

    def _check_temperature(self, path: str) -> list[str]:
        return at_least(path, 0, temperature=self.temperature)


TRAINER_SCHEMAS: dict[str, type[MemGenTrainerConfig]] = {
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "trigger_grpo": TriggerGrpoConfig,
}
