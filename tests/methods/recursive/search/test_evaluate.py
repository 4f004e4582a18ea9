"""evaluate.py with adaptation=latent: results of their own that say so, what it refuses, and going on where it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.against_plain import against_plain
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.search.reader import LatentSearchReader
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.pages import report
from arclab.results.attempts import Attempts, Candidate
from arclab.results.paired import compare_splits
from arclab.results.reading import read_runs
from arclab.runs.ranks import Ranks

from ....conftest import compose
from ..solver.test_resume import Killed, kill_after

CPU = Ranks(0, 1, torch.device("cpu"))
SOURCE = "toy:color_map?tasks={}&side=3&colors=2&palette=4&demos=2&split={}"
TOY = [
    "experiment=latent_search_quickstart", "trainer.steps=2", "trainer.warmup_steps=0", "trainer.batch_size=8", "wandb.mode=disabled",
    f'dataset.train_sources=["{SOURCE.format(16, "train")}"]', f'dataset.eval_sources=["{SOURCE.format(8, "test")}"]',
    f'dataset.validation_sources=["{SOURCE.format(4, "validation")}"]', "decoder.width=16", "decoder.num_heads=2", "encoder.num_heads=2",
    "decoder.num_layers=1", "decoder.l_cycles=1",
]  # fmt: skip
LATENT = ["adaptation=latent", "adaptation.steps=3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and a puzzle table, trained for two steps."""
    root = tmp_path_factory.mktemp("runs")
    pretrain_in_ranks(compose("pretrain_encoder", [*TOY, f"runs_dir={root}", "name=etrm"]), CPU)
    trm = [o for o in TOY if not o.startswith("encoder.")]
    trm += ["encoder=puzzle_table", "dataset.regime=puzzle_id", f"runs_dir={root}", "name=trm"]
    pretrain_in_ranks(compose("pretrain_encoder", trm), CPU)
    return root / "latent_search_quickstart"


def evaluated(run: Path, *overrides: str) -> tuple[dict[str, Any], Path]:
    config = compose_evaluate([f"checkpoint={run}", *overrides])
    assert isinstance(config, EvaluateConfig)
    evaluate_in_ranks(config, CPU)
    return json.loads((config.folder / "metrics.json").read_text()), config.folder


def test_searched_results_have_a_place_of_their_own_and_say_so(runs: Path) -> None:
    """Also in a comparison of the two; without steps it is the plain evaluation, prediction for prediction."""
    plain, folder = evaluated(runs / "etrm")
    record, searched = evaluated(runs / "etrm", *LATENT, "adaptation.min_wins=0.75")
    assert (folder.name, searched.name) == ("evaluation", "evaluation-latent") == (plain["split"], record["split"])
    stamp = "the context of every task was searched on its demonstrations: 3 steps from start=encoder"
    assert stamp in record["stamps"] and record["adaptation"] == stamp and record["config"]["adaptation.lr"] == 0.1
    statistics = record["statistics"]
    assert statistics["search/loss_after"] < statistics["search/loss_before"] and statistics["search/shared"] == 0.0
    assert not any(name.startswith(("search/", "adapted/")) for name in plain["statistics"])

    assert statistics["adapted/plain_solved@2"] == plain["scores"]["ARC/solved@2"]["value"]
    verdict = json.loads((searched / "criterion.json").read_text())
    assert verdict["N"] == statistics["adapted/discordant"] and verdict["metric"] == "adapted/wins"
    a, b = (each.split("evaluation") for each in read_runs([folder, searched]))
    assert a is not None and b is not None
    paired = compare_splits("plain", a, "searched", b)
    assert paired.tests and any("adaptation to each task" in note for note in paired.notes)

    evaluated(runs / "etrm", *LATENT, "adaptation.steps=0")
    assert not (searched / "criterion.json").exists()
    assert (searched / "predictions.jsonl").read_text() == (folder / "predictions.jsonl").read_text()


