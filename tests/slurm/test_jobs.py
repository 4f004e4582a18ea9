"""A job file on a real SLURM, through the command line: submit, status, cancel, retry, report."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from arclab.launch.cluster import queue_states
from arclab.launch.queue.plan import PlannedRun, read_plan
from arclab.launch.queue.progress import living_jobs
from arclab.metrics.logger import read_rows
from arclab.runs.folder import State
from arclab.runs.jobrecord import read_job
from arclab.runs.statewords import read_state

from ..conftest import ROOT, script_env
from ..test_second_method import add_to_path
from ..test_second_method import jobs_file as second_jobs_file
from .cluster import Cluster
from .conftest import RUN, STEPS, has_reached, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

Launch = Callable[..., subprocess.CompletedProcess[str]]
# A line sets a key once: the last value of each counts.
_VALUES = {
    key: value for key, _, value in (word.partition("=") for word in RUN) if key not in ("trainer.steps", "trainer.eval_every")
}
SETTINGS = " ".join(f"{key}={value}" for key, value in _VALUES.items())


@pytest.fixture
def launch(slurm: Cluster) -> Launch:
    """launch("submit", "jobs.txt", ...) as users type it."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "arclab.launch", *arguments]
        return subprocess.run(command, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=120)

    return run


def jobs_file(tmp_path: Path, *lines: str) -> tuple[str, dict[str, PlannedRun]]:
    path = tmp_path / "jobs.txt"
    prefix = f"pretrain_encoder.py {SETTINGS} launch.cpus=1 runs_dir={tmp_path}/runs"
    path.write_text("## Queue: it works\n## Criterion: DONE\n" + "".join(f"{prefix} {line}\n" for line in lines))
    return str(path), {run.name: run for run in read_plan(path).runs}


def state_of(run: PlannedRun) -> str:
    return read_state(run.folder, living_jobs([run]).get(run.folder.path))


def table(text: str) -> dict[str, str]:
    """First word of a row -> the rest, single-spaced."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return {row[0]: " ".join(row[1:]) for row in rows}


def test_a_queue_from_submitting_to_the_report(launch: Launch, tmp_path: Path, slurm: Cluster) -> None:
    path, runs = jobs_file(tmp_path, f"name=a trainer.steps={STEPS} trainer.eval_every=30", f"name=b seed=1 trainer.steps={STEPS} trainer.eval_every=30",
                           "name=long trainer.steps=1000000 trainer.eval_every=0")  # fmt: skip
    first = launch("submit", path)
    assert first.returncode == 0, first.stderr
    jobs = {name: text.split()[0] for name, text in table(first.stdout).items() if name in runs}
    assert jobs == {name: job.id for name, run in runs.items() if (job := read_job(run.folder)) is not None} and len(jobs) == 3
    assert set(jobs.values()) <= queue_states().keys()
    assert {table(launch("submit", path).stdout)[name].split(" ", 1)[1] for name in runs} <= {
        "skipped: QUEUED",
        "skipped: RUNNING",
    }

    wait_until(lambda: has_reached(runs["long"].folder, 5), "the long run")
    assert re.search(r"RUNNING \d+ [\d,]+/1,000,000 [\d.]+ \d+ ", table(launch("status", path, "long").stdout)["long"])
    assert table(launch("cancel", path, "long").stdout)["long"] == f"{jobs['long']} told to save and end"
    wait_until(lambda: state_of(runs["long"]) == "CANCELLED", "the end of the long run", 60)
    saved = runs["long"].folder.step
    assert runs["long"].folder.state is State.preempted and (runs["long"].folder.checkpoints / f"step_{saved:08d}").is_dir()

    wait_until(lambda: state_of(runs["a"]) == state_of(runs["b"]) == "DONE", "a and b", 180)
    again = table(launch("submit", path).stdout)
    assert again["a"].endswith("skipped: DONE") and again["long"].endswith("skipped: CANCELLED; retry --failed starts it again")
    retried = table(launch("retry", path, "--failed").stdout)
    assert retried["a"] == "skipped: DONE" and retried["long"].endswith("submitted again (CANCELLED)")
    wait_until(lambda: has_reached(runs["long"].folder, saved + 3), "the long run again")
    assert f"continuing from step {saved}" in launch("tail", path, "long", "-n", "1000").stdout
    launch("cancel", path, "long")
    wait_until(lambda: state_of(runs["long"]) == "CANCELLED", "the end of the long run", 60)
    steps = [row["_step"] for row in read_rows(runs["long"].folder.metrics)]
    assert steps == list(range(len(steps)))

    assert "2 DONE, 1 CANCELLED" in launch("status", path).stdout
    report = launch("report", path)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "runs/report/index.html").read_text()
    assert (
        "Queue: it works" in page
        and page.count('class="badge state DONE"') == 2
        and page.count('class="badge state CANCELLED"') == 1
    )


def test_a_preempted_job_is_queued_again_and_submit_leaves_it_alone(launch: Launch, tmp_path: Path, slurm: Cluster) -> None:
    path, runs = jobs_file(tmp_path, f"name=p trainer.steps={STEPS} trainer.eval_every=0")
    job = table(launch("submit", path).stdout)["p"].split()[0]
    wait_until(lambda: has_reached(runs["p"].folder, 5), "step 5")
    slurm.run("scancel", "--signal=USR2", job)
    wait_until(lambda: runs["p"].folder.state is State.preempted, "PREEMPTED")
    wait_until(lambda: queue_states().get(job) in ("PENDING", "RUNNING"), "the requeue")
    assert table(launch("submit", path).stdout)["p"] in (f"{job} skipped: REQUEUED", f"{job} skipped: RUNNING")
    wait_until(lambda: state_of(runs["p"]) == "DONE", "the end", 120)
    assert [row["_step"] for row in read_rows(runs["p"].folder.metrics)] == list(range(STEPS + 1))


def test_a_refused_job_waits_nowhere(launch: Launch, tmp_path: Path) -> None:
    path, runs = jobs_file(tmp_path, "name=n trainer.steps=2 trainer.eval_every=0 launch.partition=nope")
    refused = launch("submit", path)
    assert (
        refused.returncode == 2
        and "invalid partition specified: nope" in refused.stderr
        and "partitions here: main, spare, urgent" in refused.stderr
    )
    assert state_of(runs["n"]) == "NEW"


def test_an_evaluation_of_any_method_depends_on_its_run(
    launch: Launch, tmp_path: Path, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent together; SLURM starts the evaluation when the run has ended well, and drops it when the run has not."""
    add_to_path(tmp_path / "path", monkeypatch)
    path = second_jobs_file(tmp_path / "runs", "launch=slurm_cpu", "launch.cpus=1", "launch.mem_gib=1")
    assert (done := launch("submit", str(path))).returncode == 0, done.stderr
    evaluation, maker, _ = runs = read_plan(path).runs
    jobs = [job.id for run in runs if (job := read_job(run.folder)) is not None]
    assert f"Dependency=afterok:{jobs[1]}" in slurm.run("scontrol", "show", "job", jobs[0])
    wait_until(lambda: [state_of(run) for run in runs] == ["DONE"] * 3, "all three", 180)
    failing = second_jobs_file(tmp_path / "others", "launch=slurm_cpu", "launch.cpus=1", "launch.mem_gib=1")
    failing.write_text(failing.read_text().replace("second_method.py", "second_method.py trainer.steps=100000000"))
    assert launch("submit", str(failing)).returncode == 0
    evaluation, maker, _ = read_plan(failing).runs
    wait_until(lambda: has_reached(maker.folder, 10), "step 10")
    assert launch("cancel", str(failing), "b_lr-0.?").returncode == 0
    wait_until(lambda: state_of(evaluation) == "LOST", "the end of the evaluation", 60)


