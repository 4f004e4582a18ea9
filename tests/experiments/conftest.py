"""Experiments without their queue: what would be submitted is trained in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from arclab.launch.queue.plan import PlannedRun
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.runs.folder import State
from arclab.runs.ranks import Ranks
from experiments import queued


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], list[str]]:
    """train_here(before) -> a list that gets the name of each run that is trained. before(name) may raise: ValueError makes
    that run FAILED."""

    def install(before: Callable[[str], None] = lambda name: None) -> list[str]:
        trained: list[str] = []

        def submit(runs: Sequence[PlannedRun], cluster: str, *, places: int = 1) -> None:
            for run in runs:
                if run.folder.state is State.done:
                    continue
                try:
                    before(run.name)
                except ValueError as error:
                    run.folder.path.mkdir(parents=True, exist_ok=True)
                    run.folder.write_status(State.failed, 0, str(error), 1)
                    continue
                pretrain_in_ranks(run.config, Ranks(0, 1, torch.device("cpu")))
                trained.append(run.name)

        monkeypatch.setattr(queued, "submit", submit)
        monkeypatch.setattr(queued, "retry", lambda *_, **__: None)
        return trained

    return install
