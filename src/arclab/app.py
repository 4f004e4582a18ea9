"""What the entry scripts do, wired together: compose -> tasks -> model -> train, and checkpoint -> solver -> results.

    pretrain(compose("pretrain_encoder", ["experiment=quickstart", "name=demo"]))
    evaluate(["checkpoint=runs/quickstart/demo"])

Both work in one process and under torchrun; rank 0 owns the folders. pretrain_prepared(run) is a worker of a run folder that
somebody else (arclab.launch.job) has prepared, holds and watches. Nothing here starts processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from arclab.config.compose import broken_rules, compose_evaluate, evaluate_command, freeze, identity, thaw
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.config.llm_schema import EvaluateProgramsConfig
from arclab.config.schema import AUTO, CanvasRule, ExperimentConfig, Regime, SplitName, WeightsKind
from arclab.console import setup_logging
from arclab.data.augment import ViewRule
from arclab.data.record import NO_RECORD, DataRecord, changed_task, demos_digest, record_of
from arclab.data.sampler import TrainingData, build_training_data
from arclab.data.splits import TaskSplit, load_tasks, require_fit
from arclab.data.tasks import ArcTask
from arclab.evaluation.criterion import judge_criterion, require_answers, require_measurable, write_criterion
from arclab.evaluation.encoder_health import HealthSettings, encoder_health
from arclab.evaluation.results import Evaluation, checkpoint_subject, require_no_larger, tasks_digest, write_results
from arclab.evaluation.runs import FIT_STAMP, rules_stamp
from arclab.evaluation.scoring import NEW_COLORS, score
from arclab.files import sentence_for, step_folders, write_atomically
from arclab.interrupt import StopSignals, interrupted_status
from arclab.memory import advice_if_out_of_memory, memory_budget
from arclab.metrics.logger import read_rows
from arclab.metrics.tables import TABLE_ROWS, Prediction
from arclab.models.decoder_init import apply_decoder_init, held_out_overlap, other_cycles
from arclab.models.recursive import RecursiveModel, build_model
from arclab.models.saved import WEIGHT_FILES, config_of, load_record, newest_checkpoint, read_state
from arclab.ranks import Ranks, start_ranks, stop_ranks
from arclab.rundir import RunDir, State, add_notes, is_done, open_run, provenance, run_path, with_batch_size
from arclab.runlock import LostLock, keeper, locked
from arclab.solvers.base import Attempts, Budget
from arclab.solvers.recursive import RecursiveSolver
from arclab.solvers.store import VoteStore
from arclab.training.batch_size import find_batch_size
from arclab.training.checkpoint import load_weights, progress_from
from arclab.training.loop import train
from arclab.training.monitor import UnhealthyRun

log = logging.getLogger(__name__)
_TRACEBACK_LINES = 12
_TALLY_VERSION = 3  # what the votes and the sums kept with them mean


@dataclass(frozen=True, slots=True)
class Setting:
    """The tasks of a run and its training data. scored: the tasks of evaluation.split. record: of the tasks that the weights are
    trained on, with their rows in a puzzle table."""

    split: TaskSplit
    data: TrainingData
    scored: tuple[ArcTask, ...]
    record: DataRecord

    @property
    def puzzle_rows(self) -> dict[str, int]:
        """Task id -> its first row in the puzzle table."""
        return {task.id: task.first_row for task in self.record.tasks}


def build_setting(config: ExperimentConfig, rule: ViewRule = ViewRule.content) -> Setting:
    """Load tasks and prepare training data. In the puzzle_id regime the scored tasks' demonstrations are training data.
    rule: the one of the checkpoint that goes on or is scored (view_rule)."""
    split = load_tasks(config.dataset)
    scored = scored_tasks(split, config)
    is_transductive = config.dataset.regime is Regime.puzzle_id and config.evaluation.split is not SplitName.train
    trained = {task.id for task in split.train}
    shared = [task.id for task in scored if task.id in trained] if is_transductive else []
    if shared:
        raise ValueError(
            f"dataset.regime=puzzle_id keeps one vector for each task id, and {shared[0]} is both a training task and one of the scored tasks "
            f"({len(shared)} ids are); rename the tasks of one source."
        )
    data = build_training_data(split.train, scored if is_transductive else (), config.dataset, config.seed, rule)
    return Setting(split, data, scored, record_of(data))


def view_rule(record: DataRecord | None) -> ViewRule:
    """The rule by which the augmentations of a checkpoint's tasks were told apart. record: None for an older checkpoint."""
    return ViewRule.action if record is None else record.rule


