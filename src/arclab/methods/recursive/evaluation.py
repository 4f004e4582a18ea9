"""evaluate.py of a checkpoint: score a trained recursive model.

    evaluate(compose_evaluate(["checkpoint=runs/quickstart/demo"]))      # writes the results and their page

It works in one process and under torchrun; rank 0 writes. An evaluation is a run: its folder has config.yaml, status.json and a
lock. The same command goes on where it was killed or told to end: votes are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path

from arclab.config.adaptation_schema import AdaptationConfig, LatentSearchConfig, NoAdaptation, WeightAdaptationConfig
from arclab.config.compose import broken_rules, flat, identity
from arclab.config.dataset_schema import Regime
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.config.schema import ExperimentConfig, SplitName, WeightsKind
from arclab.data.augment import ViewRule
from arclab.data.shares import share_of
from arclab.data.tasks import ArcTask, tasks_digest
from arclab.methods.recursive.adaptation.tasks import AdaptedReader, TaskAdapter, require_adaptable
from arclab.methods.recursive.adaptation.training import steps_of_rank, with_adaptation
from arclab.methods.recursive.against_plain import judged, write_verdict
from arclab.methods.recursive.cost import ModelSize, Placement, evaluation_cost
from arclab.methods.recursive.model import DTYPES, RecursiveModel
from arclab.methods.recursive.probes.encoder_health import HealthSettings, encoder_health, num_predictions
from arclab.methods.recursive.probes.table_ablations import num_table_predictions, table_health
from arclab.methods.recursive.saved import WEIGHT_FILES, TrainedRun
from arclab.methods.recursive.search.reader import LatentSearchReader, require_searchable
from arclab.methods.recursive.setting import Setting, as_trained, build_setting, require_trained_rows, view_rule, with_wishes
from arclab.methods.recursive.solver.reader import ModelReader, Reader
from arclab.methods.recursive.solver.solver import PerTask, RecursiveSolver
from arclab.methods.recursive.solver.store import VoteStore
from arclab.pages.publish import publish
from arclab.results.attempts import Attempts, Budget
from arclab.results.reading import FIT_STAMP, part_stamp, rules_stamp
from arclab.results.writing import Evaluation, Subject, checkpoint_subject, require_no_larger
from arclab.runs.choice import Choice
from arclab.runs.console import progress_bar
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import OwnFolder, RecordFailure, RunFolder, WorkProgress, in_ranks, until_told, use_threads
from arclab.runs.memory import advice_if_out_of_memory
from arclab.runs.preflight import announce
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.solvers.shards import ShardRecord, merge_shards, write_merge_time

log = logging.getLogger(__name__)
_MEMORY_ADVICE = (
    "lower batch_size (rows in flight), or adaptation.rows_per_step where the model is trained, or set "
    "evaluation.canvas=bucketed for a model trained so"
)
_HEALTH_ROWS = 16  # at once, so that the bar moves
RULES = ("halting", "votes", "canvas", "ranking", "samples", "carry_noise")  # of evaluation.*: how rows become answers
_TALLY_VERSION = 4  # what the votes and the sums kept with them mean


def evaluate(wanted: EvaluateConfig, given: RunDir | None = None) -> int:
    """Score a checkpoint and write the results. ValueError: nothing was written. given, and the exit status: see
    arclab.runs.lifecycle.in_ranks."""

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return evaluate_in_ranks(wanted, ranks, signals, folder)

    return in_ranks(work, wanted, given, wanted.device, wanted.num_threads)


def evaluate_in_ranks(
    wanted: EvaluateConfig, ranks: Ranks, signals: StopSignals | None = None, folder: RunFolder | None = None
) -> State:
    """Load the checkpoint and score it, as one of these ranks."""
    folder = folder or OwnFolder(RunDir(wanted.folder), ranks)
    with folder.building():
        trained = TrainedRun.open(Path(wanted.checkpoint))
        checkpoint, config, state = trained.checkpoint, trained.config, trained.state
        if wanted.num_threads is None:
            use_threads(config.trainer.num_threads)
        record = trained.record()
        setting = build_setting(config, view_rule(record))
        chosen_by = config.evaluation.split
        apply_wishes(config, wanted)
        learns = isinstance(wanted.adaptation, WeightAdaptationConfig)
        setting, data_stamps = with_wishes(config, setting, wanted.dataset, learns_vectors=learns)
        setting, notes, overlap = as_trained(config, setting, record, checkpoint)
        require_trained_rows(config, setting, learns_vectors=learns)
        require_adaptable(wanted.adaptation, config, len(setting.scored), len(setting.known_rows))
        require_searchable(wanted.adaptation, config, len(setting.scored))
        model = trained.model(wanted.weights, setting.record.num_puzzles).to(ranks.device)
        label = wanted.label(config.evaluation.split.value)
        require_no_larger(folder.run.path, len(setting.scored), config.evaluation.num_augmentations, label)
        log.info("%s", trained.choice)
        for stamp in data_stamps:
            log.warning("note: %s", stamp)
        num_tasks = len(setting.split.named(config.evaluation.split.value))
        stamps = (*state["stamps"], *data_stamps, *overlap, *_choice_stamp(trained.choice, wanted, config, chosen_by),
                  *_split_stamp(config), *part_stamp(len(setting.scored), num_tasks), *rules_stamps(config),
                  *adaptation_stamp(wanted.adaptation))  # fmt: skip
        subject = checkpoint_subject(config, RunDir(wanted.run_folder), trained.choice, wanted.weights.value, label)
        found = Evaluation(
            subject=_adapted(subject, wanted.adaptation), tasks=setting.scored, attempts=Attempts({}), stamps=stamps,
            notes=(*setting.split.notes, *notes, *_better_step(trained.choice)), provenance=provenance(),
        )  # fmt: skip
        _announce(wanted, config, setting, model, ranks)
        with folder.held(wanted, found.notes), RecordFailure(folder.run), advice_if_out_of_memory(_MEMORY_ADVICE):
            share = _share(wanted, setting.scored)
            progress = WorkProgress(folder.run, ranks, signals, len(share or setting.scored))

            def solve(adaptation: AdaptationConfig) -> Attempts:
                key = votes_key(config, setting.scored, checkpoint, wanted.weights, adaptation)
                adapter = adapter_of(adaptation, config, setting, model, ranks, state["step"], progress.require_not_told)
                solver = build_solver(config, setting, model, ranks, config.evaluation.batch_size,
                                      _store(wanted, folder.run, key), progress, adaptation, adapter, share)  # fmt: skip
                with adapter.adapted_jointly() if adapter is not None and adapter.is_joint else nullcontext():
                    return solver.solve(setting.scored, Budget(config.evaluation.num_augmentations))

            def work() -> str:
                if share is not None:
                    return _count_share(wanted, solve, list(share.values()), folder.run, ranks)
                attempts, verdict = judged(solve, wanted.adaptation, setting.scored, state["step"])
                attempts.statistics |= context_metrics(config, setting, model, ranks) | model.num_parameters
                if not ranks.is_main:
                    return ""
                return (
                    f"{_published(wanted, replace(found, attempts=attempts), folder.run)}{write_verdict(verdict, folder.run)}"
                )

            return until_told(folder.run, ranks, progress, work)


def _share(wanted: EvaluateConfig, scored: Sequence[ArcTask]) -> dict[str, ArcTask] | None:
    """{id: task} of those that this shard predicts; None: it is no shard."""
    launch = wanted.launch
    if launch.shard is None:
        return None
    return {task.id: task for task in share_of(scored, launch.shard, launch.shards)}


def _store(wanted: EvaluateConfig, run: RunDir, key: str) -> VoteStore:
    """Of the whole of several shards it has their votes too. ConfigError: one of them is not DONE."""
    merge_shards(wanted, run.path, {})
    return VoteStore(run.path, key, list(wanted.launch.shard_folders(wanted.whole_folder).values()))


def _published(wanted: EvaluateConfig, result: Evaluation, run: RunDir) -> str:
    """DONE's message; nothing is left to go on from."""
    message = publish(result, run.path)
    VoteStore(run.path, "").remove()
    if wanted.launch.is_divided:
        write_merge_time(run.path)
    return message


