"""Views and their inversion, votes and products: with a stand-in for the model, whose replies and probabilities are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest

from arclab.config.compose import compose_run
from arclab.config.seal_schema import AdaptingSolverConfig, Decode, EvaluateTestTimeTrainingConfig, Rescore, ViewsConfig
from arclab.data.tasks import ArcTask
from arclab.lm.hf import HfModel
from arclab.methods.seal.answering import Answerer, View, views_of

from .common import Stub

TASK = ArcTask.from_json(
    {
        "train": [{"input": [[1, 2, 0]], "output": [[2, 1, 0]]}, {"input": [[3], [4]], "output": [[4], [3]]}, {"input": [[5]], "output": [[6]]}],
        "test": [{"input": [[7, 8, 0]], "output": [[8, 7, 0]]}, {"input": [[1, 1]]}],
    }
)  # fmt: skip
ALL = ViewsConfig(count=40, dihedral=True, colors=True, order=True)


@cache
def composed() -> AdaptingSolverConfig:
    config = compose_run("evaluate_test_time_training", ["solver=test_time_training", "lm=tiny", "dataset=toy"])
    assert isinstance(config, EvaluateTestTimeTrainingConfig)
    return config.solver


def solver_config(**changes: Any) -> AdaptingSolverConfig:
    return replace(composed(), **changes)


def answerer(stub: Stub, **changes: Any) -> Answerer:
    return Answerer(cast(HfModel, stub), solver_config(**changes), seed=0)


def grids(answerer: Answerer, views: list[View]) -> list[list[list[int]]]:
    found = answerer.answer(replace(TASK, tests=TASK.tests[:1]), views, 20)[0]
    return [candidate.grid.tolist() for candidate in found.candidates if candidate.grid is not None]


def test_views_are_all_different_and_can_be_undone() -> None:
    views = views_of(TASK, ALL, seed=0)
    assert len(views) == 40 and str(views[0].of(TASK)) == str(TASK)
    assert {view.augmentation.dihedral for view in views} == set(range(8)) and len({view.order for view in views}) > 3
    assert len({str(view.of(TASK).pairs) for view in views}) == 40
    assert [str(view) for view in views_of(TASK, replace(ALL, count=7), seed=0)] == [str(view) for view in views[:7]]
    for view in views:
        shown = view.of(TASK)
        assert np.array_equal(view.augmentation.invert(shown.tests[0].input), TASK.tests[0].input)
        assert [np.array_equal(view.augmentation.invert(d.input), TASK.demos[n].input) for d, n in zip(shown.demos, view.order, strict=True)] == [True] * 3  # fmt: skip
    assert str(views_of(TASK, ALL, seed=1)) != str(views)


def test_what_is_switched_off_stays_as_it_is() -> None:
    only_order = views_of(TASK, replace(ALL, dihedral=False, colors=False), seed=0)
    assert len(only_order) == 6 and all(np.array_equal(v.of(TASK).tests[0].input, TASK.tests[0].input) for v in only_order)
    only_turns = views_of(TASK, replace(ALL, colors=False, order=False), seed=0)
    assert len(only_turns) == 8 and {view.order for view in only_turns} == {(0, 1, 2)}
    only_colors = views_of(TASK, replace(ALL, dihedral=False, order=False), seed=0)
    assert len(only_colors) == 40 and all(view.augmentation.colors[0] == 0 for view in only_colors)


def test_answers_of_views_are_turned_back_and_vote() -> None:
    """The same answer in every view is one candidate; what is no grid is counted and has no vote."""
    turned = views_of(TASK, replace(ALL, count=8, colors=False), 0)
    truth = [[8, 7, 0]]
    texts = ["\n".join(" ".join(map(str, row)) for row in view.augmentation.apply_grid(np.array(truth, np.uint8)).tolist()) for view in turned]  # fmt: skip
    replies = [[(text, 0.5)] for text in texts[:5]] + [[("no grid", 0.6), ("1 1", 0.3)]] * 3
    found = answerer(Stub(replies, lambda *_: 0.0), rescore=Rescore.votes).answer(TASK, turned, 20)
    assert len(found) == 2
    first = found[0]
    best = first.candidates[0]
    assert best.grid is not None and best.grid.tolist() == truth and (best.votes, best.confidence) == (5, pytest.approx(0.5))
    assert (first.num_replies, first.num_no_grid, first.num_cut, first.num_silent, first.num_tokens) == (11, 3, 8, 0, 40)
    assert best.log_likelihood is None and sum(candidate.votes for candidate in first.candidates) == 8


def test_votes_then_probability_then_the_first() -> None:
    plain = views_of(TASK, replace(ALL, dihedral=False, colors=False, count=3), 0)
    ties = [[("1", 0.2), ("2", 0.3)], [("2", 0.1), ("1", 0.2)], [("3", 0.9)]]
    for decode in (Decode.dfs, Decode.sample):
        chosen = {"rescore": Rescore.votes, "decode": decode, "threshold": 0.05, "samples": 2}
        assert grids(answerer(Stub(ties, lambda *_: 0.0), **chosen), plain)[:2] == [[[1]], [[2]]]
        even = [[("2", 0.2)], [("1", 0.2)], [("3", 0.1)]]
        assert grids(answerer(Stub(even, lambda *_: 0.0), **{**chosen, "samples": 1}), plain) == [[[2]], [[1]], [[3]]]
    assert grids(answerer(Stub(ties, lambda *_: 0.0), rescore=Rescore.votes, threshold=0.25), plain) == [[[3]], [[2]]]


def test_a_product_asks_every_view_about_every_candidate() -> None:
    """Two views vote for one answer, the views' probabilities are for the other; those beyond max_candidates stay behind."""
    plain = views_of(TASK, replace(ALL, dihedral=False, colors=False, count=3), 0)
    replies = [[("1", 0.2), ("4", 0.19)], [("1", 0.2)], [("2", 0.3), ("3", 0.1)]]
    stub = Stub(replies, lambda prompt, text: {"1": -9.0, "2": -2.0, "3": -1.0, "4": -0.5}[text])
    chosen = {"threshold": 0.05, "max_candidates": 3}
    assert grids(answerer(stub, rescore=Rescore.votes, **chosen), plain) == [[[1]], [[2]], [[4]], [[3]]]
    assert grids(answerer(stub, **chosen), plain) == [[[4]], [[2]], [[1]], [[3]]]
    found = answerer(stub, **chosen).answer(replace(TASK, tests=TASK.tests[:1]), plain, 20)[0].candidates
    assert [candidate.log_likelihood for candidate in found] == [-0.5, -2.0, -9.0, None]
    assert [candidate.votes for candidate in found] == [1, 1, 2, 1]


