"""A second method in the house: tests/second_method goes through the life of a run without touching what is below it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from arclab.config import compose as slow
from arclab.config.compose import ConfigError
from arclab.config.plain_composer import PlainComposer
from arclab.entries import ENTRIES, Entry
from arclab.launch.__main__ import main
from arclab.launch.queue.plan import read_plan
from arclab.launch.start import start
from arclab.metrics.logger import read_rows
from arclab.pages.analyse import analyse
from arclab.runs import checkpoints
from arclab.runs.folder import RunDir, State
from arclab.runs.worklist import Worklist

from .conftest import ROOT, refused, script_env
from .launch.queue.test_submit import state_of, wait_for

METHOD = "tests.second_method"
CONF = str(ROOT / "tests" / "second_method" / "conf")
ROWS = {
    "second_method": Entry(
        script="second_method.py", config="second_method", schema=f"{METHOD}.method:LineConfig", run=f"{METHOD}.method:pretrain",
        conf_dir=CONF,
    ),
    "second_evaluate": Entry(
        script="evaluate.py", solver="line", config="second_evaluate", schema=f"{METHOD}.evaluation:LineEvaluationConfig",
        run=f"{METHOD}.evaluation:evaluate", names_itself=True, conf_dir=CONF,
    ),
}  # fmt: skip
START = "from arclab.config.compose import run_main; from arclab.launch.start import start; "
SCRIPT = START + "run_main(lambda argv: start('second_method.py', argv))"


def add_to_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python that starts from now on has the method's rows of entries.py, and so has this one."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"from arclab.entries import ENTRIES, Entry\nENTRIES |= {ROWS!r}\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT / 'src'}:{ROOT}")
    for name, row in ROWS.items():
        monkeypatch.setitem(ENTRIES, name, row)


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    add_to_path(tmp_path / "path", monkeypatch)
    return tmp_path / "runs"


def command(runs_dir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", SCRIPT, f"runs_dir={runs_dir}", *overrides]
    return subprocess.run(line, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=120)


def weights(run: RunDir, step: int) -> list[float]:
    path = run.checkpoints / f"step_{step:08d}"
    return checkpoints.load_tensors(path, "model.safetensors", checkpoints.read_state(path))["weights"].tolist()


def test_a_method_of_its_own_has_the_life_of_a_run(
    runs_dir: Path, run_in_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Trained, found done, refused with another rate, and typos; its folder says which entry it is of."""
    run = RunDir(runs_dir / "second" / "whole")
    done = command(runs_dir, "name=whole")
    assert done.returncode == 0, done.stderr
    assert run.state is State.done and run.config.read_text().startswith("entry: second_method\n")
    assert [row["_step"] for row in read_rows(run.metrics)] == [10, 20, 30, 40]
    assert weights(run, 40) == pytest.approx([2.0, 1.0], abs=0.2)
    assert done.stderr.strip().endswith(f"done: {run.path}")  # nothing evaluates it: nothing is advised

    def again(*overrides: str) -> subprocess.CompletedProcess[str]:
        return run_in_process("second_method.py", f"runs_dir={runs_dir}", *overrides)

    for ranks in ([], ["launch.cpus=2"]):
        assert again("name=whole", *ranks).stderr.strip().endswith(f"{run.path} is DONE")
    refused(again("name=whole", "trainer.lr=0.05"), "trainer.lr=0.1, now trainer.lr=0.05")
    refused(again("name=other", "trainer.learning=1"), "unknown key trainer.learning")
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
    line = [
        sys.executable,
        "-c",
        SCRIPT,
        f"runs_dir={runs_dir}",
        "name=halves",
        "trainer.steps=400",
        "trainer.checkpoint_every=400",
    ]
    with subprocess.Popen(line, cwd=ROOT, env=script_env(), stderr=subprocess.DEVNULL) as process:
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


def jobs_file(runs_dir: Path, *settings: str) -> Path:
    """Three lines of the method, the evaluation before the run that it scores."""
    path, folder = runs_dir.parent / "jobs.txt", runs_dir / "second"
    common = " ".join([f"runs_dir={runs_dir}", *settings])
    path.write_text(
        "## A line: it fits four points\n## Criterion: DONE\n"
        f"evaluate.py solver=line checkpoint={folder}/b_lr-0.1 {common}\n"
        f"second_method.py name=b trainer.lr=0.1,0.05 {common}\n"
    )
    return path


@pytest.mark.slow
def test_its_lines_go_through_the_queue_to_the_pages(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """check, submit, status, report of a job file; a sweep; a page that compares its runs and its results with others."""
    path = jobs_file(runs_dir)
    assert main(["check", str(path)]) == 0
    assert "trainer." in capsys.readouterr().out
    assert main(["submit", str(path), "--cluster", "local", "--places", "2"]) == 0
    runs = read_plan(path).runs
    wait_for(lambda: not any(state_of(run) in ("QUEUED", "RUNNING") for run in runs))
    assert main(["status", str(path)]) == main(["report", str(path)]) == 0
    assert [state_of(run) for run in runs] == ["DONE"] * 3, capsys.readouterr().out
    page = (runs_dir / "report/index.html").read_text()
    assert "b_lr-0.05" in page and "ARC/pass@2" in page and page.count('class="badge state DONE"') == 3
    swept = command(runs_dir, "-m", "name=b", "trainer.lr=0.1,0.2")
    assert swept.returncode == 0 and "b_lr-0.2" in swept.stderr and "DONE; " not in swept.stderr, swept.stderr
    folder = runs_dir / "second/b_lr-0.1"
    analyse([folder, runs_dir / "second/b_lr-0.2", runs[0].folder.path], runs_dir / "compared")
    compared = (runs_dir / "compared/compare.html").read_text()
    assert "trainer.lr" in compared and "train/lm_loss" in compared and "0/3" in compared and 'id="halting"' not in compared


def test_its_evaluation_is_told_to_end_and_goes_on(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worklist holds what was made; nothing is made twice."""
    assert command(runs_dir, "name=e", "trainer.steps=2").returncode == 0
    made: list[str] = []
    add = Worklist.add

    def noting(worklist: Worklist, id_: str, record: Mapping[str, Any]) -> None:
        add(worklist, id_, record)
        made.append(id_)
        if len(made) == 2:
            (run.path / "PREEMPT").touch()

    monkeypatch.setattr(Worklist, "add", noting)
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)
    run = RunDir(runs_dir / "second/e/evaluation/train")
    wanted = ["solver=line", f"checkpoint={runs_dir}/second/e", f"runs_dir={runs_dir}"]
    assert start("evaluate.py", wanted) == 143
    status = run.read_status()
    assert status is not None and (status["state"], status["num_steps"]) == ("PREEMPTED", 3) and "2 of 3" in status["message"]
    assert start("evaluate.py", wanted) == 0
    assert run.state is State.done and len(made) == 3 == len((run.path / "answers.jsonl").read_text().splitlines()) - 1
