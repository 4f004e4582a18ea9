"""evaluate.py with an adaptation: what is scored, said, kept when it is killed, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.methods.recursive import evaluation
from arclab.methods.recursive.adaptation import training
from arclab.methods.recursive.adaptation.tasks import TaskAdapter
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.search import ascent
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.pages import report
from arclab.results.reading import FIT_STAMP
from arclab.runs.folder import RunDir, State
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

from ....conftest import compose
from ..solver.test_resume import Killed, kill_after

CPU = Ranks(0, 1, torch.device("cpu"))
UNSEEN = "toy:color_map?tasks=4&side=3&colors=3&palette=4&demos=3&split=test"
TRAINED = "toy:color_map?tasks=8&side=3&colors=3&palette=4&demos=3&split=train"
RUN = [
    "experiment=toy_control", "decoder.width=16", "decoder.num_heads=2", "decoder.num_layers=1", "dataset.canvas=4",
    f"dataset.train_sources=['{TRAINED}']", f"dataset.eval_sources=['{UNSEEN}']",
    "dataset.validation_sources=['toy:color_map?tasks=3&side=3&colors=3&palette=4&demos=3&split=validation']",
    "dataset.num_augmentations=2", "evaluation.num_augmentations=2", "evaluation.health_tasks=0", "trainer.steps=2",
    "trainer.warmup_steps=0", "trainer.batch_size=8", "trainer.eval_every=0", "trainer.num_threads=1", "wandb.mode=disabled",
]  # fmt: skip
TRM = [*RUN, "encoder=puzzle_table", "dataset.regime=puzzle_id"]
FEW = ["adaptation.steps=3", "adaptation.rows_per_step=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ETRM; a TRM that knows its training tasks alone, and one that knows the demonstrations of its validation tasks."""
    root = tmp_path_factory.mktemp("runs")
    for name, settings in (("etrm", RUN), ("trm", [*TRM, "evaluation.split=train"]), ("own", TRM)):
        pretrain_in_ranks(compose("pretrain_encoder", [*settings, f"runs_dir={root}", f"name={name}"]), CPU)
    return root / "toy_control"


@pytest.fixture(autouse=True)
def _no_page_and_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "render_report", lambda result: "")
    monkeypatch.setattr(evaluation, "announce", lambda *_, **__: None)


def wanted(run: Path, folder: Path | None, *wishes: str) -> EvaluateConfig:
    place = [] if folder is None else [f"output_dir={folder}"]
    config = compose_evaluate([f"checkpoint={run}", *place, *wishes])
    assert isinstance(config, EvaluateConfig)
    return config


def scored(run: Path, folder: Path | None, *wishes: str) -> tuple[dict[str, Any], str]:
    """metrics.json, and the predictions."""
    config = wanted(run, folder, *wishes)
    evaluate_in_ranks(config, CPU)
    return json.loads((config.folder / "metrics.json").read_text()), (config.folder / "predictions.jsonl").read_text()


def ids(predictions: str) -> list[str]:
    return [json.loads(line)["task"] for line in predictions.splitlines()]


def test_no_steps_are_no_adaptation(root: Path, tmp_path: Path) -> None:
    for run, kind in (("etrm", "weights"), ("etrm", "lora"), ("own", "embeddings_then_weights")):
        plain, as_it_is = scored(root / run, tmp_path / run)
        record, predictions = scored(root / run, tmp_path / f"{run}-{kind}", f"adaptation={kind}", "adaptation.steps=0")
        assert predictions == as_it_is and record["scores"] == plain["scores"]
        shared = [name for name in plain["statistics"] if not name.startswith("timing/")]
        assert {n: record["statistics"][n] for n in shared} == {n: plain["statistics"][n] for n in shared}


def test_results_say_how_the_model_was_adapted(root: Path) -> None:
    plain, as_it_is = scored(root / "etrm", None)
    for kind, said in (("weights", "the model trained"), ("lora", "low-rank adapters trained")):
        record, predictions = scored(root / "etrm", None, f"adaptation={kind}", *FEW, "adaptation.lr=0.01")
        assert record["split"] == f"validation-{kind}" and plain["split"] == "validation"
        assert [s for s in record["stamps"] if s not in plain["stamps"]] == [
            f"{said} at test time on the demonstrations of each scored task: {kind}, 3 steps"
        ]
        found = record["statistics"]
        assert 0 < found["adapt/loss_after"] < found["adapt/loss_before"] and found["adapt/seconds"] > 0
        assert found["adapt/shared"] == 0 and ids(predictions) == ids(as_it_is) and predictions != as_it_is


