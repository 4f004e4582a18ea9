"""Adaptive voting ends where the ranking is settled and goes on where it is not; what it says is what all votes say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from arclab.config.schema import VotesRule
from arclab.data.synthetic import load_toy
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.solver.continuous_batching import ReadyRows
from arclab.methods.recursive.solver.pending_rows import visiting_order
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.results.attempts import Attempts, Budget
from arclab.runs.ranks import Ranks

from ....conftest import compose
from .common import answer_labels

T = TypeVar("T")
CPU = Ranks(0, 1, torch.device("cpu"))
TASKS = load_toy("toy:color_map?tasks=5&side=4&colors=4&palette=6&demos=3&split=train")
VIEWS = 300


class AloneAmongRanks(Ranks):
    """One of several ranks that hears nobody else."""

    def gather_objects(self, item: T) -> list[T]:
        return [item]


@pytest.fixture(scope="module")
def model() -> RecursiveModel:
    torch.manual_seed(0)
    return build_model(compose("pretrain_encoder", ["experiment=toy_control", "decoder.width=16", "decoder.num_heads=2"]), 1)


def solve(model: RecursiveModel, rule: VotesRule, ranks: Ranks = CPU, batch_size: int = 16) -> Attempts:
    solver = RecursiveSolver(model, ranks, canvas=6, seed=0, batch_size=batch_size, max_demos=10, votes=rule)
    return solver.solve(TASKS, Budget(VIEWS - 1))


def votes(attempts: Attempts, places: int = 2) -> list[list[int]]:
    return [[c.votes for c in candidates[:places]] for candidates in attempts.candidates.values()]


def first_grids(attempts: Attempts, places: int) -> list[list[bytes]]:
    return [[c.grid.tobytes() for c in cs[:places] if c.grid is not None] for cs in attempts.candidates.values()]


def mixture(*shares: float) -> Callable[[ReadyRows], Tensor]:
    """Answers with the label, the input, or the label with one cell made black, by these shares of rows."""
    bounds = np.cumsum(shares)

    def change(ready: ReadyRows) -> Tensor:
        draw = np.array([np.random.default_rng(row).random() for row in ready.rows_B])
        which = torch.from_numpy(np.searchsorted(bounds, draw))[:, None]
        blank = torch.where(ready.labels_BS >= 2, 2, ready.labels_BS)  # every colour becomes 0, in all views alike
        return torch.where(which == 0, ready.labels_BS, torch.where(which == 1, ready.inputs_BS, blank))

    return change


def test_clear_votes_end_early_with_the_same_ranking(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_labels(monkeypatch, mixture(0.7, 0.27, 0.03))
    every, adaptive = solve(model, VotesRule.all), solve(model, VotesRule.adaptive)
    assert first_grids(every, 2) == first_grids(adaptive, 2)
    assert every.statistics["eval/rows_share"] == 1 and adaptive.statistics["eval/rows_share"] < 0.6
    assert adaptive.statistics["all.count"] == sum(sum(v) for v in votes(adaptive, 9)) < VIEWS * len(TASKS)


def test_close_votes_go_on_to_the_end(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """First against second, and second against third: either being close is enough to go on."""
    for shares in ((0.5, 0.5), (0.6, 0.2, 0.2)):
        answer_labels(monkeypatch, mixture(*shares))
        every, adaptive = solve(model, VotesRule.all), solve(model, VotesRule.adaptive)
        assert first_grids(adaptive, 2) == first_grids(every, 2) and adaptive.statistics["eval/rows_share"] > 0.9


def test_unanimous_votes_leave_the_second_place_open(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """adaptive must wait for a second candidate; adaptive_first need not, and stops after the first round."""
    answer_labels(monkeypatch)
    assert votes(solve(model, VotesRule.adaptive)) == [[VIEWS]] * len(TASKS)
    quick = solve(model, VotesRule.adaptive_first)
    assert votes(quick) == [[16]] * len(TASKS) and quick.statistics["eval/rows_share"] == pytest.approx(16 / VIEWS)


def test_accuracy_over_rows_counts_every_task_alike(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Easy tasks end after a round and hard ones go on: over all rows that were predicted, the hard ones would decide."""
    half = mixture(0.5, 0.5)

    def change(ready: ReadyRows) -> Tensor:
        easy = torch.from_numpy(ready.rows_B // VIEWS < 3)[:, None]
        return torch.where(easy, ready.labels_BS, half(ready))

    answer_labels(monkeypatch, change)
    every, adaptive = solve(model, VotesRule.all), solve(model, VotesRule.adaptive_first)
    assert votes(adaptive, 1)[:3] == [[16]] * 3 and adaptive.statistics["all.count"] > 400
    assert adaptive.statistics["all.labelled"] == 16 * len(TASKS)
    assert every.statistics["all.exact_accuracy"] == pytest.approx(0.8, abs=0.03)
    assert adaptive.statistics["all.exact_accuracy"] == pytest.approx(0.8, abs=0.1)


def test_the_result_depends_on_neither_batches_nor_ranks(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_labels(monkeypatch, mixture(0.6, 0.3, 0.1))
    for rule in VotesRule:
        alone = solve(model, rule)
        assert votes(solve(model, rule, batch_size=7)) == votes(alone)
        parts = [solve(model, rule, AloneAmongRanks(rank, 2, CPU.device)) for rank in (0, 1)]
        together = [sum(sum(v) for v in votes(part, 9)) for part in parts]
        assert sum(together) == alone.statistics["all.count"] and min(together) > 0
        if rule is not VotesRule.all:  # whole tasks on one rank
            assert [a or b for a, b in zip(votes(parts[0]), votes(parts[1]), strict=True)] == votes(alone)


def test_the_original_comes_first_and_all_come_once() -> None:
    order = visiting_order("task", 50, 3)
    assert order[0] == 0 and sorted(order.tolist()) == list(range(50)) and order.tolist() != list(range(50))
    assert order.tolist() == visiting_order("task", 50, 3).tolist() != visiting_order("other", 50, 3).tolist()
