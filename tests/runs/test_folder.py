"""The run folder: what it was made with is kept, and a damaged or missing file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.run import pretrain
from arclab.runs.folder import RunDir, State, open_run, short_commit
from arclab.runs.lock import lock_path, read_holder

from ..methods.recursive.training.common import run_training

Tiny = Callable[..., ExperimentConfig]


def test_looking_at_a_finished_run_changes_nothing(tiny: Tiny) -> None:
    config = tiny("trainer.steps=2")
    run = RunDir(config.folder)
    assert pretrain(config) == 0 and run.state is State.done
    before = (run.provenance.read_text(), run.config.read_text())
    assert pretrain(tiny("trainer.steps=2", "trainer.log_every=7")) == 0
    assert (run.provenance.read_text(), run.config.read_text()) == before


def test_a_run_that_goes_on_remembers_what_its_earlier_steps_were_made_with(tiny: Tiny) -> None:
    run = open_run(config := tiny())
    open_run(config)
    assert "earlier" not in json.loads(run.provenance.read_text())  # no step was made
    (run.checkpoints / "step_00000002").mkdir(parents=True)
    run.write_status(State.preempted, 2)
    for commit in ("first", "second"):
        record = json.loads(run.provenance.read_text())
        run.provenance.write_text(json.dumps({**record, "commit": commit}))
        open_run(config)
    earlier = json.loads(run.provenance.read_text())["earlier"]
    assert [(start["commit"], start["to_step"]) for start in earlier] == [("first", 2), ("second", 2)]


def test_commits_keep_their_changes() -> None:
    assert (
        short_commit({"commit": "a" * 40}) == "a" * 10
        and short_commit({"commit": "a" * 40 + "+changes"}) == "a" * 10 + "+changes"
    )
    assert short_commit({}) == "not recorded"


@pytest.mark.parametrize(("text", "words"), [("", "is damaged"), ("[]", "no JSON object"), ("{}", "it has no state")])
def test_a_damaged_file_is_named(tiny: Tiny, text: str, words: str) -> None:
    run = open_run(tiny())
    (run.path / "status.json").write_text(text)
    with pytest.raises(ValueError, match=rf"status\.json .*{words}"):
        run.read_status()
    if text != "{}":
        lock_path(run).write_text(text)
        with pytest.raises(ValueError, match=r"lock\.json is damaged"):
            read_holder(run)


def test_a_run_folder_that_is_moved_while_it_trains_is_noticed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved from then on would lie in a new folder, without its configuration and its past."""
    from arclab.methods.recursive.training import trainer

    step = trainer.train_step

    def moved(*arguments: object) -> object:
        run = RunDir(config.folder)
        if run.config.is_file() and run.metrics.is_file() and '"_step": 1,' in run.metrics.read_text():
            run.path.rename(tmp_path / "elsewhere")
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train_step", moved)
    config = tiny()
    with pytest.raises((ValueError, FileNotFoundError), match="was moved or emptied"):
        run_training(config)
    assert not (config.folder / "checkpoints" / "step_00000002").exists()
