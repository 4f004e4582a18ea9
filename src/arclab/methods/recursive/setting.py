"""The tasks of a run of the recursive model: what it is trained on, what is scored, and what a checkpoint remembers of them.

setting = build_setting(config)                                           # a new run
setting = build_setting(config, view_rule(record))                        # one that goes on, or is scored
setting, notes, stamps = as_trained(config, setting, record, checkpoint)  # refuses tasks that changed since
setting, stamps = with_wishes(config, setting, wishes)                    # evaluate.py may score other tasks
require_trained_rows(config, setting)                                     # a puzzle table must know what is scored
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arclab.config.dataset_schema import DatasetWishes, Regime
from arclab.config.schema import ExperimentConfig, SplitName
from arclab.data.augment import ViewRule
from arclab.data.record import NO_RECORD, DataRecord, changed_task, demos_digest, rearc_demos, record_of, same_task
from arclab.data.sampler import TrainingData, build_training_data
from arclab.data.splits import TaskSplit, find_overlaps, load_sources, load_tasks, require_fit, size_note, up_to_side
from arclab.data.tasks import ArcTask
from arclab.results.reading import FIT_STAMP

log = logging.getLogger(__name__)
_SOURCES = {"train": "train_sources", "validation": "validation_sources", "evaluation": "eval_sources"}


@dataclass(frozen=True, slots=True)
class Setting:
    """The tasks of a run and its training data. scored: the tasks of evaluation.split. record: of the tasks that the weights
    are trained on, with their rows in a puzzle table."""

    split: TaskSplit
    data: TrainingData
    scored: tuple[ArcTask, ...]
    record: DataRecord

    @property
    def puzzle_rows(self) -> dict[str, int]:
        """Task id -> its first row in the puzzle table."""
        return {task.id: task.first_row for task in self.record.tasks}

    @property
    def known_rows(self) -> dict[str, int]:
        """The same for the scored tasks that the table was trained on, as they are."""
        rows = self.puzzle_rows
        own = {task.id: task for task in self.data.space.tasks if task.id in rows}
        return {task.id: rows[task.id] for task in self.scored if task.id in own and same_task(task, own[task.id])}


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
            f"dataset.regime=puzzle_id keeps one vector for each task id, and {shared[0]} is both a training task and one of "
            f"the scored tasks ({len(shared)} ids are); rename the tasks of one source."
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
        num_too_large = split.num_too_large.get(name, 0)
        if num_too_large:
            what = f"dataset.max_side={config.dataset.max_side} leaves none of its {num_too_large} tasks; raise it"
        else:
            what = f"dataset={config.dataset.name} has none; choose another split, or give dataset.{_SOURCES[name]}"
        raise ValueError(f"evaluation.split={name} has no tasks: {what}.")
    require_fit(scored, config.dataset.canvas, name)
    return scored


def with_wishes(
    config: ExperimentConfig, setting: Setting, wishes: DatasetWishes, *, learns_vectors: bool = False
) -> tuple[Setting, list[str]]:
    """The setting with the tasks that evaluate.py is to score, and what results must say of them. config: of the run, wishes
    applied. What the checkpoint was trained on is no test of it and left out of other data, whoever holds it. learns_vectors:
    a puzzle table gets vectors for tasks that it does not know.

    ValueError: no task is left or one does not fit; a puzzle table has no vectors for one.
    """
    name, split, stamps = config.evaluation.split.value, setting.split, []
    is_table = config.dataset.regime is Regime.puzzle_id
    scored = list(split.named(name))
    num_too_large = split.num_too_large.get(name, 0)
    if wishes.eval_sources is not None:
        scored, num_too_large = load_sources(wishes.eval_sources), 0
        what = "tasks that the puzzle table knows" if is_table and not learns_vectors else "other data than the run's"
        stamps.append(f"scored on {what}: {', '.join(wishes.eval_sources)}")
    num_tasks = num_too_large + len(scored)
    kept = up_to_side(scored, config.dataset.max_side)
    num_too_large += len(scored) - len(kept)
    if wishes.eval_sources is not None and (learns_vectors or not is_table):
        kept, leaks = _without_trained(setting, kept)
        stamps += leaks
    if name == "train":
        split = replace(split, origins=())  # they are among those that were chosen from
    split = replace(split, num_too_large={**split.num_too_large, name: num_too_large}, **{name: tuple(kept)})
    if num_too_large and kept:
        stamps.append(size_note(num_too_large, num_tasks, name, config.dataset.max_side))
    setting = replace(setting, split=split, scored=scored_tasks(split, config))
    if wishes.eval_sources is not None and is_table and not learns_vectors:
        _require_own_tasks(setting)
    return setting, stamps


def _without_trained(setting: Setting, tasks: Sequence[ArcTask]) -> tuple[list[ArcTask], list[str]]:
    """Tasks that share nothing with those that the weights were trained on, and a sentence on the others. ValueError if none is
    left."""
    trained = {task.demos for task in setting.record.tasks if task.learns_tests} | rearc_demos(setting.record)
    leaks = {scored: train for train, scored in reversed(find_overlaps(setting.split.learned, tasks))}
    leaks |= {task.id: task.id for task in tasks if demos_digest(task) in trained}
    if not leaks:
        return list(tasks), []
    first = next(task.id for task in tasks if task.id in leaks)
    found = (
        f"{len(leaks)} of the {len(tasks)} tasks share an input-output pair with the training data ({first} with "
        f"{leaks[first]})"
    )
    if len(leaks) == len(tasks):
        raise ValueError(f"dataset.eval_sources: {found}, which leaves none to score; split=train measures fit.")
    return [task for task in tasks if task.id not in leaks], [f"{found} and are left out"]


def _require_own_tasks(setting: Setting) -> None:
    """A puzzle table knows a task by its id; here it must be the same task."""
    own = {task.id: task for task in setting.data.space.tasks}
    scored = setting.scored
    unknown = [task.id for task in scored if task.id not in own or not same_task(task, own[task.id])]
    if unknown:
        raise ValueError(
            f"dataset.eval_sources: this checkpoint has one learned vector for each task that it was trained with "
            f"(encoder.kind=puzzle_table), and none for {len(unknown)} of the {len(scored)} tasks ({unknown[0]}, ...); score "
            "the run's own tasks, train vectors for these at test time (adaptation=embeddings_then_weights), or score the "
            "checkpoint of an encoder, which reads demonstrations."
        )


def protocol_stamps(config: ExperimentConfig) -> list[str]:
    """Sentences that every result of the run must carry."""
    if config.dataset.regime is Regime.puzzle_id and config.evaluation.split is not SplitName.train:
        return ["transductive: the demonstrations of the scored tasks are training data"]
    return []


def as_trained(
    config: ExperimentConfig, setting: Setting, record: DataRecord | None, checkpoint: Path
) -> tuple[Setting, list[str], list[str]]:
    """The setting with the record of the checkpoint, notes on the data, and stamps if the model was trained on scored tasks.

    ValueError if a puzzle table was trained on other tasks than those that load now: its vectors would answer for others.
    """
    if record is None:
        log.warning("note: %s", NO_RECORD)
        return setting, [NO_RECORD], _trained_table_stamps(config, setting, setting.record)
    why = changed_task(record, setting.record)
    if why and config.dataset.regime is Regime.puzzle_id:
        raise ValueError(
            f"the puzzle table of checkpoint {checkpoint} was trained on other tasks than those that load now: {why}; put the "
            "tasks back as they were when it was trained."
        )
    notes = [f"the training tasks of today are not those that the checkpoint was trained on: {why}"] if why else []
    stamps = _trained_table_stamps(config, setting, record)
    if config.dataset.regime is Regime.few_shot and config.evaluation.split is not SplitName.train:
        trained = {task.demos for task in record.tasks} | rearc_demos(record)
        known = [task.id for task in setting.scored if demos_digest(task) in trained]
        stamps += _trained_stamp(known, setting)
    for note in (*notes, *stamps):
        log.warning("note: %s", note)
    return replace(setting, record=record), notes, stamps


def _trained_table_stamps(config: ExperimentConfig, setting: Setting, record: DataRecord) -> list[str]:
    """If a puzzle table was trained on answers that are scored, under another split than the one that says so. What was trained
    on demonstrations alone has the stamp of its checkpoint (protocol_stamps)."""
    if config.dataset.regime is not Regime.puzzle_id or config.evaluation.split is SplitName.train:
        return []
    learned = {task.id for task in record.tasks if task.learns_tests}
    known = [task.id for task in setting.scored if task.id in learned and task.id in setting.known_rows]
    return [FIT_STAMP] if len(known) == len(setting.scored) else _trained_stamp(known, setting)


def _trained_stamp(known: Sequence[str], setting: Setting) -> list[str]:
    """known: ids of scored tasks that the model was trained on."""
    return [f"{len(known)} of the {len(setting.scored)} scored tasks were trained on (task {known[0]})"] if known else []


def require_trained_rows(config: ExperimentConfig, setting: Setting, *, learns_vectors: bool = False) -> None:
    """ValueError if a puzzle table has no vectors for a scored task, and does not learn them."""
    if learns_vectors or config.dataset.regime is not Regime.puzzle_id:
        return
    rows = setting.puzzle_rows
    untrained = [task.id for task in setting.scored if task.id not in rows]
    if untrained:
        trained = len(setting.scored) - len(untrained)
        if trained and all(task.id in rows for task in setting.scored[:trained]):
            remedy = f"use max_tasks={trained}, as many as it was trained with"
        elif trained:
            remedy = "take what was added since out of its source"
        else:
            remedy = f"score the split it was trained with, or train with evaluation.split={config.evaluation.split.value}"
        raise ValueError(
            f"split={config.evaluation.split.value}: this checkpoint's puzzle table has no vectors for {len(untrained)} of "
            f"{len(setting.scored)} tasks ({untrained[0]}, ...); {remedy}, or train vectors for "
            "them at test time (adaptation=embeddings_then_weights)."
        )
