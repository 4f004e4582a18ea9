"""evaluate.py for methods without a checkpoint: configuration -> model, sandbox, solver -> results.

    python evaluate.py solver=program_sampling lm=tiny dataset=toy

Replies are kept in the run's folder as they come (samples.jsonl): the same command goes on after a kill, or where it was told
to end. One process.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, flat
from arclab.config.llm_schema import HOW_MODELS_RUN, EvaluateProgramsConfig, Isolation
from arclab.config.run import DeviceChoice
from arclab.config.schema import SplitName
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import LanguageModel, Sampling, num_parameters
from arclab.lm.models import load_language_model
from arclab.methods.program_sampling.samples import SampleStore
from arclab.methods.program_sampling.solver import ProgramSampling, few_programs, few_programs_remedy
from arclab.pages.publish import publish
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.results.attempts import Attempts, Budget
from arclab.results.reading import FIT_STAMP, part_stamp
from arclab.results.writing import Evaluation, Subject, require_no_larger
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import RecordFailure, RunFolder, WorkProgress, in_ranks, until_told
from arclab.runs.lock import keeper
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

log = logging.getLogger(__name__)
_NAMED_TASKS = 20  # on the console; the report has them all
# Cannot change a reply: an evaluation goes on with other values of these. Prompts are compared by themselves.
_FREE = (
    "output_dir",
    "name",
    "runs_dir",
    "launch.",
    "max_tasks",
    "split",
    "dataset.",
    "sandbox.",
    "num_threads",
    "solver.prompt.",
    *(f"lm.{key}" for key in HOW_MODELS_RUN),
)


def evaluate_programs(config: EvaluateProgramsConfig, given: RunDir | None = None) -> int:
    """Score the solver and write metrics.json, predictions.jsonl, submission.json, report.html beside samples.jsonl. given, and
    the exit status: see arclab.runs.lifecycle.in_ranks."""

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"solver={config.solver.kind} runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without "
            "torchrun."
        )

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _evaluate_programs(config, ranks, signals, folder)

    return in_ranks(work, config, given, DeviceChoice.cpu, config.num_threads)  # the model chooses its own device


def _evaluate_programs(config: EvaluateProgramsConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    run = folder.run
    with folder.building(), ExitStack() as stack:
        tasks, num_tasks, notes = scored_tasks(config)
        store = SampleStore(run.path, reply_settings(config))
        store.check()  # refuses other settings before a model is loaded
        require_no_larger(run.path, len(tasks), 0)
        sandbox = stack.enter_context(open_sandbox(config.sandbox))
        model = load_language_model(config.lm)
        with folder.held(config, notes), RecordFailure(run):
            progress = WorkProgress(run, ranks, signals, len(tasks))

            def work() -> str:
                attempts = _solve(config, tasks, model, sandbox, store, progress)
                if len(attempts.skipped) == len(tasks):
                    first = next(iter(attempts.skipped.values()))
                    raise ConfigError(
                        f"none of the {len(tasks)} tasks could be tried, so there is no result; the first one: {first}"
                    )
                result = Evaluation(
                    subject=programs_subject(config, sandbox, run.path), tasks=tasks, attempts=attempts,
                    stamps=(*part_stamp(len(tasks), num_tasks), *stamps(config, sandbox, attempts, len(tasks))),
                    notes=notes, provenance=provenance(),
                )  # fmt: skip
                keeper(run)()
                message = publish(result, run.path)
                _warn_if_few(attempts.statistics, config, store)
                return message

            return until_told(run, ranks, progress, work)


def _warn_if_few(statistics: dict[str, float], config: EvaluateProgramsConfig, store: SampleStore) -> None:
    if few := few_programs(statistics):
        remedy = few_programs_remedy(statistics, config.solver.sampling.max_new_tokens)
        log.warning("%s; %s. The replies are in %s.", few, remedy, store.path)


def _solve(
    config: EvaluateProgramsConfig, tasks: tuple[ArcTask, ...], model: LanguageModel, sandbox: Sandbox, store: SampleStore,
    progress: WorkProgress,
) -> Attempts:  # fmt: skip
    num_known = store.load()
    if num_known:
        log.info("going on: %s holds the replies of %d tasks", store.path, num_known)
    sampling = config.solver.sampling
    solver = ProgramSampling(
        model,
        sandbox,
        prompt=config.solver.prompt,
        store=store,
        show_progress=True,
        progress=progress,
        sampling=Sampling(
            sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, (), config.seed
        ),
    )
    attempts = solver.solve(tasks, Budget(num_samples=config.solver.num_samples))
    if (parameters := num_parameters(model)) is not None:
        attempts.statistics["num_params"] = float(parameters)
    for task_id, why in list(attempts.skipped.items())[:_NAMED_TASKS]:
        log.warning("%s was not tried: %s", task_id, why)
    if len(attempts.skipped) > _NAMED_TASKS:
        log.warning("%d more tasks were not tried; the report names them", len(attempts.skipped) - _NAMED_TASKS)
    return attempts


def scored_tasks(config: EvaluateProgramsConfig) -> tuple[tuple[ArcTask, ...], int, tuple[str, ...]]:
    """The tasks of the split that are scored, how many it has, and the notes on the data. ValueError if there are none."""
    split = load_tasks(config.dataset)
    tasks = split.named(config.split.value)
    if not tasks:
        raise ConfigError(f"split={config.split.value} has no tasks in dataset={config.dataset.name}; choose another split.")
    return tasks[: config.max_tasks], len(tasks), split.notes


def reply_settings(config: EvaluateProgramsConfig) -> dict[str, Any]:
    """Everything but the prompt that decides a reply, the bytes of a local model included."""
    settings = {key: value for key, value in flat(config).items() if not key.startswith(_FREE)}
    for key in ("lm.name", "lm.adapter"):
        if settings.get(key):
            settings[f"{key} (content)"] = model_identity(settings[key])
    return settings


def programs_subject(config: EvaluateProgramsConfig, sandbox: Sandbox, folder: Path) -> Subject:
    solver, settings = config.solver, flat(config)
    facts = {
        "dataset": f"{config.dataset.name} / {config.split.value}",
        "programs per task": str(solver.num_samples),
        "temperature": f"{solver.sampling.temperature:g}",
        "isolation": sandbox.isolation.name,
        "seed": str(config.seed),
    }
    record = {
        "split": config.split.value,
        "dataset": config.dataset.name,
        "solver": solver.kind,
        "model": config.lm.name,
        "num_samples": solver.num_samples,
        "isolation": sandbox.isolation.name,
        "seed": config.seed,
    }
    return Subject((solver.kind, Path(config.lm.name).name), facts, {"folder": str(folder)}, record, settings)


def stamps(config: EvaluateProgramsConfig, sandbox: Sandbox, attempts: Attempts, num_tasks: int) -> tuple[str, ...]:
    found = [FIT_STAMP] if config.split is SplitName.train else []
    if sandbox.isolation.value < Isolation.seccomp.value:
        found.append(f"programs ran with isolation={sandbox.isolation.name} only: they could have read files")
    if attempts.skipped:
        found.append(
            f"{len(attempts.skipped)} of {num_tasks} tasks were not tried (prompt longer than the context, or refused) and "
            "count as wrong"
        )
    if attempts.not_sent:
        each = ", ".join(f"{setting} ({count} tasks)" for setting, count in sorted(attempts.not_sent.items()))
        found.append(f"settings that the server takes no value of, so that its own apply: {each}")
    if few := few_programs(attempts.statistics):
        found.append(few)
    return tuple(found)
