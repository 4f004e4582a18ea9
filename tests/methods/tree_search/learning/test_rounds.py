"""Stages as their user runs them: files that chain, a criterion, and one sentence for what cannot be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.compose import ConfigError, thaw_run
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.files import read_object
from arclab.methods.tree_search.learning.records import (
    CURATED,
    PAIRS,
    SOLUTIONS,
    Curated,
    PreferencePair,
    Solution,
    read_records,
)
from arclab.methods.tree_search.learning.run import improve
from arclab.methods.tree_search.trees import load_tree
from arclab.runs.folder import RunDir, State
from arclab.runs.preempt import StopRequest
from arclab.runs.stages import MANIFEST, read_counts

from .conftest import Run, Writers


def test_a_round_goes_from_trees_to_a_judged_policy(run: Run, writers: Writers, tmp_path: Path) -> None:
    writers.error |= {"sft/model": 0.0, "sft/twin": 0.9}
    assert run() == 0
    root = tmp_path / "search_quickstart/a"
    collected, curated, taught = (root / "round_0" / stage for stage in ("collect", "curate", "sft"))
    solutions = read_records(collected / SOLUTIONS, Solution)
    trees = {path.name: load_tree(path) for path in (collected / "trees").glob("*.jsonl")}
    assert len(trees) == 4 and all(each.right for each in solutions if each.mean_q == 1)
    passing = sum(node.passes for tree in trees.values() for node in tree.programs())
    assert read_counts(collected)["passing"] == len(solutions) == passing > 2
    assert read_records(collected / PAIRS, PreferencePair)
    kept = read_records(curated / CURATED, Curated)
    by_task = {task: [each.weight for each in kept if each.task == task] for task in {each.task for each in kept}}
    assert all(sum(weights) == pytest.approx(1) for weights in by_task.values())
    counts = read_counts(curated)
    assert counts["given"] == len(solutions) and counts["kept"] == len(kept)
    assert counts["given"] - counts["kept"] == sum(value for name, value in counts.items() if name.startswith("taken_"))
    assert (taught / "model/config.json").is_file() and (taught / "twin/config.json").is_file()
    assert not list(taught.glob(".*model*")) and read_counts(taught)["steps"] == 2
    manifest = read_object(root / "round_0/evaluate" / MANIFEST)
    assert manifest["counts"]["ARC/solved@2"] == 1 and list(manifest["inputs"]) == ["policy"] and manifest["isolation"]
    criterion = read_object(root / "criterion.json")
    assert criterion["metric"] == "learned/wins" and criterion["result"] in ("PASS", "FAIL")
    for part in ("", "start/", "twin/"):
        assert (root / "round_0/evaluate" / part / "metrics.json").is_file()
    made = [Path(name).name for name in writers.made]
    assert made[-3:] == [made[0], "twin", "model"]  # the start, the twin and what was trained
    writers.made.clear()
    assert run("rounds=2") == 0  # the first round is not made again
    assert Path(writers.made[0]).parts[-3:] == ("round_0", "sft", "model")
    second = read_records(root / "round_1/collect" / SOLUTIONS, Solution)
    assert {each.number for each in second} == {1}
    assert {each.number for each in read_records(root / "round_1/curate" / CURATED, Curated)} <= {0, 1}
    rows = json.loads((root / "coverage.json").read_text())
    first, later = (
        {each.task for each in read_records(root / f"round_{k}/collect" / SOLUTIONS, Solution) if each.right} for k in (0, 1)
    )
    assert [row["solved"] for row in rows] == [len(first), len(later)] and rows[1]["solved_so_far"] == len(first | later)
    assert rows[1]["new"] == len(later - first) and rows[0]["num_tasks"] == 4
    html = (root / "report.html").read_text()
    assert (
        html.count("<svg") == 3 and "http" not in html.replace("http://www.w3.org", "") and "Coverage of training tasks" in html
    )
    status = RunDir(root).read_status()
    assert status is not None and "at the start and after each round" in status["message"]


def test_merged_shards_are_what_one_process_collects(run: Run, writers: Writers, tmp_path: Path) -> None:
    assert run("stage=collect") == 0
    for number in (1, 0):
        assert run("name=b", "stage=collect", "launch.shards=2", f"launch.shard={number}") == 0
    one, two = (tmp_path / "search_quickstart" / name / "round_0/collect" for name in "ab")
    shards = [two / "shards" / f"{number}_of_2" for number in range(2)]
    assert [sorted(path.name for path in folder.iterdir() if path.suffix == ".jsonl") for folder in shards] == [[], []]
    config = thaw_run(one / "config.yaml")
    assert isinstance(config, TreeLearningConfig)
    divided = replace(config, name="b", launch=replace(config.launch, shards=2))
    assert improve(divided) == 0
    timed = r'"(seconds|cpu_s)": [^,]+|"crc32": \d+'
    trees, merged = (
        {path.name: re.sub(timed, "", path.read_text()) for path in folder.glob("trees/*.jsonl")} for folder in (one, two)
    )
    assert trees == merged and len(trees) == 4
    for name in (SOLUTIONS, PAIRS):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert read_counts(one) == read_counts(two)
    assert list(divided.inputs()) == ["shard 0", "shard 1"] and divided.inputs()["shard 1"] == shards[1]

    other = replace(divided, name="c")
    for number, seed in enumerate((0, 1)):
        assert run("name=c", "stage=collect", "launch.shards=2", f"launch.shard={number}", f"seed={seed}") == 0
    with pytest.raises(ConfigError, match=r"seed=1, .*seed=0"):
        improve(other)
    with pytest.raises(
        ConfigError, match=r"launch\.shards=2 divides tasks .* which stage=collect can do here and stage=curate cannot"
    ):
        run("stage=curate", "launch.shards=2")


def test_nothing_to_learn_says_which_filter_took_it(run: Run, writers: Writers) -> None:
    writers.error[""] = 1.0
    assert run("stage=collect", "search.num_draws=4") == 0
    with pytest.raises(ConfigError, match=r"no program is left to learn of \d+ \(.*search longer \(search\.num_programs\)"):
        run("stage=curate", "search.num_draws=4")


def test_stages_that_cannot_be_say_so(run: Run, writers: Writers) -> None:
    for overrides, rule in (
        (["stage=sft"], r"stage=sft needs .*curated\.jsonl, which does not exist; run stage=curate first"),
        (["stage=collect", "collect.split=evaluation"], "would take labels from hidden test outputs of tasks that are not for"),
        (["stage=augment"], "augment.num_examples=0 leaves it out"),
        (["stage=start"], "scratch=null leaves it out"),
        (["evaluate.split=train"], "is what is learned from"),
        (["curate.num_kept=100"], "must not rise"),
        (["sft.mark_tokens=true", "sft.lora={rank: 2, alpha: 4, dropout: 0, target_modules: [q_proj]}"], "needs embeddings"),
        (["criterion.metric=train/exact_accuracy"], "is not measured here"),
        (["rounds=0"], "rounds=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=rule):
            run(*overrides)
    assert not writers.made


ALONE = ("sft.twin=false", "criterion=null")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(first: Path, second: Path) -> set[str]:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    return {name for name, value in one.items() if not torch.equal(value, two[name])}


def test_an_adapter_is_merged_at_the_end(run: Run, writers: Writers, tiny_lm: Path, tmp_path: Path) -> None:
    """Only what it adapts has moved, and the folder is an ordinary model."""
    keys = (*ALONE, "sft.lora={rank: 2, alpha: 4.0, dropout: 0.0, target_modules: [q_proj]}", "sft.lr=0.1")
    assert all(run(*keys, f"stage={stage}") == 0 for stage in ("collect", "curate", "sft"))
    made = tmp_path / "search_quickstart/a/round_0/sft/model"
    moved = differing(made, tiny_lm)
    assert moved and all("q_proj" in name for name in moved)
    assert not list(made.parent.glob(".making*"))


def test_a_training_that_is_told_to_end_goes_on_to_the_same_weights(
    run: Run, writers: Writers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    keys = (*ALONE, "sft.steps=4", "sft.checkpoint_every=1", "sft.lr=0.01")
    for name in ("whole", "told"):
        assert all(run(*keys, f"name={name}", f"stage={stage}") == 0 for stage in ("collect", "curate"))
    whole, told = (tmp_path / f"search_quickstart/{name}/round_0/sft" for name in ("whole", "told"))
    assert run(*keys, "name=whole", "stage=sft") == 0
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "vote", lambda self, step: [torch.ones(1)] if step == 2 else [])
        assert run(*keys, "name=told", "stage=sft") == 143
    assert RunDir(told).state is State.preempted and not (told / "model").exists()
    assert run(*keys, "name=told", "stage=sft") == 0
    assert not differing(whole / "model", told / "model")
