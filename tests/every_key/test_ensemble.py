"""What a config of evaluate.py solver=ensemble says is what is merged: each key changes what its row says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_evaluate
from arclab.config.ensemble_schema import EvaluateEnsembleConfig
from arclab.methods.ensemble import run as ensemble
from arclab.runs import lifecycle

from ..results.made import RIGHT, SECOND, WRONG, make_result
from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests, shown_here

RUN_TESTS = "methods/ensemble/test_run.py"
# scores: the merged candidates. members: what metrics.json says of them. place: the folder. threads: what torch is set to.
TABLE: Table = {
    "members": (["odd", "second"], "scores members place"),
    "merge": ("rank", "scores place"),
    "weights": ([1, 9], "scores members place"),
    "name": ("other", "place"),
    "runs_dir": ("elsewhere", "place"),
    "output_dir": ("out", "place"),
    "num_threads": (3, "threads"),
    "calibration": (None, f"{RUN_TESTS}::test_every_rule_and_weight_changes_the_ranking"),
}
LAUNCH: Table = {
    key: (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started")
    for key in leaves(EvaluateEnsembleConfig)
    if key.startswith("launch.")
}


def test_every_key_has_a_row() -> None:
    require_a_row_for_each(leaves(EvaluateEnsembleConfig), TABLE, LAUNCH)
    for table in (TABLE, LAUNCH):
        require_the_named_tests(table)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_result(tmp_path / "even", lambda n: WRONG if n % 2 else RIGHT)
    make_result(tmp_path / "odd", lambda n: SECOND if n % 2 else WRONG)
    make_result(tmp_path / "second", lambda _: SECOND)
    return tmp_path


def merged(made: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> Parts:
    threads: list[int] = []
    monkeypatch.setattr(lifecycle.torch, "set_num_threads", threads.append)
    monkeypatch.chdir(made)
    settings = {"members": ["even", "odd"], "num_threads": 1, "runs_dir": "runs", **changes}
    texts = {key: f"[{','.join(map(str, value))}]" if isinstance(value, list) else value for key, value in settings.items()}
    config = compose_evaluate(["solver=ensemble", *(f"{key}={value}" for key, value in texts.items())])
    assert isinstance(config, EvaluateEnsembleConfig)
    ensemble.evaluate(config)
    record = json.loads((config.folder / "metrics.json").read_text())
    told = [(member["folder"], member["weight"]) for member in record["members"]]
    return {
        "scores": (config.folder / "predictions.jsonl").read_text(), "members": told, "place": str(config.folder), "threads": threads,
    }  # fmt: skip


@pytest.mark.parametrize("key", shown_here(TABLE))
def test_a_key_changes_what_its_row_says(key: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value, what = TABLE[key]
    before = merged(made, monkeypatch, {})
    assert differences(before, merged(made, monkeypatch, {key: value})) == effect(what, {})
