"""A finished run is trained longer by the same command with more steps, where its first steps stay what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from arclab.config.compose import ConfigError
from arclab.config.schema import ExperimentConfig
from arclab.launch.queue.jobsfile import JobLine, Section
from arclab.launch.queue.plan import PlannedRun
from arclab.launch.queue.submit import submit
from arclab.methods.recursive.run import pretrain
from arclab.methods.recursive.saved import TrainedRun
from arclab.runs.folder import RunDir, State

from .common import identical

Tiny = Callable[..., ExperimentConfig]


def test_a_longer_run_is_the_one_that_had_the_steps_from_the_start(tiny: Tiny) -> None:
    config, longer, whole = tiny(), tiny("trainer.steps=6"), tiny("trainer.steps=6", "name=whole")
    assert pretrain(config) == 0 and pretrain(whole) == 0
    job = JobLine(1, 1, Section("", "", "", 0), "pretrain_encoder.py", "pretrain_encoder", config.name, (), ())
    for wanted, what in ((config, "skipped: DONE"), (longer, "would be submitted to local (continues: DONE)")):
        assert submit([PlannedRun(job, wanted, ())], "local", dry_run=True)[0].what == what
    assert pretrain(longer) == 0
    status = RunDir(longer.folder).read_status() or {}
    assert (status["state"], status["step"]) == ("DONE", 6)
    ours, theirs = (c.folder / "checkpoints/step_00000006" for c in (longer, whole))
    names = sorted(path.name for path in ours.glob("*.safetensors"))
    assert len(names) == 4 and names == sorted(path.name for path in theirs.glob("*.safetensors"))
    assert all(identical(load_file(ours / name), load_file(theirs / name)) for name in names)
    earlier = json.loads((longer.folder / "provenance.json").read_text())["earlier"]
    assert [start["to_step"] for start in earlier] == [4]
    assert TrainedRun.open(longer.folder / "checkpoints/step_00000004").state["step"] == 4  # of the same run
    with pytest.raises(ConfigError, match=r"trainer\.steps=6, now trainer\.steps=4"):
        pretrain(config)


@pytest.mark.parametrize(("overrides", "can"), [(("trainer.warmup_steps=9",), True), ((), False)])
def test_a_falling_rate_belongs_to_its_number_of_steps(tiny: Tiny, overrides: tuple[str, ...], can: bool) -> None:
    config = tiny("trainer.lr_min_ratio=0.5", "trainer.steps=2", *overrides)
    assert config.begins_as(1) == can and not config.begins_as(2)


def test_a_refusal_names_every_key_and_the_command_of_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "/somewhere/pretrain_encoder.py",
        "experiment=quickstart",
        "name=t",
        "dataset.train_sources=[toy:color_map?side=3]",
    ]
    monkeypatch.setattr("sys.argv", command)
    config = tiny("trainer.lr_min_ratio=0.5", "trainer.steps=2")
    assert pretrain(config) == 0
    before = {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as refused:
        pretrain(tiny("trainer.lr_min_ratio=0.5", "trainer.steps=8", "seed=3", "trainer.beta1=0.8"))
    text = str(refused.value)
    for words in ("seed=0, now seed=3", "trainer.beta1=0.9, now trainer.beta1=0.8", "trainer.steps=2, now trainer.steps=8",
                  "trainer.steps can grow only where the learning rate does not fall"):  # fmt: skip
        assert words in text
    # The command is the present one, so the settings differ by files of conf/, and it alone would be refused again.
    assert text.endswith("goes on with: python pretrain_encoder.py experiment=quickstart name=t 'dataset.train_sources="
                         "[toy:color_map?side=3]' seed=0 trainer.steps=2 trainer.beta1=0.9.")  # fmt: skip
    monkeypatch.setattr("sys.argv", [*command, "seed=3"])
    with pytest.raises(ConfigError, match=r"name=t 'dataset.train_sources=\[toy:color_map\?side=3\]'\.$"):
        pretrain(tiny("trainer.lr_min_ratio=0.5", "trainer.steps=2", "seed=3"))
    assert {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()} == before
    assert RunDir(config.folder).state is State.done and Path(config.folder).is_dir()
