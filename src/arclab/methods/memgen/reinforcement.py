"""trainer=grpo of pretrain_memgen.py: rollouts with memory, what they are rewarded for, and the supervised stage before.

    drawer = new_drawer(config, model, language, examples)      # for arclab.lm.training.grpo
    is_there = taught_before(config, ...)                       # trainer.sft_steps, in run/weaver_sft

A rollout brings its plan: after which tokens memory was inserted. The forward pass inserts it there, whatever rule the
generation followed. Rewards: `right` (the last boxed answer equals the example's) and, if trainer.boxed_reward is above 0,
`boxed` (there is one at all).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from arclab.config.memgen_schema import PretrainMemGenConfig
from arclab.config.memgen_trainer_schema import GrpoConfig
from arclab.lm.language_model import Sampling
from arclab.lm.training.grpo import GrpoSettings
from arclab.lm.training.life import Weights
from arclab.lm.training.rollouts import Drawer, Reward, Rollout, RolloutSettings
from arclab.lm.training.sft import SftSettings, StageCadence, Where, sft
from arclab.methods.memgen.generation import Answer, generate
from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.saved import load_weights
from arclab.methods.memgen.setting import Language, insertion_rule, require_room, training_rows
from arclab.methods.memgen.trigger import new_trigger
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.text.answers import check_answers, extract
from arclab.text.examples import TextExample

log = logging.getLogger(__name__)
_STAGE = "weaver_sft"


def new_drawer(config: PretrainMemGenConfig, model: MemGenModel, language: Language, examples: Sequence[TextExample]) -> Drawer:
    """ValueError: a question that leaves no room for trainer.max_new_tokens."""
    trainer, weaver = config.trainer, config.memgen.weaver
    assert isinstance(trainer, GrpoConfig)
    for example in examples:
        num_tokens = len(language.prompt_ids(example.question)) + trainer.max_new_tokens
        require_room(language, example, num_tokens, weaver, "lower trainer.max_new_tokens")
    rule = insertion_rule(language, weaver, new_trigger(config.memgen.trigger))
    sampling = Sampling(trainer.max_new_tokens, trainer.temperature, 1.0, 0, 0.0, stop=(), seed=config.seed)

    def roll_out(prompts: Sequence[TextExample], seeds: Sequence[int]) -> list[Rollout]:
        ids = [language.prompt_ids(example.question) for example in prompts]
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), config.lm.batch_size):
            part = slice(start, start + config.lm.batch_size)
            answers = generate(model, ids[part], rule, sampling, seeds[part], is_tempered=True)
            rollouts += map(rolled_out, prompts[part], ids[part], answers)
        return rollouts

    settings = RolloutSettings(trainer.group_size, trainer.refills, trainer.mask_truncated, trainer.shuffle_rewards)
    return Drawer(examples, roll_out, _rewards(language, trainer.boxed_reward), settings, config.seed)


def rolled_out(example: TextExample, prompt_ids: Sequence[int], answer: Answer) -> Rollout:
    plan = [NONE] * (len(prompt_ids) + len(answer.tokens))
    for number in answer.inserted:  # before this token of the answer, so after the one that stands before it
        plan[len(prompt_ids) - 1 + number] = PROMPT if number == 0 else INFERENCE
    return Rollout(
        prompt=example, prompt_ids=list(prompt_ids), completion_ids=answer.tokens, logprobs=answer.logprobs,
        is_ended=answer.is_ended, extra={"plan_BL": plan}, numbers={"rl/insertions": float(len(answer.inserted))},
    )  # fmt: skip


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
        max_new_tokens=trainer.max_new_tokens, temperature=trainer.temperature, beta=trainer.beta,
        clip_low=trainer.clip_low, clip_high=trainer.clip_high, loss=trainer.loss.value,
        scale_rewards=trainer.scale_rewards.value,
    )  # fmt: skip


def taught_before(
    config: PretrainMemGenConfig, model: MemGenModel, weights: Weights, language: Language, examples: Sequence[TextExample],
    run: RunDir, ranks: Ranks, stop: StopRequest,
) -> bool:  # fmt: skip
    """Give the model the weaver of the supervised stage, which is trained first where it is not there. False: the run was told
    to end before it was."""
    trainer, weaver = config.trainer, config.memgen.weaver
    assert isinstance(trainer, GrpoConfig)
    if trainer.sft_steps == 0:
        return True
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
