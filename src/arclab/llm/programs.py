"""Run programs on a task: what each answered for every demonstration and test input, and where it was right.

    outcomes = run_programs(sandbox, task, [source, None])          # None: the reply had no program

Comparison happens here, never in the sandbox. `demos` says which demonstrations are reproduced; `answers` are the grids for the
test inputs, which nobody has compared with anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arclab.data.tasks import ArcTask, Grid
from arclab.llm.execution import Execution, GridResult, Status
from arclab.llm.sandbox import Sandbox


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
    """One program. source None: there was no program, and nothing ran. answers: empty unless tests were asked for."""

    source: str | None
    demos: tuple[PairOutcome, ...]
    answers: tuple[GridResult, ...]
    cpu_s: float

    @property
    def demo_share(self) -> float:
        """Share of the demonstrations that are reproduced."""
        return sum(demo.is_right for demo in self.demos) / max(1, len(self.demos))


def compare(result: GridResult, truth: Grid) -> PairOutcome:
    """A program's answer to one input beside the right one."""
    has_right_shape = result.grid is not None and result.grid.shape == truth.shape
    share = float(np.mean(result.grid == truth)) if has_right_shape else 0.0
    return PairOutcome(result.status, result.grid, result.message, has_right_shape, share)


def run_programs(
    sandbox: Sandbox, task: ArcTask, sources: Sequence[str | None], *, entry: str, with_tests: bool, seed: int = 0
) -> list[Outcome]:
    """The outcomes in the order of sources. Demonstrations run first, so that a crash on a test input costs none of them."""
    inputs = tuple(pair.input for pair in (task.pairs if with_tests else task.demos))
    runnable = [Execution(source, inputs, entry=entry, seed=seed) for source in sources if source is not None]
    results = iter(sandbox.run(runnable))
    outcomes = []
    for source in sources:
        if source is None:
            outcomes.append(Outcome(None, (), (), 0.0))
            continue
        result, num_demos = next(results), len(task.demos)
        demos = []
        for answer, pair in zip(result.grids[:num_demos], task.demos, strict=True):
            assert pair.output is not None
            demos.append(compare(answer, pair.output))
        outcomes.append(Outcome(source, tuple(demos), result.grids[num_demos:], result.cpu_s))
    return outcomes
