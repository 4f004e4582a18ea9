"""The scoreboard shows every evaluated run, the best first, with what must stand beside its numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from arclab.cli.scoreboard import COLUMNS, main, read_board, run_folders
from arclab.config.compose import ConfigError

from ..conftest import ROOT

RUNS = ROOT / "tests/fixtures/runs_2026_11"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four runs: one of an encoder, a better copy of it, a transductive table, and one that was never evaluated."""
    for kind, name in (("etrm", "a"), ("etrm", "better"), ("trm", "table"), ("etrm", "waiting")):
        shutil.copytree(RUNS / kind, tmp_path / "runs" / "exp" / name, ignore=shutil.ignore_patterns("checkpoints"))
    folder = tmp_path / "runs" / "exp"
    shutil.rmtree(folder / "waiting" / "evaluation")
    change(folder / "better", scores={name: {"n": 7, "N": 10} for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")})
    stamps = ["transductive: the demonstrations of the scored tasks are training data"]
    change(folder / "table", split="evaluation", stamps=stamps)
    return tmp_path / "runs"


def change(run: Path, **fields: object) -> None:
    file = run / "evaluation/train/metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_the_best_is_first_and_every_cell_is_right(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = read_board([runs])
    lines = [dict(zip(COLUMNS, line.cells, strict=True)) for line in board.lines]
    assert [line["run"] for line in lines] == ["exp/table (train)", "exp/better", "exp/a"] and board.num_waiting == 1
    table, better, a = lines
    assert table["method"] == "TRM" and table["remarks"].startswith("TRANSDUCTIVE") and table["control"] == "-"
    assert better["solved@2"] == "7/10 = 70.0 % [39.7, 89.2]" and a["solved@2"] == "2/10 = 20.0 % [5.7, 51.0]"
    assert a["method"] == "ETRM standard" and a["parameters"] == "41,251" and a["control"] == "0.20"
    assert a["commit"] == "a82cca20c6" and "fit, not generalisation" in a["remarks"] and "TRANSDUCTIVE" not in a["remarks"]
    assert {(line.data, line.split) for line in board.lines} == {("toy, 10 tasks", "evaluation"), ("toy, 10 tasks", "train")}
    assert main([str(runs)]) == 0
    said = capsys.readouterr().out
    assert said.index("split evaluation") < said.index("split train") and "left out: 1" in said
    assert main([str(runs), "--markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * 2 + 3 and all(row.count("|") == len(COLUMNS) + 1 for row in rows)


def test_a_run_is_found_once_and_nothing_else_is_one(runs: Path) -> None:
    (runs / ".hidden").mkdir()
    (runs / ".hidden" / "config.yaml").write_text("a: 1\n")
    assert [path.name for path in run_folders(runs)] == ["a", "better", "table", "waiting"]
    assert list(run_folders(runs / "exp/a")) == [runs / "exp/a"]
    assert len(read_board([runs, runs / "exp", runs / "exp/a"]).lines) == 3
    for folder, says in ((runs / "nowhere", "is no folder"), (runs / "exp/a/evaluation/none", "is no folder")):
        with pytest.raises(ConfigError, match=says):
            read_board([folder])
    (runs / "empty").mkdir()
    with pytest.raises(ConfigError, match="no run lies below"):
        read_board([runs / "empty"])


def test_a_damaged_run_is_named_and_the_others_are_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "exp/better/evaluation/train/metrics.json").write_text("{")
    assert main([str(runs)]) == 2
    said = capsys.readouterr()
    assert "exp/a" in said.out and "exp/better" not in said.out
    assert said.err.startswith("error: left out: ") and "better/evaluation/train/metrics.json is damaged" in said.err


def test_hidden_answers_are_no_score(runs: Path) -> None:
    change(runs / "exp/a", scores={name: {"n": 0, "N": 0} for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")})
    cells = next(dict(zip(COLUMNS, line.cells, strict=True)) for line in read_board([runs]).lines if line.cells[0] == "exp/a")
    assert cells["pass@1"] == cells["solved@2"] == "answers hidden"
