"""stage=grpo: the model that has learned selected edits learns from the rewards of its own.

    grpo_stage(config, ranks, signals, folder)      # writes model/, trained.json, curriculum.json, metrics.jsonl
    torchrun --nproc-per-node 4 self_improve.py method=program_edit ... stage=grpo

Start programs are those of stage=sample that are not right, of tasks that the curriculum draws (practice.py). All weights are
trained, in float32, or with grpo.lora an adapter; the reference of the KL divergence is the model that the stage began with.
Start programs of held-out tasks are scored every grpo.eval_every steps: the best checkpoint becomes the model, also where the
run is stopped because it is sick (grpo.stop_when_unhealthy). It ends early where all tasks go. The same command goes on after
a kill. stage=twin_grpo is the control: from the twin of stage=twin_sft, with rewards that are dealt out at random.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.program_edit_grpo_schema import BestBy
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.training.finetune import require_float32
from arclab.lm.training.frozen import FrozenCopy
from arclab.lm.training.grpo import GrpoSettings, grpo
from arclab.lm.training.health import RlRules
from arclab.lm.training.life import WEIGHTS_FILE, TrainedWeights
from arclab.lm.training.model_folder import opened, save_opened
from arclab.lm.training.rollouts import Drawer, RolloutSettings
from arclab.lm.training.sft import StageCadence, Where
from arclab.methods.program_edit.held_out import HeldOut
from arclab.methods.program_edit.population import Population
from arclab.methods.program_edit.practice import CURRICULUM, Practice
from arclab.methods.program_edit.rollouts import REWARDS, EditRollouts
from arclab.methods.program_edit.sample import MODEL, PROGRAMS, TRAINED, training_tasks
from arclab.methods.program_edit.sft import given_model, write_trained
from arclab.metrics.best import Best, best_score
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.runs.checkpoints import CheckpointFolder, load_tensors, read_state
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RecordFailure, RunFolder, finish
from arclab.runs.monitor import HealthMonitor, UnhealthyRun
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, require_inputs, require_same_inputs, write_manifest

log = logging.getLogger(__name__)
_METRICS = {BestBy.solved_share: "edits/solved_share", BestBy.mean_delta: "edits/mean_delta"}
TWIN = "twin_"  # what the stages of the twin begin with


def grpo_stage(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError, ValueError: there is nothing to edit or to score, a curriculum of other tasks, a training that diverges."""
    run, is_twin = folder.run, config.stage.value.startswith(TWIN)
    before = ("twin_sft" if is_twin else "sft", config.round)
    inputs = {"programs": config.file_of("sample", config.round, PROGRAMS), "trained": config.file_of(*before, TRAINED)}
    start_from = curriculum_before(config)
    inputs |= {} if start_from is None else {"curriculum": start_from}
    if is_twin:
        config = replace(config, grpo=replace(config.grpo, shuffle_rewards=True))
    with folder.building():
        require_inputs(config, inputs)
        with folder.held(config, ()) as is_finished:
            if is_finished:
                require_same_inputs(run, inputs)
                return State.done
            with RecordFailure(run), open_sandbox(config.sandbox) as sandbox:
                model = load_hf(given_model(config, before))
                if config.grpo.lora is None:
                    require_float32(model)
                stop = StopRequest(run, ranks, signals)
                with _training(config, model, sandbox, inputs, run, ranks, stop) as training:
                    return training.ended(inputs)


def curriculum_before(config: ProgramEditConfig) -> Path | None:
    """The curriculum that the stage begins with: the one that is given, or that of the round before."""
    if config.curriculum.start_from is not None:
        return Path(config.curriculum.start_from)
    return config.file_of(config.stage.value, config.round - 1, CURRICULUM) if config.round > 0 else None


@contextmanager
def _training(
    config: ProgramEditConfig, model: HfModel, sandbox: Sandbox, inputs: Mapping[str, Path], run: RunDir, ranks: Ranks,
    stop: StopRequest,
) -> Iterator[_Training]:  # fmt: skip
    with opened(model, config.grpo.lora, config.seed) as network:
        start = FrozenCopy(network)
        tasks, population = training_tasks(config), Population.read(inputs["programs"])
        practice = Practice(config, tasks, population, sandbox, model, ranks, run.path, inputs.get("curriculum"))
        held_out = HeldOut(config, model, sandbox, ranks)
        yield _Training(config, model, network, start, practice, held_out, EditRollouts(config, model, sandbox, practice.noted),
                        run, ranks, stop)  # fmt: skip