def _count_share(
    wanted: EvaluateConfig, solve: Callable[[AdaptationConfig], Attempts], share: Sequence[ArcTask], run: RunDir, ranks: Ranks
) -> str:
    """A shard's tasks: its votes stay in its folder, and the whole scores them."""
    record = None if any(run.path.glob("votes_*")) else ShardRecord(run.path)  # of one that goes on the time says nothing
    if wanted.adaptation.wanted_wins is not None:
        solve(NoAdaptation())
    attempts = solve(wanted.adaptation)
    if record is not None and ranks.is_main:
        record.add(share, attempts)
        record.write()
    return f"shard {wanted.launch.shard} of {wanted.launch.shards}: {len(share)} tasks"


def _announce(wanted: EvaluateConfig, config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks) -> None:
    """See arclab.runs.preflight; optimiser steps are those of an adaptation that trains the model."""
    size, place = ModelSize.of(model), Placement(ranks.device.type, ranks.world_size)
    cost, num_steps = evaluation_cost(config, size, setting.data, setting.scored, place, wanted.adaptation), 0
    if isinstance(wanted.adaptation, WeightAdaptationConfig):
        cost = with_adaptation(cost, config, wanted.adaptation, size, setting.data, place)
        num_steps = steps_of_rank(wanted.adaptation, len(setting.scored), ranks.world_size)
    announce(
        wanted, cost, ranks, num_steps=num_steps, num_evaluations=1, dtype=DTYPES[config.trainer.precision],
        advice=_MEMORY_ADVICE,
    )  # fmt: skip


