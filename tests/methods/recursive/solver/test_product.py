"""evaluation.ranking=product: sums of log-probabilities under the views, the same on any ranks, batches and after a kill."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from arclab.config.schema import CanvasRule, EvalHalting, Ranking, VotesRule
from arclab.data.augment import Augmentation
from arclab.data.codec import VOCAB_SIZE, encode
from arclab.data.sampler import PuzzleSpace
from arclab.methods.recursive.losses import stablemax_cross_entropy
from arclab.methods.recursive.model import Reading, RecursiveModel
from arclab.methods.recursive.solver import solver as recursive
from arclab.methods.recursive.solver.continuous_batching import FinishedRows
from arclab.methods.recursive.solver.pending_rows import row_table
from arclab.methods.recursive.solver.product import MAX_CANDIDATES, Shortlists
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.methods.recursive.solver.store import VoteStore
from arclab.methods.recursive.solver.votes import GridKey, VoteBox, grid_of
from arclab.results.attempts import Attempts
from arclab.runs.ranks import Ranks

from .test_adaptive import TASKS
from .test_canvas import task
from .test_resume import CPU, Killed, model, same, solve  # noqa: F401  # model is a fixture

T = TypeVar("T")
PRODUCT: dict[str, Any] = {"ranking": Ranking.product, "views": 24}


class Together(Ranks):
    """One of two ranks, each in a thread of its own."""

    def __init__(self, rank: int, meeting: threading.Barrier, items: list[Any]) -> None:
        super().__init__(rank, 2, CPU.device)
        object.__setattr__(self, "meeting", meeting)
        object.__setattr__(self, "items", items)

    def gather_objects(self, item: T) -> list[T]:
        self.items[self.rank] = item  # pyright: ignore[reportAttributeAccessIssue]
        self.meeting.wait(60)  # pyright: ignore[reportAttributeAccessIssue]
        found = list(self.items)  # pyright: ignore[reportAttributeAccessIssue]
        self.meeting.wait(60)  # pyright: ignore[reportAttributeAccessIssue]
        return found


def key_of(grid: np.ndarray) -> GridKey:
    return (*grid.shape, grid.tobytes())


def test_a_view_says_how_likely_each_candidate_is_as_it_would_show_it() -> None:
    """Against the same thing done one row and one grid at a time."""
    rng = np.random.default_rng(0)
    space = PuzzleSpace([task("a", 3, 5), task("b", 4, 3)], 5, 0, 10)
    table = row_table(space, 10, CanvasRule.bucketed)
    box, scores = VoteBox(), VoteBox()
    grids = [rng.integers(0, 10, shape).astype(np.uint8) for shape in ((3, 2), (5, 6), (4, 4))]
    for votes, grid in enumerate(grids, start=1):
        box.add(("a", 0), key_of(grid), votes, 0)
    box.add(("a", 0), None, 9, 0)
    box.add(("b", 0), key_of(grids[0]), 1, 0)  # of one mind: nothing to ask
    lists = Shortlists(box, table.keys)
    assert lists.num_Q.tolist() == [3, 0] and lists.on_one_canvas(table, 10).canvas_R[table.test_R == 0].tolist() == [10] * 6
    rows_B = np.flatnonzero(table.test_R == 0)
    augmentations = space.table[space.first_augmentation_T[0] + table.augmentation_R[rows_B]]
    assert len(set(augmentations[:, 0].tolist())) > 2
    logits = torch.randn(len(rows_B), 100, VOCAB_SIZE) * 3
    lists.count(scores, table, rows_B, augmentations, logits, 10)
    for grid in grids:
        wanted = 0.0
        for b in range(len(rows_B)):
            shown = torch.from_numpy(encode(Augmentation.from_row(augmentations[b]).apply_grid(grid), 10))
            wanted -= float(stablemax_cross_entropy(logits[b : b + 1], shown[None]).sum())
        rows, units = scores.counts["a", 0][key_of(grid)]
        assert rows == 6 and units * 2.0**-20 == pytest.approx(wanted, rel=1e-5)
    found = lists.ranked(box, scores, ("a", 0))
    means = [c.log_likelihood for c in found[:3]]
    assert means == sorted(means, reverse=True) and found[3].grid is None and found[3].log_likelihood is None  # pyright: ignore
    assert [c.votes for c in lists.ranked(box, scores, ("b", 0))] == [1]


def test_no_more_candidates_than_the_first_ones_are_asked_about() -> None:
    box = VoteBox()
    for number in range(40):
        box.add(("a", 0), (1, 2, bytes([number // 8, number % 8])), 100 - number, 0)
    lists, scores = Shortlists(box, [("a", 0)]), VoteBox()
    assert lists.num_Q.tolist() == [MAX_CANDIDATES]
    for place, grid in enumerate(box.grids(("a", 0))[:MAX_CANDIDATES]):
        scores.add(("a", 0), grid, 5, place)
    votes = [c.votes for c in lists.ranked(box, scores, ("a", 0))]
    assert votes == [*range(85, 101), *range(84, 60, -1)]


def test_two_sure_views_win_over_three_that_hesitate(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Three of five views prefer a black grid by a little, two the right one by much: votes and products disagree."""

    def run_rows(model: Any, take: Any, num_rows: int, *, early: bool) -> Iterator[FinishedRows]:
        while (ready := take()) is not None:
            black = torch.where(ready.labels_BS >= 2, 2, ready.labels_BS).long()
            right = ready.labels_BS.long()
            one_hot = torch.nn.functional.one_hot
            hesitates = torch.from_numpy(ready.rows_B % 5 < 3)[:, None, None]
            weak = one_hot(black, VOCAB_SIZE) * 10.0 + one_hot(right, VOCAB_SIZE) * 9.9
            sure = one_hot(right, VOCAB_SIZE) * 1000.0
            steps = np.ones(len(ready.rows_B), dtype=np.int64)
            yield FinishedRows(
                ready.rows_B, ready.labels_BS, torch.where(hesitates, weak, sure), torch.zeros(len(right)), steps
            )

    monkeypatch.setattr(RecursiveModel, "read", lambda self, data: Reading(0))
    monkeypatch.setattr(recursive, "run_rows", run_rows)
    counted, product = solve(model, None, views=5), solve(model, None, views=5, ranking=Ranking.product)
    for each in TASKS:
        truth = each.tests[0].output
        by_votes, by_product = counted.candidates[each.id, 0], product.candidates[each.id, 0]
        assert [c.votes for c in by_votes] == [3, 2] and [c.votes for c in by_product] == [2, 3]
        assert np.array_equal(by_product[0].grid, truth) and np.array_equal(by_votes[1].grid, truth)  # pyright: ignore
        assert by_votes[0].log_likelihood is None and by_product[0].log_likelihood is not None
    assert product.statistics["eval/second_pass_share"] == 1.0 and "eval/second_pass_share" not in counted.statistics
    same(Attempts({}, {k: v for k, v in product.statistics.items() if k != "eval/second_pass_share"}),
         Attempts({}, counted.statistics))  # fmt: skip


