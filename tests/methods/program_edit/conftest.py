"""What tests of program edits share: toy tasks with the programs behind them, and a sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def long_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random language model that has room for a task and a program."""
    from arclab.lm.tiny import build_tiny, default_texts  # seconds that most tests need not spend

    folder = tmp_path_factory.mktemp("lm") / "long"
    build_tiny(folder, texts=default_texts(), seed=0, num_layers=1, width=32, num_heads=2, context=2048, vocab_size=400)
    return folder
