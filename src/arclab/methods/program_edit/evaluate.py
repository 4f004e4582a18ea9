"""stage=evaluate: what the trained model makes of start programs that it was not trained on.

    evaluate(config, ranks, signals, folder)        # writes edits.jsonl and metrics.jsonl

Start programs are the identity and, where a right program of the task is known, mutants of it. Each is edited
evaluate.num_samples times. Rewards know demonstrations alone; whether test inputs are answered right is counted beside them.
"""

from __future__ import annotations

from contextlib import ExitStack
from random import Random

from arclab.config.compose import ConfigError
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.lm.models import load_language_model
from arclab.methods.program_edit.editing import EDIT_ITEMS, EditRecord, kept_edits, metrics_of, model_editor
from arclab.methods.program_edit.population import Origin, Population
from arclab.methods.program_edit.sample import EDITS, TRAINED, model_config, to_sampling
from arclab.methods.program_edit.starts import (
    Start,
    add_mutants,
    add_programs,
    identity_source,
    reference_sources,
    run_starts,
)
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import Worklist


def evaluate(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    trained = {"trained": config.file_of("sft", config.round, TRAINED)}
    tasks = _scored_tasks(config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        with ExitStack() as stack:
            sandbox = stack.enter_context(open_sandbox(config.sandbox))
            starts = _starts(config, sandbox, tasks)
            records = _edits(config, run, progress, sandbox, starts)
            isolation = sandbox.isolation.name
        found = metrics_of(records, len(starts))
        if not found:
            raise ConfigError(f"none of the {len(starts)} start programs could be edited: their prompts are too long.")
        with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
            logger.write(config.round, found)
        result = judged(config, run, run)
        counts = {name.removeprefix("edits/"): value for name, value in found.items()}
        solved = round(found["edits/solved_share"] * len(starts))
        message = f"{solved} of {len(starts)} start programs put right" + (f"; {result}" if result else "")
        return Made(outputs=[run.path / EDITS], counts=counts, message=message, isolation=isolation)

    return make_stage(config, ranks, signals, folder, trained, len(tasks), work)


def judged(config: ProgramEditConfig, measured: RunDir, run: RunDir) -> str:
    """What the criterion says of an evaluation, written to criterion.json of the run; empty without one."""
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(measured.metrics))
    write_criterion(result, run)
    return str(result)


def _scored_tasks(config: ProgramEditConfig) -> tuple[ArcTask, ...]:
    tasks = load_tasks(config.dataset).named(config.evaluate.split.value)[: config.evaluate.max_tasks]
    if not tasks:
        raise ConfigError(
            f"evaluate.split={config.evaluate.split.value} has no tasks in dataset={config.dataset.name}; choose another split."
        )
    return tasks


def _starts(config: ProgramEditConfig, sandbox: Sandbox, tasks: tuple[ArcTask, ...]) -> list[Start]:
    references = reference_sources(tasks) if config.starts.mutants else {}
    population, chosen = Population(), []
    for task in tasks:
        add_programs(population, sandbox, task, [identity_source(config.prompt.entry)], Origin.identity, config)
        if task.id in references:
            add_mutants(population, sandbox, task, references[task.id], config)
        drawn = population.draw(task.id, config.starts.per_task, Random(f"{config.seed}/{task.id}"))
        chosen += [(task, program) for program in drawn]
    if not chosen:
        raise ConfigError("there is no start program to edit: give other tasks, or raise starts.mutants.")
    return run_starts(sandbox, chosen, config)


def _edits(
    config: ProgramEditConfig, run: RunDir, progress: WorkProgress, sandbox: Sandbox, starts: list[Start]
) -> list[EditRecord]:  # fmt: skip
    wished = config.evaluate
    model = load_language_model(model_config(config, config.round + 1))
    worklist = Worklist(run.path / EDITS, {"seed": config.seed, "round": config.round}, EDIT_ITEMS)
    return kept_edits(
        worklist, model_editor(model, to_sampling(config.sample.sampling, config.seed)), sandbox, starts, config,
        wished.num_samples, at_once=model.num_prompts(wished.num_samples), progress=progress, split=wished.split,
    )  # fmt: skip