def test_how_replies_are_asked_for() -> None:
    plain = views_of(TASK, replace(ALL, dihedral=False, colors=False, count=3), 0)
    stub = Stub([[("1", 0.5), ("2", 0.5), ("2", 0.5)]] * 3, lambda *_: 0.0)
    (greedy, _) = answerer(stub, decode=Decode.greedy).answer(TASK, plain, 20)
    (drawn, _) = answerer(stub, decode=Decode.sample, samples=4, temperature=0.7).answer(TASK, plain, 30)
    assert (greedy.num_replies, greedy.num_no_grid, drawn.num_replies, drawn.num_no_grid, drawn.num_cut) == (3, 0, 12, 3, 3)
    asked = {(count, s.temperature, s.max_new_tokens, s.top_p, s.top_k, s.seed) for count, s in stub.samplings}
    assert asked == {(1, 0.0, 20, 1.0, 0, 0), (4, 0.7, 30, 1.0, 0, 0)}


def test_room_is_what_the_context_leaves() -> None:
    plain = views_of(TASK, replace(ALL, count=2), 0)
    unlimited, reason = answerer(Stub([], lambda *_: 0.0)).room(TASK, plain)
    assert unlimited == 30 * 59 + 29 + 1 and not reason
    assert answerer(Stub([], lambda *_: 0.0), max_new_tokens=7).room(TASK, plain) == (7, "")
    stub = Stub([], lambda *_: 0.0, limit=10_000)
    longest = max(len(stub.prompt_ids(p)) for n in (0, 1) for p in answerer(stub)._prompts(TASK, n, plain))
    stub.max_context = longest + 6  # three cells with two spaces between them, and the end mark
    assert answerer(stub).room(TASK, plain) == (6, "")
    stub.max_context -= 1
    room, reason = answerer(stub).room(TASK, plain)
    assert room == 0 and f"more than the context of {longest + 5} tokens" in reason
