"""The table of the learning control: counts of all seeds, and who is tested against whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.config.compose import compose_run
from experiments.tree_learning import lines, markdown, parse, scores, stage, table


def test_every_line_is_a_run_and_seeds_share_their_policy() -> None:
    arguments = parse(["--seeds", "0", "1", "--set", "num_threads=1"])
    found = {name: compose_run("self_improve_tree_search", line) for name, line in lines(arguments).items()}
    assert sorted(found) == ["drawn_s0", "drawn_s1", "plain_s0", "plain_s1", "values_s0", "values_s1"]
    assert [found[name].rounds for name in ("plain_s0", "values_s0")] == [2, 1]
    assert found["drawn_s1"].reward_model.shuffle_labels and not found["values_s1"].reward_model.shuffle_labels
    assert found["plain_s0"].reward_model.steps == 0 and found["plain_s1"].seed == 1
    assert all(config.sft == found["plain_s0"].sft for config in found.values())


def test_counts_and_tests_by_hand(tmp_path: Path) -> None:
    arguments = parse(["--folder", str(tmp_path), "--seeds", "0", "1", "--rounds", "1"])
    for seed in (0, 1):
        for run, model in (("plain", '{"a": true, "b": true, "c": false}'), ("values", '{"a": true, "b": true, "c": true}')):
            folder = stage(arguments, run, seed, 0, "evaluate")
            folder.mkdir(parents=True)
            twin = '{"a": false, "b": false, "c": false}'
            start = '{"a": true, "b": false, "c": false}'
            (folder / "scores.json").write_text(f'{{"start": {start}, "twin": {twin}, "model": {model}}}')
    rows = {(row["run"], row["policy"]): row for row in table(scores(arguments), [0, 1])}
    trained = rows["plain", "model 0"]
    assert (trained["n"], trained["N"], trained["it_alone"], trained["other_alone"]) == (4, 6, 2, 0)
    assert trained["against"] == "plain start" and trained["p_value"] == pytest.approx(0.5)
    assert rows["plain", "start"]["p_value"] is None
    twin = rows["plain", "twin 0"]
    assert (twin["it_alone"], twin["other_alone"]) == (0, 2)
    values = rows["values", "model 0"]
    assert values["against"] == "plain model 0" and (values["it_alone"], values["other_alone"]) == (2, 0)
    text = markdown(
        list(rows.values()), [{"run": "values", "right": 9, "pairs": 10}], {"command": "c", "commit": "x", "machine": "m"}
    )
    assert "| plain | model 0 | 4/6 = 66.7 %" in text and "9/10 = 90.0 %" in text
