"""The life of an evaluation whose solver asks a language model: configuration -> model, sandbox, solver -> results.

    def make(folder): return Method(check=..., solve=..., facts=..., record=..., stamps=..., warn=..., stores=...)
    exit_status = evaluate_with_model(config, None, make)        # of evaluate.py solver=program_sampling, tree_search

What the method draws it keeps in the run's folder as it comes: the same command goes on after a kill, or where it was told to
end. One process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, flat
from arclab.config.llm_schema import (
    HOW_MODELS_RUN,
    EvaluateLmConfig,
    EvaluateWithProgramsConfig,
    Isolation,
)
from arclab.config.run import DeviceChoice
from arclab.config.schema import SplitName
from arclab.data.shares import share_of
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.lm.endpoint.started import opened_model
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import LanguageModel, num_parameters
from arclab.pages.publish import publish
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.results.attempts import Attempts
from arclab.results.reading import FIT_STAMP, part_stamp
from arclab.results.writing import Evaluation, Exhibits, Subject, require_no_larger
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import RecordFailure, RunFolder, WorkProgress, in_ranks, until_told
from arclab.runs.lock import keeper
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.worklist import ItemKind
from arclab.solvers.shards import ShardRecord, begin_with_whole, merge_shards, parts_to_solve, write_merge_time

log = logging.getLogger(__name__)
_NAMED_TASKS = 20  # on the console; the report has them all
# Cannot change what is drawn for a task, or belong to no task: an evaluation goes on with other values of these.
FREE = (
    "output_dir",
    "name",
    "runs_dir",
    "launch.",
    "max_tasks",
    "split",
    "dataset.",
    "num_threads",
    *(f"lm.{key}" for key in HOW_MODELS_RUN),
)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a solver works with. sandbox: see programs()."""

    model: LanguageModel
    progress: WorkProgress
    sandbox: Sandbox | None

    def programs(self) -> Sandbox:
        """Where programs run, for a method whose configuration has a sandbox."""
        assert self.sandbox is not None, "a method without programs has no sandbox"
        return self.sandbox


