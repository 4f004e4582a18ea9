"""Bucketed canvases: chosen by what is shown, the model of that canvas answers, and what had no room is predicted again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arclab.config.schema import CanvasRule, ExperimentConfig
from arclab.data.sampler import PuzzleSpace
from arclab.data.tasks import ArcTask, Pair
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.solver.pending_rows import row_table, smallest_canvas
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.methods.recursive.solver.store import VoteStore
from arclab.results.attempts import Budget
from arclab.runs.ranks import Ranks

from ....conftest import TINY, compose
from .common import answer_labels

CPU = Ranks(0, 1, torch.device("cpu"))


def config_on(canvas: int) -> ExperimentConfig:
    return compose("pretrain_encoder", [*TINY, f"dataset.canvas={canvas}"])


def model_on(canvas: int) -> RecursiveModel:
    torch.manual_seed(0)
    return build_model(config_on(canvas), 1)


def solver_on(model: RecursiveModel, canvas: int, rule: CanvasRule) -> RecursiveSolver:
    return RecursiveSolver(model, CPU, canvas=canvas, seed=0, batch_size=8, max_demos=10, canvas_rule=rule)


def task(name: str, shown: int, answer: int, *, demo_output: int | None = None) -> ArcTask:
    rng = np.random.default_rng(shown * 31 + answer)

    def grid(side: int) -> np.ndarray:
        return rng.integers(0, 10, (side, side - 1)).astype(np.uint8)

    demo = Pair(grid(shown), grid(demo_output or shown))
    return ArcTask(name, (demo, demo), (Pair(grid(shown), grid(answer)),), "here")


def test_the_smallest_canvas_leaves_room_for_the_end_marks() -> None:
    assert [smallest_canvas(side, 30) for side in (1, 3, 4, 5, 6, 9, 10, 15, 20, 29, 30)] == [
        4,
        4,
        6,
        6,
        10,
        10,
        15,
        20,
        30,
        30,
        30,
    ]
    assert [smallest_canvas(side, 6) for side in (3, 5, 6)] == [4, 6, 6]


def test_buckets_are_chosen_by_what_is_shown_never_by_the_answer() -> None:
    tasks = [task("a", 3, 3), task("b", 3, 12), task("c", 3, 3, demo_output=8), task("d", 14, 2)]
    hidden = [replace(t, tests=tuple(Pair(p.input, None) for p in t.tests)) for t in tasks]
    for given in (tasks, hidden):
        table = row_table(PuzzleSpace(given, 0, 0, 15), 10, CanvasRule.bucketed)
        assert table.canvas_R.tolist() == [4, 4, 10, 15]


def landed_logits(
    solver: RecursiveSolver, tasks: list[ArcTask], monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[int, int], Tensor]:
    """(row, canvas) -> logits of everything that a solver counts or predicts again."""
    seen: dict[tuple[int, int], Tensor] = {}
    original = RecursiveSolver._count

    def spy(self: RecursiveSolver, job: Any, finished: Any, canvas: int) -> None:
        seen.update({(row, canvas): finished.logits_BSV[b] for b, row in enumerate(finished.rows_B.tolist())})
        original(self, job, finished, canvas)

    with monkeypatch.context() as patch:
        patch.setattr(RecursiveSolver, "_count", spy)
        solver.solve(tasks, Budget(3))
    return seen


def test_a_bucket_gives_what_a_model_of_that_canvas_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same weights, 6 cells a side: bucketed on a canvas of 15, and a model that never knew a larger one."""
    model = model_on(15)
    small = model_on(6)
    small.load_state_dict(model.state_dict())
    tasks = [task("a", 5, 5), task("b", 4, 5)]
    bucketed = landed_logits(solver_on(model, 15, CanvasRule.bucketed), tasks, monkeypatch)
    alone = landed_logits(solver_on(small, 6, CanvasRule.full), tasks, monkeypatch)
    assert len(alone) == 8 and alone.keys() <= bucketed.keys()
    for key, logits in alone.items():
        torch.testing.assert_close(bucketed[key], logits, atol=1e-4, rtol=0)


def test_on_the_full_canvas_both_rules_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tasks = model_on(10), [task("a", 7, 7), task("b", 10, 10)]
    full = landed_logits(solver_on(model, 10, CanvasRule.full), tasks, monkeypatch)
    bucketed = landed_logits(solver_on(model, 10, CanvasRule.bucketed), tasks, monkeypatch)
    assert full.keys() == bucketed.keys()
    for key, logits in full.items():
        torch.testing.assert_close(bucketed[key], logits, atol=1e-4, rtol=0)


def test_an_answer_without_room_is_predicted_again_one_canvas_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A perfect model: the answer of side 8 fills the canvases of 4 and 6, and is right on that of 10."""
    answer_labels(monkeypatch)
    tasks = [task("fits", 3, 3), task("grows", 3, 8)]
    attempts = solver_on(model_on(15), 15, CanvasRule.bucketed).solve(tasks, Budget(3))
    for t in tasks:
        (candidate,) = attempts.candidates[t.id, 0]
        assert candidate.votes == 4 and np.array_equal(candidate.grid, t.tests[0].output)  # pyright: ignore[reportArgumentType]
    assert (
        attempts.statistics["eval/rerun_share"] == 1.0 and attempts.statistics["all.count"] == 8
    )  # two reruns of every second row
    assert attempts.statistics["all.exact_accuracy"] == 1.0


def test_reruns_are_counted_once_if_an_evaluation_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row that was postponed before the kill starts again on its first canvas."""
    answer_labels(monkeypatch)
    tasks = [task("fits", 3, 3), task("grows", 3, 8), task("grows too", 3, 9)]
    model, finished = model_on(15), 0
    count = RecursiveSolver._count

    def killed(self: RecursiveSolver, *args: object) -> None:
        nonlocal finished
        count(self, *args)  # pyright: ignore[reportArgumentType]
        finished += 1
        if finished == 3:
            raise KeyboardInterrupt

    def solve() -> float:
        solver = solver_on(model, 15, CanvasRule.bucketed)
        solver.store, solver.save_every_s = VoteStore(tmp_path, "key"), 0.0
        return solver.solve(tasks, Budget(3)).statistics["eval/rerun_share"]

    whole = solver_on(model, 15, CanvasRule.bucketed).solve(tasks, Budget(3)).statistics["eval/rerun_share"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecursiveSolver, "_count", killed)
        solve()
    assert solve() == whole > 0


def test_no_grid_at_all_is_tried_on_every_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_labels(monkeypatch, lambda ready: torch.zeros_like(ready.labels_BS))
    attempts = solver_on(model_on(15), 15, CanvasRule.bucketed).solve([task("a", 3, 3)], Budget(0))
    assert attempts.statistics["ARC/undecodable"] == 1.0 and attempts.statistics["eval/rerun_share"] == 3.0


def test_weights_of_one_length_are_refused(tiny: Callable[..., ExperimentConfig]) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.canvas=bucketed does not go with decoder\.mlp_t=true"):
        tiny("decoder.mlp_t=true", "evaluation.canvas=bucketed")
