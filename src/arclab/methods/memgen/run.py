"""pretrain_memgen.py: train the weaver of a MemGen model in its run folder.

    status = pretrain(compose("pretrain_memgen", ["experiment=memgen_quickstart", "name=a"]))

The reasoner is frozen: a model of lm.name, or a small one that the run first trains from random weights
(memgen.reasoner.scratch). The weaver is trained on worked replies (trainer=sft) or by reinforcement (trainer=grpo); after that,
trainer=trigger_grpo trains a trigger for it. The last evaluation answers the same questions with the trained weaver, with one
that was never trained, without memory, and after trainer=grpo also with the weaver that it began with; a trained trigger is
compared with BASELINES instead. A criterion judges what comes out. It works in one process and under torchrun."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from arclab.config.compose import ConfigError
from arclab.config.memgen_schema import UNTRAINED, PretrainMemGenConfig
from arclab.config.memgen_trainer_schema import GrpoConfig, SftConfig, TriggerGrpoConfig
from arclab.files import step_folders
from arclab.lm.training.grpo import grpo, token_policy
from arclab.lm.training.health import LanguageRules, RlRules
from arclab.lm.training.life import Evaluate, Weights
from arclab.lm.training.rows import Row
from arclab.lm.training.sft import SftSettings, Where, sft
from arclab.methods.memgen.answering import Answered, answer, measure, to_sampling
from arclab.methods.memgen.control import compared
from arclab.methods.memgen.interaction import environment_of_ranks
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.reasoner import make_reasoner
from arclab.methods.memgen.reinforcement import decision_policy, grpo_settings, new_drawer, taught_before
from arclab.methods.memgen.saved import MemoryWeights, reasoner_config, start_from
from arclab.methods.memgen.setting import (
    Language,
    build_memgen,
    insertion_rule,
    load_reasoner,
    shuffled_targets,
    training_rows,
)
from arclab.methods.memgen.transcripts import training_transcripts, write_answers
from arclab.methods.memgen.trigger import Trigger, always, never, new_trigger, random_trigger
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.metrics.names import is_counted_share
from arclab.metrics.wandb_run import start_wandb
from arclab.pages.transcripts import write_transcript_page
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.results.transcripts import TRANSCRIPTS
from arclab.runs.checkpoints import read_state
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RecordFailure, RunFolder, finish, in_ranks
from arclab.runs.monitor import HealthMonitor
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.text.environments import Environment
from arclab.text.examples import TextExample, TextSplits
from arclab.text.load import load_text, write_ids

log = logging.getLogger(__name__)
# What a trained trigger is compared with, on the same weights.
BASELINES: Mapping[str, Trigger] = {"always": always, "never": never, "random_trigger": random_trigger(0.5)}


def pretrain(config: PretrainMemGenConfig, given: RunDir | None = None) -> int:
    """Train, from wherever the folder stands, as one rank. given, and the exit status: see arclab.runs.lifecycle.in_ranks."""

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _pretrain(config, ranks, signals, folder)

    return in_ranks(work, config, given, config.trainer.device, config.trainer.num_threads)


def _pretrain(config: PretrainMemGenConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    with folder.building():
        _require_measurable(config)
        splits = load_text(config.dataset, needs_replies=config.learns_replies)
        for note in splits.notes:
            log.info("note: %s", note)
        with folder.held(config, splits.notes) as is_finished:
            if is_finished:
                return State.done
            with RecordFailure(folder.run):
                if ranks.is_main:
                    write_ids(splits, folder.run.path / "splits.json")
                stop = StopRequest(folder.run, ranks, signals)
                if not make_reasoner(config, splits, folder.run, ranks, stop):
                    return finish(config, folder.run, ranks, 0, lambda: "")
                with _environment(config, folder.run, ranks) as environment:
                    return _train(config, environment, splits, folder.run, ranks, stop)


def _environment(config: PretrainMemGenConfig, run: RunDir, ranks: Ranks) -> AbstractContextManager[Environment | None]:
    """None: nothing is drawn in this run."""
    if config.trainer.eval_every == 0 and not isinstance(config.trainer, GrpoConfig):
        return nullcontext()
    return environment_of_ranks(config, run.path, ranks)


def _require_measurable(config: PretrainMemGenConfig) -> None:
    """ConfigError: a criterion that no evaluation of this run measures."""
    if config.criterion is None:
        return
    metric = config.criterion.metric
    if not metric.startswith("text/") or not is_counted_share(metric):
        raise ConfigError(f"criterion.metric={metric} is not measured here; use text/accuracy or text/memory_wins.")
    if config.trainer.eval_every == 0:
        raise ConfigError(f"criterion.metric={metric} is measured in evaluations and trainer.eval_every=0 has none; raise it.")


def _train(
    config: PretrainMemGenConfig, environment: Environment | None, splits: TextSplits, run: RunDir, ranks: Ranks,
    stop: StopRequest,
) -> State:  # fmt: skip
    trainer, weaver = config.trainer, config.memgen.weaver
    language = load_reasoner(reasoner_config(config, run.path, config.lm.device))
    model = build_memgen(language, config.memgen, config.seed)
    weights = MemoryWeights(model)
    untrained = copied(weights)
    if weaver.start_from not in (None, UNTRAINED):
        start_from(weaver.start_from, model, language)
    newest = ranks.gather_objects(step_folders(run.checkpoints)[-1:] if ranks.is_main else None)[0]
    state = read_state(newest[0]) if newest else None
    _require_same_reasoner(state, language, run)
    drawer = None
    if isinstance(trainer, GrpoConfig):
        assert environment is not None
        has_turns = ranks.is_main and environment.max_turns is not None
        told = training_transcripts(run.path, trainer.steps) if has_turns else None
        drawer = new_drawer(config, model, language, environment, splits.train, ranks, told)
        if not taught_before(config, model, language, splits.train, run, ranks, stop):
            return finish(config, run, ranks, 0, lambda: "")
    if is_trigger := isinstance(trainer, TriggerGrpoConfig):
        model.backbone.train_trigger()  # the weaver is there; from here on it stays as it is
        controls = BASELINES
    else:
        controls = {"random": untrained} | ({"start": copied(weights)} if drawer is not None else {})
    scored = splits.named(config.evaluation.split.value)[: config.evaluation.max_examples]
    evaluate = _evaluation(config, model, language, environment, scored, run, ranks, controls) if environment else None
    logger = _open_logger(config, model, run, state) if ranks.is_main else None
    monitor = None
    if ranks.is_main:
        done, known = int(state["step"]) if state else 0, read_rows(run.metrics)
        rules = LanguageRules() if drawer is None else RlRules()
        monitor = HealthMonitor(rules, trainer.health_every, known, done)
    log.info("%s: %d training examples, %d scored, %s", config.dataset.name, len(splits.train), len(scored), run.path)
    with logger or nullcontext():
        where = Where(
            cadence=trainer, run=run, ranks=ranks, stop=stop, logger=logger, monitor=monitor, title=config.name,
            keep_last=trainer.keep_last, selection_metric=config.selection_metric,
        )  # fmt: skip
        given = {
            "pad_id": language.pad_id, "weights": weights, "evaluate": evaluate, "record": {"reasoner": language.identity},
            "tokenizer": language.tokenizer,
        }  # fmt: skip
        if drawer is None:
            rows = _taught_rows(config, language, splits)
            step = sft(model, rows, sft_settings(config), where, divergence_remedy="lower trainer.lr", **given)
        else:
            reference, policy = (model.memory_off, token_policy)
            if is_trigger:
                reference, policy = model.untrained_trigger, decision_policy
            step = grpo(model, drawer, grpo_settings(config), where, reference=reference, policy=policy, **given)
    return finish(config, run, ranks, step, lambda: _judged(config, run))


def _taught_rows(config: PretrainMemGenConfig, language: Language, splits: TextSplits) -> list[Row]:
    trainer, weaver = config.trainer, config.memgen.weaver
    assert isinstance(trainer, SftConfig)
    examples = list(splits.train)
    taught = shuffled_targets(examples, config.seed) if trainer.shuffle_targets else examples
    return training_rows(language, taught, insertion_rule(language, weaver), weaver)


def sft_settings(config: PretrainMemGenConfig) -> SftSettings:
    trainer = config.trainer
    assert isinstance(trainer, SftConfig)
    return SftSettings(
        batch_size=trainer.batch_size,
        grad_accumulation=trainer.grad_accumulation,
        lr=trainer.lr,
        warmup_steps=trainer.warmup_steps,
        schedule=trainer.schedule.value,
        weight_decay=trainer.weight_decay,
        clip_norm=trainer.clip_norm,
        seed=config.seed,
        deepspeed=trainer.deepspeed,
    )


def _require_same_reasoner(state: dict[str, Any] | None, language: Language, run: RunDir) -> None:
    if state is not None and state["reasoner"] != language.identity:
        raise ValueError(
            f"lm.name={language.config.name} is not the reasoner of {run.path}: its files have changed; restore "
            "it, or start a run with another name."
        )


def _open_logger(config: PretrainMemGenConfig, model: MemGenModel, run: RunDir, state: dict[str, Any] | None) -> MetricLogger:
    wandb_run = start_wandb(config, run.path, run.run_id)
    step = int(state["step"]) if state else 0
    runtime_s = float(state["runtime_s"]) if state else 0.0
    logger = MetricLogger(run.metrics, wandb_run, resume_step=step if step > 0 else -1, runtime_s=runtime_s)
    if step == 0:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        logger.write(0, {"num_params": float(trained)})
    return logger


def _evaluation(
    config: PretrainMemGenConfig, model: MemGenModel, language: Language, environment: Environment,
    scored: Sequence[TextExample], run: RunDir, ranks: Ranks, controls: Mapping[str, dict[str, Tensor] | Trigger],
) -> Evaluate:  # fmt: skip
    """Scores of the model as it is; at the last step also of the reasoner without memory, and of the controls: other weights,
    or other triggers."""
    weights = MemoryWeights(model)

    def answers(trigger: Trigger | None = None) -> list[Answered]:
        mine = scored[ranks.rank :: ranks.world_size]
        found = list(answer_all(config, model, language, environment, mine, trigger))
        everyone = [each for part in ranks.gather_objects(found) for each in part]
        return sorted(everyone, key=lambda each: each.id)

    def evaluate(step: int, logger: MetricLogger | None) -> dict[str, float]:
        was_training = model.training
        model.eval()
        trained = answers()
        metrics = measure(trained)
        if ranks.is_main:
            write_answers(run.path, step, trained)
        if step == config.trainer.steps:
            with model.memory_off():
                others = {"off": answers()}
            now = copied(weights)
            for name, control in controls.items():
                if isinstance(control, Trigger):
                    others[name] = answers(control)
                    continue
                weights.load(control)
                others[name] = answers()
                weights.load(now)
            metrics |= compared(trained, others)
        model.train(was_training)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return metrics

    return evaluate


def copied(weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.tensors().items()}


def answer_all(
    config: PretrainMemGenConfig, model: MemGenModel, language: Language, environment: Environment,
    examples: Sequence[TextExample], trigger: Trigger | None = None,
) -> list[Answered]:  # fmt: skip
    """trigger: another one than the run's."""
    weaver, wished = config.memgen.weaver, config.evaluation
    rule = insertion_rule(language, weaver, trigger or new_trigger(config.memgen.trigger, model.backbone.trigger))
    batches = answer(
        model, language, rule, weaver, environment, examples, to_sampling(wished.sampling, config.seed),
        config.lm.batch_size,
    )  # fmt: skip
    return [each for batch in batches for each in batch]


def _judged(config: PretrainMemGenConfig, run: RunDir) -> str:
    if (run.path / TRANSCRIPTS).is_file():
        log.info("transcripts: %s", write_transcript_page(run.path))
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(run.metrics))
    write_criterion(result, run)
    log.info("%s", result)
    return str(result)