def build_solver(
    config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks, batch_size: int,
    store: VoteStore | None = None, progress: WorkProgress | None = None, adaptation: AdaptationConfig | None = None,
    adapter: TaskAdapter | None = None, share: Mapping[str, ArcTask] | None = None,
) -> RecursiveSolver:  # fmt: skip
    """store: where an evaluation that can be continued keeps its votes. progress: hears of them, and may end it. adapter: of an
    adaptation that trains the model. share: the tasks of a shard, by id."""
    rows = setting.puzzle_rows if config.dataset.regime is Regime.puzzle_id else None
    reader = None if adaptation is None else reader_of(adaptation, config, model, ranks, progress)
    if adapter is not None:
        plain = ModelReader(model, config.dataset.max_demos, adapter.puzzle_rows(), ranks.device)
        reader = AdaptedReader(plain, adapter)
    return solver_of(
        config, model, ranks, batch_size, rows, setting.data.space.rule, store, progress, reader=reader,
        per_task=None if adapter is None or adapter.is_joint else adapter.adapted, share=None if share is None else set(share),
    )  # fmt: skip


def adapter_of(
    adaptation: AdaptationConfig, config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks, step: int,
    before_step: Callable[[], None] = lambda: None,
) -> TaskAdapter | None:  # fmt: skip
    """Who trains the model on the scored tasks' demonstrations; None: nobody. step: how far the run was trained. before_step:
    see TaskAdapter."""
    if not isinstance(adaptation, WeightAdaptationConfig):
        return None
    return TaskAdapter(
        model, config, adaptation, setting.scored, setting.known_rows, setting.data.space.rule, first_step=step, ranks=ranks,
        before_step=before_step,
    )  # fmt: skip


def reader_of(
    adaptation: AdaptationConfig, config: ExperimentConfig, model: RecursiveModel, ranks: Ranks,
    progress: WorkProgress | None = None,
) -> LatentSearchReader | None:  # fmt: skip
    """Who reads the demonstrations in the model's place; None: the model. progress: may end a search."""
    if not isinstance(adaptation, LatentSearchConfig):
        return None
    plain = ModelReader(model, config.dataset.max_demos, None, ranks.device)
    if progress is None:
        return LatentSearchReader(adaptation, plain, config.seed)
    return LatentSearchReader(adaptation, plain, config.seed, progress.require_not_told)


def solver_of(
    config: ExperimentConfig, model: RecursiveModel, ranks: Ranks, batch_size: int, puzzle_rows: dict[str, int] | None,
    rule: ViewRule, store: VoteStore | None = None, progress: WorkProgress | None = None, show_progress: bool = True,
    reader: Reader | None = None, per_task: PerTask | None = None, share: Set[str] | None = None,
) -> RecursiveSolver:  # fmt: skip
    """The solver of a configuration with any tasks; puzzle_rows and rule: see RecursiveSolver."""
    evaluation = config.evaluation
    return RecursiveSolver(
        model, ranks, canvas=config.dataset.canvas, seed=config.seed, batch_size=batch_size,
        max_demos=config.dataset.max_demos, show_progress=show_progress, puzzle_rows=puzzle_rows,
        halting=evaluation.halting, votes=evaluation.votes, canvas_rule=evaluation.canvas, store=store,
        progress=progress, view_rule=rule, ranking=evaluation.ranking, samples=evaluation.samples,
        carry_noise=evaluation.carry_noise, reader=reader, per_task=per_task, share=share,
    )  # fmt: skip


