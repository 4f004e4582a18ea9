"""trainer=grpo and trigger_grpo of pretrain_memgen.py: rollouts with memory, their rewards, and the supervised stage before.

    drawer = new_drawer(config, model, language, environment, examples, ranks)      # for arclab.lm.training.grpo
    is_there = taught_before(config, ...)                                           # trainer.sft_steps, in run/weaver_sft

A rollout brings its plan: after which tokens memory was inserted. The forward pass inserts it there, whatever rule the
generation followed, and turn by turn where there are several. The reward is what the environment says is right; its other parts
are logged. If trainer.boxed_reward is above 0, a boxed answer is paid for, right or wrong.

Of trainer=trigger_grpo the policy is not the tokens but the trigger's decisions (decision_policy), which are drawn in rollouts.
Its reward has one more part, `sparsity` (sparsity.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from arclab.config.memgen_schema import PretrainMemGenConfig
from arclab.config.memgen_trainer_schema import GrpoConfig, TriggerGrpoConfig
from arclab.lm.language_model import Sampling
from arclab.lm.training.grpo import GrpoSettings
from arclab.lm.training.rollouts import Drawer, Reward, Rollout, RolloutSettings, Told
from arclab.lm.training.sft import SftSettings, StageCadence, Where, sft
from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT
from arclab.methods.memgen.interaction import Played, Player, require_room_to_play
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.saved import MemoryWeights, load_weights
from arclab.methods.memgen.setting import Language, insertion_rule, training_rows
from arclab.methods.memgen.sparsity import ACTION, insert_share, sparsity
from arclab.methods.memgen.trigger import Trigger, new_trigger, trained_trigger
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.text.environments import RIGHT, Environment, score_all
from arclab.text.examples import TextExample

log = logging.getLogger(__name__)
_STAGE = "weaver_sft"


def new_drawer(
    config: PretrainMemGenConfig, model: MemGenModel, language: Language, environment: Environment,
    examples: Sequence[TextExample], ranks: Ranks, told: Told | None = None,
) -> Drawer:  # fmt: skip
    """told: see Drawer. ValueError: a question that leaves no room for trainer.max_new_tokens."""
    trainer, weaver = config.trainer, config.memgen.weaver
    assert isinstance(trainer, GrpoConfig)
    require_room_to_play(language, environment, examples, weaver, trainer.max_new_tokens, "trainer.max_new_tokens")
    is_trigger = isinstance(trainer, TriggerGrpoConfig)
    rule = insertion_rule(language, weaver, _trigger(config, model))
    sampling = Sampling(trainer.max_new_tokens, trainer.temperature, 1.0, 0, 0.0, stop=(), seed=config.seed)
    player = Player(model, language, rule, environment, sampling, is_tempered=not is_trigger)

    def roll_out(prompts: Sequence[TextExample], seeds: Sequence[int]) -> list[Rollout]:
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), config.lm.batch_size):
            part = slice(start, start + config.lm.batch_size)
            rollouts += map(decided if is_trigger else rolled_out, player.play(prompts[part], seeds[part]))
        return rollouts

    settings = RolloutSettings(trainer.group_size, trainer.refills, trainer.mask_truncated, trainer.shuffle_rewards)
    shaping = None
    if isinstance(trainer, TriggerGrpoConfig) and trainer.sparsity_weight > 0:
        shaping = ("sparsity", trainer.sparsity_weight, sparsity(trainer.sparsity_weight, ranks))
    rewards = rewards_of(environment, trainer.boxed_reward)
    return Drawer(examples, roll_out, rewards, settings, config.seed, shaping, told)


def _trigger(config: PretrainMemGenConfig, model: MemGenModel) -> Trigger:
    """Of rollouts: decisions that are trained are drawn."""
    if not isinstance(config.trainer, TriggerGrpoConfig):
        return new_trigger(config.memgen.trigger)
    assert model.backbone.trigger is not None, "checked with the configuration"
    return trained_trigger(model.backbone.trigger, is_drawn=True)


def rolled_out(played: Played) -> Rollout:
    """With its plan: after which tokens memory was inserted."""
    num_prompt, ids = len(played.prompt_ids), played.completion_ids
    plan, logprobs = [NONE] * (num_prompt + len(ids)), [0.0] * len(ids)
    for turn in played.turns:
        logprobs[turn.start : turn.start + len(turn.answer.tokens)] = turn.answer.logprobs
        for number in turn.answer.inserted:  # before this token of the turn, so after the one that stands before it
            plan[num_prompt - 1 + turn.start + number] = PROMPT if number == 0 else INFERENCE
    numbers = {"rl/insertions": float(sum(len(turn.answer.inserted) for turn in played.turns))}
    if played.has_turns:
        numbers |= {"rl/turns": float(len(played.turns)), "rl/turns_cut_share": float(played.is_cut)}
    return Rollout(
        prompt=played.episode.example, prompt_ids=list(played.prompt_ids), completion_ids=ids, logprobs=logprobs,
        is_ended=all(turn.answer.is_ended for turn in played.turns), extra={"plan_BL": plan}, numbers=numbers,
        turns=[(turn.start, turn.start + len(turn.answer.tokens)) for turn in played.turns], record=played,
    )  # fmt: skip


def decided(played: Played) -> Rollout:
    """A rollout of which the trigger's decisions are the policy. One that is made before a token stands at that token."""
    rollout, answer = rolled_out(played), played.turns[0].answer
    assert len(played.turns) == 1, "checked with the configuration"
    num = len(answer.tokens)
    told, inserted = dict(zip(answer.asked, answer.decision_logprobs, strict=True)), set(answer.inserted)
    actions = [int(number in inserted) for number in answer.asked]
    rollout.extra[ACTION] = [0] * len(played.prompt_ids) + [int(number in told and number in inserted) for number in range(num)]
    rollout.logprobs = [told.get(number, 0.0) for number in range(num)]
    rollout.is_policy = [number in told for number in range(num)]
    rollout.numbers |= {"rl/decisions": float(len(actions)), "rl/insert_share": insert_share(actions) or 0.0}
    return rollout


