"""Where edits begin: reference programs of tasks, the population that is made from them, and what its programs do.

    known = reference_sources(tasks)                              # task id -> a program that is right, where one is known
    add_mutants(population, sandbox, task, known[task.id], config)
    starts = run_starts(sandbox, [(task, program)], config)       # with what each program does on the task

References are known of toy tasks (their rule says the program) and of the ARC-AGI-1 training tasks (arc_dsl). They tell the
answers of their tasks: only tasks that are trained on, and the start programs of an evaluation, are made with them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arclab.config.llm_schema import PromptConfig
from arclab.config.program_edit_schema import EditSettings, ProgramEditConfig
from arclab.data.rearc import origin_of
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import LanguageModel, Sampling
from arclab.methods.program_edit.mutants import worse_mutants
from arclab.methods.program_edit.population import Origin, Population, Program, program_of
from arclab.programs.dsl import reference_programs, require_dsl
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.prompts import parse_program, render_prompt
from arclab.programs.rewards import edit_value
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.worklist import Line, Worklist


@dataclass(frozen=True, slots=True)
class Start:
    """A program that is to be edited. outcome: on the demonstrations, and its answers to the test inputs. root: the sha of the
    program that its chain of edits began with; "": it begins here. turn: edits before it in its chain."""

    task: ArcTask
    program: Program
    outcome: Outcome
    root: str = ""
    turn: int = 0

    @property
    def place(self) -> tuple[str, str, int]:
        return self.task.id, self.root or self.program.sha, self.turn


def reference_sources(tasks: Sequence[ArcTask]) -> dict[str, str]:
    """Task id -> a right program, as Python writes it, of those tasks of which one is known. ValueError, in one sentence: there
    are tasks without a rule of their own, and the language of the programs of ARC tasks is not installed."""
    found = {task.id: solution(task) for task in tasks if task.rule is not None}
    others = [task for task in tasks if task.rule is None]
    if others:
        require_dsl()
        programs = reference_programs()
        origins = {task.id: origin_of(task) or task.id for task in others}
        found |= {id_: programs[origin] for id_, origin in origins.items() if origin in programs}
    return {id_: ast.unparse(ast.parse(source)) + "\n" for id_, source in found.items()}


def identity_source(entry: str) -> str:
    return f"def {entry}(I):\n    return I\n"


def drafts_of(
    worklist: Worklist, model: LanguageModel, tasks: Sequence[ArcTask], count: int, sampling: Sampling, entry: str,
    prompt: PromptConfig, progress: WorkProgress,
) -> dict[str, list[str]]:  # fmt: skip
    """Task id -> programs that the model writes from nothing, kept task by task. ToldToEnd: the progress said so."""

    def parse(record: dict[str, Any], line: Line) -> list[str]:
        line.require(record, {"sources": list[str]})
        return record["sources"]

    drafts = worklist.load(parse)
    missing, at_once = [task for task in tasks if task.id not in drafts], model.num_prompts(count)
    for first in range(0, len(missing), at_once):
        part = missing[first : first + at_once]
        replies = model.generate([render_prompt(task, prompt) for task in part], count, sampling)
        for task, reply in zip(part, replies, strict=True):
            parsed = [parse_program(c.whole, entry=entry, finish_reason=c.finish_reason) for c in reply.completions]
            drafts[task.id] = [one.source for one in parsed if one.source is not None]
            worklist.add(task.id, {"sources": drafts[task.id]})
        if progress.is_told:
            raise ToldToEnd(f"the drafts of {len(drafts)} of {len(tasks)} tasks are kept")
    return drafts


def value_of(task: ArcTask, config: EditSettings) -> Callable[[Outcome], float]:
    """What a program of the task is worth, by its outcome."""

    def value(outcome: Outcome) -> float:
        return edit_value(task, outcome, config.reward)

    return value


def add_programs(
    population: Population, sandbox: Sandbox, task: ArcTask, sources: Sequence[str], origin: Origin, config: EditSettings
) -> int:
    """Run programs and add those that are new; how many are."""
    runs = [ProgramRun(task, source, config.prompt.entry, with_tests=True, seed=config.seed) for source in sources]
    value = value_of(task, config)
    return sum(
        population.add(program_of(task.id, outcome, origin, value(outcome))) for outcome in run_jobs(sandbox, runs)
    )  # fmt: skip


def add_mutants(population: Population, sandbox: Sandbox, task: ArcTask, reference: str, config: ProgramEditConfig) -> int:
    """Add mutants of a reference program, whose function is called solve; how many are new."""
    starts, value = config.starts, value_of(task, config)
    mutants = worse_mutants(
        sandbox, task, with_entry(reference, config), config.prompt.entry, value, count=starts.mutants,
        max_changes=starts.max_changes, seed=config.seed,
    )  # fmt: skip
    return sum(
        population.add(program_of(task.id, outcome, Origin.mutant, value(outcome), changes=mutant.changes))
        for mutant, outcome in mutants
    )


def with_entry(reference: str, config: ProgramEditConfig) -> str:
    """A reference program under the name that is asked for."""
    return reference.replace("def solve(", f"def {config.prompt.entry}(")


def next_start(start: Start, sandbox: Sandbox, source: str | None, config: ProgramEditConfig) -> Start:
    """The next one of its chain. source None: the same program once more."""
    if source is None:
        return replace(start, root=start.place[1], turn=start.turn + 1)
    run = ProgramRun(start.task, source, config.prompt.entry, with_tests=True, seed=config.seed)
    (outcome,) = run_jobs(sandbox, [run])
    value = value_of(start.task, config)(outcome)
    program = program_of(start.task.id, outcome, Origin.child, value, parent=start.program)
    return Start(start.task, program, outcome, start.place[1], start.turn + 1)


def run_starts(
    sandbox: Sandbox, programs: Sequence[tuple[ArcTask, Program]], config: EditSettings
) -> list[Start]:  # fmt: skip
    runs = [
        ProgramRun(task, program.source, config.prompt.entry, with_tests=True, seed=config.seed) for task, program in programs
    ]
    outcomes = run_jobs(sandbox, runs)
    return [Start(task, program, outcome) for (task, program), outcome in zip(programs, outcomes, strict=True)]
