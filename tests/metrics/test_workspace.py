"""The W&B dashboard of the guide: four panels, from the registry, as JSON that can be written anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from arclab.metrics.names import REGISTRY
from arclab.metrics.workspace import PANELS, workspace_spec

from ..conftest import ROOT, script_env


def test_the_four_panels_of_the_guide() -> None:
    assert {name: len(metrics) for name, metrics in PANELS.items()} == {
        "Success Metrics": 3, "Encoder Health": 3, "Learning Dynamics": 3, "Encoder Statistics": 3,
    }  # fmt: skip
    for section in workspace_spec()["sections"]:
        for panel in section["panels"]:
            (name,) = panel["y"]
            assert panel["x"] == "_step" and panel["title"] == REGISTRY[name].meaning
    health = workspace_spec()["sections"][1]["panels"]
    assert health[0]["healthy"] == {"low": 0.3, "high": None} and health[1]["healthy"]["low"] == 0.2


def test_the_command_writes_strict_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arclab.metrics.workspace"]
    shown = subprocess.run(command, cwd=ROOT, env=script_env(), check=True, capture_output=True, text=True).stdout
    subprocess.run([*command, "--output", str(tmp_path / "w.json")], cwd=ROOT, env=script_env(), check=True)
    assert shown == (tmp_path / "w.json").read_text() and "Infinity" not in shown
    assert json.loads(shown) == workspace_spec()