def test_neither_batches_nor_how_votes_are_dealt_matter(root: Path, tmp_path: Path) -> None:
    settings = ("adaptation=weights", *FEW)
    _, whole = scored(root / "etrm", tmp_path / "a", *settings)
    _, other = scored(root / "etrm", tmp_path / "b", *settings, "batch_size=2")
    assert [json.loads(line)["candidates"][0]["grid"] for line in whole.splitlines()] == [
        json.loads(line)["candidates"][0]["grid"] for line in other.splitlines()
    ]
    _, rounds = scored(root / "etrm", tmp_path / "c", *settings, "evaluation.votes=adaptive_first")
    assert ids(rounds) == ids(whole)
    twice, product = scored(root / "etrm", tmp_path / "d", *settings, "evaluation.ranking=product")  # adapts to each task again
    assert ids(product) == ids(whole) and twice["statistics"]["eval/second_pass_share"] == 1


def test_a_killed_one_goes_on_with_the_next_task(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted: list[str] = []
    original = TaskAdapter._adapt

    def spy(self: TaskAdapter, task: Any) -> None:
        adapted.append(task.id)
        original(self, task)

    monkeypatch.setattr(TaskAdapter, "_adapt", spy)
    every_batch = {**RecursiveSolver.__init__.__kwdefaults__, "save_every_s": 0.0}
    monkeypatch.setattr(RecursiveSolver.__init__, "__kwdefaults__", every_batch)
    settings = ("adaptation=weights", *FEW, "split=evaluation")
    whole, predictions = scored(root / "etrm", tmp_path / "whole", *settings)
    tasks = adapted.copy()
    assert len(tasks) == 4
    adapted.clear()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        scored(root / "etrm", tmp_path / "killed", *settings)
    assert adapted == tasks[:3], "the third one's votes were not counted"
    adapted.clear()
    record, again = scored(root / "etrm", tmp_path / "killed", *settings)
    assert again == predictions and adapted == tasks[2:]
    for name in ("adapt/loss_before", "adapt/loss_after", "all.count", "all.lm_loss"):
        assert record["statistics"][name] == pytest.approx(whole["statistics"][name]), name


@pytest.mark.parametrize(
    ("settings", "module", "step", "at", "kept"),
    [
        (["adaptation=weights", *FEW], training, "train_step", 8, "6 of 12"),  # the second step of the third task
        (["adaptation=latent", "adaptation.steps=3", "batch_size=3"], ascent, "_losses", 6, "3 of 12"),
        (["adaptation=weights", *FEW, "adaptation.joint=true"], training, "train_step", 2, "begins anew"),
        (["adaptation=lora", *FEW], training, "_answer_loss", 7, "9 of 12"),  # the loss before the fourth task's adaptation
    ],
)
def test_a_stop_signal_ends_an_adaptation_at_its_next_step(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], module: Any, step: str, at: int, kept: str
) -> None:
    """What was finished is kept, and the same command ends as one that was never told."""
    settings = [*settings, "split=evaluation"]
    _, whole = scored(root / "etrm", tmp_path / "whole", *settings)
    original, calls, signals = getattr(module, step), [0], StopSignals()

    def signalled(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            signals.number = 15
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, signalled)
        config = wanted(root / "etrm", tmp_path / "told", *settings)
        assert evaluate_in_ranks(config, CPU, signals) is State.preempted
    assert calls[0] == at, "the step that was under way is the last one"
    status = RunDir(config.folder).read_status()
    assert status is not None and kept in status["message"] and "the same command continues" in status["message"]
    assert not (config.folder / "metrics.json").exists()
    assert scored(root / "etrm", tmp_path / "told", *settings)[1] == whole


def test_a_table_learns_vectors_for_tasks_that_it_does_not_know(root: Path, tmp_path: Path) -> None:
    settings = ("adaptation=embeddings_then_weights", *FEW, "adaptation.lr=0.01")
    for run, wishes in (("trm", ["split=evaluation"]), ("own", [f"dataset.eval_sources=['{UNSEEN}']"])):
        with pytest.raises(ValueError, match=r"4 of (the )?4 tasks .*adaptation=embeddings_then_weights"):
            scored(root / run, tmp_path / f"{run}-none", *wishes)
        for start in ("mean", "gaussian"):
            record, predictions = scored(
                root / run, tmp_path / f"{run}-{start}", *settings, *wishes, f"adaptation.start={start}"
            )
            assert len(ids(predictions)) == 4
            assert record["statistics"]["adapt/loss_after"] < record["statistics"]["adapt/loss_before"]
            assert any("transductive" in stamp for stamp in record["stamps"]) == (run == "own"), "the checkpoint's stamp stays"


