"""A second method in the house: tests/second_method goes through the life of a run without touching what is below it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arclab.config import compose as slow
from arclab.config.compose import ConfigError
from arclab.config.plain_composer import PlainComposer
from arclab.entries import ENTRIES, Entry
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State

from .conftest import ROOT, refused, script_env

METHOD = "tests.second_method.method"
ROW = Entry(
    script="second_method.py", config="second_method", schema=f"{METHOD}:LineConfig", run=f"{METHOD}:pretrain",
    conf_dir=str(ROOT / "tests" / "second_method" / "conf"),
)  # fmt: skip
SCRIPT = "from arclab.config.compose import run_main; from arclab.launch.start import start; "
SCRIPT += "run_main(lambda argv: start('second_method.py', argv))"


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every Python that starts below has the method's row of entries.py."""
    (tmp_path / "sitecustomize.py").write_text(
        f"from arclab.entries import ENTRIES, Entry\nENTRIES['second_method'] = {ROW!r}\n"
    )
    monkeypatch.setitem(ENTRIES, "second_method", ROW)
    return tmp_path / "runs"


def command(runs_dir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    env = {**script_env(), "PYTHONPATH": f"{runs_dir.parent}:{ROOT / 'src'}:{ROOT}"}
    line = [sys.executable, "-c", SCRIPT, f"runs_dir={runs_dir}", *overrides]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def weights(run: RunDir, step: int) -> list[float]:
    return json.loads((run.checkpoints / f"step_{step:08d}" / "state.json").read_text())["weights"]


def test_a_method_of_its_own_has_the_life_of_a_run(runs_dir: Path) -> None:
    """Trained, found done, refused with another rate, and typos; its folder says which entry it is of."""
    run = RunDir(runs_dir / "second" / "whole")
    done = command(runs_dir, "name=whole")
    assert done.returncode == 0, done.stderr
    assert run.state is State.done and run.config.read_text().startswith("entry: second_method\n")
    assert [row["_step"] for row in read_rows(run.metrics)] == [10, 20, 30, 40]
    assert weights(run, 40) == pytest.approx([2.0, 1.0], abs=0.2)
    assert "DONE" in command(runs_dir, "name=whole").stderr
    refused(command(runs_dir, "name=whole", "trainer.lr=0.05"), "trainer.lr=0.1, now trainer.lr=0.05")
    refused(command(runs_dir, "name=other", "trainer.learning=1"), "unknown key trainer.learning")
    with pytest.raises(
        ConfigError, match=r"is of second_method\.py; give the folder of a run that pretrain_encoder\.py started"
    ):
        slow.thaw(run.config)
    assert PlainComposer().thaw(run.config) == slow.thaw_run(run.config)
    text = run.config.read_text()
    for entry in ("nobody", "[1]", "null"):
        run.config.write_text(text.replace("entry: second_method", f"entry: {entry}"))
        with pytest.raises(
            ConfigError, match=r"config\.yaml is damaged \(entry=.* is no entry script of this version: pretrain_enc"
        ):
            slow.thaw_run(run.config)


def test_it_is_told_to_end_and_goes_on_to_the_same_end(runs_dir: Path) -> None:
    whole, halves = (RunDir(runs_dir / "second" / name) for name in ("whole", "halves"))
    command(runs_dir, "name=whole", "trainer.steps=400", "trainer.checkpoint_every=400")
    env = {**script_env(), "PYTHONPATH": f"{runs_dir.parent}:{ROOT / 'src'}:{ROOT}"}
    line = [
        sys.executable,
        "-c",
        SCRIPT,
        f"runs_dir={runs_dir}",
        "name=halves",
        "trainer.steps=400",
        "trainer.checkpoint_every=400",
    ]
    with subprocess.Popen(line, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        while not read_rows(halves.metrics):
            assert process.poll() is None
        halves.preempt.touch()
    assert process.returncode in (143, 0)
    done = command(runs_dir, "name=halves", "trainer.steps=400", "trainer.checkpoint_every=400")
    assert done.returncode == 0 and halves.state is State.done, done.stderr
    assert weights(halves, 400) == weights(whole, 400)


@pytest.mark.slow
def test_it_runs_on_ranks_that_a_parent_starts(runs_dir: Path) -> None:
    done = command(runs_dir, "name=ranks", "launch.cpus=2")
    run = RunDir(runs_dir / "second" / "ranks")
    assert done.returncode == 0 and run.state is State.done, done.stderr
    assert weights(run, 40) == pytest.approx([2.0, 1.0], abs=0.2)
