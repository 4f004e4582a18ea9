"""evaluate.py of a checkpoint in shards: merged votes are those of one process, however the model is adapted to each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.methods.recursive import evaluation
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.pages import report
from arclab.runs.folder import RunDir, State
from arclab.runs.ranks import Ranks

from ...conftest import compose
from .solver.test_resume import Killed, kill_after

CPU = Ranks(0, 1, torch.device("cpu"))
SOURCE = "toy:color_map?tasks={}&side=3&colors=2&palette=4&demos=2&split={}"
TOY = [
    "trainer.steps=2", "trainer.warmup_steps=0", "trainer.batch_size=8", "wandb.mode=disabled",
    f'dataset.train_sources=["{SOURCE.format(16, "train")}"]', f'dataset.eval_sources=["{SOURCE.format(7, "test")}"]',
    f'dataset.validation_sources=["{SOURCE.format(4, "validation")}"]', "decoder.width=16", "decoder.num_heads=2",
    "decoder.num_layers=1", "decoder.l_cycles=1",
]  # fmt: skip
CASES = {
    "plain": ("etrm", ()),
    "adaptive": ("etrm", ("evaluation.votes=adaptive", "num_augmentations=12")),
    "product": ("etrm", ("evaluation.ranking=product",)),
    "latent": ("etrm", ("adaptation=latent", "adaptation.steps=2", "adaptation.start=other_task", "adaptation.min_wins=0.5")),
    "weights": ("trm", ("adaptation=embeddings", "adaptation.steps=1", "adaptation.rows_per_step=4", "max_tasks=4")),
}
FILES = ("predictions.jsonl", "submission.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and a puzzle table, trained for two steps."""
    root = tmp_path_factory.mktemp("runs")
    etrm = ["experiment=latent_search_quickstart", *TOY, "encoder.num_heads=2"]
    trm = [
        "experiment=toy_control",
        *TOY,
        "encoder=puzzle_table",
        "dataset.regime=puzzle_id",
        "evaluation.split=train",
        "dataset.num_augmentations=4",
    ]
    for name, settings in (("etrm", etrm), ("trm", trm)):
        pretrain_in_ranks(
            compose("pretrain_encoder", [*settings, f"runs_dir={root}", f"name={name}", "experiment_name=a"]), CPU
        )
    return root / "a"


@pytest.fixture(autouse=True)
def _no_page_and_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "render_report", lambda result: "")
    monkeypatch.setattr(evaluation, "announce", lambda *_, **__: None)


def evaluated(run: Path, folder: Path, *wishes: str) -> Path:
    """The folder of what was evaluated."""
    given = [f"checkpoint={run}", "split=evaluation", "num_augmentations=4", f"output_dir={folder}", *wishes]
    config = compose_evaluate(list({word.partition("=")[0]: word for word in given}.values()))
    assert isinstance(config, EvaluateConfig)
    evaluate_in_ranks(config, CPU)
    return config.folder


def statistics(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "metrics.json").read_text())["statistics"]
    return {name: value for name, value in found.items() if not name.startswith(("timing/", "adapt/seconds"))}


@pytest.mark.parametrize("case", CASES)
def test_merged_shards_are_what_one_process_predicts(
    case: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, wishes = CASES[case]
    one = evaluated(runs / name, tmp_path / "one", *wishes)
    num_tasks = 0
    for number in (2, 0, 1):
        folder = evaluated(runs / name, tmp_path / "three", *wishes, "launch.shards=3", f"launch.shard={number}")
        assert folder == tmp_path / "three/shards" / f"{number}_of_3" and RunDir(folder).state is State.done
        assert not (folder / "metrics.json").exists() and not (folder / "criterion.json").exists()
        measured = json.loads((folder / "shard.json").read_text())
        assert measured["tasks"] >= 1 and measured["solve_s"] > 0
        num_tasks += measured["tasks"]
    assert num_tasks == json.loads((one / "metrics.json").read_text())["scores"]["ARC/pass@2"]["N"]
    with monkeypatch.context() as patch:  # nothing is predicted a second time
        patch.setattr(RecursiveSolver, "_count", None)
        patch.setattr(RecursiveSolver, "_score", None)
        three = evaluated(runs / name, tmp_path / "three", *wishes, "launch.shards=3")
    for file in FILES:
        assert (one / file).read_bytes() == (three / file).read_bytes(), file
    # Sums over all rows are added up in another order.
    assert statistics(three) == pytest.approx(statistics(one), rel=1e-12, nan_ok=True)
    assert (one / "criterion.json").exists() == (three / "criterion.json").exists() == (case == "latent")
    assert (three / "merge.json").is_file() and not list(three.glob("votes_*"))


def test_a_killed_shard_and_a_killed_whole_go_on(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted twice, also where the whole had begun to go on from what the shards had counted."""
    two = ("launch.shards=2",)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        evaluated(runs / "etrm", tmp_path / "two", *two, "launch.shard=0", "batch_size=4")
    for number in range(2):
        evaluated(runs / "etrm", tmp_path / "two", *two, f"launch.shard={number}")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(evaluation, "publish", killed)
        evaluated(runs / "etrm", tmp_path / "two", *two)
    assert list((tmp_path / "two").glob("votes_*_base.npz"))
    two_folder = evaluated(runs / "etrm", tmp_path / "two", *two)
    one = evaluated(runs / "etrm", tmp_path / "one")
    assert (one / "predictions.jsonl").read_bytes() == (two_folder / "predictions.jsonl").read_bytes()


def killed(*_: object) -> str:
    raise Killed


def test_shards_of_other_weights_or_settings_are_refused(runs: Path, tmp_path: Path) -> None:
    evaluated(runs / "etrm", tmp_path, "launch.shards=2", "launch.shard=0")
    with pytest.raises(ConfigError, match=r"shard 1 of 2 was not started .* runs only what is missing\."):
        evaluated(runs / "etrm", tmp_path, "launch.shards=2")
    evaluated(runs / "etrm", tmp_path, "launch.shards=2", "launch.shard=1", "weights=raw")
    with pytest.raises(
        ConfigError, match=r"1_of_2 holds no votes of these weights, tasks and settings: .* remove .*shards, and"
    ):
        evaluated(runs / "etrm", tmp_path, "launch.shards=2")
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (["adaptation=embeddings", "adaptation.joint=true"], "adaptation.joint=true trains on all of them together"),
        (["launch.steal=true"], "launch.steal=true is for evaluations whose solver asks a language model"),
        (["launch.shards=8", "launch.shard=0"], "launch.shards=8 is more than the 7 tasks; give at most 7."),
    ],
)
def test_what_cannot_be_divided_is_refused(wishes: list[str], words: str, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        evaluated(runs / "etrm", tmp_path, "launch.shards=2", *wishes)
    assert words in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "metrics.json").exists()
