"""benchmarks/bucketing.py: what a call did not make stays in the results."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import bucketing


def test_saving_one_experiment_keeps_the_other(tmp_path: Path) -> None:
    share = {"n": 1, "N": 2}
    run = {"rule": "full", "seed": 0, "exact": share, "pass1": share, "first_90": 10, "steps": 20, "seconds": 3.0, "commit": "0" * 40, "machine": "m"}  # fmt: skip
    for command, experiment in (("old", "quickstart"), ("b", "toy_control"), ("new", "quickstart")):
        bucketing.save([{**run, "experiment": experiment, "command": command}], tmp_path)
    saved = json.loads((tmp_path / "bucketing.json").read_text())["runs"]
    assert {r["experiment"]: r["command"] for r in saved} == {"quickstart": "new", "toy_control": "b"} and len(saved) == 2
    assert "`new`" in (tmp_path / "bucketing.md").read_text()