def scored_tasks(split: TaskSplit, config: ExperimentConfig) -> tuple[ArcTask, ...]:
    """The tasks of evaluation.split. ValueError if there are none or one does not fit on the canvas."""
    name = config.evaluation.split.value
    scored = split.named(name)[: config.evaluation.max_tasks]
    if not scored:
        raise ValueError(f"evaluation.split={name} has no tasks in dataset={config.dataset.name}; choose another split.")
    require_fit(scored, config.dataset.canvas, name)
    return scored


def protocol_stamps(config: ExperimentConfig) -> list[str]:
    """Sentences that every result of the run must carry."""
    if config.dataset.regime is Regime.puzzle_id and config.evaluation.split is not SplitName.train:
        return ["transductive: the demonstrations of the scored tasks are training data"]
    return []


def build_solver(
    config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks, batch_size: int,
    store: VoteStore | None = None,
) -> RecursiveSolver:  # fmt: skip
    """store: where an evaluation that can be continued keeps its votes."""
    evaluation = config.evaluation
    return RecursiveSolver(
        model, ranks, canvas=config.dataset.canvas, seed=config.seed, batch_size=batch_size,
        max_demos=config.dataset.max_demos, show_progress=True,
        puzzle_rows=setting.puzzle_rows if config.dataset.regime is Regime.puzzle_id else None,
        halting=evaluation.halting, votes=evaluation.votes, canvas_rule=evaluation.canvas, store=store,
        view_rule=setting.data.space.rule,
    )  # fmt: skip


def pretrain(config: ExperimentConfig) -> int:
    """Train the configured model in its run folder, from wherever that stands, in this process (one rank, or one of a torchrun
    job). Returns the exit status: 0, or 128 + the signal that ended the run early; 0 for the latter too under torchrun, which
    would take anything else for a crash."""
    return _in_ranks(config, None)


def pretrain_prepared(run: RunDir) -> int:
    """The same as one of the ranks that arclab.launch.job started for this folder."""
    return _in_ranks(thaw(run.config), run)


def _in_ranks(config: ExperimentConfig, prepared: RunDir | None) -> int:
    setup_logging()
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    with StopSignals() as signals:
        ranks = start_ranks(config.trainer.device)
        try:
            state = _pretrain(config, ranks, signals, prepared)
        finally:
            stop_ranks()
    is_alone = ranks.world_size == 1 and prepared is None
    return interrupted_status(signals.number) if state is State.preempted and is_alone else 0


def _memory_advice(config: ExperimentConfig) -> str:
    trainer = config.trainer
    bucketed = "" if trainer.canvas is CanvasRule.bucketed else ", set trainer.canvas=bucketed"
    recompute = "" if trainer.recompute else "set trainer.recompute=true (the run may continue with it), "
    return (
        f"{recompute}raise trainer.grad_accumulation={trainer.grad_accumulation} (the same batch in more pieces){bucketed}, or lower "
        f"trainer.batch_size={trainer.batch_size} (auto finds the largest that fits) and evaluation.batch_size={config.evaluation.batch_size}"
    )


