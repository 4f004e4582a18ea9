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
from arclab.lm.language_model import Completion, LanguageModel, Sampling
from arclab.methods.program_edit.mutants import worse_mutants
from arclab.methods.program_edit.population import Origin, Population, Program, program_of
from arclab.programs.code_blocks import split_thinking
from arclab.programs.dsl import reference_programs, require_dsl
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.prompts import parse_program, render_prompt
from arclab.programs.rewards import edit_value
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.worklist import Line, Worklist

_DRAFT_COLUMNS = {"sources": "source", "tokens": "tokens", "thinking_tokens": "thinking_tokens"}


@dataclass(frozen=True, slots=True)
class Start:
    """A program that is to be edited. outcome: on the demonstrations, and its answers to the test inputs. root: the sha of the
    program that its chain of edits began with; "": it begins here. turn: edits before it in its chain. others: programs that
    are shown beside it."""

    task: ArcTask
    program: Program
    outcome: Outcome
    root: str = ""
    turn: int = 0
    others: tuple[Outcome, ...] = ()

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


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply to a task without a program to begin with. source None: it has no program. tokens None: the server does not
    tell."""

    source: str | None
    tokens: int | None
    thinking_tokens: int


def known_drafts(worklist: Worklist) -> dict[str, list[Draft]]:
    """What the worklist holds: id of a request -> drafts; see drafts_of."""

    def parse(record: dict[str, Any], line: Line) -> list[Draft]:
        line.require(record, {"sources": list[str | None], "tokens": list[int | None], "thinking_tokens": list[int]})
        columns = record["sources"], record["tokens"], record["thinking_tokens"]
        if len({len(column) for column in columns}) > 1:
            raise line.damaged("its lists are not of one length")
        return [Draft(*each) for each in zip(*columns, strict=True)]

    return worklist.load(parse)


def drafts_of(
    worklist: Worklist, model: LanguageModel, tasks: Sequence[ArcTask], count: int, sampling: Sampling, entry: str,
    prompt: PromptConfig, progress: WorkProgress, *, number: int = 0, known: dict[str, list[Draft]] | None = None,
    skipped: dict[str, str] | None = None,
) -> dict[str, list[Draft]]:  # fmt: skip
    """Task id -> what the model writes from nothing, kept task by task. number: of the request, where a task has several; each
    needs a seed of its own. known: what known_drafts() found, for who calls this often; it is kept up to date. Where a prompt
    cannot be answered there are none, and skipped hears why. ToldToEnd: the progress said so."""
    drafts = known_drafts(worklist) if known is None else known
    ids = {task.id: f"{task.id}/{number}" if number else task.id for task in tasks}
    missing = [task for task in tasks if len(drafts.get(ids[task.id], ())) < count]
    at_once, unanswered = model.num_prompts(count), set[str]()
    for first in range(0, len(missing), at_once):
        part = missing[first : first + at_once]
        replies = model.generate([render_prompt(task, prompt) for task in part], count, sampling)
        for task, reply in zip(part, replies, strict=True):
            if reply.problem:  # asking again costs nothing, and another setting may let it fit
                unanswered.add(task.id)
                if skipped is not None:
                    skipped[task.id] = reply.problem
                continue
            drafts[ids[task.id]] = made = [_draft(completion, entry) for completion in reply.completions]
            columns = {key: [getattr(each, name) for each in made] for key, name in _DRAFT_COLUMNS.items()}
            worklist.add(ids[task.id], columns)
        if progress.is_told:
            raise ToldToEnd(f"the drafts of {len(tasks) - len(missing) + first + len(part)} of {len(tasks)} tasks are kept")
    return {task.id: [] if task.id in unanswered else drafts[ids[task.id]][:count] for task in tasks}


def _draft(completion: Completion, entry: str) -> Draft:
    parsed = parse_program(completion.whole, entry=entry, finish_reason=completion.finish_reason)
    return Draft(parsed.source, completion.num_tokens, thinking_tokens_of(completion, split_thinking(completion.whole)[0]))


def thinking_tokens_of(completion: Completion, thinking: str) -> int:
    """Models say how many tokens a reply has, not where they are: the thinking's part of its characters, rounded up; of a reply
    that is not counted, words."""
    if completion.num_tokens is None:
        return len(thinking.split())
    return -(-completion.num_tokens * len(thinking) // max(1, len(completion.whole)))


def programs_in(drafts: Sequence[Draft]) -> list[str]:
    return [draft.source for draft in drafts if draft.source is not None]


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
