"""What evaluate.py is told about a checkpoint is what is scored: each wish changes what its row says, and nothing else."""

from __future__ import annotations

import json
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_evaluate
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.methods.recursive import evaluation
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.runs.ranks import Ranks

from ..conftest import TINY, compose
from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests, shown_here

CPU = Ranks(0, 1, torch.device("cpu"))
SEARCH, TRAINED = "methods/recursive/search", "methods/recursive/adaptation"
# scores: with the votes behind them. tasks: which ones, and of which split. place: the folder. device, threads: what ranks start with.
# rules: how it is solved, whose effect on scores is in test_pretrain.py.
TABLE: Table = {
    "weights": ("raw", "scores"),
    "split": ("train", "tasks place"),
    "num_augmentations": (0, "scores"),
    "max_tasks": (1, "tasks"),
    "batch_size": (1, "rules"),
    "dataset.eval_sources": ("see test", "methods/recursive/test_other_data.py::test_other_data_are_scored_and_said"),
    "dataset.name": ("mine", "methods/recursive/test_other_data.py::test_other_data_are_scored_and_said"),
    "dataset.max_side": (3, "methods/recursive/test_other_data.py::test_a_size_limit_makes_a_small_model_scorable"),
    "evaluation.health_tasks": (2, "scores"),
    "evaluation.halting": ("early", "rules"),
    "evaluation.votes": ("adaptive_first", "rules"),
    "evaluation.canvas": ("bucketed", "rules"),
    "evaluation.ranking": ("product", "rules"),
    "evaluation.carry_noise": (0.5, "rules"),
    "evaluation.samples": (2, "methods/recursive/solver/test_samples.py::test_the_surest_of_several_samples_votes"),
    "adaptation.kind": ("latent", f"{SEARCH}/test_evaluate.py::test_searched_results_have_a_place_of_their_own_and_say_so"),
    **{
        f"adaptation.{key}": (value, f"{SEARCH}/test_search.py::test_keys_of_the_search_change_it")
        for key, value in {"steps": 5, "loss": "shared", "optimizer": "sgd", "lr": 0.1, "max_offset": 0.01, "unroll": 2}.items()
    },
    "adaptation.start": ("zeros", f"{SEARCH}/test_search.py::test_starts_are_what_they_say"),
    "adaptation.num_starts": (4, f"{SEARCH}/test_search.py::test_the_best_iterate_counts_not_the_last"),
    "adaptation.sigma": (1.0, f"{SEARCH}/test_search.py::test_the_best_iterate_counts_not_the_last"),
    "adaptation.batch_size": (7, f"{SEARCH}/test_search.py::test_a_puzzle_does_not_depend_on_its_batch"),
    "adaptation.min_wins": (0.75, f"{SEARCH}/test_evaluate.py::test_searched_results_have_a_place_of_their_own_and_say_so"),
    **{
        f"adaptation.{key}": (value, f"{TRAINED}/test_tasks.py::test_keys_change_what_is_learned")
        for key, value in {"rows_per_step": 5, "table_lr": 0.01, "rank": 3, "share": 0.5}.items()
    },
    "adaptation.parts": ("decoder", f"{TRAINED}/test_tasks.py::test_a_kind_trains_its_parts_and_sets_them_back"),
    "adaptation.demonstrations": ("other_task", f"{TRAINED}/test_tasks.py::test_the_control_learns_another_task"),
    "adaptation.joint": (True, f"{TRAINED}/test_evaluation.py::test_jointly_is_said_and_trains_once"),
    "name": ("other", "place"),
    "output_dir": ("elsewhere", "place"),
    "device": ("cuda", "device"),
    "num_threads": (3, "threads"),
    "checkpoint": ("another run", "every_key/test_evaluate.py::test_another_checkpoint_has_other_scores"),
    "runs_dir": ("elsewhere", "launch/test_sweep.py::test_hydra_gets_numbers_and_no_settings"),
}
LAUNCH = {
    key: (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started")
    for key in leaves(EvaluateConfig)
    if key.startswith("launch.")
}
# A canvas of 900 cells is slow, and no key tested here depends on how deep the model is.
RUN = [
    *TINY, "dataset.validation_ids=quickstart", "dataset.train_ids=overfit32", "dataset.canvas=30", "dataset.max_train_tasks=2", "dataset.max_demos=2",
    "trainer.batch_size=2", "decoder.num_layers=1", "decoder.h_cycles=1", "decoder.l_cycles=1", "trainer.steps=2", "trainer.warmup_steps=0",
    "evaluation.health_tasks=0",
]  # fmt: skip


def test_every_key_has_a_row() -> None:
    require_a_row_for_each(leaves(EvaluateConfig), TABLE, LAUNCH)
    for table in (TABLE, LAUNCH):
        require_the_named_tests(table)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs with other seeds."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        pretrain_in_ranks(compose("pretrain_encoder", [*RUN, f"runs_dir={root}", f"seed={seed}", f"name=seed{seed}"]), CPU)
    return root / "quickstart"


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def evaluated(run: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Parts:
    """What an evaluation is started with, and what it leaves behind."""
    started: dict[str, Any] = {}

    def in_this_process(work: Any, wanted: EvaluateConfig, given: None, device: Any, num_threads: int | None) -> int:
        started.update(device=device, threads=num_threads)
        evaluation.evaluate_in_ranks(wanted, CPU)
        return 0

    def build_solver(config: Any, *args: Any, **kwargs: Any) -> Any:
        # What the others do is seen in tasks and scores.
        started.update(rules={key: plain(getattr(config.evaluation, key)) for key in ("batch_size", *evaluation.RULES)})
        return original(config, *args, **kwargs)

    original = evaluation.build_solver
    config = compose_evaluate([f"checkpoint={run}", "num_augmentations=1", "split=validation", "max_tasks=2", *overrides])
    assert isinstance(config, EvaluateConfig)
    shutil.rmtree(config.folder, ignore_errors=True)  # results are not replaced by those of fewer tasks
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "in_ranks", in_this_process)
        patch.setattr(evaluation, "build_solver", build_solver)
        evaluation.evaluate(config)
    folder = config.folder
    record = json.loads((folder / "metrics.json").read_text())
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    statistics = {key: value for key, value in record["statistics"].items() if not key.startswith("timing/")}
    return {
        **started,
        "scores": [record["scores"], statistics, record["num_augmentations"], predictions],
        "tasks": [record["split"], sorted(line["task"] for line in predictions)],
        "place": str(folder),
        "files": sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")),
    }


@pytest.fixture(scope="module")
def base(runs: Path) -> Parts:
    with pytest.MonkeyPatch.context() as patch:
        return evaluated(runs / "seed0", patch)


def test_the_same_wishes_leave_the_same_behind(base: Parts, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ["metrics.json", "predictions.jsonl", "report.html", "submission.json"]
    assert base["files"] == sorted([*results, "config.yaml", "provenance.json", "status.json"])
    assert not differences(base, evaluated(runs / "seed0", monkeypatch))


def test_without_a_number_it_takes_the_threads_of_the_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    evaluated(runs / "seed0", monkeypatch)
    evaluated(runs / "seed0", monkeypatch, "num_threads=3")  # is set where the ranks start
    assert threads == [1]  # of experiment=quickstart


@pytest.mark.parametrize("key", shown_here(TABLE))
def test_a_key_changes_what_its_row_says(
    key: str, base: Parts, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = TABLE[key]
    after = evaluated(runs / "seed0", monkeypatch, f"{key}={tmp_path if key == 'output_dir' else value}")
    found = differences(base, after)
    if what == "rules":  # whether these few tasks show it is chance
        found.discard("scores")
        assert after["rules"][key.removeprefix("evaluation.")] == value != base["rules"][key.removeprefix("evaluation.")]
    assert found == effect(what, {"tasks": "scores"})


def test_another_checkpoint_has_other_scores(base: Parts, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences(base, evaluated(runs / "seed1", monkeypatch)) == {"scores", "place"}
