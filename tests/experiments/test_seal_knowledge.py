"""The quickstart of passages in weights, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.files import read_object
from arclab.launch.start import start


@pytest.mark.slow
def test_the_quickstart_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start("self_improve.py", ["experiment=seal_knowledge_quickstart", "name=a"])
    assert read_object(tmp_path / "runs/seal_knowledge_quickstart/a/criterion.json")["result"] == "PASS"