Solve = Callable[[tuple[ArcTask, ...], Tools], Attempts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """check: called with the tasks before a model is loaded; ConfigError if what the folder holds was made with other settings.
    solve: also looks up what the folder holds. facts, record: see Subject. stamps: beside those that all have. warn: says on
    the console what a user should know of the results. stores: {pattern of files in the folder: what they hold}, of all that
    solve keeps there. exhibits: asked for once it has solved."""

    check: Callable[[tuple[ArcTask, ...]], None]
    solve: Solve
    facts: dict[str, str]
    record: dict[str, Any]
    stamps: Callable[[Attempts], Sequence[str]]
    warn: Callable[[Attempts], None]
    stores: Mapping[str, ItemKind]
    exhibits: Callable[[], Exhibits] = Exhibits


def evaluate_with_model(config: EvaluateLmConfig, given: RunDir | None, make: Callable[[Path], Method]) -> int:
    """Score the solver and write metrics.json, predictions.jsonl, submission.json, report.html. make: the method for a folder.
    given, and the exit status: see arclab.runs.lifecycle.in_ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"solver={config.solver_kind} runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without "
            "torchrun."
        )

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _evaluate(config, ranks, signals, folder, make)

    return in_ranks(work, config, given, DeviceChoice.cpu, config.num_threads)  # the model chooses its own device


def _evaluate(
    config: EvaluateLmConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder, make: Callable[[Path], Method]
) -> State:
    run = folder.run
    with folder.building(), ExitStack() as stack:
        tasks, num_tasks, notes = scored_tasks(config)
        method = make(run.path)
        method.check(tasks)  # refuses other settings before a model is loaded
        require_no_larger(run.path, len(tasks), 0)
        has_programs = isinstance(config, EvaluateWithProgramsConfig)
        sandbox = stack.enter_context(open_sandbox(config.sandbox)) if has_programs else None
        model = stack.enter_context(opened_model(config.lm, config.launch, run.path))
        with folder.held(config, notes), RecordFailure(run):
            progress = WorkProgress(run, ranks, signals, num_to_solve(config, tasks))

            def work() -> str:
                if config.launch.shard is not None:
                    return _solve_share(config, tasks, method, run, Tools(model, progress, sandbox))
                if config.launch.is_divided:
                    merge_shards(config, run.path, method.stores)
                attempts = method.solve(tasks, Tools(model, progress, sandbox))
                _look_at(attempts, model, len(tasks))
                all_stamps = (*stamps(config, sandbox, attempts, len(tasks)), *method.stamps(attempts))
                result = Evaluation(
                    subject=_subject(config, method, sandbox, run.path), tasks=tasks, attempts=attempts,
                    stamps=(*part_stamp(len(tasks), num_tasks), *all_stamps), notes=notes, provenance=provenance(),
                )  # fmt: skip
                keeper(run)()
                message = publish(result, run.path)
                if config.launch.is_divided:
                    write_merge_time(run.path)
                method.warn(attempts)
                return message

            return until_told(run, ranks, progress, work)


def num_to_solve(config: EvaluateLmConfig, tasks: Sequence[ArcTask]) -> int:
    launch = config.launch
    return len(tasks) if launch.shard is None else len(share_of(tasks, launch.shard, launch.shards))


def _solve_share(config: EvaluateLmConfig, tasks: Sequence[ArcTask], method: Method, run: RunDir, tools: Tools) -> str:
    """The shard's tasks; what was drawn stays in its folder, and the whole scores it."""
    begin_with_whole(run.path, config.whole_folder, method.stores)
    is_new = not any(path for pattern in method.stores for path in run.path.glob(pattern))
    solved, record = 0, ShardRecord(run.path)
    for part in parts_to_solve(tasks, config, config.whole_folder):
        record.add(part, method.solve(part, tools))
        solved += len(part)
        tools.progress.report(solved)
    if is_new:  # else its time says nothing
        record.write()
    return f"shard {config.launch.shard} of {config.launch.shards}: {solved} tasks"


def _look_at(attempts: Attempts, model: LanguageModel, num_tasks: int) -> None:
    """Which tasks were not tried, and how large the model is. ConfigError: no task could be tried."""
    if (parameters := num_parameters(model)) is not None:
        attempts.statistics["num_params"] = float(parameters)
    for task_id, why in list(attempts.skipped.items())[:_NAMED_TASKS]:
        log.warning("%s was not tried: %s", task_id, why)
    if len(attempts.skipped) > _NAMED_TASKS:
        log.warning("%d more tasks were not tried; the report names them", len(attempts.skipped) - _NAMED_TASKS)
    if len(attempts.skipped) == num_tasks:
        first = next(iter(attempts.skipped.values()))
        raise ConfigError(f"none of the {num_tasks} tasks could be tried, so there is no result; the first one: {first}")


def scored_tasks(config: EvaluateLmConfig) -> tuple[tuple[ArcTask, ...], int, tuple[str, ...]]:
    """The tasks of the split that are scored, how many it has, and the notes on the data. ValueError if there are none."""
    split = load_tasks(config.dataset)
    tasks = split.named(config.split.value)
    if not tasks:
        raise ConfigError(f"split={config.split.value} has no tasks in dataset={config.dataset.name}; choose another split.")
    return tasks[: config.max_tasks], len(tasks), split.notes


def drawing_settings(config: EvaluateLmConfig, free: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that decides what is drawn, the bytes of a local model included. free: further keys, or their beginnings, that
    do not."""
    settings = {key: value for key, value in flat(config).items() if not key.startswith((*FREE, *free))}
    for key in ("lm.name", "lm.adapter"):
        if settings.get(key):
            settings[f"{key} (content)"] = model_identity(settings[key])
    return settings


def _subject(config: EvaluateLmConfig, method: Method, sandbox: Sandbox | None, folder: Path) -> Subject:
    isolation = {} if sandbox is None else {"isolation": sandbox.isolation.name}
    facts = {
        "dataset": f"{config.dataset.name} / {config.split.value}",
        **method.facts,
        **isolation,
        "seed": str(config.seed),
    }
    record = {
        "split": config.split.value,
        "dataset": config.dataset.name,
        "solver": config.solver_kind,
        "model": config.lm.name,
        **method.record,
        **isolation,
        "seed": config.seed,
    }
    title, shown = (config.solver_kind, Path(config.lm.name).name), method.exhibits()
    return Subject(
        title, facts, {"folder": str(folder)}, record, flat(config), tables=shown.tables, pictures=shown.pictures
    )  # fmt: skip


def stamps(config: EvaluateLmConfig, sandbox: Sandbox | None, attempts: Attempts, num_tasks: int) -> tuple[str, ...]:
    """What must stand beside every score, whatever the method."""
    found = [FIT_STAMP] if config.split is SplitName.train else []
    if sandbox is not None and sandbox.isolation.value < Isolation.seccomp.value:
        found.append(f"programs ran with isolation={sandbox.isolation.name} only: they could have read files")
    if attempts.skipped:
        found.append(
            f"{len(attempts.skipped)} of {num_tasks} tasks were not tried (prompt longer than the context, or refused) and "
            "count as wrong"
        )
    if attempts.not_sent:
        each = ", ".join(f"{setting} ({count} tasks)" for setting, count in sorted(attempts.not_sent.items()))
        found.append(f"settings that the server takes no value of, so that its own apply: {each}")
    return tuple(found)