RULES: list[dict[str, Any]] = [
    {},
    {"votes": VotesRule.adaptive_first, "canvas_rule": CanvasRule.bucketed, "halting": EvalHalting.early},
    {"samples": 2, "carry_noise": 1.0},
]


@pytest.mark.parametrize("rules", RULES, ids=["published", "fast", "samples"])
def test_batches_ranks_and_a_kill_in_either_pass_change_nothing(
    model: RecursiveModel,  # noqa: F811
    rules: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a random model, whose views disagree."""
    whole = solve(model, None, **PRODUCT, **rules)
    assert whole.statistics["eval/second_pass_share"] > 0.5
    assert any(c.log_likelihood is not None for c in whole.candidates[TASKS[0].id, 0])
    meeting, items, found = threading.Barrier(2), [None, None], [None, None]

    def one_rank(rank: int) -> None:
        found[rank] = solve(model, None, Together(rank, meeting, items), **PRODUCT, **rules)  # pyright: ignore

    threads = [threading.Thread(target=one_rank, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in found:
        assert part is not None
        same(whole, part)

    asked: list[int] = []
    for method, batches in (("_count", 3), ("_score", 3), ("_score", 2)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            original, left = getattr(RecursiveSolver, method), [batches]

            def killed(self: RecursiveSolver, *args: Any, original: Any = original, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                original(self, *args)

            patch.setattr(RecursiveSolver, method, killed)
            solve(model, VoteStore(tmp_path, "key"), **PRODUCT, **rules)
    score = RecursiveSolver._score
    monkeypatch.setattr(RecursiveSolver, "_count", lambda *args: pytest.fail("what was counted is predicted again"))
    monkeypatch.setattr(
        RecursiveSolver, "_score", lambda self, job, finished, canvas: (asked.append(len(finished.rows_B)), score(self, job, finished, canvas))[1]
    )  # fmt: skip
    store = VoteStore(tmp_path, "key")
    same(whole, solve(model, store, **PRODUCT, **rules))
    assert 0 < sum(asked) < whole.statistics["all.count"]
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_all_rows_of_a_test_input_are_asked_on_one_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that has no room on the canvas of the first pass: both are compared where both fit."""
    box, keys = VoteBox(), [("a", 0)]
    table = row_table(PuzzleSpace([task("a", 3, 3)], 3, 0, 15), 10, CanvasRule.bucketed)
    assert table.canvas_R.tolist() == [4] * 4
    for side in (2, 8):
        grid = np.zeros((side, side), dtype=np.uint8)
        box.add(("a", 0), key_of(grid), 1, 0)
        assert grid_of(key_of(grid)) is not None
    assert Shortlists(box, keys).on_one_canvas(table, 15).canvas_R.tolist() == [10] * 4
