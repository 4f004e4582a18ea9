"""Saved configurations are parsed once, and again when they have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.config import saved_file
from arclab.config.saved_file import saved_entry


def test_a_file_is_parsed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parsed, read = tmp_path / "config.yaml", list[Path](), saved_file.read_config
    monkeypatch.setattr(saved_file, "read_config", lambda file: (parsed.append(file), read(file))[1])
    path.write_text("entry: evaluate\nseed: 1\n")
    entry, settings = saved_entry(path)
    settings["seed"] = 3  # the caller's own
    assert (entry, saved_entry(path)) == ("evaluate", ("evaluate", {"seed": 1})) and len(parsed) == 1
    path.write_text("entry: evaluate\nseed: 22\n")
    assert saved_entry(path) == ("evaluate", {"seed": 22}) and len(parsed) == 2