def test_scores_of_a_tables_own_tasks_say_what_it_learned_of_them(root: Path, tmp_path: Path) -> None:
    """Of training tasks everything, under whichever split they are scored; of its scored tasks the demonstrations."""
    validation = "toy:color_map?tasks=3&side=3&colors=3&palette=4&demos=3&split=validation"
    transductive = "transductive: the demonstrations of the scored tasks are training data"
    for run, sources, said in (
        ("trm", f"'{TRAINED}'", {FIT_STAMP}),
        ("own", f"'{TRAINED}'", {FIT_STAMP, transductive}),
        ("own", f"'{validation}'", {transductive}),
        ("own", f"'{validation}','{TRAINED}'", {transductive, "8 of the 11 scored tasks were trained on (task "}),
    ):
        record, _ = scored(root / run, tmp_path / f"{run}{len(sources)}", f"dataset.eval_sources=[{sources}]")
        stamps = [stamp for stamp in record["stamps"] if not stamp.startswith(("scored on tasks that", "not the published"))]
        assert len(stamps) == len(said) and all(any(stamp.startswith(each) for stamp in stamps) for each in said), stamps


def test_what_a_table_was_trained_on_is_no_test_of_it(root: Path, tmp_path: Path) -> None:
    settings = ("adaptation=embeddings", *FEW)
    record, predictions = scored(root / "trm", tmp_path / "mixed", *settings, f"dataset.eval_sources=['{UNSEEN}','{TRAINED}']")
    assert len(ids(predictions)) == 4 and any("8 of the 12 tasks share" in stamp for stamp in record["stamps"])
    with pytest.raises(ValueError, match="leaves none to score"):
        scored(root / "trm", tmp_path / "trained", *settings, f"dataset.eval_sources=['{TRAINED}']")


def test_jointly_is_said_and_trains_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run, kind in (("etrm", "weights"), ("trm", "embeddings")):
        joint = (f"adaptation={kind}", "adaptation.joint=true", "adaptation.steps=6", "split=evaluation")
        record, predictions = scored(root / run, tmp_path / f"{run}-joint", *joint)
        assert any("all scored tasks together (transductive over them)" in stamp for stamp in record["stamps"])
        assert record["statistics"]["adapt/loss_after"] < record["statistics"]["adapt/loss_before"]
        _, alone = scored(root / run, tmp_path / f"{run}-alone", f"adaptation={kind}", "adaptation.steps=6", "split=evaluation")
        assert ids(predictions) == ids(alone) and predictions != alone


BAD = {
    "adaptation.parts=encoder does not go with encoder.kind=puzzle_table": ("own", ["adaptation=weights", "adaptation.parts=encoder"]),
    "adaptation=embeddings trains the vectors of a puzzle table, and this run has none .*adaptation=latent": ("etrm", ["adaptation=embeddings"]),
    "adaptation=embeddings_then_weights trains the vectors": ("etrm", ["adaptation=embeddings_then_weights"]),
    "adaptation.demonstrations=other_task needs another scored task": (
        "etrm", ["adaptation=weights", "adaptation.demonstrations=other_task", "max_tasks=1"]),
    "adaptation.rank=0 must be at least 1": ("etrm", ["adaptation=lora", "adaptation.rank=0"]),
    "adaptation.steps=-1 must be at least 0": ("etrm", ["adaptation=lora", "adaptation.steps=-1"]),
    "adaptation.share=2.0 must be between": ("trm", ["adaptation=embeddings_then_weights", "adaptation.share=2"]),
    "adaptation.lr=7.0 must be between": ("trm", ["adaptation=embeddings_then_weights", "adaptation.lr=7"]),
    "adaptation.joint=true trains on all scored tasks": (
        "etrm", ["adaptation=weights", "adaptation.joint=true", "adaptation.demonstrations=other_task"]),
    "adaptation.min_wins=0.5 compares with the model as it is, which has no vectors for 4 of 4 tasks": (
        "trm", ["adaptation=embeddings", "split=evaluation", "adaptation.min_wins=0.5"]),
    "adaptation.rank is not a key of the chosen adaptation": ("etrm", ["adaptation=weights", "adaptation.rank=4"]),
}  # fmt: skip


@pytest.mark.parametrize("sentence", BAD)
def test_what_does_not_go_together_is_one_sentence(root: Path, tmp_path: Path, sentence: str) -> None:
    run, wishes = BAD[sentence]
    with pytest.raises((ConfigError, ValueError), match=sentence) as caught:
        scored(root / run, tmp_path / "refused", *wishes)
    assert "\n" not in str(caught.value) and not (tmp_path / "refused").exists()
