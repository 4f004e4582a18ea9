"""checkpoint=RUN@best and RUN@STEP of a recursive model: what is scored, where it is written, and what its results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import arclab
from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.methods.recursive import run as recursive_run
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.runs.ranks import Ranks

from ...conftest import TINY, compose

CPU = Ranks(0, 1, torch.device("cpu"))
RUN = [
    *TINY, "decoder.h_cycles=1", "decoder.l_cycles=1", "trainer.eval_every=2", "trainer.keep_last=1", "evaluation.health_tasks=0",
    "halting=single",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored after steps 2, 4 and 6. By its criterion step 4 is the best: half of the tasks, and then none."""
    shares = iter([0.0, 0.5, 0.0])
    root = tmp_path_factory.mktemp("chosen")

    def train(*args: Any, score: Any, **given: Any) -> Any:
        def told() -> Any:
            metrics, predictions = score()
            return metrics | {"ARC/pass@2": next(shares), "all.exact_accuracy": 0.0}, predictions

        return original(*args, score=told, **given)

    original = recursive_run.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recursive_run, "train", train)
        judged = "criterion={metric: ARC/pass@2, threshold: 0.5, phase: p}"
        pretrain_in_ranks(compose("pretrain_encoder", [*RUN, f"runs_dir={root}", "name=a", "trainer.steps=6", judged]), CPU)
    return root / "quickstart/a"


def scored(given: str, *wishes: str) -> tuple[dict[str, Any], Path]:
    config = compose_evaluate([f"checkpoint={given}", *wishes])
    assert isinstance(config, EvaluateConfig)
    evaluate_in_ranks(config, CPU)
    return json.loads((config.folder / "metrics.json").read_text()), config.folder


def test_the_best_by_the_criterion_is_kept_scored_and_said(run: Path) -> None:
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]
    last, place = scored(str(run))
    assert (last["step"], last["chosen"], place.name, last["split"]) == (6, "newest", "train", "train")
    assert any("the best score of the run is ARC/pass@2 50.0 %" in note and "RUN@best" in note for note in last["notes"])
    best, other = scored(f"{run}@best")
    assert (best["step"], best["chosen"]) == (4, "best by ARC/pass@2") and other.name == best["split"] == "train-best"
    assert "step 4 was chosen by its score on these tasks" in "".join(best["stamps"]) and not best["notes"]
    assert json.loads((place / "metrics.json").read_text())["step"] == 6  # not replaced
    assert "4 (best by ARC/pass@2)" in (other / "report.html").read_text()
    asked, place = scored(f"{run}@4", "split=evaluation", "dataset.max_side=3")
    assert (asked["step"], asked["chosen"], place.name) == (4, "asked for", "evaluation-side3-step4")
    assert not any("chosen by" in stamp for stamp in asked["stamps"])
    of_folder, same_place = scored(f"{run}/checkpoints/step_00000004", "split=evaluation", "dataset.max_side=3")
    assert same_place == place and of_folder["split"] == asked["split"] and of_folder["step"] == 4


def test_other_readers_of_runs_take_it_too(run: Path) -> None:
    assert [arclab.load(f"{run}{which}").step for which in ("", "@best", "@last", "@4")] == [6, 4, 6, 4]
    with pytest.raises(ValueError, match=r"has no checkpoint of step 5; there are those of steps 4, 6"):
        arclab.load(f"{run}@5")
    with pytest.raises(ConfigError, match=r"asks for 'bst' after @; give @best, @last or @STEP"):
        compose_evaluate([f"checkpoint={run}@bst"])
