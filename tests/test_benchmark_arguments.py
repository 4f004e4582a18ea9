"""Benchmarks and experiments refuse bad arguments with a sentence, before they measure or train anything."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from .conftest import refused

BAD = [
    ("benchmarks.bucketing", ["--seeds", "0"], "argument --seeds: 0 must be a whole number of at least 1"),
    ("experiments.control", ["--steps", "0"], "argument --steps: 0 must be a whole number of at least 1"),
    ("benchmarks.data", ["--batches", "0"], "argument --batches: 0 must be"),
    ("benchmarks.evaluate", ["--augmentations", "-1"], "argument --augmentations: -1 must be a whole number of at least 0"),
    ("benchmarks.kills", ["--trials", "0"], "argument --trials: 0 must be"),
    ("experiments.phase1", ["--minutes", "-2"], "argument --minutes: -2 must be a number above 0"),
    ("experiments.phase1", ["--minutes", "nan"], "argument --minutes: nan must be a number above 0"),
    ("benchmarks.precision", ["--repeats", "0"], "argument --repeats: 0 must be"),
    ("benchmarks.rearc", ["--pairs", "0"], "argument --pairs: 0 must be a whole number of at least 1"),
    ("benchmarks.reduction", ["--rows", "0"], "argument --rows: 0 must be"),
    ("benchmarks.sandbox", ["--programs", "1.5"], "argument --programs: 1.5 must be a whole number"),
    ("benchmarks.scaling", ["--rows", "0"], "argument --rows: 0 must be"),
    ("benchmarks.seal", ["--rows", "0"], "argument --rows: 0 must be a whole number of at least 1"),
    ("experiments.tree_search", ["--tasks", "0"], "argument --tasks: 0 must be a whole number of at least 1"),
    ("experiments.toy_programs", ["--samples", "0"], "argument --samples: 0 must be"),
    ("benchmarks.train_step", ["--tokens", "many"], "argument --tokens: many must be a whole number"),
]


@pytest.mark.parametrize(("name", "argv", "sentence"), BAD, ids=[f"{name} {argv[0]} {argv[1]}" for name, argv, _ in BAD])
def test_numbers(name: str, argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(argv)
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_what_only_the_run_can_know(run_script: Callable[..., CompletedProcess[str]]) -> None:
    refused(run_script("-m", "benchmarks.evaluate", "--checkpoint", "nowhere"), "nowhere", "give a run folder")
    refused(run_script("-m", "experiments.phase1", "--steps", "3", "--encoders", "standrd"), "encoder=standrd is not an option")
