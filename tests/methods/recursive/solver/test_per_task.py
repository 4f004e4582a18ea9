"""A solver that enters a block for each task predicts that task's rows inside it, and counts what it counts without blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from arclab.config.schema import VotesRule
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.solver.continuous_batching import ReadyRows
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.methods.recursive.solver.store import VoteStore
from arclab.results.attempts import Attempts, Budget
from arclab.runs.ranks import Ranks

from .common import answer_labels
from .test_adaptive import TASKS, AloneAmongRanks, mixture, model
from .test_resume import Killed, kill_after, same

CPU = Ranks(0, 1, torch.device("cpu"))
assert model  # a fixture
TESTS = [(task.id, number) for task in TASKS for number in range(len(task.tests))]


class Blocks:
    """Remembers the tasks that were entered, and which rows were predicted in which block."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.now: str | None = None
        self.strays = 0

    @contextmanager
    def block(self, task: ArcTask) -> Iterator[None]:
        assert self.now is None, "one at a time"
        self.entered.append(task.id)
        self.now = task.id
        try:
            yield
        finally:
            self.now = None

    def answer(self, ready: ReadyRows) -> torch.Tensor:
        # Tests of a task follow each other, with the same number of views each.
        self.strays += self.now is None
        return mixture(0.6, 0.3, 0.1)(ready)


def solve(
    model: RecursiveModel, rule: VotesRule, blocks: Blocks | None, ranks: Ranks = CPU, store: VoteStore | None = None
) -> Attempts:
    solver = RecursiveSolver(
        model, ranks, canvas=6, seed=0, batch_size=16, max_demos=10, votes=rule, store=store, save_every_s=0.0,
        per_task=None if blocks is None else blocks.block,
    )  # fmt: skip
    return solver.solve(TASKS, Budget(39))


@pytest.mark.parametrize("rule", VotesRule)
def test_blocks_change_no_vote(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch, rule: VotesRule) -> None:
    blocks = Blocks()
    answer_labels(monkeypatch, blocks.answer)
    whole = solve(model, rule, None)
    blocks.strays = 0
    same(whole, solve(model, rule, blocks))
    assert blocks.entered == [task.id for task in TASKS] and blocks.strays == 0 and blocks.now is None


def test_ranks_share_out_whole_tasks(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks()
    answer_labels(monkeypatch, blocks.answer)
    found = [solve(model, VotesRule.all, blocks, AloneAmongRanks(rank, 2, CPU.device)) for rank in (0, 1)]
    assert sorted(blocks.entered) == sorted(task.id for task in TASKS)
    for key in TESTS:
        assert sorted(sum(c.votes for c in attempts.candidates[key]) for attempts in found) == [0, 40]


def test_a_killed_one_enters_no_task_that_is_done(
    model: RecursiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, again = Blocks(), Blocks()
    answer_labels(monkeypatch, mixture(0.6, 0.3, 0.1))
    whole = solve(model, VotesRule.all, None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 7)  # three batches for each task
        solve(model, VotesRule.all, blocks, store=VoteStore(tmp_path, "key"))
    assert blocks.entered == [task.id for task in TASKS[:3]] and blocks.now is None, "a block is left when its task fails"
    same(whole, solve(model, VotesRule.all, again, store=VoteStore(tmp_path, "key")))
    assert again.entered == [task.id for task in TASKS[2:]]
