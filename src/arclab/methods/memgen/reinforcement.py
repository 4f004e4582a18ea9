"""trainer=grpo and trigger_grpo of pretrain_memgen.py: rollouts with memory, their rewards, and the supervised stage before.

    drawer = new_drawer(config, model, language, examples, ranks)      # for arclab.lm.training.grpo
    is_there = taught_before(config, ...)                       # trainer.sft_steps, in run/weaver_sft

A rollout brings its plan: after which tokens memory was inserted. The forward pass inserts it there, whatever rule the
generation followed. Rewards: `right` (the last boxed answer equals the example's) and, if trainer.boxed_reward is above 0,
`boxed` (there is one at all).

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
from arclab.lm.training.rollouts import Drawer, Reward, Rollout, RolloutSettings
from arclab.lm.training.sft import SftSettings, StageCadence, Where, sft
from arclab.methods.memgen.generation import Answer, generate
from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.saved import MemoryWeights, load_weights
from arclab.methods.memgen.setting import Language, insertion_rule, require_room, training_rows
from arclab.methods.memgen.sparsity import ACTION, insert_share, sparsity
from arclab.methods.memgen.trigger import Trigger, new_trigger, trained_trigger
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.text.answers import check_answers, extract
from arclab.text.examples import TextExample

log = logging.getLogger(__name__)
_STAGE = "weaver_sft"


def new_drawer(
    config: PretrainMemGenConfig, model: MemGenModel, language: Language, examples: Sequence[TextExample], ranks: Ranks
) -> Drawer:
    """ValueError: a question that leaves no room for trainer.max_new_tokens."""
    trainer, weaver = config.trainer, config.memgen.weaver
    assert isinstance(trainer, GrpoConfig)
    for example in examples:
        num_tokens = len(language.prompt_ids(example.question)) + trainer.max_new_tokens
        require_room(language, example, num_tokens, weaver, "lower trainer.max_new_tokens")
    is_trigger = isinstance(trainer, TriggerGrpoConfig)
    rule = insertion_rule(language, weaver, _trigger(config, model))
    sampling = Sampling(trainer.max_new_tokens, trainer.temperature, 1.0, 0, 0.0, stop=(), seed=config.seed)

    def roll_out(prompts: Sequence[TextExample], seeds: Sequence[int]) -> list[Rollout]:
        ids = [language.prompt_ids(example.question) for example in prompts]
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), config.lm.batch_size):
            part = slice(start, start + config.lm.batch_size)
            answers = generate(model, ids[part], rule, sampling, seeds[part], is_tempered=not is_trigger)
            rollouts += map(decided if is_trigger else rolled_out, prompts[part], ids[part], answers)
        return rollouts

    settings = RolloutSettings(trainer.group_size, trainer.refills, trainer.mask_truncated, trainer.shuffle_rewards)
    shaping = None
    if isinstance(trainer, TriggerGrpoConfig) and trainer.sparsity_weight > 0:
        shaping = ("sparsity", trainer.sparsity_weight, sparsity(trainer.sparsity_weight, ranks))
    return Drawer(examples, roll_out, _rewards(language, trainer.boxed_reward), settings, config.seed, shaping)


def _trigger(config: PretrainMemGenConfig, model: MemGenModel) -> Trigger:
    """Of rollouts: decisions that are trained are drawn."""
    if not isinstance(config.trainer, TriggerGrpoConfig):
        return new_trigger(config.memgen.trigger)
    assert model.backbone.trigger is not None, "checked with the configuration"
    return trained_trigger(model.backbone.trigger, is_drawn=True)


def rolled_out(example: TextExample, prompt_ids: Sequence[int], answer: Answer) -> Rollout:
    plan = [NONE] * (len(prompt_ids) + len(answer.tokens))
    for number in answer.inserted:  # before this token of the answer, so after the one that stands before it
        plan[len(prompt_ids) - 1 + number] = PROMPT if number == 0 else INFERENCE
    return Rollout(
        prompt=example, prompt_ids=list(prompt_ids), completion_ids=answer.tokens, logprobs=answer.logprobs,
        is_ended=answer.is_ended, extra={"plan_BL": plan}, numbers={"rl/insertions": float(len(answer.inserted))},
    )  # fmt: skip


def decided(example: TextExample, prompt_ids: Sequence[int], answer: Answer) -> Rollout:
    """A rollout of which the trigger's decisions are the policy. One that is made before a token stands at that token."""
    rollout, num = rolled_out(example, prompt_ids, answer), len(answer.tokens)
    told, inserted = dict(zip(answer.asked, answer.decision_logprobs, strict=True)), set(answer.inserted)
    actions = [int(number in inserted) for number in answer.asked]
    rollout.extra[ACTION] = [0] * len(prompt_ids) + [int(number in told and number in inserted) for number in range(num)]
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


def _rewards(language: Language, boxed_reward: float) -> Mapping[str, tuple[float, Reward]]:
    def right(rollouts: Sequence[Rollout]) -> list[float]:
        checked = check_answers([(language.text(row.completion_ids), row.prompt.answer) for row in rollouts])
        return [float(each.is_right) for each in checked]

    def boxed(rollouts: Sequence[Rollout]) -> list[float]:
        return [float(extract(language.text(row.completion_ids)) is not None) for row in rollouts]

    return {"right": (1.0, right), **({"boxed": (boxed_reward, boxed)} if boxed_reward > 0 else {})}


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
