"""The W&B dashboard of the guide: four panels, from the registry, as JSON that can be written anywhere, and as a view at W&B."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb.errors

from arclab.config.compose import ConfigError, freeze
from arclab.metrics.names import REGISTRY
from arclab.metrics.panels import PANELS, workspace_spec
from arclab.metrics.workspace import built_view, main

from ..conftest import ROOT, TINY, compose, script_env

ONLINE = {"id": "1", "mode": "online", "url": "https://wandb.ai/my-team/arclab/runs/1"}


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
    main(["--output", str(tmp_path / "w.json")])
    assert shown == (tmp_path / "w.json").read_text() and "Infinity" not in shown
    assert json.loads(shown) == workspace_spec()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that was sent to W&B, and a key."""
    (tmp_path / "config.yaml").write_text(freeze(compose("pretrain_encoder", [*TINY, "wandb.project=mine"])))
    (tmp_path / "wandb.json").write_text(json.dumps(ONLINE))
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class FakeLibrary(SimpleNamespace):
    """wandb_workspaces as the command calls it: keeps what views are made of. error: what save() raises."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(views=[], error=error, Section=SimpleNamespace, LinePlot=SimpleNamespace)

    def Workspace(self, **fields: Any) -> SimpleNamespace:
        def save() -> SimpleNamespace:
            if self.error is not None:
                raise self.error
            self.views.append(fields)
            return SimpleNamespace(url="https://wandb.ai/view")

        return SimpleNamespace(save=save)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
            monkeypatch.setitem(sys.modules, name, self)


def test_a_view_is_saved_where_the_library_is(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the project of the run, owned by whom its address names or by --entity; refused by the server, nothing is claimed."""
    library = FakeLibrary()
    library.install(monkeypatch)
    main([str(run)])
    main([str(run), "--entity", "me"])
    assert [(v["entity"], v["project"], v["name"]) for v in library.views] == [
        ("my-team", "mine", "arclab"),
        ("me", "mine", "arclab"),
    ]
    shown = {section.name: [plot.y for plot in section.panels] for section in library.views[0]["sections"]}
    assert shown == {name: [[metric] for metric in metrics] for name, metrics in PANELS.items()}
    assert "saved as the view arclab of the project mine: https://wandb.ai/view" in capsys.readouterr().out
    assert not (run / "workspace.json").exists()
    library.error = wandb.errors.CommError("no such entity.")
    with pytest.raises(ConfigError, match=r"did not take the panels for me/mine \(no such entity\); nothing was saved"):
        main([str(run), "--entity", "me"])
    (run / "wandb.json").write_text(json.dumps({**ONLINE, "url": None}))
    with pytest.raises(ConfigError, match=r"was not sent to W&B when it ran.*give --entity NAME"):
        main([str(run)])


@pytest.mark.parametrize("missing", ["library", "network", "key"])
def test_without_the_library_or_the_network_the_json_is_written(
    missing: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = FakeLibrary()
    library.install(monkeypatch)
    if missing == "library":
        monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    elif missing == "network":
        monkeypatch.setenv("WANDB_MODE", "offline")
    else:
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", str(run / "none"))
    main([str(run)])
    assert json.loads((run / "workspace.json").read_text()) == workspace_spec() and not library.views
    reason = "pip install 'arclab[wandb-workspaces]'" if missing == "library" else "W&B is offline here"
    said = capsys.readouterr().out
    assert "no panels were made at W&B: " in said and reason in said and f"JSON into {run / 'workspace.json'}" in said


def test_what_is_no_run_that_trains_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none has no config.yaml; give the folder of a run that trains"):
        main([str(tmp_path / "none")])
    (run / "config.yaml").write_text("entry: evaluate\ncheckpoint: x\n")
    with pytest.raises(ConfigError, match=r"says no wandb.project; give the folder of a run that trains"):
        main([str(run)])


def test_the_real_library_takes_the_view(run: Path) -> None:
    """All but the server: its own model of the view has the sections, the metrics by name, and the step below them."""
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    panels = pytest.importorskip("wandb_workspaces.reports.v2")
    spec = json.loads(built_view(workspaces, panels, "e", "p")._to_model().spec.model_dump_json(by_alias=True))
    sections = spec["section"]["panelBankConfig"]["sections"]
    shown = {section["name"]: [panel["config"]["metrics"] for panel in section["panels"]] for section in sections}
    assert shown == {name: [[metric] for metric in metrics] for name, metrics in PANELS.items()}
    assert {panel["config"]["xAxis"] for section in sections for panel in section["panels"]} == {"_step"}
    first = sections[1]["panels"][0]["config"]["chartTitle"]
    assert first.startswith("train/encoder_cross_sample_var: ") and first.endswith("(healthy: from 0.3)")
