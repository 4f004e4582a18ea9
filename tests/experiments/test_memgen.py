"""The tables of MemGen's controls: every line can run, and a cell that is not there does not hide the others."""

from __future__ import annotations

import pytest

from arclab.config.compose import compose_run
from arclab.config.memgen_schema import PretrainMemGenConfig
from experiments.memgen import CONTROLS, markdown, parse, table, train_lines


@pytest.mark.parametrize("control", CONTROLS)
def test_every_run_of_a_control_has_the_subjects_reasoner(control: str) -> None:
    arguments = parse(["--control", control, "--seeds", "1"])
    found = {name: compose_run("pretrain_memgen", line) for name, line in train_lines(arguments, 1).items()}
    subject = CONTROLS[control].subject
    assert len(found) == len(CONTROLS[control].runs)
    for name, config in found.items():
        assert isinstance(config, PretrainMemGenConfig) and config.seed == 1
        assert (name == f"{subject}_s1") == (config.lm.name != f"runs/{CONTROLS[control].folder}/{subject}_s1/reasoner")


def test_counts_tests_and_a_cell_that_is_missing() -> None:
    control = CONTROLS["weaver"]
    results = {
        ("weaver", 0): {"a": True, "b": True, "c": True, "d": False},
        ("weaver", 1): {"a": True, "b": True, "c": False, "d": False},
        ("off", 0): {"a": True, "b": False, "c": False, "d": False},
    }
    rows = {row["cell"]: row for row in table(results, [0, 1], control)}
    off = rows["off"]
    assert (off["n"], off["N"], off["weaver_alone_right"], off["control_alone_right"]) == (1, 4, 2, 0)
    assert off["p_value"] == pytest.approx(0.5)
    assert rows["weaver"]["p_value"] is None and rows["weaver"]["seeds"] == {"0": [3, 4], "1": [2, 4]}
    text = markdown(list(rows.values()), parse(["--seeds", "0", "1"]), {"command": "c", "commit": "x", "machine": "m"})
    (line,) = (line for line in text.splitlines() if line.startswith("| off |"))
    assert line.startswith("| off | 1/4 = 25.0 % [") and "| 1/4 | - |" in line
