"""Counted parameters are remembered in a folder of the tests', not in that of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arclab.launch import sizes


@pytest.fixture(autouse=True, scope="session")
def _own_sizes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path: Path = tmp_path_factory.mktemp("cache") / "arclab" / "sizes.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_cache_path", lambda: path)
        yield
