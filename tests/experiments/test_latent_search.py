"""experiments/latent_search.py: its evaluations are lines of a jobs file on the run's own tasks, and its table pairs them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from arclab.config.adaptation_schema import LatentSearchConfig
from arclab.config.compose import ConfigError
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.runs.ranks import Ranks
from experiments import latent_search
from experiments.queued import Ended, JobsFile, plan_lines

from ..conftest import compose

CPU = Ranks(0, 1, torch.device("cpu"))
SOURCE = "toy:color_map+dihedral_color?tasks=6&side=3&colors=2&palette=4&demos=2&split={}&seed=4"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    small = [
        "decoder.width=16",
        "decoder.num_heads=2",
        "decoder.num_layers=1",
        "encoder.num_heads=2",
        "trainer.steps=1",
        "trainer.batch_size=4",
    ]
    sources = [f'dataset.train_sources=["{SOURCE.format("train")}"]', f'dataset.eval_sources=["{SOURCE.format("test")}"]']
    config = [
        "experiment=latent_search_quickstart",
        *small,
        *sources,
        "trainer.warmup_steps=0",
        "wandb.mode=disabled",
        f"runs_dir={tmp_path}",
        "name=a",
    ]
    pretrain_in_ranks(compose("pretrain_encoder", config), CPU)
    return tmp_path / "latent_search_quickstart/a"


def run_here(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> list[EvaluateConfig]:
    """The evaluations that would be submitted are made in this process; those whose name ends so fail."""
    made: list[EvaluateConfig] = []

    def run_lines(file: JobsFile, lines: Mapping[str, Sequence[str]], cluster: str, *, places: int) -> Iterator[Ended]:
        runs, refused = plan_lines(file, lines)
        assert not refused
        for name, planned in runs.items():
            if fails and name.endswith(fails):
                yield Ended(name, planned.folder.path, "FAILED: no room")
                continue
            if not (planned.folder.path / "metrics.json").exists():
                assert isinstance(planned.config, EvaluateConfig)
                evaluate_in_ranks(planned.config, CPU)
                made.append(planned.config)
            yield Ended(name, planned.folder.path, "")

    monkeypatch.setattr(latent_search, "run_lines", run_lines)
    return made


def test_a_table_against_one_encoding(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same call goes on where one failed, and the saved files are those of the printed table."""
    monkeypatch.setattr(latent_search, "ROOT", tmp_path)
    (tmp_path / "experiments/results").mkdir(parents=True)
    asked = [
        str(run),
        "--steps",
        "2",
        "--starts",
        "encoder",
        "gaussian",
        "--tasks",
        "4",
        "--folder",
        str(tmp_path / "out"),
        "--save",
        "found",
    ]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=r"1 of 4 evaluations failed: .*-gaussian-2"):
        run_here(patch, fails="gaussian-2")
        latent_search.main(asked)
    made = run_here(monkeypatch)
    latent_search.main(asked)
    (again,) = made
    assert isinstance(again.adaptation, LatentSearchConfig) and again.adaptation.steps == 2
    assert again.dataset.eval_sources == ["toy:dihedral_color?tasks=4&side=3&colors=2&palette=4&demos=2&seed=4&split=test"]
    rows = json.loads((tmp_path / "experiments/results/found.json").read_text())["rows"]
    assert [(row["start"], row["steps"], row["N"]) for row in rows] == [
        ("encoder", 0, 4), ("encoder", 2, 4), ("gaussian", 0, 4), ("gaussian", 2, 4),
    ]  # fmt: skip
    for row in rows:
        assert row["n"] == rows[0]["n"] + row["search_alone_right"] - row["one_encoding_alone_right"]
    assert rows[1]["loss_after"] < rows[1]["loss_before"] == rows[0]["loss_after"]
    text = (tmp_path / "experiments/results/found.md").read_text()
    assert text in capsys.readouterr().out and "| standard | gaussian | 2 |" in text
    assert (tmp_path / "experiments/results/found.png").stat().st_size > 1000


def test_frozen_twins_and_wrong_families(run: Path, tmp_path: Path) -> None:
    arguments = latent_search.parse([str(run), "--frozen", str(run), "--steps", "5"])
    cells = [(cell.frozen, cell.start.value, cell.steps) for cell in latent_search.cells_of(arguments)]
    assert cells[:2] == [(False, "encoder", 0), (False, "encoder", 5)]
    assert [cell for cell in cells if cell[0]] == [(True, "encoder", 0), (True, "encoder", 5)]
    with pytest.raises(ConfigError, match="has no toy tasks of the family crop in dataset"):
        latent_search.source_of(run, latent_search.parse([str(run), "--family", "crop"]))
