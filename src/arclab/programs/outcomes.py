"""Run programs on a task: what each answered for every demonstration and test input, and where it was right.

    outcomes = run_jobs(sandbox, [ProgramRun(task, source, entry="solve", with_tests=True)])   # source None: no program

A program whose answers depend on where its objects are in memory (the order of a set of objects does) answers the same in every
worker whose addresses are fixed. Where the system forbids that, programs that reproduce every demonstration run once more, at
other addresses: only their answers are submitted or rewarded in full. Running all of them twice would halve the speed for
programs that are wrong anyway.

Comparison happens here, never in the sandbox. `demos` says which demonstrations are reproduced; `answers` are the grids for the
test inputs, which nobody has compared with anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.programs.sandbox.execution import Execution, GridResult, Result, Status
from arclab.programs.sandbox.pool import Sandbox


@dataclass(frozen=True, slots=True)
class PairOutcome:
    """One demonstration. cell_share: cells that are right, of those of the truth; 0 unless the shape is right."""

    status: Status
    grid: Grid | None
    message: str
    has_right_shape: bool
    cell_share: float

    @property
    def is_right(self) -> bool:
        return self.cell_share == 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One program. source None: there was no program, and nothing ran. answers: empty unless tests were asked for.

    nondeterministic: it read a clock, or a second run answered something else.
    """

    source: str | None
    demos: tuple[PairOutcome, ...]
    answers: tuple[GridResult, ...]
    cpu_s: float
    nondeterministic: bool = False

    @property
    def demo_share(self) -> float:
        """Share of the demonstrations that are reproduced."""
        return sum(demo.is_right for demo in self.demos) / max(1, len(self.demos))

    @property
    def is_right(self) -> bool:
        """Whether every demonstration is reproduced."""
        return bool(self.demos) and all(demo.is_right for demo in self.demos)


def compare(result: GridResult, truth: Grid) -> PairOutcome:
    """A program's answer to one input beside the right one."""
    has_right_shape = result.grid is not None and result.grid.shape == truth.shape
    share = float(np.mean(result.grid == truth)) if has_right_shape else 0.0
    return PairOutcome(result.status, result.grid, result.message, has_right_shape, share)


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """A program and the task it is run on. source None: the reply had no program. num_demos: only the first so many
    demonstrations, for programs that are not finished; None: all."""

    task: ArcTask
    source: str | None
    entry: str
    with_tests: bool
    seed: int = 0
    num_demos: int | None = None

    @property
    def demos(self) -> tuple[Pair, ...]:
        return self.task.demos[: self.num_demos]


def run_jobs(sandbox: Sandbox, jobs: Sequence[ProgramRun]) -> list[Outcome]:
    """The outcomes in order, of programs of any number of tasks; equal programs of one task run once.

    Demonstrations run first, so that a crash on a test input costs none of them.
    """
    numbers: dict[tuple[int, str, str, bool, int, int], int] = {}
    executions, places = [], []
    for job in jobs:
        if job.source is None:
            places.append(None)
            continue
        key = (id(job.task), job.source, job.entry, job.with_tests, job.seed, len(job.demos))
        number = numbers.setdefault(key, len(executions))
        if number == len(executions):
            inputs = tuple(pair.input for pair in (*job.demos, *(job.task.tests if job.with_tests else ())))
            executions.append(Execution(job.source, inputs, entry=job.entry, seed=job.seed))
        places.append(number)
    results = sandbox.run(executions)
    outcomes = [
        Outcome(None, (), (), 0.0) if place is None else _outcome(job, results[place])
        for job, place in zip(jobs, places, strict=True)
    ]
    if sandbox.has_fixed_addresses:
        return outcomes
    again = sorted({place for outcome, place in zip(outcomes, places, strict=True) if place is not None and outcome.is_right})
    seconds = sandbox.run([replace(executions[place], other_addresses=True) for place in again])
    differ = {place for place, second in zip(again, seconds, strict=True) if not _are_equal(results[place], second)}
    return [
        replace(outcome, nondeterministic=outcome.nondeterministic or place in differ)
        for outcome, place in zip(outcomes, places, strict=True)
    ]


def _are_equal(first: Result, second: Result) -> bool:
    """Whether both runs gave the same grids; why there is none may differ."""
    return all(
        (a.grid is None and b.grid is None) or (a.grid is not None and b.grid is not None and np.array_equal(a.grid, b.grid))
        for a, b in zip(first.grids, second.grids, strict=True)
    )


def _outcome(job: ProgramRun, result: Result) -> Outcome:
    num_demos, demos = len(job.demos), []
    for answer, pair in zip(result.grids[:num_demos], job.demos, strict=True):
        assert pair.output is not None
        demos.append(compare(answer, pair.output))
    return Outcome(job.source, tuple(demos), result.grids[num_demos:], result.cpu_s, result.nondeterministic)
