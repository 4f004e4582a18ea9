"""The table of self-edits over seeds: what is run, shares and sign tests by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arclab.config.compose import compose_run
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from experiments.seal_fewshot import lines, markdown, parse, scores, table


def test_every_line_is_the_quickstart_with_a_seed_of_its_own() -> None:
    found = {name: compose_run("self_improve_seal_fewshot", line) for name, line in lines(parse(["--seeds", "0", "4"])).items()}
    plain = compose_run("self_improve_seal_fewshot", ["experiment=seal_fewshot_quickstart", "name=a"])
    assert isinstance(plain, SealFewshotConfig) and list(found) == ["s0", "s4"]
    for name, config in found.items():
        assert isinstance(config, SealFewshotConfig)
        assert config.name == name and config.seed == int(name[1:]) and config.restem.twin and config.grid == plain.grid
        assert (config.scratch, config.dataset, config.evaluate) == (plain.scratch, plain.dataset, plain.evaluate)


def test_shares_and_tests_by_hand(tmp_path: Path) -> None:
    arguments = parse(["--folder", str(tmp_path), "--seeds", "0", "1", "2"])
    written = {
        0: {"start": {"a": [0, 0], "b": [0, 1]}, "model": {"a": [1, 1], "b": [0, 1]}, "oracle": {"a": [1], "b": [1]}},
        1: {"start": {"a": [0, 0], "b": [0, 0]}, "model": {"a": [1, 0], "b": [1, 1]}, "oracle": {"a": [1], "b": [0]}},
    }
    for seed, found in written.items():
        folder = tmp_path / "seal_fewshot_control" / f"s{seed}" / "round_0" / "evaluate"
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(
            json.dumps({k: {i: list(map(float, v)) for i, v in w.items()} for k, w in found.items()})
        )
    rows = {row["name"]: row for row in table(scores(arguments))}
    assert (rows["model"]["num_successes"], rows["model"]["num_trials"], rows["model"]["num_tasks"]) == (6, 8, 4)
    assert rows["model"]["p_value"] is None and rows["model"]["seeds"] == {"0": [3, 4], "1": [3, 4]}
    assert (rows["start"]["trained_more"], rows["start"]["trained_fewer"]) == (3, 0)
    assert rows["start"]["p_value"] == pytest.approx(0.25)
    assert (rows["oracle"]["trained_more"], rows["oracle"]["trained_fewer"]) == (1, 2)
    text = markdown(list(rows.values()), {"command": "c", "commit": "x", "machine": "m"})
    assert (
        "| trained | 6/8 = 75.0 %" in text and "| before the first round | 1/8 = 12.5 %" in text and "3 / 0, p = 0.25" in text
    )
