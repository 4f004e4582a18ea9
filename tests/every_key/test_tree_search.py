"""What a config of evaluate.py solver=tree_search says is what runs: each key of the search changes what its row says.

The language model is a script that writes at random, so that every mechanism is met. The keys that program sampling has too
are the same code, and are tried there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import flat
from arclab.config.llm_schema import EvaluateProgramsConfig, Isolation
from arclab.config.tree_search_schema import EvaluateTreeSearchConfig
from arclab.lm.language_model import Prompt, Sampling, begun_reply
from arclab.lm.scripted import ScriptedModel
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.prompts import load_examples
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.steps import Steps
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.results.attempts import Budget

from ..conftest import ROOT
from ..methods.tree_search.common import END, TASKS, babble, chance, config_of, shape_of
from .table import Parts, Table, differences, leaves, require_a_row_for_each, require_the_named_tests

# Kind of search, other value, what changes: prompts (what the model is asked), drawing (how it draws), tree (what comes of it).
KEYS: dict[str, tuple[str, Any, str]] = {
    "search.branching": ("mcts", 3, "tree"),
    "search.num_programs": ("pwmcts", 3, "tree"),
    "search.num_draws": ("pwmcts", 9, "tree"),
    "search.max_tokens": ("pwmcts", 20, "tree"),
    "search.max_s": ("pwmcts", 0.000001, "tree"),
    "search.stop_groups": ("custom", 1, "tree"),
    "search.parallel_leaves": ("custom", 3, "tree"),
    "search.max_program_tokens": ("custom", 30, "tree"),
    "search.reward": ("custom", "binary", "tree"),
    "search.temperature.schedule": ("pwmcts", "constant", "drawing"),
    "search.temperature.start": ("pwmcts", 0.5, "drawing"),
    "search.temperature.end": ("pwmcts", 1.3, "drawing"),
    "search.temperature.target_fraction": ("custom", 0.3, "drawing"),
    "search.temperature.concentration": ("custom", 2.0, "drawing"),
    "search.num_rollouts": ("pwmcts", 3, "tree"),
    "search.max_depth": ("custom", 2, "tree"),
    "search.max_step_tokens": ("mcts", 99, "drawing"),
    "search.beam_width": ("beam", 1, "tree"),
    "search.c_puct": ("custom", 0.0, "tree"),
    "search.fpu_reduction": ("pwmcts", 2.0, "tree"),
    "search.widening_exponent": ("pwmcts", 0.0, "tree"),
    "search.max_successes": ("custom", 0, "tree"),
    "search.regeneration_probability": ("bootstrap", 1.0, "tree"),
    "search.hinted_rollouts": ("bootstrap", 9, "prompts"),
    "search.unhinted_share": ("bootstrap", 0.0, "prompts"),
    "search.last_hinted": ("bootstrap", 1, "prompts"),
    "search.num_first": ("sample_refine", 8, "prompts"),
    "search.thompson_c": ("sample_refine", 0.0, "tree"),
    "search.num_islands": ("sample_refine", 1, "tree"),
    "solver.steps.program_begin": ("mcts", "python:\n", "prompts"),
    "solver.steps.root": ("mcts", "def solve(grid):", "prompts"),
    "solver.steps.step_end": ("mcts", "# and then", "drawing"),
    "solver.steps.program_end": ("mcts", "# the end", "drawing"),
    "solver.examples.file": ("mcts", None, "prompts"),
    "solver.examples.sets": ("mcts", [["b"]], "prompts"),
    "solver.examples.rotate": ("pwmcts", False, "prompts"),
    "solver.top_p": ("mcts", 0.5, "drawing"),
    "solver.top_k": ("mcts", 3, "drawing"),
    "solver.min_p": ("mcts", 0.3, "drawing"),
    "seed": ("mcts", 5, "drawing"),
    **{f"solver.prompt.{key}": ("mcts", value, "prompts") for key, value in {
        "grid_format": "pipes", "instructions": True, "show_tests": False, "show_shapes": False,
    }.items()},
}  # fmt: skip
OTHERS: Table = {
    "search.virtual_loss": (None, "methods/tree_search/test_policies.py::test_walks_of_one_tree_spread"),
    "search.kind": (None, "methods/tree_search/test_search.py::test_what_holds_for_every_tree"),
    "search.hints": (None, "methods/tree_search/test_policies.py::test_a_missing_hint_is_an_error_and_keys_may_be_file_names"),
    "solver.kind": (None, "methods/tree_search/test_solver.py::test_what_is_wrong_with_the_settings_is_said"),
    "solver.prompt.entry": (None, "methods/tree_search/test_solver.py::test_what_is_wrong_with_the_settings_is_said"),
    "solver.trees_at_once": (None, "methods/tree_search/test_search.py::test_trees_at_once_are_as_many_as_asked_for"),
    **{
        key: (None, "every_key/test_programs.py::test_a_key_changes_what_its_row_says")
        for key in leaves(EvaluateProgramsConfig)
        if not key.startswith("solver.") and key != "seed"
    },
}
RIGHT = solution(TASKS[0]).partition("\n")[2]
# What makes a key show: overrides of both sides.
WITH = {
    "pwmcts": ["search.branching=3", "search.num_draws=90", "search.parallel_leaves=4", "search.num_rollouts=24"],
    "custom": ["search.branching=3", "search.num_draws=90", "search.temperature.schedule=beta_cdf", "search.num_rollouts=20", "search.parallel_leaves=2", "search.stop_groups=null"],
    "mcts": ["search.branching=2"],
    "bootstrap": ["search.hints=x", "search.hinted_rollouts=2", "search.unhinted_share=0.6", "search.num_rollouts=8", "search.num_draws=60", "search.parallel_leaves=2"],
    "sample_refine": ["search.num_first=16", "search.num_programs=60", "search.stop_groups=null"],
    "beam": ["search.num_draws=40"],
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=2, min_isolation=Isolation.limits) as shared:
        yield shared


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "examples.json"
    task = {"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1]], "output": [[2]]}]}
    entries = [{"name": name, "task": task, "program": f"def solve(grid):\n    return grid  # {name}\n"} for name in "abc"]
    path.write_text(json.dumps(entries))
    return path


def asked(kind: str, overrides: list[str], sandbox: Sandbox) -> Parts:
    """All that is asked of the model on one task, and the tree that comes of it."""
    config = config_of(kind, *WITH[kind], *overrides)
    drawing: list[Any] = []
    opening = Steps.of(config.solver.steps).opening

    def note(prompt: Prompt, sample: int, sampling: Sampling) -> str:
        drawing.append(str(sampling))
        rng = chance(prompt, sample, sampling)
        is_lucky = kind == "custom" and prompt[-1].content == opening and rng.random() < 0.3
        return f"\n    I = grid\n{RIGHT}    # {rng.integers(9)}\n{END}" if is_lucky else babble(prompt[-1].content, rng)

    model = ScriptedModel(seeded=note)
    examples = load_examples(config.solver.examples, Steps.of(config.solver.steps))
    setting = Setting(config.solver, config.search, config.seed)
    hints = {TASKS[0].id: "Swap."} if kind == "bootstrap" else None
    solver = TreeSearch(model, sandbox, setting, examples=examples, hints=hints)
    solver.solve(TASKS[:1], Budget())
    prompts = [(begun_reply(prompt)[0], prompt[-1].content[:30]) for call in model.calls for prompt in call]
    return {"prompts": prompts, "drawing": drawing, "tree": shape_of(solver.trees[TASKS[0].id])}


def test_every_key_has_a_row() -> None:
    require_a_row_for_each(
        leaves(EvaluateTreeSearchConfig), {key: (value, what) for key, (_, value, what) in KEYS.items()}, OTHERS
    )
    require_the_named_tests(OTHERS)
    assert {path.stem for path in (ROOT / "conf/search").glob("*.yaml")} == {*WITH, "sampling"}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_the_search_changes_what_its_row_says(key: str, sandbox: Sandbox, examples: Path) -> None:
    kind, value, what = KEYS[key]
    both = [f"solver.examples.file={examples}"] if key.startswith("solver.examples.") else []
    if key == "solver.examples.file":
        both, value = [], str(examples)
    text = json.dumps(value) if isinstance(value, str | list | bool) else str(value)
    base, before = the_base(kind, tuple(both), sandbox)
    assert base[key] != value, "the other value is the same"
    assert what in differences(before, asked(kind, [*both, f"{key}={text}"], sandbox))


@pytest.mark.parametrize("kind", WITH)
def test_the_same_settings_ask_the_same(kind: str, sandbox: Sandbox) -> None:
    assert not differences(the_base(kind, (), sandbox)[1], asked(kind, [], sandbox))


@cache
def the_base(kind: str, overrides: tuple[str, ...], sandbox: Sandbox) -> tuple[dict[str, Any], Parts]:
    return flat(config_of(kind, *WITH[kind], *overrides)), asked(kind, list(overrides), sandbox)
