"""A table of an experiment is kept as a record and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import saved


def test_a_record_and_its_page_replace_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "RESULTS", tmp_path)
    where = {"command": "c.py --seeds 0", "commit": "abc", "machine": "m"}
    for rows in ([1], [2, 3]):
        saved.save("name", {"rows": rows}, "\n".join([*saved.heading("A title", where), "| a |"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name.json", "name.md"]
    assert json.loads((tmp_path / "name.json").read_text()) == {"rows": [2, 3]}
    assert (tmp_path / "name.md").read_text() == "# A title\n\nCommand: `c.py --seeds 0`; commit abc; m.\n\n| a |"