def context_metrics(config: ExperimentConfig, setting: Setting, model: RecursiveModel, ranks: Ranks) -> dict[str, float]:
    """encoder/* on the scored tasks and train_encoder/* on training tasks; the latter only where they are not the scored
    ones. For a puzzle table puzzle/* on the scored tasks. At most evaluation.health_tasks of each, and no more than are scored:
    a quick look stays quick."""
    samples = {"encoder": setting.scored}
    if config.evaluation.split is not SplitName.train:
        samples["train_encoder"] = setting.split.train
    max_tasks = min(config.evaluation.health_tasks, len(setting.scored))
    total = sum(num_predictions(model, tasks, max_tasks) for tasks in samples.values())
    rows = setting.puzzle_rows
    in_table = [task for task in setting.scored if task.id in rows]
    total += num_table_predictions(model, in_table, max_tasks)
    if total == 0:
        return {}
    what = "puzzle table" if model.encoder is None else "encoder"
    with progress_bar(total=total, desc=f"examining the {what}", unit="grid", disable=not ranks.is_main) as bar:
        settings = HealthSettings(
            max_tasks=max_tasks, canvas=config.dataset.canvas, rule=config.evaluation.canvas, seed=config.seed,
            max_demos=config.dataset.max_demos, chunk_rows=min(config.evaluation.batch_size, _HEALTH_ROWS),
            device=ranks.device, done=bar.update,
        )  # fmt: skip
        found = {prefix: encoder_health(model, tasks, settings) for prefix, tasks in samples.items()}
        found["puzzle"] = table_health(model, in_table, rows, settings)
        return {f"{prefix}/{name}": value for prefix, metrics in found.items() for name, value in metrics.items()}


def apply_wishes(config: ExperimentConfig, wanted: EvaluateConfig) -> None:
    """Settings given to evaluate.py replace those of the run."""
    evaluation, dataset = config.evaluation, config.dataset
    evaluation.split = wanted.wanted_split or evaluation.split
    if wanted.dataset.eval_sources is not None:
        dataset.eval_sources = wanted.dataset.eval_sources
        dataset.name = wanted.dataset.name or ", ".join(wanted.dataset.eval_sources)
    if wanted.dataset.max_side is not None:
        dataset.max_side = wanted.dataset.max_side
    for key in ("num_augmentations", "batch_size", "max_tasks"):
        value = getattr(wanted, key)
        if value is not None:
            setattr(evaluation, key, value)
    for key in (*RULES, "health_tasks"):
        value = getattr(wanted.evaluation, key)
        if value is not None:
            setattr(evaluation, key, value)
    problems = list(broken_rules(config))
    if problems:
        raise ValueError("\n".join(problems))


def votes_key(
    config: ExperimentConfig, tasks: Sequence[ArcTask], checkpoint: Path, weights: WeightsKind,
    adaptation: AdaptationConfig | None = None,
) -> str:  # fmt: skip
    """Names everything that decides the votes of an evaluation: settings, scored tasks, how the model is adapted, and the bytes
    of the weights."""
    settings = [_TALLY_VERSION, identity(config), weights.value]
    if adaptation is not None and not isinstance(adaptation, NoAdaptation):
        settings.append(flat(adaptation))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(checkpoint.glob("*.safetensors")):
        if path.name in WEIGHT_FILES:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(tasks_digest(tasks).encode())
    return digest.hexdigest()[:16]


def _choice_stamp(choice: Choice, wanted: EvaluateConfig, config: ExperimentConfig, chosen_by: SplitName) -> tuple[str, ...]:
    """If the step was chosen by its scores on the very tasks that are scored now. chosen_by: the split scored in training."""
    if choice.rule != "best" or config.evaluation.split is not chosen_by or wanted.dataset.eval_sources is not None:
        return ()
    return (
        f"step {choice.step} was chosen by its score on these tasks ({choice.reason}): the scores are too high for new ones",
    )


def _better_step(choice: Choice) -> tuple[str, ...]:
    return (str(choice),) if choice.is_behind else ()


def _split_stamp(config: ExperimentConfig) -> tuple[str, ...]:
    return (FIT_STAMP,) if config.evaluation.split is SplitName.train else ()


def _adapted(subject: Subject, adaptation: AdaptationConfig) -> Subject:
    """The subject, saying how it was adapted."""
    if isinstance(adaptation, NoAdaptation):
        return subject
    settings = {f"adaptation.{key}": value for key, value in flat(adaptation).items()}
    return replace(
        subject, facts=subject.facts | {"adaptation": adaptation.kind}, settings=subject.settings | settings,
        record=subject.record | {"adaptation": adaptation.stamp},
    )  # fmt: skip


def adaptation_stamp(adaptation: AdaptationConfig) -> tuple[str, ...]:
    return (adaptation.stamp,) if adaptation.stamp else ()


def rules_stamps(config: ExperimentConfig) -> tuple[str, ...]:
    values = {f"evaluation.{key}": getattr(config.evaluation, key) for key in RULES}
    return rules_stamp({key: value.name if isinstance(value, Enum) else value for key, value in values.items()})
