"""What tests of program edits share: toy tasks with the programs behind them, and a sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arclab.config.llm_schema import Isolation
from arclab.config.program_edit_schema import CountedCells, EditRewardConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.programs.sandbox.pool import Sandbox

TOY = "toy:dihedral_color?tasks=6&side=4&colors=4&palette=6&demos=3&split=train"
REWARD = EditRewardConfig(per_execution=0.0, per_thinking_token=0.0, cells=CountedCells.all, use_tests=False)


@pytest.fixture(scope="session")
def toy_tasks() -> tuple[ArcTask, ...]:
    return tuple(load_source(TOY))


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, min_isolation=Isolation.limits) as held:
        yield held
