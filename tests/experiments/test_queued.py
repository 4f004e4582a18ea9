"""An experiment's jobs file: what it says, which lines are refused, and that its runs outlive the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arclab.launch.queue.jobsfile import read_jobs
from arclab.launch.queue.progress import RunProgress
from arclab.runs.folder import open_run
from experiments.queued import Ended, JobsFile, fault_of, jobs_path, plan_lines, progress_text, run_lines

from ..conftest import ROOT, TINY, compose, script_env

TOY = 'dataset.train_sources=["toy:color_map?tasks=4&side=3"]'


def lines_of(folder: Path, *names: str) -> dict[str, list[str]]:
    return {name: [*TINY, f"runs_dir={folder}/runs", f"name={name}", f"seed={n}"] for n, name in enumerate(names)}


def test_overrides_reach_the_file_whole_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    file = JobsFile(tmp_path / "new/jobs.txt", "Title", "none")
    runs, refused = plan_lines(file, {"a": [*lines_of(tmp_path, "a")["a"], TOY, "trainer.steps=7"]})
    assert not refused and runs["a"].config.dataset.train_sources == ["toy:color_map?tasks=4&side=3"]
    assert runs["a"].config.num_steps == 7
    (job,) = read_jobs(file.path)
    assert (job.section.title, job.section.criterion, job.overrides.count("trainer.steps=7")) == ("Title", "none", 1)


def test_a_refused_line_is_named_and_the_others_are_planned(tmp_path: Path) -> None:
    file, lines = JobsFile(tmp_path / "jobs.txt", "Title", "none"), lines_of(tmp_path, "a", "b", "c")
    open_run(compose("pretrain_encoder", [*lines["a"][:-1], "seed=9"]))
    lines["c"] = [*lines["b"], "name=c"]
    runs, refused = plan_lines(file, lines)
    assert list(runs) == ["b"] and "was made with seed=9, this line says seed=0" in refused["a"]
    assert "c builds the same run as b" in refused["c"]
    assert "# a is left out: " in file.path.read_text() and len(read_jobs(file.path)) == 1
    only_refused = {"a": lines["a"]}
    (ended,) = run_lines(file, only_refused, "local")
    assert (ended.name, ended.folder) == ("a", None) and "seed=9" in ended.fault


def test_the_same_runs_have_the_same_file(tmp_path: Path) -> None:
    assert jobs_path(tmp_path, ["a", "b"]) == jobs_path(tmp_path, ["b", "a"]) != jobs_path(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ("DONE", ""),
        ("FAILED", "FAILED: old words"),
        ("LOST", "LOST: its job was killed and could not say why; the same command continues it"),
    ],
)
def test_only_what_a_run_said_of_its_end_is_its_fault(state: str, fault: str) -> None:
    assert fault_of(RunProgress(state, "", 1, 60, None, "", None, "", "old words")) == fault


def test_progress_is_counted_by_state() -> None:
    states = [("RUNNING", 20, 60), ("DONE", 60, 60), ("RUNNING", 3, None), ("QUEUED", 0, 60)]
    runs = [RunProgress(state, "", step, total, None, "", None, "", "") for state, step, total in states]
    assert progress_text(runs) == "1 DONE, 1 QUEUED, 2 RUNNING (step 20/60, 3/?)"


CALLER = """
import sys
from pathlib import Path
from experiments.queued import JobsFile, run_lines
from tests.experiments.test_queued import lines_of
folder = Path(sys.argv[1])
print([e for e in run_lines(JobsFile(folder / "jobs.txt", "T", "none"), lines_of(folder, "a", "b"), "local", places=1)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_the_runs_of_a_stopped_caller_go_on_and_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C reaches every process of the group, so it must reach none of the runs."""
    monkeypatch.chdir(ROOT)
    for key, value in script_env().items():
        monkeypatch.setenv(key, value)
    jobs = {name: tmp_path / f"runs/quickstart/{name}/job.json" for name in "ab"}
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], stdout=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while not all(job.is_file() for job in jobs.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(caller.pid, number)
    else:
        os.kill(caller.pid, number)
    caller.wait()
    before = {name: job.read_text() for name, job in jobs.items()}
    lines = lines_of(tmp_path, "a", "b")
    ended = list(run_lines(JobsFile(tmp_path / "jobs.txt", "T", "none"), lines, "local", places=1))
    assert sorted(ended, key=lambda run: run.name) == [Ended(name, tmp_path / f"runs/quickstart/{name}", "") for name in "ab"]
    assert before == {name: job.read_text() for name, job in jobs.items()}  # the same jobs