class RecordFailure:
    """Whatever ends the block goes into status.json before it goes on; the first rank that fails is the one that is heard. If it
    cannot be written there, it goes on all the same, with a note that says so."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._require_held = run, keeper(run)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, LostLock):  # the folder is another process's now
            return
        try:
            self._record(error)
        except (OSError, ValueError) as second:  # the disk is full, the folder has gone, status.json is damaged
            error.add_note(f"note: {self._run.path} could not keep this message: {sentence_for(second)}")

    def _record(self, error: BaseException) -> None:
        if self._run.state in (State.failed, State.stopped):
            return
        self._require_held()
        state, sentence = State.stopped if isinstance(error, UnhealthyRun) else State.failed, sentence_for(error)
        if sentence is not None:
            self._run.write_status(state, self._run.step, sentence, 2)
        else:
            lines = "".join(traceback.format_exception(error)).strip().splitlines()
            self._run.write_status(State.failed, self._run.step, "\n".join(lines[-_TRACEBACK_LINES:]), 1)


def context_metrics(config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks) -> dict[str, float]:
    """encoder/* on the scored tasks and train_encoder/* on training tasks; the latter only where they are not the scored ones."""
    samples = {"encoder": setting.scored}
    if config.evaluation.split is not SplitName.train:
        samples["train_encoder"] = setting.split.train
    settings = HealthSettings(
        max_tasks=config.evaluation.health_tasks, canvas=config.dataset.canvas, rule=config.evaluation.canvas,
        seed=config.seed, max_demos=config.dataset.max_demos, chunk_rows=config.evaluation.batch_size, device=ranks.device,
    )  # fmt: skip
    return {
        f"{prefix}/{name}": value
        for prefix, tasks in samples.items()
        for name, value in encoder_health(model, tasks, settings).items()
    }


def _pretrain(
    config: ExperimentConfig, ranks: Ranks, signals: StopSignals | None = None, prepared: RunDir | None = None
) -> State:
    """Build everything and train. prepared: the run folder, if somebody else holds it."""
    with RecordFailure(prepared) if prepared else nullcontext():
        require_measurable(config)
        run = prepared or RunDir(run_path(config))
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
        held: AbstractContextManager[None] = locked(run) if ranks.is_main and prepared is None else nullcontext()
        with held:
            if _is_finished(config, setting, run, ranks, prepared):
                return State.done
            with RecordFailure(run):
                config = _settle_batch_size(config, setting, model, run, ranks)
            with RecordFailure(run), advice_if_out_of_memory(_memory_advice(config)):
                log.info("%s: %d training tasks, %d augmented puzzles, %d scored tasks (%s), run folder %s", config.dataset.name,
                         len(setting.split.train), setting.data.space.num_puzzles - 1, len(setting.scored), config.evaluation.split.value, run.path)  # fmt: skip
                state = _train_and_record(config, setting, model, run, ranks, stamps, signals)
            if ranks.is_main and prepared is None:  # a parent removes the file itself, once all ranks are gone
                run.preempt.unlink(missing_ok=True)
            return state


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
    found = (other_cycles(Path(report.source), model.decoder), held_out_overlap(Path(report.source), held_out))
    return [*stamps, *(sentence for sentence in found if sentence)]


def _is_finished(config: ExperimentConfig, setting: Setting, run: RunDir, ranks: Ranks, prepared: RunDir | None) -> bool:
    """Write down what will run, and say whether anything is left to do. Rank 0 looks, everybody hears."""
    done = None
    if ranks.is_main and prepared is not None:
        add_notes(prepared, setting.split.notes)
        done = False
    elif ranks.is_main:
        open_run(config, setting.split.notes)
        done = is_done(run, config)
        if done:
            log.info("%s is DONE; evaluate it with: %s", run.path, evaluate_command(run.path))
        else:
            run.preempt.unlink(missing_ok=True)  # meant for an earlier process
            run.write_status(State.running, run.step)
    done = ranks.gather_objects(done)[0]
    assert done is not None
    return done


def _settle_batch_size(
    config: ExperimentConfig, setting: Setting, model: RecursiveModel, run: RunDir, ranks: Ranks
) -> ExperimentConfig:
    """trainer.batch_size=auto becomes a number: the folder's, or the largest that fits, which is written there. From then on the
    run is what its config.yaml says."""
    if config.trainer.batch_size != AUTO:
        return config
    found = ranks.gather_objects(thaw(run.config).trainer.batch_size if ranks.is_main else None)[0]
    assert found is not None
    if found != AUTO:
        log.info("trainer.batch_size=auto: %s rows, which %s was started with", found, run.path)
        return with_batch_size(config, found)
    budget = memory_budget(ranks.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    config = with_batch_size(config, find_batch_size(config, model, setting.data, ranks, budget))
    if ranks.is_main:
        write_atomically(run.config, freeze(config))
    return config


def _train_and_record(
    config: ExperimentConfig, setting: Setting, model: RecursiveModel, run: RunDir, ranks: Ranks, stamps: list[str],
    signals: StopSignals | None,
) -> State:  # fmt: skip
    """Train; DONE, or PREEMPTED if the run was told to end early. The status says so."""
    solver = build_solver(config, setting, model, ranks, config.evaluation.batch_size)
    require_held = keeper(run)

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
    step = training.progress.step
    is_complete = step == config.trainer.steps
    if ranks.is_main:
        require_held()
    if not is_complete and ranks.is_main:
        run.write_status(State.preempted, step, f"saved at step {step} of {config.trainer.steps}; the same command continues")
        log.info("told to end: %s is saved at step %d; the same command continues", run.path, step)
    elif ranks.is_main:
        run.write_status(State.done, step, _judged(config, run))
        log.info("done: %s; evaluate it with: %s", run.path, evaluate_command(run.path))
    return State.done if is_complete else State.preempted


def _judged(config: ExperimentConfig, run: RunDir) -> str:
    """The success criterion's PASS or FAIL as a sentence, also logged and written to criterion.json; empty without one."""
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(run.metrics))
    write_criterion(result, run)
    log.info("%s", result)
    return str(result)


def first_predictions(tasks: Sequence[ArcTask], attempts: Attempts) -> list[Prediction]:
    """The best candidate of the first test inputs, for the table eval_predictions."""
    keys = [(task, number) for task in tasks for number in range(len(task.tests))][:TABLE_ROWS]
    best = {key: candidates[0].grid if candidates else None for key, candidates in attempts.candidates.items()}
    return [Prediction(t.id, n, t.tests[n].input, t.tests[n].output, best[t.id, n]) for t, n in keys]


def evaluate(argv: Sequence[str]) -> None:
    """Score a checkpoint, or a solver that has none, and write metrics.json, predictions.jsonl, submission.json and report.html."""
    wanted = compose_evaluate(argv)
    setup_logging()
    if wanted.num_threads is not None:
        torch.set_num_threads(wanted.num_threads)
    if isinstance(wanted, EvaluateProgramsConfig):
        from arclab.evaluate_programs import evaluate_programs  # transformers takes seconds to import

        evaluate_programs(wanted)
        return
    ranks = start_ranks(wanted.device)
    try:
        with advice_if_out_of_memory(
            "lower batch_size (rows in flight), or set evaluation.canvas=bucketed for a model trained so"
        ):
            _evaluate(wanted, ranks)
    finally:
        stop_ranks()


def _evaluate(wanted: EvaluateConfig, ranks: Ranks) -> None:
    checkpoint = newest_checkpoint(Path(wanted.checkpoint))
    run = RunDir(checkpoint.parent.parent)
    config, state = config_of(checkpoint), read_state(checkpoint)
    record = load_record(checkpoint, state)
    setting = build_setting(config, view_rule(record))
    _apply_wishes(config, wanted)
    setting = replace(setting, scored=scored_tasks(setting.split, config))
    setting, notes, overlap = as_trained(config, setting, record, checkpoint)
    _require_trained_rows(config, setting)
    model = build_model(config, setting.record.num_puzzles)
    load_weights(model, checkpoint, wanted.weights)
    model.to(ranks.device)
    folder = Path(wanted.output_dir) if wanted.output_dir else run.path / "evaluation" / config.evaluation.split.value
    require_no_larger(folder, len(setting.scored), config.evaluation.num_augmentations)
    store = VoteStore(folder, votes_key(config, setting.scored, checkpoint, wanted.weights))
    solver = build_solver(config, setting, model, ranks, config.evaluation.batch_size, store)
    attempts = solver.solve(setting.scored, Budget(config.evaluation.num_augmentations))
    attempts.statistics |= context_metrics(config, setting, model, ranks)
    if not ranks.is_main:
        return
    result = Evaluation(
        subject=checkpoint_subject(config, run, checkpoint, state["step"], wanted.weights.value), tasks=setting.scored, attempts=attempts,
        stamps=(*state["stamps"], *overlap, *_split_stamp(config), *_part_stamp(config, setting), *_rules_stamp(config)),
        notes=(*setting.split.notes, *notes), provenance=provenance(),
    )  # fmt: skip
    write_results(result, folder)
    store.remove()
    for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2"):
        log.info("%s %s", name, result.shares[name])
    log.info("report: %s", folder / "report.html")


def as_trained(
    config: ExperimentConfig, setting: Setting, record: DataRecord | None, checkpoint: Path
) -> tuple[Setting, list[str], list[str]]:
    """The setting with the record of the checkpoint, notes on the data, and stamps if an encoder was trained on scored tasks.

    ValueError if a puzzle table was trained on other tasks than those that load now: its vectors would answer for others.
    """
    if record is None:
        log.warning("note: %s", NO_RECORD)
        return setting, [NO_RECORD], []
    why = changed_task(record, setting.record)
    if why and config.dataset.regime is Regime.puzzle_id:
        raise ValueError(
            f"the puzzle table of checkpoint {checkpoint} was trained on other tasks than those that load now: {why}; put the tasks back "
            "as they were when it was trained."
        )
    notes = [f"the training tasks of today are not those that the checkpoint was trained on: {why}"] if why else []
    stamps = []
    if config.dataset.regime is Regime.few_shot and config.evaluation.split is not SplitName.train:
        trained = {task.demos for task in record.tasks}
        known = [task.id for task in setting.scored if demos_digest(task) in trained]
        if known:
            stamps = [f"{len(known)} of the {len(setting.scored)} scored tasks were trained on (task {known[0]})"]
    for note in (*notes, *stamps):
        log.warning("note: %s", note)
    return replace(setting, record=record), notes, stamps


def _apply_wishes(config: ExperimentConfig, wanted: EvaluateConfig) -> None:
    """Settings given to evaluate.py replace those of the run."""
    evaluation = config.evaluation
    evaluation.split = wanted.split or evaluation.split
    for key in ("num_augmentations", "batch_size", "max_tasks"):
        value = getattr(wanted, key)
        if value is not None:
            setattr(evaluation, key, value)
    for key in ("halting", "votes", "canvas"):
        value = getattr(wanted.evaluation, key)
        if value is not None:
            setattr(evaluation, key, value)
    problems = list(broken_rules(config))
    if problems:
        raise ValueError("\n".join(problems))


def votes_key(config: ExperimentConfig, tasks: Sequence[ArcTask], checkpoint: Path, weights: WeightsKind) -> str:
    """Names everything that decides the votes of an evaluation: settings, scored tasks, and the bytes of the weights."""
    digest = hashlib.sha256(json.dumps([_TALLY_VERSION, identity(config), weights.value], sort_keys=True).encode())
    for path in sorted(checkpoint.glob("*.safetensors")):
        if path.name in WEIGHT_FILES:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(tasks_digest(tasks).encode())
    return digest.hexdigest()[:16]


def _require_trained_rows(config: ExperimentConfig, setting: Setting) -> None:
    if config.dataset.regime is not Regime.puzzle_id:
        return
    untrained = [task.id for task in setting.scored if task.id not in setting.puzzle_rows]
    if untrained:
        trained = len(setting.scored) - len(untrained)
        if trained and all(task.id in setting.puzzle_rows for task in setting.scored[:trained]):
            remedy = f"use max_tasks={trained}, as many as it was trained with"
        elif trained:
            remedy = "take what was added since out of its source"
        else:
            remedy = f"score the split it was trained with, or train with evaluation.split={config.evaluation.split.value}"
        raise ValueError(
            f"split={config.evaluation.split.value}: this checkpoint's puzzle table has no vectors for {len(untrained)} of "
            f"{len(setting.scored)} tasks ({untrained[0]}, ...); {remedy}."
        )


def _split_stamp(config: ExperimentConfig) -> tuple[str, ...]:
    return (FIT_STAMP,) if config.evaluation.split is SplitName.train else ()


def _part_stamp(config: ExperimentConfig, setting: Setting) -> tuple[str, ...]:
    total, scored = len(setting.split.named(config.evaluation.split.value)), len(setting.scored)
    return (f"the first {scored} of the {total} tasks of this split were scored",) if scored < total else ()


def _rules_stamp(config: ExperimentConfig) -> tuple[str, ...]:
    rules = config.evaluation
    return rules_stamp({f"evaluation.{key}": getattr(rules, key).name for key in ("halting", "votes", "canvas")})
