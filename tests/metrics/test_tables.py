"""The prediction tables and the metric definitions that W&B is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import wandb

from arclab.config.compose import ConfigError
from arclab.data.tasks import COLORS
from arclab.metrics import wandb_run
from arclab.metrics.names import REGISTRY
from arclab.metrics.tables import Prediction, picture, wandb_table
from arclab.metrics.wandb_run import has_key, start_wandb, wished_mode

from ..conftest import TINY, compose

GRID = np.array([[1, 2], [3, 0]], dtype=np.uint8)
CELL = 8


def rgb(color: int) -> list[int]:
    return [int(COLORS[color][i : i + 2], 16) for i in (1, 3, 5)]


def test_a_picture_shows_input_truth_and_prediction_side_by_side() -> None:
    predicted = np.array([[5]], dtype=np.uint8)
    pixels = picture(Prediction("t", 0, GRID, GRID.T, predicted))
    assert pixels.shape == (2 * CELL, 2 * CELL + CELL + 2 * CELL + CELL + CELL, 3)
    assert pixels[0, 0].tolist() == rgb(1) and pixels[0, CELL].tolist() == rgb(2) and pixels[CELL, 0].tolist() == rgb(3)
    assert pixels[0, 4 * CELL].tolist() == rgb(3)  # the truth's second column
    assert pixels[0, 6 * CELL].tolist() == rgb(5) and pixels[CELL, 6 * CELL].tolist() == [255, 255, 255]


def test_a_missing_truth_keeps_its_place() -> None:
    pixels = picture(Prediction("a", 0, GRID, None, GRID))
    assert pixels.shape == picture(Prediction("a", 0, GRID, GRID, GRID)).shape
    assert (pixels[:, 3 * CELL : 5 * CELL] == 255).all() and pixels[0, 6 * CELL].tolist() == rgb(1)


def test_the_table_has_a_picture_in_every_row() -> None:
    table = wandb_table([Prediction("a", 0, GRID, GRID, GRID), Prediction("b", 1, GRID, None, None)])
    assert [row[:3] for row in table.data] == [["a", 0, True], ["b", 1, None]]
    assert all(isinstance(row[3], wandb.Image) for row in table.data)


def test_every_registered_metric_has_its_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a real run of wandb: the best and the last value where one direction is better, also where the name has a dot. It
    starts without a warning."""
    run = start_wandb(compose("pretrain_encoder", [*TINY, "wandb.mode=offline"]), tmp_path, "1")
    assert run is not None and "WARNING" not in capfd.readouterr().err
    assert (Path(run.dir) / "workspace.json").read_text() == (tmp_path / "workspace.json").read_text()
    for step, value in enumerate((0.2, 0.9, 0.5, 0.0)):  # the summary has what was logged before the newest step
        run.log(dict.fromkeys(REGISTRY, value), step=step)
    for name, metric in REGISTRY.items():
        summary = run.summary[name]
        best = {"up": ("max", 0.9), "down": ("min", 0.2)}.get(metric.direction)
        assert summary["last"] == 0.5 and (best is None or summary[best[0]] == best[1]), name
    run.finish()
    assert json.loads((tmp_path / "wandb.json").read_text())["mode"] == "offline"


def test_tags_and_the_users_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tag once, none longer than W&B takes; a job type; and a data folder that the user has set stays."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        wandb, "init", lambda **settings: given.append({**settings, **os.environ}) or MagicMock(url="", dir=str(tmp_path))
    )
    monkeypatch.setenv("WANDB_DATA_DIR", "/mine")
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    long = "e" * 70
    config = compose("pretrain_encoder", [*TINY, "wandb.mode=offline", "wandb.tags=[arc1,mine]", f"experiment_name={long}"])
    start_wandb(config, tmp_path, "1")
    (call,) = given
    assert call["tags"] == [long[:64], "standard", "arc1", "mine"] and call["job_type"] == "train"
    assert call["WANDB_DATA_DIR"] == "/mine" and call["WANDB_CACHE_DIR"] == str(tmp_path.resolve() / "wandb/cache")
    assert "WANDB_CACHE_DIR" not in os.environ
    with pytest.raises(ConfigError, match=r"wandb.tags='' must have 1 to 64 characters .*; choose another word"):
        compose("pretrain_encoder", [*TINY, "wandb.tags=['']"])


@pytest.mark.parametrize(("variables", "expected"), [
    ({"WANDB_MODE": "disabled"}, "disabled"), ({"WANDB_MODE": "dryrun"}, "offline"), ({"WANDB_MODE": " Offline"}, "offline"),
    ({"WANDB_MODE": "DISABLED"}, "disabled"), ({"WANDB_DISABLED": "true"}, "disabled"), ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
    ({"WANDB_DISABLED": "false"}, "online"), ({"WANDB_MODE": ""}, "online"), ({"WANDB_MODE": "run"}, "online"), ({"WANDB_API_KEY": ""}, "offline"),
])  # fmt: skip
def test_the_environment_keeps_a_run_from_the_network(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is set, and what counts is what wandb.init is called with."""
    given: list[str] = []
    monkeypatch.setattr(
        wandb, "init", lambda **settings: given.append(settings["mode"]) or MagicMock(url="", dir=str(tmp_path))
    )
    monkeypatch.setattr(wandb_run, "save_workspace", lambda *_: None)
    for name, value in {
        "WANDB_API_KEY": "secret",
        "NETRC": str(tmp_path / "none"),
        "WANDB_CONFIG_DIR": str(tmp_path),
        **variables,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for mode, wished in (
        ("auto", expected),
        ("online", expected if variables.get("WANDB_API_KEY") != "" else "online"),
        ("disabled", "disabled"),
    ):
        run = start_wandb(compose("pretrain_encoder", [*TINY, f"wandb.mode={mode}"]), tmp_path, "1")
        assert (given.pop() if run is not None else "disabled") == wished
        assert os.environ.get("WANDB_MODE", "online") in ("online", "offline", *variables.values())  # wandb reads it too


def test_what_wandb_offline_has_written_counts_and_where_a_key_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WANDB_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path / "user")}
    assert wished_mode(environment) is None
    for folder, mode in (("user", "disabled"), ("wandb", "offline")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "settings").write_text(f"[default]\nmode = {mode}\n")
        assert wished_mode(environment) == mode
    assert wished_mode({**environment, "WANDB_MODE": "online"}) == "online"
    (tmp_path / "wandb/settings").write_text("no section")
    assert wished_mode(environment) == "disabled"
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user who has no home
    assert (
        wished_mode({"WANDB_DIR": str(tmp_path / "none")}) is None and not has_key({}) and not has_key({"NETRC": str(tmp_path)})
    )
    with pytest.raises(ValueError, match="export HOME"):
        start_wandb(compose("pretrain_encoder", [*TINY, "wandb.mode=offline"]), tmp_path, "1")
    (tmp_path / "netrc").write_bytes(b"machine api.wandb.ai login user password \xff")
    assert has_key({"NETRC": str(tmp_path / "netrc")}) and has_key({"WANDB_API_KEY": "secret"})
    with pytest.raises(ValueError, match=r"WANDB_MODE=of is no mode of W&B; set it to online, offline or disabled"):
        wished_mode({"WANDB_MODE": "of"})
