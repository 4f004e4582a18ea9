"""Votes, pass@k and intervals against cases computed by hand, with several test inputs."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.methods.recursive.solver.votes import VoteBox, confidence_units
from arclab.results.attempts import Attempts, Candidate
from arclab.results.scoring import NEW_COLORS, Share, score, truth_ranks, wilson

from ..conftest import grid_key


def grid(value: int, side: int = 1) -> Grid:
    return np.full((side, side), value, dtype=np.uint8)


def vote(box: VoteBox, value: Grid | None, confidence: float) -> None:
    box.add(("a", 0), grid_key(value), 1, int(confidence_units(confidence)))


def task(name: str, *truths: int | None) -> ArcTask:
    demo = Pair(grid(0), grid(1))
    return ArcTask(name, (demo,), tuple(Pair(grid(5), None if t is None else grid(t)) for t in truths), "here")


def test_votes_are_ranked_by_count_then_confidence() -> None:
    box = VoteBox()
    key = ("a", 0)
    for value, confidence in ((1, 0.9), (2, 0.2), (2, 0.4), (3, 0.5), (3, 0.7), (None, 0.99)):
        vote(box, None if value is None else grid(value), confidence)
    ranked = box.ranked(key)
    assert [(None if c.grid is None else int(c.grid[0, 0]), c.votes) for c in ranked] == [(3, 2), (2, 2), (None, 1), (1, 1)]
    assert ranked[0].confidence == pytest.approx(0.6)


def test_grids_of_other_shape_are_other_candidates() -> None:
    box = VoteBox()
    for shape in ((1, 4), (2, 2), (4, 1), (2, 2)):
        vote(box, np.zeros(shape, dtype=np.uint8), 0.5)
    ranked = box.ranked(("a", 0))
    assert len(ranked) == 3 and ranked[0].votes == 2 and ranked[0].grid is not None and ranked[0].grid.shape == (2, 2)


def test_counts_of_two_ranks_add_up() -> None:
    whole, parts = VoteBox(), (VoteBox(), VoteBox())
    for i, value in enumerate((1, 2, 2, 1, 1, 3)):
        vote(whole, grid(value), i / 10)
        vote(parts[i % 2], grid(value), i / 10)
    merged = VoteBox()
    merged.merge(parts)
    a, b = whole.ranked(("a", 0)), merged.ranked(("a", 0))
    assert [(c.votes, round(c.confidence, 9)) for c in a] == [(c.votes, round(c.confidence, 9)) for c in b]


def attempts(candidates: dict[tuple[str, int], list[int | None]]) -> Attempts:
    return Attempts({k: [Candidate(None if v is None else grid(v), 1, 0.5) for v in vs] for k, vs in candidates.items()})


def test_pass_at_k_by_hand() -> None:
    """a: both right first; b: one right second, one wrong; c: right at place 3 (behind an undecodable one); d: never."""
    tasks = [task("a", 1, 2), task("b", 3, 4), task("c", 7), task("d", 8)]
    made = attempts({("a", 0): [1, 9], ("a", 1): [2], ("b", 0): [9, 3], ("b", 1): [0], ("c", 0): [None, 9, 7], ("d", 0): []})
    shares = score(tasks, made)
    assert (shares["ARC/pass@1"].n, shares["ARC/pass@1"].total) == (1.0, 4)
    assert shares["ARC/pass@2"].n == 1.5 and shares["ARC/pass@5"].n == 2.5 and shares["ARC/pass@1000"].n == 2.5
    assert (shares["ARC/solved@1"].n, shares["ARC/solved@2"].n) == (1, 1)
    assert truth_ranks(tasks, made) == {"a": [0, 0], "b": [1, None], "c": [2], "d": [None]}


def test_denominator_is_the_tasks_scored_and_hidden_answers_are_left_out() -> None:
    tasks = [task("a", 1), task("hidden", None), task("half", 1, None)]
    shares = score(tasks, attempts({("a", 0): [1], ("hidden", 0): [1], ("half", 0): [1], ("half", 1): [1]}))
    assert all(s.total == 1 for s in shares.values()) and shares["ARC/pass@1"].value == 1


def test_tasks_whose_answers_have_new_colors_are_scored_by_themselves() -> None:
    """Inputs show 5 alone. a: 6 right, 7 wrong; same: no new colour; black: 0 alone, which no view recolours; hidden: not known."""
    tasks = [task("a", 6, 7), task("same", 5), task("black", 0), task("hidden", 6, None), task("mixed", 5, 8)]
    made = {
        ("a", 0): [6],
        ("a", 1): [1, 7],
        ("same", 0): [5],
        ("black", 0): [0],
        ("hidden", 0): [6],
        ("mixed", 0): [4],
        ("mixed", 1): [8],
    }
    share = score(tasks, attempts(made))[NEW_COLORS]
    assert (share.n, share.total) == (1.5, 2)
    assert NEW_COLORS not in score([task("same", 5), task("black", 0)], attempts({("same", 0): [5], ("black", 0): [0]}))


def test_an_undecodable_first_candidate_takes_its_place() -> None:
    assert score([task("a", 1)], attempts({("a", 0): [None, 1]}))["ARC/pass@1"].n == 0


@pytest.mark.parametrize(
    ("n", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 400, 0.00044, 0.01402)],
)
def test_wilson_interval(n: int, total: int, low: float, high: float) -> None:
    assert wilson(n, total) == pytest.approx((low, high), abs=1e-4)


def test_share_says_n_of_total() -> None:
    assert str(Share(13, 32)).startswith("13/32 = 40.6 % [")
    assert wilson(0, 0) == (0.0, 1.0)
