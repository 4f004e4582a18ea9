"""experiments/tree_search.py: scripted searches solve what their arithmetic says, and its table says what was found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arclab.config.llm_schema import Isolation
from arclab.data.sources import load_source
from arclab.programs.sandbox.pool import Sandbox
from experiments import tree_search

TASKS = load_source(tree_search.SOURCE.format(30))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=2, min_isolation=Isolation.limits) as shared:
        yield shared


def test_rates_are_what_arithmetic_says(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that never errs solves all, one that always errs none, and others within their interval."""
    monkeypatch.setattr(tree_search, "_SAMPLING", [(0.0, 2, 1), (1.0, 2, 3), (0.4, 2, 3)])
    monkeypatch.setattr(tree_search, "_MCTS", [(0.5, 2, 2)])
    rows = [*tree_search.sampling_rows(TASKS, [0], sandbox), *tree_search.mcts_rows(TASKS, [0], sandbox)]
    assert [row["n"] for row in rows[:2]] == [30, 0] and all(row["inside"] for row in rows[2:]), rows
    assert rows[2]["expected"] == pytest.approx(1 - (1 - 0.36) ** 3) and rows[3]["expected"] == pytest.approx(0.75**2)


def test_widening_and_a_reward_model_pay(sandbox: Sandbox) -> None:
    """pwmcts above mcts where first steps are mostly wrong, a reward model above chance; both within the budget."""
    rows = tree_search.paired_rows(TASKS[:16], [0], sandbox)
    assert all(row["better"] and row["only_first"] > row["only_second"] for row in rows)
    assert all(draws <= 48 for row in rows for draws in row["draws_per_task"])
    text = tree_search.markdown({"where": "here", "rates": [], "pairs": rows})
    assert "pwmcts / mcts" in text and f"{rows[0]['only_first']} / {rows[0]['only_second']}, p = " in text
