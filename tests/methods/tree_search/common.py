"""Toy tasks, a model that writes their programs step by step and errs as often as it is told to, and settings that are quickly
changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arclab.config.compose import compose_evaluate
from arclab.config.tree_search_schema import EvaluateTreeSearchConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Prompt, Sampling
from arclab.lm.scripted import ScriptedModel
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import Tree
from arclab.programs.sandbox.pool import Sandbox
from arclab.results.attempts import Budget

TASKS = load_source("toy:color_map?tasks=6&side=3&colors=3&palette=4&demos=3&tests=1")
MARK, END = "# next step", "```"  # as in conf/solver/tree_search.yaml


def config_of(search: str, *overrides: str) -> EvaluateTreeSearchConfig:
    """Of a search of few and short draws."""
    config = compose_evaluate([
        "solver=tree_search", f"search={search}", "lm=tiny", "dataset=toy", "solver.prompt.instructions=false",
        "solver.prompt.grid_format=digits", "search.branching=2", "search.num_programs=1000", "search.num_draws=40",
        *overrides,
    ])  # fmt: skip
    assert isinstance(config, EvaluateTreeSearchConfig)
    return config


def setting_of(search: str, *overrides: str, has_values: bool = False) -> Setting:
    config = config_of(search, *overrides)
    return Setting(config.solver, config.search, config.seed, has_values)


def steps_of(setting: Setting) -> Steps:
    return Steps.of(setting.solver.steps)


def chance(prompt: Prompt, sample: int, sampling: Sampling) -> np.random.Generator:
    """Random numbers of one draw, as a model has them: by prompt, sample and seed."""
    told = repr((sampling.seed, sample, [(m.role, m.content) for m in prompt])).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(told).digest()[:8], "little"))


def scripted(script: Callable[[str, np.random.Generator], str], **options: Any) -> ScriptedModel:
    """script: (what is written so far, random numbers of the draw) -> what comes next."""

    def say(prompt: Prompt, sample: int, sampling: Sampling) -> str:
        assert prompt[-1].role == "assistant"
        return script(prompt[-1].content, chance(prompt, sample, sampling))

    return ScriptedModel(seeded=say, **options)


LINES = (
    "    grid = [row[:] for row in grid]\n", "    grid = [row[::-1] for row in grid]\n", "    grid = grid[::-1]\n",
    "    grid = [list(row) for row in zip(*grid)]\n", "    grid = grid[0][9]\n", "    grid = [[1]]\n",
)  # fmt: skip


def babble(written: str, rng: np.random.Generator) -> str:
    """Lines that run, fail, end the program, or repeat: everything that a tree can meet."""
    kind = rng.integers(10)
    if kind == 0:
        return f"\n    return grid\n{END}"
    if kind == 1:
        return "\n    return [[0]]\n"  # the end of its turn
    if kind == 2:
        return f"\n{MARK}"  # a step of nothing
    if kind == 3:
        return f"\n    for row in grid:\n{MARK}"  # does not compile
    return f"\n{LINES[rng.integers(len(LINES))]}    {MARK}"


def shape_of(tree: Tree) -> list[tuple[object, ...]]:
    """All that a search decides, without times."""
    return [
        (
            node.tag,
            node.text,
            node.rollout,
            node.attempt,
            node.temperature,
            node.ending,
            node.visits,
            round(node.q, 12),
            node.valid,
        )
        for node in tree.nodes.values()
    ] + [(each.of, each.attempt) for each in tree.duplicates]


def without_tests(tasks: Sequence[ArcTask]) -> list[ArcTask]:
    """The same tasks with hidden answers."""
    return [replace(task, tests=tuple(replace(test, output=None) for test in task.tests)) for task in tasks]


def grown(
    setting: Setting, sandbox: Sandbox, script: Callable[[str, np.random.Generator], str] = babble, *, tasks: Any = TASKS[:1],
    num_parallel: int = 4, **options: Any,
) -> dict[str, Tree]:  # fmt: skip
    """The trees of tasks, by a script."""
    solver = TreeSearch(scripted(script, num_parallel=num_parallel), sandbox, setting, **options)
    solver.solve(tasks, Budget())
    return solver.trees


def tree_of(setting: Setting, sandbox: Sandbox, script: Callable[[str, np.random.Generator], str], **options: Any) -> Tree:
    """Of one task."""
    (tree,) = grown(setting, sandbox, script, **options).values()
    return tree
