"""One sandbox for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arclab.config.llm_schema import Isolation
from arclab.programs.sandbox.pool import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=2, min_isolation=Isolation.limits) as shared:
        yield shared
