"""The rules of the search at test time: which programs are edited at each level, what stands beside them, when a task's budget
is spent. Pure functions; solver.py draws and runs.

    levels = levels_of(config.solver)                        # chains are a tree whose levels are alike
    parents = parents_of(population.of(task.id), level, config.solver.search)
    others = pooled(parents[0], programs, level.pool)        # shown beside the first one
    if allowance.left(spent) > 0: ...

In a tree a program that reproduces more demonstrations comes first, then what it is worth; in chains what it is worth alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arclab.config.program_edit_schema import EditSearch, EditSearchConfig
from arclab.methods.program_edit.population import Program


@dataclass(frozen=True, slots=True)
class Level:
    """num_parents: programs that are edited. num_samples: edits of each. pool: programs in a prompt, the edited one included;
    more where examples are not covered by so many."""

    num_parents: int
    num_samples: int
    pool: int


@dataclass(slots=True)
class Spent:
    """What was drawn for a task: programs (replies without one included) and tokens. tokens None: the server does not tell."""

    programs: int = 0
    tokens: int | None = 0

    def add(self, tokens: int | None) -> None:
        self.programs += 1
        self.tokens = None if self.tokens is None or tokens is None else self.tokens + tokens


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be drawn for a task; None: no limit."""

    max_programs: int | None
    max_tokens: int | None

    def left(self, spent: Spent, wished: int) -> int:
        """How many of the wished programs may be asked for. ValueError: tokens are limited, and the server does not tell
        them."""
        if self.max_tokens is not None:
            if spent.tokens is None:
                raise ValueError(
                    f"solver.max_tokens={self.max_tokens} needs a model that tells how many tokens a reply has, and this "
                    "server does not; set solver.max_programs in its place."
                )
            if spent.tokens >= self.max_tokens:
                return 0
        return wished if self.max_programs is None else max(0, min(wished, self.max_programs - spent.programs))


def levels_of(config: EditSearchConfig) -> list[Level]:
    if config.search is EditSearch.single:
        return []
    if config.search is EditSearch.chains:
        return [Level(config.num_kept, config.num_samples, 1)] * config.turns
    return [Level(*level) for level in config.levels]


def ranked(programs: Sequence[Program], search: EditSearch) -> list[Program]:
    """Those that are not right yet, best first; of equals the earlier one."""
    wrong = [program for program in programs if not program.is_solved]
    if search is EditSearch.tree:
        return sorted(wrong, key=lambda program: (-sum(program.solved), -program.value))
    return sorted(wrong, key=lambda program: -program.value)


def pooled(parent: Program, best_first: Sequence[Program], pool: int) -> list[Program]:
    """What stands beside the parent in a prompt for `pool` programs: the next best ones, then for every example that none of
    these solves the best program that does."""
    if pool == 1:
        return []
    chosen = [parent]
    chosen += [program for program in best_first if program.sha != parent.sha][: pool - 1]
    for example in range(len(parent.solved)):
        if not any(program.solved[example] for program in chosen):
            chosen += [program for program in best_first if program.solved[example]][:1]
    return chosen[1:]
