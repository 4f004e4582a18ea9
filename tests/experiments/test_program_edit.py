"""The tables of the control of program edits: counts of all seeds, who is tested against whom, and rollouts to a score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run
from experiments.program_edit import curricula, deltas, lines, markdown, needed, parse, stage, table


def composed(*argv: str) -> dict[str, Any]:
    arguments = parse([*argv, "--set", "num_threads=1"])
    return {
        name: compose_run("self_improve_program_edit", line)
        for seed in arguments.seeds for each in lines(arguments, seed) for name, line in each.items()
    }  # fmt: skip


def test_every_line_is_a_run_and_runs_of_a_seed_begin_alike() -> None:
    found = composed("--seeds", "0", "1")
    assert len(found) == 12 and list(found)[:2] == ["selected_s0", "adaptive_s0"]  # what others begin with
    assert found["selected_s0"].scratch is not None and found["grpo_s0"].scratch is None and found["random_s1"].seed == 1
    assert (
        found["grpo_s1"].lm.name == found["shuffled_s1"].lm.name == "runs/program_edit_control/selected_s1/round_0/start/model"
    )
    assert found["uniform_s0"].lm.name == "runs/program_edit_control/adaptive_s0/round_0/start/model"
    assert (
        found["random_s0"].select.rule.value == "random" and found["selected_s0"].grpo.steps == 0 < found["grpo_s0"].grpo.steps
    )
    assert found["shuffled_s0"].grpo.shuffle_rewards and not found["grpo_s0"].grpo.shuffle_rewards
    kinds = [found[f"{run}_s0"].curriculum.kind.value for run in ("adaptive", "uniform")]
    assert kinds == ["adaptive", "uniform"] and found["adaptive_s0"].dataset == found["uniform_s0"].dataset


def test_counts_tests_and_rollouts_by_hand(tmp_path: Path) -> None:
    some, all_, none = {"a": True, "b": False}, {"a": True, "b": True}, {"a": False, "b": False}
    found = {("start", 0): none, ("selected", 0): some, ("grpo", 0): all_, ("shuffled", 0): some, ("grpo", 1): all_}
    rows = {row["run"]: row for row in table(found, [0, 1])}
    assert (rows["grpo"]["n"], rows["grpo"]["N"], rows["grpo"]["it_alone"], rows["grpo"]["other_alone"]) == (4, 4, 1, 0)
    assert [rows[run]["against"] for run in ("selected", "random", "grpo", "shuffled")] == ["random", "start", *["selected"] * 2]
    assert rows["random"]["N"] == 0 and rows["selected"]["p_value"] is None and rows["shuffled"]["p_value"] == 1.0
    arguments = parse(["--folder", str(tmp_path), "--seeds", "0"])
    for run, values in (("adaptive", (0.1, 0.6, 0.9)), ("uniform", (0.1, 0.5, 0.6))):
        folder = stage(arguments, run, 0, "grpo")
        folder.mkdir(parents=True)
        lines_ = [json.dumps({"_step": 6 * n, "edits/solved_share": value}) + "\n" for n, value in enumerate(values)]
        (folder / "metrics.jsonl").write_text("".join(lines_))
    (row,) = curricula(arguments)
    assert row["score"] == pytest.approx(0.81) and row["uniform"] is None
    assert row["adaptive"] == 6 * 8 * 8  # 12 steps are 6 drawings
    assert needed({"a": {0: 0.1, 64: 0.95}, "b": {0: 0.1, 64: 0.5, 128: 1.0}}) == {"score": 0.9, "a": 64, "b": 128}
    text = markdown(list(rows.values()), deltas(arguments), [row], {"command": "c", "commit": "x", "machine": "m"})
    assert "| grpo | 4/4 = 100.0 %" in text and "| 0 | 81.0 % | 384 | never |" in text and "random" not in text
