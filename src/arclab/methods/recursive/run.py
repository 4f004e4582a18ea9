"""pretrain_encoder.py: train TRM or ETRM in its run folder.

    status = pretrain(compose("pretrain_encoder", ["experiment=quickstart", "name=demo"]))

It works in one process and under torchrun, and starts no processes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from arclab.config.compose import freeze, thaw
from arclab.config.dataset_schema import CANVASES
from arclab.config.schema import AUTO, CanvasRule, ExperimentConfig, SplitName
from arclab.data.augment import ViewRule
from arclab.data.tasks import ArcTask
from arclab.files import step_folders, write_atomically
from arclab.methods.recursive.cost import ModelSize, Placement, training_cost
from arclab.methods.recursive.decoder_init import apply_decoder_init, source_stamps
from arclab.methods.recursive.evaluation import build_solver, context_metrics
from arclab.methods.recursive.model import DTYPES, RecursiveModel, build_model
from arclab.methods.recursive.saved import load_record
from arclab.methods.recursive.setting import Setting, build_setting, protocol_stamps, view_rule
from arclab.methods.recursive.training.batch_size import find_batch_size
from arclab.methods.recursive.training.checkpoint import progress_from
from arclab.methods.recursive.training.trainer import train
from arclab.metrics.logger import read_rows
from arclab.metrics.tables import TABLE_ROWS, Prediction
from arclab.pages.training_report import write_training_report
from arclab.results.attempts import Attempts, Budget
from arclab.results.criterion import judge_criterion, require_answers, require_measurable, write_criterion
from arclab.results.scoring import NEW_COLORS, score
from arclab.runs.checkpoints import read_state
from arclab.runs.cost import num_evaluations
from arclab.runs.folder import RunDir, State, is_done
from arclab.runs.lifecycle import OwnFolder, RecordFailure, RunFolder, finish, in_ranks
from arclab.runs.memory import advice_if_out_of_memory, memory_budget
from arclab.runs.preflight import announce
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

log = logging.getLogger(__name__)


def pretrain(config: ExperimentConfig, given: RunDir | None = None) -> int:
    """Train the configured model, from wherever its folder stands, in this process (one rank, or one of a torchrun job). given,
    and the exit status: see arclab.runs.lifecycle.in_ranks."""

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return pretrain_in_ranks(config, ranks, signals, folder)

    return in_ranks(work, config, given, config.trainer.device, config.trainer.num_threads)


def pretrain_in_ranks(
    config: ExperimentConfig, ranks: Ranks, signals: StopSignals | None = None, folder: RunFolder | None = None
) -> State:
    """Build everything and train, as one of these ranks."""
    folder = folder or OwnFolder(RunDir(config.folder), ranks)
    with folder.building():
        require_measurable(config)
        run = folder.run
        # Rank 0 looks, everybody hears: a shared file system may show the others less.
        newest = ranks.gather_objects(step_folders(run.checkpoints)[-1:] if ranks.is_main else None)[0]
        saved = read_state(newest[0]) if newest else None
        setting = build_setting(config, view_rule(load_record(newest[0], saved)) if newest and saved else ViewRule.content)
        require_answers(config, setting.scored)
        torch.manual_seed(config.seed)
        model = build_model(config, setting.record.num_puzzles)
        stamps = _initialise(config, setting, model, saved)
        for note in (*setting.split.notes, *stamps):
            log.info("note: %s", note)
        is_open = ranks.gather_objects(not is_done(run, config) if ranks.is_main else None)[0]
        if is_open and config.trainer.batch_size != AUTO:
            announce_training(config, setting, model, ranks, saved["step"] if saved else 0)
        with folder.held(config, setting.split.notes) as is_finished:
            if is_finished:
                return State.done
            with RecordFailure(run):
                is_auto = config.trainer.batch_size == AUTO
                config = _settle_batch_size(config, setting, model, run, ranks)
                if is_auto:
                    announce_training(config, setting, model, ranks, saved["step"] if saved else 0)
            with RecordFailure(run), advice_if_out_of_memory(_memory_advice(config)):
                log.info(
                    "%s: %d training tasks, %d augmented puzzles, %d scored tasks (%s), run folder %s", config.dataset.name,
                    len(setting.split.train), setting.data.space.num_puzzles - 1, len(setting.scored),
                    config.evaluation.split.value, run.path,
                )  # fmt: skip
                return _train(config, setting, model, run, ranks, stamps, signals)


def announce_training(config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks, step: int) -> None:
    """What the steps that are left will take; see arclab.runs.preflight."""
    cost = training_cost(
        config, ModelSize.of(model), setting.data, setting.scored, Placement(ranks.device.type, ranks.world_size)
    )
    trainer = config.trainer
    first = "begin with experiment=quickstart, or " if config.experiment_name == "scratchpad" else ""  # none was chosen
    last = "" if first or config.experiment_name == "quickstart" else ", begin with experiment=quickstart"
    canvas = "" if config.dataset.canvas == min(CANVASES) else f" or dataset.canvas={config.dataset.canvas}"
    announce(
        config, cost, ranks, dtype=DTYPES[trainer.precision], num_steps=max(0, trainer.steps - step),
        num_evaluations=num_evaluations(trainer.steps, trainer.eval_every, from_step=step),
        advice=f"{first}{_memory_advice(config)}{canvas}{last}",
    )  # fmt: skip


def _memory_advice(config: ExperimentConfig) -> str:
    trainer = config.trainer
    bucketed = "" if trainer.canvas is CanvasRule.bucketed else ", set trainer.canvas=bucketed"
    recompute = "" if trainer.recompute else "set trainer.recompute=true (the run may continue with it), "
    return (
        f"{recompute}raise trainer.grad_accumulation={trainer.grad_accumulation} (the same batch in more pieces){bucketed}, "
        f"or lower trainer.batch_size={trainer.batch_size} (auto finds the largest that fits) and "
        f"evaluation.batch_size={config.evaluation.batch_size}"
    )


def _initialise(config: ExperimentConfig, setting: Setting, model: RecursiveModel, saved: dict[str, Any] | None) -> list[str]:
    """Load the decoder's start and say what stamps the results. saved: the state of the newest checkpoint; a run that continues
    has its weights and stamps there: the source may be gone by then."""
    if saved is not None:
        return list(progress_from(saved).stamps)
    stamps = protocol_stamps(config)
    report = apply_decoder_init(config.decoder_init, model, config.encoder)
    if report is None:
        return stamps
    log.info("%s", report)
    if report.transductive and not stamps:
        stamps.append(f"decoder initialised from a transductive checkpoint ({report.source})")
    held_out = {name.value: setting.split.named(name.value) for name in (SplitName.validation, SplitName.evaluation)}
    return [*stamps, *source_stamps(Path(report.source), model.decoder, held_out)]


def _settle_batch_size(
    config: ExperimentConfig, setting: Setting, model: RecursiveModel, run: RunDir, ranks: Ranks
) -> ExperimentConfig:
    """trainer.batch_size=auto becomes a number: the folder's, or the largest that fits, which is written there. From then on
    the run is what its config.yaml says."""
    if config.trainer.batch_size != AUTO:
        return config
    found = ranks.gather_objects(thaw(run.config).trainer.batch_size if ranks.is_main else None)[0]
    assert found is not None
    if found != AUTO:
        log.info("trainer.batch_size=auto: %s rows, which %s was started with", found, run.path)
        return config.with_batch_size(found)
    budget = memory_budget(ranks.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    config = config.with_batch_size(find_batch_size(config, model, setting.data, ranks, budget))
    if ranks.is_main:
        write_atomically(run.config, freeze(config))
    return config


def _train(
    config: ExperimentConfig, setting: Setting, model: RecursiveModel, run: RunDir, ranks: Ranks, stamps: list[str],
    signals: StopSignals | None,
) -> State:  # fmt: skip
    """Train; DONE, or PREEMPTED if the run was told to end early. The status says so."""
    solver = build_solver(config, setting, model, ranks, config.evaluation.batch_size)

    def score_tasks() -> tuple[dict[str, float], list[Prediction]]:
        attempts = solver.solve(setting.scored, Budget(config.evaluation.num_augmentations))
        shares = score(setting.scored, attempts)
        metrics = {
            **attempts.statistics,
            **{name: s.value for name, s in shares.items()},
            **context_metrics(config, setting, model, ranks),
            "ARC/tasks": float(shares["ARC/pass@1"].total),
            **({"ARC/new_colors_tasks": float(shares[NEW_COLORS].total)} if NEW_COLORS in shares else {}),
        }
        return metrics, first_predictions(setting.scored, attempts)

    training = train(config, model, setting.data, run, ranks, score=score_tasks, stamps=stamps, signals=signals)
    return finish(config, run, ranks, training.progress.step, lambda: _judged(config, run))


def _judged(config: ExperimentConfig, run: RunDir) -> str:
    """The success criterion's PASS or FAIL as a sentence, also logged and written to criterion.json; empty without one. Then
    the run's page is written, which shows it."""
    sentence = ""
    if config.criterion is not None:
        result = judge_criterion(config.criterion, read_rows(run.metrics))
        write_criterion(result, run)
        log.info("%s", result)
        sentence = str(result)
    log.info("report: %s", write_training_report(run))
    return sentence


def first_predictions(tasks: Sequence[ArcTask], attempts: Attempts) -> list[Prediction]:
    """The best candidate of the first test inputs, for the table eval_predictions."""
    keys = [(task, number) for task in tasks for number in range(len(task.tests))][:TABLE_ROWS]
    best = {key: candidates[0].grid if candidates else None for key, candidates in attempts.candidates.items()}
    return [Prediction(t.id, n, t.tests[n].input, t.tests[n].output, best[t.id, n]) for t, n in keys]
