"""The reward model of a round: it reads what the search shows, is calibrated on what it has not seen, and is asked by the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.llm_schema import HfModelConfig, Isolation
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.files import read_object
from arclab.lm.language_model import Prompt
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.learning.outcomes import pairs_of
from arclab.methods.tree_search.learning.policy import TRAINED
from arclab.methods.tree_search.learning.records import PreferencePair
from arclab.methods.tree_search.learning.values import (
    calibrated,
    held_out_tasks,
    load_values,
    pair_loss,
    pair_rows,
    prompt_settings,
    reader_of,
)
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.trees import load_tree
from arclab.programs.sandbox.pool import Sandbox
from arclab.results.attempts import Budget
from arclab.runs.stages import MANIFEST, read_counts

from ..common import TASKS, babble, scripted
from .conftest import Run, Writers


def config_of(tiny_lm: Path, *overrides: str) -> TreeLearningConfig:
    return compose_run(
        "self_improve_tree_search",
        ["experiment=search_quickstart", "name=t", "scratch=null", f"lm.name={tiny_lm}", "reward_model.steps=2", *overrides],
    )


def with_marks(config: TreeLearningConfig) -> TreeLearningConfig:
    """As the script of common.py writes steps."""
    steps = config.solver.steps
    steps.root, steps.step_end, steps.program_end = "def solve(grid):\n", "# next step", "```"
    return config


def test_it_is_trained_on_the_texts_that_the_search_shows(tiny_lm: Path) -> None:
    wide = ("search.num_draws=60", "search.branching=6", "search.max_step_tokens=999", "search.max_program_tokens=9999")
    config = with_marks(config_of(tiny_lm, *wide))
    assert isinstance(config.lm, HfModelConfig)
    reader, asked, task = reader_of(config.lm), list[list[int]](), TASKS[0]

    def values(shown: Sequence[tuple[Prompt, str]]) -> list[float]:
        asked.extend(reader.value_ids(*each) for each in shown)
        return [0.0] * len(shown)

    with Sandbox(num_workers=1, min_isolation=Isolation.limits) as sandbox:
        solver = TreeSearch(scripted(babble), sandbox, Setting(config.solver, config.search, 1, True), values=values)
        solver.solve([task], Budget())
    tree = solver.trees[task.id]
    nodes = [node for node in tree.drawn() if not node.is_terminal]
    assert len(asked) == len(nodes) > 5
    # Any two open nodes will do as a pair: what matters is how their texts are made.
    top = [node for node in tree.nodes["0.0"].children if not node.is_terminal]
    pairs = [
        PreferencePair(
            task.id, "step", "plain", tree.nodes["0.0"].asked, top[0].parent.written, node.text, top[0].text, node.tag, top[0].tag,
            1.0, 0.0, 1, 0, 0, 1,
        )
        for node in top if top[0].parent is not None
    ]  # fmt: skip
    rows = pair_rows(config, reader, pairs, {task.id: task})
    assert rows and all(row["chosen"] in asked and row["rejected"] in asked for row in rows)
    assert sum(row["weight"][0] for row in rows) == pytest.approx(len(rows))
    other = with_marks(config_of(tiny_lm, "solver.prompt.grid_format=spaced"))
    with pytest.raises(ValueError, match="was searched with a prompt"):
        pair_rows(other, reader, pairs, {task.id: task})
    assert pairs_of(task, tree, config.collect, {task.id}) is not None


def test_calibration_finds_the_scale_of_pairs_and_none_where_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, 20000)
    signed = np.where(rng.random(20000) < 1 / (1 + np.exp(-0.7 * gaps)), gaps, -gaps)
    assert calibrated(signed.tolist()) == pytest.approx(0.7, abs=0.05)
    assert pair_loss(signed.tolist(), 0.7) < pair_loss(signed.tolist(), 1.4)
    coin = rng.normal(0, 1, 20000)
    assert calibrated(coin.tolist()) < 0.05 and pair_loss(coin.tolist(), 0.0) == pytest.approx(math.log(2))


def test_held_out_pairs_are_of_other_tasks() -> None:
    pairs = [PreferencePair(f"t{n % 5}", "step", "", "", "", "", "", "", "", 0.0, 0.0, 0, 0, 0, 0) for n in range(20)]
    assert len(held_out_tasks(pairs, 0.4, 0)) == 2 and held_out_tasks(pairs[::-1], 0.4, 0) == held_out_tasks(pairs, 0.4, 0)
    assert len(held_out_tasks(pairs, 0.05, 0)) == 1 and len(held_out_tasks(pairs, 0.9, 0)) == 4
    with pytest.raises(ConfigError, match="a reward model needs pairs of at least 2"):
        held_out_tasks(pairs[:1], 0.4, 0)


def test_the_next_round_asks_it(run: Run, writers: Writers, tiny_lm: Path, tmp_path: Path) -> None:
    keys = (
        "reward_model.steps=2", "reward_model.batch_size=2", "sft.twin=false", "criterion=null", "evaluate.baselines=true",
        "evaluate.num_programs=3",
    )  # fmt: skip
    assert run(*keys, "rounds=2") == 0
    root = tmp_path / "search_quickstart/a"
    made = root / "round_0/reward_model"
    counts = read_counts(made)
    assert counts["pairs"] > 2 and counts["held_out_pairs"] > 0 and 0 <= counts["accuracy"] <= 1
    assert counts["loss_calibrated"] <= counts["loss_before"] + 1e-6 and (made / "metrics.jsonl").is_file()
    for number, has_values in ((0, False), (1, True)):
        tree = load_tree(next((root / f"round_{number}/collect/trees").glob("*.jsonl")))
        nodes = [node for node in tree.drawn() if not node.is_terminal]
        assert nodes and all((node.value is not None) == has_values for node in nodes)
    assert "reward_model" in read_object(root / "round_1/collect" / MANIFEST)["inputs"]
    for name, has_values in (("", True), ("search", False), ("start", False), ("start_valued", True)):
        trees = [load_tree(path) for path in (root / "round_0/evaluate" / name / "trees").glob("*.jsonl")]
        nodes = [node for tree in trees for node in tree.drawn() if not node.is_terminal]
        assert nodes and all((node.value is not None) == has_values for node in nodes)
        assert len(trees) == 3 and all(tree.num_programs <= 3 < tree.num_attempts for tree in trees)
    for name in ("sampling", "start_sampling"):  # whole programs alone
        trees = [load_tree(path) for path in (root / "round_0/evaluate" / name / "trees").glob("*.jsonl")]
        assert len(trees) == 3 and all(tree.num_programs == tree.num_attempts == 3 for tree in trees)
        assert read_counts(root / "round_0/evaluate")[f"learned/{name}_count"] == 9
    assert not (root / "round_1/evaluate/start_sampling").exists() and (root / "round_1/evaluate/sampling").is_dir()
    config, record = config_of(tiny_lm), read_object(made / TRAINED)
    assert load_values(config, made / "value", record)([]) == []
    other = config_of(tiny_lm, "solver.prompt.show_shapes=true")
    with pytest.raises(ConfigError, match=r"was trained for prompts with prompt\.show_shapes=False, and the search has"):
        load_values(other, made / "value", record)
    assert prompt_settings(config) == record["prompts"]
