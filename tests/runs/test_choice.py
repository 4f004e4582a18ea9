"""Which checkpoint of a run is meant: newest, best or a step; what cannot be chosen is one sentence with its remedy."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from arclab.config.checkpoint_key import broken_checkpoint, checkpoint_wish
from arclab.metrics.best import best_score
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.choice import Choice, choose_checkpoint

METRIC = "all.exact_accuracy"


def run_of(folder: Path, scores: dict[int, float | None], steps: tuple[int, ...] = (1, 2, 3, 4)) -> Path:
    """A run folder with checkpoints of these steps, and these scores."""
    folder.mkdir(parents=True)
    rows = [{"_step": step, METRIC: value, "all.count": 50.0} for step, value in scores.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoints = CheckpointFolder(folder / "checkpoints", keep_last=9)
    for step in steps:
        temporary = checkpoints.begin(step)
        (temporary / "weights").write_text(str(step))
        checkpoints.commit(temporary, {"step": step})
    return folder


def chosen(given: Path | str, metric: str = METRIC) -> Choice:
    return choose_checkpoint(Path(given), lambda run: metric)


def test_the_newest_the_best_and_a_step(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", {2: 0.08, 4: 0.02, 5: 0.9})  # a kill came between the scores of step 5 and its checkpoint
    last, best, second = chosen(run), chosen(f"{run}@best"), chosen(f"{run}@2")
    assert (last.step, last.rule, best.step, best.rule, second.step, second.rule) == (4, "last", 2, "best", 2, "asked")
    assert last.path == run / "checkpoints/step_00000004" == chosen(f"{run}@last").path and best.path == second.path
    assert last.is_behind and not best.is_behind and not second.is_behind
    assert str(last) == (
        f"the checkpoint is that of step 4 (newest); the best score of the run is {METRIC} 8.0 % (4/50) at 2, and here 2.0 %: "
        "checkpoint=RUN@best takes that step"
    )
    assert str(best) == f"the checkpoint is that of step 2 (best by {METRIC}; the newest is that of step 4)"
    assert str(chosen(f"{run}@3")).startswith(
        "the checkpoint is that of step 3 (asked for; the newest is that of step 4); the b"
    )
    assert not chosen(run_of(tmp_path / "tie", {2: 0.5, 4: 0.5})).is_behind  # of equal ones the later
    assert chosen(f"{tmp_path}/tie@best").step == 4
    folder = chosen(run / "checkpoints/step_00000003")
    assert (folder.step, folder.rule, folder.best) == (3, "asked", None)


def test_a_name_with_the_sign_is_taken_as_it_is(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a@best", {2: 0.08, 4: 0.02})
    assert checkpoint_wish(run).path == run and chosen(run).step == 4
    assert chosen(f"{run}@best").step == 2 and checkpoint_wish(f"{run}@last").path == run
    assert checkpoint_wish("lab@home/run").path == Path("lab@home/run") and checkpoint_wish("@best").which == ""


def test_what_cannot_be_chosen_is_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path / "a", {1: None})
    for given, words in {
        f"{run}@best": f"a/metrics.jsonl has no value of {METRIC}, by which .* give {run}@last or one of the steps 1, 2, 3, 4, or train with",
        f"{run}@7": rf"{run} has no checkpoint of step 7; there are those of steps 1, 2, 3, 4: give one of them, @best or @last\.",
        f"{run}/checkpoints/step_00000002@best": rf"is one checkpoint, and @best chooses .* without @, or {run}@best\.",
        f"{tmp_path}/none@best": r"none has no checkpoints/step_\*",
    }.items():
        with pytest.raises(ValueError, match=words):
            chosen(given)
    gone = run_of(tmp_path / "gone", {2: 0.5, 4: 0.1}, steps=(3, 4))
    with pytest.raises(
        ValueError, match=rf"best score is .* at 2, and the checkpoint of that step is not there; .* 3, 4: give {gone}@STEP"
    ):
        chosen(f"{gone}@best")
    assert broken_checkpoint("checkpoint", f"{run}@bset") == [
        f"checkpoint={run}@bset asks for 'bset' after @; give @best, @last or @STEP, for example {run}@best."
    ]
    assert not any(broken_checkpoint("checkpoint", f"{run}@{word}") for word in ("best", "last", "12"))
    (run / "metrics.jsonl").write_text(f'{{"_step": 1, "{METRIC}": 0.5\n')
    with pytest.raises(ValueError, match=re.escape(f"{run}/metrics.jsonl is damaged in line 1")):
        chosen(f"{run}@best")
    with caplog.at_level(logging.WARNING):  # the newest one can be had all the same, and it is said what is not known
        assert chosen(run).step == 4
    assert "which checkpoint of" in caplog.text and "damaged in line 1" in caplog.text


def test_the_metric_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"_step": 5, "ARC/pass@2": 0.5, "ARC/tasks": 8.0}\n{"_step": 9, "ARC/pass@2": null, "ARC/tasks": 8.0}\n')
    assert str(best_score(path, "ARC/pass@2")) == "ARC/pass@2 50.0 % (4/8) at 5"
    assert best_score(path, "ARC/pass@1") is None and best_score(tmp_path / "none", "ARC/pass@2") is None
