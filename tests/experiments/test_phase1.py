"""experiments/phase1.py: the runs that it starts and the table that it writes (the runs themselves are pretrain_encoder.py)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from experiments import phase1
from experiments.queued import Ended

from ..conftest import compose

GIVEN = argparse.Namespace(
    encoders=["standard", "lpn"],
    steps=None,
    minutes=10.0,
    seed=3,
    runs_dir="runs",
    jobs=2,
    cluster="local",
    set=["halting=short8"],
    layout=None,
)


@pytest.mark.parametrize("encoder", phase1.ENCODERS)
def test_every_encoder_is_judged_four_times(encoder: str) -> None:
    config = compose("pretrain_encoder", phase1.overrides(encoder, GIVEN, 700, "runs"))
    assert (config.encoder.kind, config.trainer.steps, config.trainer.eval_every) == (encoder, 700, 175)
    assert config.criterion is not None
    assert (config.criterion.threshold, config.seed, config.halting.halt_max_steps) == (0.9, 3, 8)


@pytest.mark.parametrize(
    ("encoder", "layout"), [("standard", "symmetry+colors"), ("hybrid_variational", "symmetry"), ("lpn", "symmetry")]
)
def test_a_layout_is_that_of_every_encoder_as_far_as_it_has_it(encoder: str, layout: str) -> None:
    given = argparse.Namespace(**{**vars(GIVEN), "layout": "symmetry+colors"})
    config = compose("pretrain_encoder", phase1.overrides(encoder, given, 700, "runs"))
    assert phase1.layout_of(config.encoder) == layout
    assert config.name == f"{encoder}-symmetry+colors"  # beside the run of another layout
    usual = compose("pretrain_encoder", phase1.overrides(encoder, GIVEN, 700, "runs"))
    assert (phase1.layout_of(usual.encoder), usual.name) == ("aligned", encoder)


def test_minutes_become_steps_by_each_speed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds: list[tuple[str, float | str]] = [("standard", 4.0), ("lpn", "FAILED: why")]  # the other goes on
    monkeypatch.setattr(phase1, "measure_speeds", lambda *_: speeds)
    given = argparse.Namespace(**{**vars(GIVEN), "runs_dir": str(tmp_path)})
    assert phase1.planned_steps(given) == {"standard": round(600 * phase1._TRAINING_SHARE * 4)}
    speeds[0] = ("standard", 1.0)  # a continued call keeps its steps, or the run would be another one
    assert phase1.planned_steps(given) == json.loads((tmp_path / "phase1" / "steps.json").read_text())
    assert phase1.planned_steps(given)["standard"] > 1000


def test_a_run_that_failed_is_named_and_the_others_have_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"_step": 1, "_runtime": 1.5, "train/exact_accuracy": 0.25, "train/rows": 4},
            {"_step": 2, "_runtime": 2.5, "all.exact_accuracy": 0.5, "all.steps": 2.0, "ARC/pass@1": 0.5, "ARC/tasks": 2, "all.n": 4}]  # fmt: skip
    monkeypatch.setattr(phase1, "read_rows", lambda _: rows)

    def run_lines(file: object, lines: Mapping[str, Sequence[str]], cluster: str, *, places: int) -> Iterator[Ended]:
        yield Ended("standard", tmp_path, "STOPPED: collapsed")
        yield Ended("hybrid", tmp_path, "")
        yield Ended("lpn", None, "the folder holds another run.")

    monkeypatch.setattr(phase1, "run_lines", run_lines)
    given = argparse.Namespace(**{**vars(GIVEN), "runs_dir": str(tmp_path)})
    records = phase1.run_encoders({"lpn": 2, "hybrid": 2, "standard": 2}, given)
    assert [(r["encoder"], r["is_done"], r["last_step"], r["curve"]) for r in records] == [
        ("hybrid", True, 2, {1: 0.25}),
        ("standard", False, 2, {1: 0.25}),
    ]
    said = capsys.readouterr().out
    assert "lpn FAILED: the folder holds another run." in said and "standard FAILED: STOPPED: collapsed" in said


def test_the_table_says_pass_or_fail_with_the_curve() -> None:
    run = {"encoder": "lpn", "layout": "concat", "steps": 20, "seconds": 3.2, "criterion": "FAIL (phase 1): 3/9", "is_done": True, "pass@1": {"n": 1.5, "N": 4},
           "mean_steps": 2.0, "curve": {10: 0.25, 20: 0.5}}  # fmt: skip
    text = phase1.markdown({"command": "c", "commit": "0123456789", "machine": "m", "seed": 0, "runs": [run]})
    assert "| lpn | concat | FAIL (phase 1): 3/9 | 1.5/4 | 20 | 3 | 10: 0.25, 20: 0.50 |" in text
    stopped = run | {"is_done": False, "last_step": 15}
    assert "| 15 of 20, stopped |" in phase1.markdown(
        {"command": "c", "commit": "0123456789", "machine": "m", "seed": 0, "runs": [stopped]}
    )


def test_save_keeps_the_table_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"encoder": "lpn", "layout": "concat", "steps": 20, "seconds": 3.2, "criterion": "PASS", "is_done": True, "pass@1": {"n": 4, "N": 4},
           "mean_steps": 2.0, "curve": {}}  # fmt: skip
    monkeypatch.setattr(phase1, "run_encoders", lambda *_: [run])
    monkeypatch.setattr(phase1, "__file__", str(tmp_path / "phase1.py"))
    asked = ["--steps", "20", "--encoders", "lpn"]
    assert phase1.main(asked) == 0 and not (tmp_path / "results").exists()
    (tmp_path / "results").mkdir()
    for given, name in (([], "phase1"), (["other"], "other")):
        assert phase1.main([*asked, "--save", *given]) == 0
        assert "| lpn | concat | PASS | 4/4 |" in (tmp_path / "results" / f"{name}.md").read_text()
        assert json.loads((tmp_path / "results" / f"{name}.json").read_text())["runs"] == [run]
    monkeypatch.setattr(phase1, "run_encoders", lambda *_: [])
    assert phase1.main(asked) == 1  # a run that failed is told by the exit status