def decision_policy(
    model: Any, input_ids: Tensor, attention_mask: Tensor, num_completion: int, extra: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(B, C): the log-probability of the decision before each completion token, and the entropy of the decision."""
    plan_BL, action_BL = extra["plan_BL"], extra[ACTION]
    logit_BL = model(input_ids=input_ids, attention_mask=attention_mask, plan_BL=plan_BL, decides=True).logits
    logit_BC, does_BC = logit_BL[:, -num_completion - 1 : -1], action_BL[:, -num_completion:].bool()
    yes_BC, no_BC = logsigmoid(logit_BC), logsigmoid(-logit_BC)
    return torch.where(does_BC, yes_BC, no_BC), -(yes_BC.exp() * yes_BC + no_BC.exp() * no_BC)


def rewards_of(environment: Environment, boxed_reward: float) -> Mapping[str, tuple[float, Reward]]:
    """The parts of its scores; only the first counts, and a box if it is paid for."""

    def part(name: str) -> Reward:
        return lambda rollouts: [
            score.parts[name] for score in score_all(environment, [row.record.episode for row in rollouts])
        ]

    weights = {RIGHT: 1.0, "boxed": boxed_reward}
    return {name: (weights.get(name, 0.0), part(name)) for name in environment.names if name != "boxed" or boxed_reward > 0}


def grpo_settings(config: PretrainMemGenConfig) -> GrpoSettings:
    trainer = config.trainer
    assert isinstance(trainer, GrpoConfig)
    return GrpoSettings(
        grad_accumulation=trainer.grad_accumulation, lr=trainer.lr, warmup_steps=trainer.warmup_steps,
        schedule=trainer.schedule.value, weight_decay=trainer.weight_decay, clip_norm=trainer.clip_norm, seed=config.seed,
        prompts_per_step=trainer.prompts_per_step, updates_per_rollout=trainer.updates_per_rollout,
        max_new_tokens=trainer.max_new_tokens, beta=trainer.beta,
        temperature=1.0 if isinstance(trainer, TriggerGrpoConfig) else trainer.temperature,  # of the policy
        clip_low=trainer.clip_low, clip_high=trainer.clip_high, loss=trainer.loss.value,
        scale_rewards=trainer.scale_rewards.value,
    )  # fmt: skip


def taught_before(
    config: PretrainMemGenConfig, model: MemGenModel, language: Language, examples: Sequence[TextExample], run: RunDir,
    ranks: Ranks, stop: StopRequest,
) -> bool:  # fmt: skip
    """Give the model the weaver of the supervised stage, which is trained first where it is not there. False: the run was told
    to end before it was."""
    trainer, weaver = config.trainer, config.memgen.weaver
    assert isinstance(trainer, GrpoConfig)
    if trainer.sft_steps == 0:
        return True
    weights = MemoryWeights(model, weaver_alone=True)
    stage = RunDir(run.path / _STAGE)
    folder = CheckpointFolder(stage.checkpoints, 1)
    steps = ranks.gather_objects(folder.steps() if ranks.is_main else None)[0]
    if steps and steps[-1] == trainer.sft_steps:
        load_weights(folder.path(steps[-1]), weights)
        return True
    stage.path.mkdir(exist_ok=True)
    rows = training_rows(language, examples, insertion_rule(language, weaver), weaver)
    cadence = StageCadence(trainer.sft_steps, trainer.num_threads, trainer.device, trainer.log_every, trainer.checkpoint_every)
    resume_step = steps[-1] if steps else -1
    logger = MetricLogger(stage.metrics, None, resume_step=resume_step, runtime_s=0.0) if ranks.is_main else None
    with logger or nullcontext():
        where = Where(
            cadence=cadence, run=stage, ranks=ranks, stop=stop, logger=logger, monitor=None,
            title=f"{config.name} (supervised)", keep_last=1,
        )  # fmt: skip
        step = sft(
            model, rows, _stage_settings(trainer, config.seed), where, pad_id=language.pad_id, weights=weights, evaluate=None,
            record={"reasoner": language.identity}, tokenizer=language.tokenizer, divergence_remedy="lower trainer.sft_lr",
        )  # fmt: skip
    model.eval()
    return step == trainer.sft_steps


def _stage_settings(trainer: GrpoConfig, seed: int) -> SftSettings:
    return SftSettings(
        batch_size=trainer.sft_batch_size, grad_accumulation=1, lr=trainer.sft_lr, warmup_steps=trainer.sft_steps // 10,
        schedule="constant_with_warmup", weight_decay=0.0, clip_norm=1.0, seed=seed, key="trainer.sft",
    )  # fmt: skip
