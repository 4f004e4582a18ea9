"""Submitting on this machine: at once, once only, in turn; cancelling, trying again. The same on SLURM: tests/slurm/test_jobs.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from arclab.config.compose import ConfigError, thaw
from arclab.launch.__main__ import main
from arclab.launch.cluster import JobTask
from arclab.launch.queue import starting
from arclab.launch.queue import submit as submit_module
from arclab.launch.queue.plan import PlannedRun, read_plan
from arclab.launch.queue.progress import living_jobs, read_progress
from arclab.launch.queue.starting import LocalTask
from arclab.launch.queue.submit import cancel, retry, submit
from arclab.pages.analyse import analyse
from arclab.runs.folder import State
from arclab.runs.jobrecord import JobRecord, read_job, write_job
from arclab.runs.statewords import read_state

from ...conftest import ROOT, TINY, script_env

SETTINGS = " ".join([word for word in TINY if not word.startswith(("trainer.steps", "trainer.checkpoint_every"))])


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for key, value in script_env().items():
        monkeypatch.setenv(key, value)


def plan_of(tmp_path: Path, *lines: str) -> tuple[PlannedRun, ...]:
    path = tmp_path / "jobs.txt"
    path.write_text(
        "## Local\n## Criterion: none\n"
        + "".join(f"pretrain_encoder.py {SETTINGS} runs_dir={tmp_path}/runs {line}\n" for line in lines)
    )
    return read_plan(path).runs


def state_of(run: PlannedRun) -> str:
    return read_state(run.folder, living_jobs([run]).get(run.folder.path))


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_queued_cancelled_again_done_and_then_left_alone(tmp_path: Path) -> None:
    runs = plan_of(tmp_path, "name=a trainer.steps=2 trainer.checkpoint_every=2")
    (run,) = runs
    (tmp_path / "runs/.places").mkdir(parents=True)
    with FileLock(tmp_path / "runs/.places/0.lock"):  # the only place is taken
        (first,) = submit(runs, "local")
        assert first.what == "submitted" and state_of(run) == "QUEUED"
        (second,) = submit(runs, "local")
        assert second.what == "skipped: QUEUED" and second.job == first.job
        assert cancel(runs)[0].what == "cancelled"
        wait_for(lambda: state_of(run) == "CANCELLED")
        assert submit(runs, "local")[0].what == "skipped: CANCELLED; retry --failed starts it again"
        assert retry(runs, None, dry_run=True)[0].what == "would be submitted to local again (CANCELLED)"
        (third,) = retry(runs, None)
        assert third.what == "submitted again (CANCELLED)" and third.job != first.job
        time.sleep(1)
        assert state_of(run) == "QUEUED"
    wait_for(lambda: state_of(run) == "DONE")
    assert submit(runs, "local")[0].what == retry(runs, None)[0].what == "skipped: DONE"
    assert thaw(run.folder.config) == run.config and run.config.wandb.group == "Local"
    assert json.loads(run.folder.provenance.read_text())["command"] == " ".join(["pretrain_encoder.py", *run.job.overrides])
    assert cancel(runs)[0].what == "nothing to cancel: DONE"


@pytest.mark.slow
def test_a_running_job_saves_when_it_is_cancelled_and_goes_on_from_there(tmp_path: Path) -> None:
    line = "name=long trainer.steps=100000 trainer.checkpoint_every=100000"
    runs = plan_of(tmp_path, line)
    (run,) = runs
    submit(runs, "local")
    wait_for(lambda: run.folder.metrics.is_file() and run.folder.metrics.read_text().count("\n") > 3)
    assert state_of(run) == "RUNNING" and submit(runs, "local")[0].what == "skipped: RUNNING"
    assert cancel(runs)[0].what == "told to save and end"
    wait_for(lambda: state_of(run) == "CANCELLED")
    saved = run.folder.step
    assert run.folder.state is State.preempted and saved >= 3 and (run.folder.checkpoints / f"step_{saved:08d}").is_dir()
    retry(runs, None)
    wait_for(lambda: json.loads(run.folder.metrics.read_text().splitlines()[-1])["_step"] > saved + 2)
    cancel(runs)
    wait_for(lambda: state_of(run) == "CANCELLED")
    steps = [json.loads(text)["_step"] for text in run.folder.metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)) and run.folder.step > saved


def test_the_command_returns_at_once_and_the_job_outlives_it(tmp_path: Path) -> None:
    (run,) = plan_of(tmp_path, "name=a trainer.steps=2 trainer.checkpoint_every=2")
    start = time.monotonic()
    command = [sys.executable, "-m", "arclab.launch", "submit", str(tmp_path / "jobs.txt"), "--cluster", "local"]
    done = subprocess.run(command, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    job = read_job(run.folder)
    assert job is not None and job.id in done.stdout and "submitted" in done.stdout
    assert time.monotonic() - start < 30 and state_of(run) in ("QUEUED", "RUNNING")  # not kept by the job's output
    wait_for(lambda: state_of(run) == "DONE")


@pytest.mark.parametrize("gpus", [None, "3,5"])
def test_a_job_of_this_machine_sees_the_gpus_that_the_user_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str | None
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(JobTask, "__call__", lambda task: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what submitit says to a job without launch.gpus
    LocalTask(tmp_path, tmp_path / "places", 1, gpus)()
    assert seen == [gpus]


@pytest.mark.slow
def test_failed_runs_are_only_started_again_by_retry(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_text("no weights")
    runs = plan_of(tmp_path, f"name=bad trainer.steps=2 decoder_init=pretrained decoder_init.path={tmp_path}/broken.pt")
    assert submit(runs, "debug")[0].what == "ended: FAILED"
    assert "truncated or no weights file" in (runs[0].folder.read_status() or {})["message"]
    assert submit(runs, "debug")[0].what == "skipped: FAILED; retry --failed starts it again"
    assert retry(runs, None)[0].what == "ended: FAILED again (FAILED)"


@pytest.mark.slow
def test_a_run_comes_after_the_one_that_makes_its_checkpoint(tmp_path: Path) -> None:
    """Whatever their order in the file; without that one it says what it waits for, or that it failed."""
    maker = "name=m trainer.steps=2 encoder=puzzle_table dataset.regime=puzzle_id"
    folder = tmp_path / "runs/quickstart/m"
    user = f"name=u trainer.steps=2 decoder_init=pretrained decoder_init.path={folder}"
    runs = plan_of(tmp_path, user, maker)
    assert [a.what for a in submit(runs[:1], "local")] == [
        f"needs {folder}, which is NEW; give this command again when it is DONE, or with it"
    ]
    assert [a.what for a in submit(runs, "debug")] == [f"ended: DONE (after {folder})", "ended: DONE"]
    broken = plan_of(
        tmp_path,
        user.replace("name=u", "name=v").replace("/m", "/n"),
        maker.replace("name=m", "name=n dataset.train_ids=nowhere.txt"),
    )
    assert [a.what.partition(" (")[0] for a in submit(broken, "debug")] == ["ended: FAILED", "ended: FAILED"]
    status = broken[0].folder.read_status()
    assert status is not None and f"needs {folder.parent}/n, which is FAILED; see to that run" in status["message"]
    broken[0].folder.write_status(State.failed, 0, "nobody has tried yet", 1)
    assert all(action.job for action in retry(broken, "local"))  # and the same as processes that look at each other's folders
    wait_for(lambda: not any(state_of(run) in ("QUEUED", "RUNNING") for run in broken))
    status = broken[0].folder.read_status()
    assert status is not None and f"needs {folder.parent}/n, which is FAILED; see to that run" in status["message"]


def test_retry_too_waits_for_the_checkpoint(tmp_path: Path) -> None:
    maker = "name=m trainer.steps=2 encoder=puzzle_table dataset.regime=puzzle_id"
    user = f"name=u trainer.steps=2 decoder_init=pretrained decoder_init.path={tmp_path}/runs/quickstart/m"
    for run in plan_of(tmp_path, maker, user):
        run.folder.path.mkdir(parents=True)
        run.folder.write_status(State.failed, 0, "lost its disk", 1)
    runs = plan_of(tmp_path, maker, user)
    words = f"needs {runs[0].folder.path}, which is FAILED; give this command again when it is DONE, or with it"
    for dry_run in (True, False):
        assert [action.what for action in retry(runs[1:], "local", dry_run=dry_run)] == [words]
    both = ["would be submitted to local again (FAILED)"] * 2
    assert [action.what for action in retry(runs, "local", dry_run=True)] == both


@pytest.mark.slow
def test_evaluations_are_lines_like_any_other(tmp_path: Path, tiny_lm: Path) -> None:
    """Sent together with the run that they score: they wait for it, have folders, and stand in the report and beside runs."""
    folder = tmp_path / "runs/quickstart/m"
    path = tmp_path / "jobs.txt"
    toy = "toy:color_map?tasks=2&side=3&colors=3&palette=4&demos=2"
    sources = " ".join(
        f"'dataset.{key}=[\"{toy}&split={split}\"]'" for key, split in (("train_sources", "train"), ("eval_sources", "test"))
    )
    path.write_text(
        f"evaluate.py checkpoint={folder} split=train weights=ema,raw max_tasks=2 num_augmentations=1 runs_dir={tmp_path}/runs\n"
        f"evaluate.py solver=program_sampling lm=tiny lm.name={tiny_lm} dataset=toy {sources} dataset.validation_sources=[] max_tasks=1 solver.prompt.instructions=false solver.prompt.grid_format=digits solver.prompt.show_shapes=false "
        f"solver.num_samples=1 solver.sampling.temperature=0 solver.sampling.max_new_tokens=4 runs_dir={tmp_path}/runs\n"
        f"pretrain_encoder.py {SETTINGS} runs_dir={tmp_path}/runs name=m trainer.steps=2\n"
    )
    runs = read_plan(path).runs
    assert [run.full_name for run in runs] == [
        "quickstart/m-weights-ema",
        "quickstart/m-weights-raw",
        "program_sampling/tiny-toy_evaluation",
        "quickstart/m",
    ]
    assert [run.makers for run in runs] == [(folder,), (folder,), (), ()]
    assert all(action.job for action in submit(runs, "local", places=2))
    wait_for(lambda: not any(state_of(run) in ("QUEUED", "RUNNING") for run in runs))
    logs = "".join(log.read_text() for run in runs for log in run.folder.path.glob("jobs/*_log.*"))
    assert [state_of(run) for run in runs] == ["DONE"] * 4, logs
    progress = read_progress(runs[1], None)
    assert (progress.step, progress.total_steps) == (2, 2) and str(progress.best).startswith("ARC/pass@2 ")
    assert json.loads(runs[2].folder.provenance.read_text())["command"] == runs[2].job.command
    assert main(["report", str(path), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "split by evaluate.py" in page and "../runs/program_sampling/tiny/toy_evaluation/report.html" in page
    analyse([runs[2].folder.path, folder], tmp_path / "compared")
    compared = (tmp_path / "compared/compare.html").read_text()
    assert f"1 programs a task, model {tiny_lm}" in compared and "train minus held-out" in compared
    assert [action.what for action in submit(read_plan(path).runs, "local")] == ["skipped: DONE"] * 4


def test_a_dry_run_leaves_no_trace(tmp_path: Path) -> None:
    runs = plan_of(tmp_path, "name=a trainer.steps=2 trainer.checkpoint_every=2")
    assert submit(runs, "slurm", dry_run=True)[0].what == "would be submitted to slurm"
    assert not (tmp_path / "runs").exists()


def test_without_slurm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan_of(tmp_path, "name=a trainer.steps=2 trainer.checkpoint_every=2")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    with pytest.raises(ConfigError, match=r"there is no sbatch on PATH.*--cluster local"):
        submit(runs, "slurm")
    assert not (tmp_path / "runs").exists()


def test_a_refusal_in_the_middle_names_what_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan_of(tmp_path, "name=a trainer.steps=2", "name=b trainer.steps=2 seed=1")
    monkeypatch.setattr(submit_module, "require_installed", lambda: None)
    monkeypatch.setattr(submit_module, "living_jobs", lambda _: {})

    def sbatch(runs: Sequence[PlannedRun]) -> list[str]:
        if runs[0].name == "b":
            raise ConfigError("SLURM refused the job: too many of yours.")
        return ["7"]

    monkeypatch.setattr(starting, "_submit_to_slurm", sbatch)
    with pytest.raises(ConfigError, match=r"too many of yours\. Submitted before it: a; the same command leaves these alone"):
        submit(runs, "slurm")
    assert [run.folder.state for run in runs] == [State.submitted, None]


def test_a_refused_retry_does_not_forget_that_a_run_was_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan_of(tmp_path, "name=a trainer.steps=2")
    folder = runs[0].folder
    folder.path.mkdir(parents=True)
    folder.write_status(State.preempted, 1)
    write_job(folder, JobRecord("7", "slurm", time.time(), is_cancelled=True))

    def refuse(runs: Sequence[PlannedRun]) -> list[str]:
        raise ConfigError("SLURM refused the job.")

    monkeypatch.setattr(starting, "_submit_to_slurm", refuse)
    monkeypatch.setattr(submit_module, "living_jobs", lambda _: {})
    with pytest.raises(ConfigError, match="refused"):
        retry(runs, "slurm")
    assert read_state(folder, None) == "CANCELLED"