@pytest.mark.parametrize(
    ("run", "overrides", "sentence"),
    [
        ("trm", [], "adaptation=latent searches the context .* puzzle table .*; use adaptation=embeddings"),
        ("etrm", ["adaptation.unroll=2"], "adaptation.unroll=2 is above the 1 supervision steps of this run .*; lower it"),
        ("etrm", ["adaptation.start=other_task", "max_tasks=1"], "adaptation.start=other_task takes .* only one is scored; score more"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(runs: Path, run: str, overrides: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        evaluated(runs / run, *LATENT, *overrides, f"output_dir={tmp_path}/out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["adaptation=latent", "adaptation.steps=-1"], "adaptation.steps=-1 must be at least 0"),
        (["adaptation=latent", "adaptation.num_starts=3"], "adaptation.num_starts=3 would search from the same place"),
        (["adaptation=latent", "adaptation.min_wins=2"], "adaptation.min_wins=2.0 must be between 0.0 and 1.0"),
        (["adaptation=latents"], "adaptation=latents is not an option of the group adaptation .did you mean latent"),
        (["adaptation.steps=3"], "adaptation.steps is not a key of the chosen adaptation; drop it, or choose the option that has it"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compose_evaluate(["checkpoint=x", "split=evaluation", *overrides])


@pytest.mark.parametrize(
    ("solver", "needs"),
    [
        ("program_sampling", ["lm=tiny", "dataset=toy"]),
        ("memgen", ["checkpoint=x"]),
        ("memgen_ltpo", ["checkpoint=x"]),
    ],
)
def test_solvers_without_a_recursive_model_have_no_adaptation(solver: str, needs: list[str]) -> None:
    with pytest.raises(ConfigError, match="adaptation goes with solver=recursive; drop adaptation, or choose"):
        compose_evaluate([f"solver={solver}", *needs, "adaptation=latent"])


def test_a_killed_search_goes_on_and_counts_nothing_twice(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions and means of the search are those of one that was never killed; what was counted is not searched again."""
    monkeypatch.setattr(report, "render_report", lambda result: "")
    defaults = {**(RecursiveSolver.__init__.__kwdefaults__ or {}), "save_every_s": 0.0}
    monkeypatch.setattr(RecursiveSolver.__init__, "__kwdefaults__", defaults)
    command = [*LATENT, "batch_size=2", "adaptation.min_wins=0.5"]
    whole, _ = evaluated(runs / "etrm", *command, f"output_dir={tmp_path}/whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 6)  # four of the plain answers, two of the searched ones
        evaluated(runs / "etrm", *command, f"output_dir={tmp_path}/killed")
    searched: list[int] = []
    read = LatentSearchReader.read
    monkeypatch.setattr(
        LatentSearchReader, "read", lambda self, puzzles: (searched.extend(puzzles.task_P.tolist()), read(self, puzzles))[1]
    )
    record, folder = evaluated(runs / "etrm", *command, f"output_dir={tmp_path}/killed")
    assert len(searched) == 4 and not list(folder.glob("votes_*"))
    assert (folder / "predictions.jsonl").read_text() == (tmp_path / "whole/predictions.jsonl").read_text()
    assert (folder / "criterion.json").read_text() == (tmp_path / "whole/criterion.json").read_text()
    for name, value in whole["statistics"].items():
        if not name.startswith("timing/"):
            assert record["statistics"][name] == pytest.approx(value, rel=1e-5), name


def test_wins_are_counted_over_the_tasks_on_which_the_two_disagree(toy_tasks: list[ArcTask]) -> None:
    tasks = toy_tasks[:8]

    def answers(right: set[int]) -> Attempts:
        found = {}
        for number, task in enumerate(tasks):
            for test, pair in enumerate(task.tests):
                found[task.id, test] = [Candidate(pair.output if number in right else None, 1, 0.5)]
        return Attempts(found)

    metrics, verdict = against_plain(tasks, answers({0, 1, 2}), answers({1, 2, 3, 4, 5}), 0.75, 7)
    assert (metrics["adapted/wins"], metrics["adapted/discordant"], verdict.n, verdict.N) == (0.75, 4.0, 3, 4)
    assert metrics["adapted/plain_solved@2"] == 3 / 8 and metrics["adapted/p_value"] == pytest.approx(0.625)
    assert verdict.passed and not against_plain(tasks, answers({1}), answers({1}), 0.5, 7)[1].passed


@pytest.fixture
def toy_tasks(runs: Path) -> list[ArcTask]:
    from arclab.data.sources import load_source

    return load_source(SOURCE.format(8, "test"))


def test_the_keys_of_a_search_name_its_votes(runs: Path) -> None:
    from arclab.config.adaptation_schema import NoAdaptation
    from arclab.config.schema import WeightsKind
    from arclab.methods.recursive.evaluation import votes_key
    from arclab.methods.recursive.saved import TrainedRun

    trained = TrainedRun.open(runs / "etrm")

    def key(*overrides: str) -> str:
        wanted = compose_evaluate([f"checkpoint={runs / 'etrm'}", *overrides])
        assert isinstance(wanted, EvaluateConfig)
        return votes_key(trained.config, [], trained.checkpoint, WeightsKind.ema, wanted.adaptation)

    assert key() == votes_key(trained.config, [], trained.checkpoint, WeightsKind.ema, NoAdaptation())
    assert len({key(), key(*LATENT), key(*LATENT, "adaptation.lr=0.2"), key(*LATENT, "adaptation.loss=shared")}) == 4