def test_doctor_knows_this_slurm(launch: Launch) -> None:
    lines = launch("doctor").stdout
    assert re.search(r"OK +slurm partitions +main \(up, limit infinite, 2 nodes, gres \(null\)\)", lines)
    assert (
        "KillWait=5 sec" in lines
        and "JobRequeue=1; jobs ask for it themselves" in lines
        and "PreemptMode=REQUEUE: the job is told before in partitions with a GraceTime only" in lines
    )


def test_the_stages_of_a_round_are_a_chain(launch: Launch, tmp_path: Path, slurm: Cluster) -> None:
    """Sent together and in any order; each waits for the one whose files it reads, and a stage that is told to end is queued
    again and goes on. The model that the first one makes writes colour maps of three colours at random, which solves some."""
    source = "toy:color_map?tasks=%d&side=3&colors=3&palette=3&demos=1&split=%s"
    common = (
        f"self_improve.py experiment=search_quickstart launch=slurm_cpu launch.cpus=1 launch.mem_gib=2 runs_dir={tmp_path}/runs "
        "name=chain num_threads=1 sandbox.num_workers=1 sandbox.min_isolation=limits scratch.steps=150 scratch.mistake_steps=0 "
        f"\"scratch.source='{source % (200, 'train')}'\" \"dataset.train_sources=['{source % (16, 'train')}']\" "
        f"\"dataset.eval_sources=['{source % (4, 'test')}']\" sft.steps=4 sft.batch_size=8 sft.warmup_steps=1"
    )
    path = tmp_path / "jobs.txt"
    stages = ("evaluate", "sft", "curate", "collect", "start")
    path.write_text("## Queue: a round\n## Criterion: DONE\n" + "".join(f"{common} stage={stage}\n" for stage in stages))
    assert (done := launch("submit", str(path))).returncode == 0, done.stderr
    runs = {run.folder.path.name: run for run in read_plan(path).runs}
    jobs = {name: job.id for name, run in runs.items() if (job := read_job(run.folder)) is not None}
    for stage, before in pairwise(stages):
        assert f"afterok:{jobs[before]}" in slurm.run("scontrol", "show", "job", jobs[stage])
    trees = runs["collect"].folder.path / "trees"
    wait_until(lambda: trees.is_dir() and any(trees.iterdir()), "the first tree", 300)
    slurm.run("scancel", "--signal=USR2", jobs["collect"])
    wait_until(lambda: state_of(runs["collect"]) == "DONE", "its end", 300)
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", jobs["collect"])
    wait_until(lambda: [state_of(runs[stage]) for stage in stages] == ["DONE"] * 5, "the round", 600)
    assert (runs["evaluate"].folder.path / "scores.json").is_file()