@dataclass(slots=True)
class _Training:
    """One training at work. network: the transformers model of `model`. start: as it was."""

    config: ProgramEditConfig
    model: HfModel
    network: Any
    start: FrozenCopy
    practice: Practice
    held_out: HeldOut
    roll_out: EditRollouts
    run: RunDir
    ranks: Ranks
    stop: StopRequest

    @property
    def metric(self) -> str:
        return _METRICS[self.config.grpo.best_by]

    def ended(self, inputs: Mapping[str, Path]) -> State:
        """Train to the end, or to where it is told to end; then the best checkpoint is the model."""
        config, wished = self.config, self.config.grpo
        step, sick = self._trained()
        is_enough = self.practice.is_enough()

        def conclude() -> str:
            best = self._take_best()
            save_opened(self.model, self.network, wished.lora, self.run, MODEL)
            write_trained(self.run)
            counts = {"steps": step, "best_step": best.step or 0, "best": best.value, **self.practice.states()}
            why = f"stopped: {sick}" if sick else "all tasks go, so nothing is left to learn" if is_enough else ""
            notes = [f"{why} (step {step} of {wished.steps})"] if why and step < wished.steps else []
            message = "; ".join([*notes, f"the model is that of step {best.step} ({self.metric} {best.value:.3g})"])
            made = Made(outputs=[self.run.path / TRAINED], counts=counts, message=message, notes=notes)
            write_manifest(config, self.run, inputs, made)
            return message

        is_complete = step >= wished.steps or is_enough or bool(sick)
        return finish(config, self.run, self.ranks, step, conclude, is_complete=is_complete, num_steps=wished.steps)

    def _trained(self) -> tuple[int, str]:
        """The step that it came to, and why it was stopped: "" if it was not."""
        checkpoints = CheckpointFolder(self.run.checkpoints, self.config.grpo.keep_last)
        done = self.ranks.gather_objects(checkpoints.steps()[-1:] if self.ranks.is_main else None)[0]
        done_step = done[0] if done else 0
        if done:
            checkpoint = checkpoints.path(done_step)
            self.practice.load(checkpoint, read_state(checkpoint))
        logger = None
        if self.ranks.is_main:
            logger = MetricLogger(self.run.metrics, None, resume_step=done_step or -1, runtime_s=0.0)
        with logger or nullcontext():
            if not done:
                self._begin(logger)
            if self.practice.is_enough():  # by the curriculum that it was given, or of a run that was killed at its end
                return done_step, ""
            try:
                return self._fit(logger, done_step), ""
            except UnhealthyRun as unhealthy:
                log.warning("%s", unhealthy)
                steps = self.ranks.gather_objects(checkpoints.steps() if self.ranks.is_main else None)[0]
                assert steps, "it is saved before it stops"
                return steps[-1], str(unhealthy)

    def _begin(self, logger: MetricLogger | None) -> None:
        """Before the first step: what the model that it begins with is worth."""
        self.practice.measure_baseline(self.roll_out)
        self.practice.write()
        scores = self.held_out.scores()
        if logger is not None:
            logger.write(0, scores)

    def _fit(self, logger: MetricLogger | None, done: int) -> int:
        config, wished, run = self.config, self.config.grpo, self.run
        groups = RolloutSettings(wished.group_size, wished.refills, wished.mask_truncated, wished.shuffle_rewards)
        drawer = Drawer(
            (None,), self.roll_out, REWARDS, groups, config.seed, told=self.practice.told, choose=self.practice.choose
        )
        cadence = StageCadence(
            wished.steps, config.num_threads, config.device, wished.log_every, wished.checkpoint_every,
            eval_every=wished.eval_every, health_every=wished.health_every,
            stop_when_unhealthy=wished.stop_when_unhealthy,
        )  # fmt: skip
        monitor = None
        if self.ranks.is_main:
            monitor = HealthMonitor(RlRules("grpo"), wished.health_every, read_rows(run.metrics), done, "grpo")
        where = Where(
            cadence=cadence, run=run, ranks=self.ranks, stop=self.stop, logger=logger, monitor=monitor,
            title=f"{config.stage.value}, round {config.round}", keep_last=wished.keep_last, selection_metric=self.metric,
        )  # fmt: skip
        return grpo(
            self.network, drawer, settings_of(config), where, pad_id=self.model.pad_id, weights=TrainedWeights(self.network),
            evaluate=lambda step, _: self._scored(step), record={}, tokenizer=self.model.tokenizer,
            reference=self.start.in_place, kept=self.practice, is_enough=self.practice.is_enough,
        )  # fmt: skip

    def _scored(self, step: int) -> dict[str, float]:
        found = self.held_out.scores()
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
        return found

    def _take_best(self) -> Best:
        """Give the network the weights of the best checkpoint; of step 0 those that it began with. On rank 0."""
        best = best_score(self.run.metrics, self.metric)
        assert best is not None, "scored before the first step"
        if not best.step:
            self.start.restore()
        else:
            checkpoint = CheckpointFolder(self.run.checkpoints, 1).path(best.step)
            TrainedWeights(self.network).load(load_tensors(checkpoint, WEIGHTS_FILE, read_state(checkpoint)))
        return best


def settings_of(config: ProgramEditConfig) -> GrpoSettings:
    wished = config.grpo
    return GrpoSettings(
        grad_accumulation=wished.grad_accumulation, lr=wished.lr, warmup_steps=wished.warmup_steps,
        schedule=wished.schedule.value, weight_decay=wished.weight_decay, clip_norm=wished.clip_norm, seed=config.seed,
        key="grpo", prompts_per_step=wished.prompts_per_step, updates_per_rollout=wished.updates_per_rollout,
        max_new_tokens=wished.max_new_tokens, temperature=wished.temperature, beta=wished.beta, clip_low=wished.clip_low,
        clip_high=wished.clip_high, loss=wished.loss.value, scale_rewards=wished.scale_rewards.value, vllm_url=wished.vllm_url,
    )  # fmt: skip
