"""One damaged file of one run: that run says so, the rest of the queue works; and commands that are given twice at once."""

from __future__ import annotations

import argparse
import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.launch.queue import commands, starting
from arclab.launch.queue import submit as submit_module
from arclab.launch.queue.plan import PlannedRun, read_plan
from arclab.launch.queue.submit import cancel, retry, submit
from arclab.launch.sweep import _prepared, _require_unclaimed
from arclab.pages.queue_report import write_queue_report
from arclab.runs.folder import State, open_run
from arclab.runs.jobrecord import JobRecord, read_job, write_job
from arclab.runs.slurm import end_job
from arclab.runs.statewords import DAMAGED, NEW

from ...conftest import ROOT

ROW = '{"_step": 1, "_runtime": 1.0, "all.exact_accuracy": 0.5}\n'
LOCK = '{"host": "h", "pid": 7, "started": 1.0, "slurm_job": null, "incarnation": "0", "since": "s"}'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs; the folder of the first is there."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "jobs.txt"
    lines = (
        f"pretrain_encoder.py experiment=quickstart runs_dir={tmp_path}/runs name={n} seed={i}" for i, n in enumerate("ab")
    )
    path.write_text("\n".join(lines) + "\n")
    folder = open_run(read_plan(path).runs[0].config)
    folder.write_status(State.failed, 3, "the last words")
    folder.metrics.write_text(ROW)
    return path


def plan_of(file: Path) -> tuple[PlannedRun, ...]:
    return read_plan(file).runs


def on_file(file: Path, **others: object) -> argparse.Namespace:
    return argparse.Namespace(file=file, names=[], **others)


@pytest.mark.parametrize(
    ("name", "text", "is_of_queue"),
    [
        ("status.json", '{"state": "RUNNI', True),
        ("status.json", '{"state": "RUNNING", "step": "7", "message": ""}', True),
        ("status.json", '{"state": "WALKING", "step": 7, "message": ""}', True),
        ("job.json", "[]", True),
        ("job.json", '{"id": "1", "cluster": "local", "submitted": 1.0}', True),
        ("job.json", '{"id": "-1", "cluster": "slurm", "submitted": 1.0}', True),
        ("job.json", '{"id": "77", "cluster": "cloud", "submitted": 1.0}', True),
        ("lock.json", LOCK.replace("7", '"7"'), True),
        ("config.yaml", "trainer: [", True),
        ("config.yaml", "trainer: 3", True),
        ("metrics.jsonl", ROW + "{nonsense}\n", False),
        ("metrics.jsonl", ROW.replace("0.5", '"half"'), False),
        ("metrics.jsonl", ROW.replace("1,", "null,", 1), False),
        ("criterion.json", '{"result": 1}', False),
    ],
)
def test_a_damaged_file_of_one_run_does_not_stop_the_queue(
    file: Path, name: str, text: str, is_of_queue: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """is_of_queue: submit, cancel and retry need the file too."""
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was signalled"))
    (plan_of(file)[0].folder.path / name).write_text(text)
    first, second = plan_of(file)
    assert commands.status_command(on_file(file, watch=None)) == 0
    shown = capsys.readouterr().out
    assert f"1 {DAMAGED}, 1 {NEW}" in shown and name in shown.split("\na: ")[1]
    assert not is_of_queue or (first.damage == "") == (name != "config.yaml")
    for actions in (
        submit([first, second], "slurm", dry_run=True),
        cancel([first, second]),
        retry([first, second], "slurm", dry_run=True),
    ):
        assert actions[0].is_error == is_of_queue and not actions[1].is_error
        assert not is_of_queue or (actions[0].what.startswith(f"{DAMAGED}: ") and name in actions[0].what)
        assert ".)" not in actions[0].what, "one sentence"
    submitted = on_file(file, cluster="slurm", dry_run=True, places=1)
    assert commands.submit_command(submitted) == (2 if is_of_queue else 0)
    assert "would be submitted to slurm" in capsys.readouterr().out


def test_a_folder_whose_links_go_round_in_a_circle(file: Path) -> None:
    folder = plan_of(file)[0].folder.path
    folder.rename(folder.with_name("before"))
    folder.symlink_to(folder)
    first, second = submit(plan_of(file), "local", dry_run=True)
    assert first.is_error and "its links go round in a circle" in first.what and second.what.startswith("would be submitted")


def test_a_full_disk_in_the_middle_of_a_submission(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the job: as if nothing had been tried. After it: the job is named, since job.json does not name it."""

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = plan_of(file)[0]
    before = run.folder.read_status()
    write_job(run.folder, JobRecord("77", "local", 1.0, is_cancelled=True))
    monkeypatch.setattr(starting, "_submit_here", full)
    with pytest.raises(OSError, match="jobs"):
        retry([run], "local")
    assert run.folder.read_status() == before and read_job(run.folder) == JobRecord("77", "local", 1.0, is_cancelled=True)
    monkeypatch.setattr(starting, "_submit_here", lambda *_: "4711")
    monkeypatch.setattr(starting, "write_job", full)
    with pytest.raises(OSError, match="No space left") as caught:
        retry([run], "local")
    assert "job 4711, which nothing names now; end it with: kill 4711" in caught.value.__notes__[0]


def test_the_page_of_a_queue_has_the_others_too(file: Path, tmp_path: Path) -> None:
    folder = plan_of(file)[0].folder
    open_run(plan_of(file)[1].config)
    (folder.path / "wandb.json").write_text("{")  # the launcher does not read this one
    request = commands._report_request(read_plan(file))
    page = write_queue_report(request, tmp_path / "report")[0].read_text()
    assert "1 DAMAGED, 1 NEW" in page and "wandb.json is damaged" in page


def test_only_the_process_that_was_submitted_is_signalled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan_of(file)[0]
    run.folder.write_status(State.running, 3)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was signalled"))
    mine = JobRecord.of_process(os.getpid(), "local")
    assert mine.is_running_here() and mine.is_certain
    write_job(run.folder, replace(mine, start_ticks=None, boot_id="", pid_namespace="", submitted=mine.submitted + 9))
    (action,) = cancel([run])  # of an older version: it runs, but is it the one?
    assert action.is_error and action.what.startswith(
        f"not cancelled: job.json does not say which process {os.getpid()} it means"
    )
    for other in ({"start_ticks": 1}, {"boot_id": "before"}):
        write_job(run.folder, replace(mine, **other))
        assert cancel([run])[0].what == "nothing to cancel: LOST"
    write_job(run.folder, replace(mine, pid_namespace="pid:[1]"))
    assert cancel([run])[0].what.startswith("not cancelled: it is a process of ")
    write_job(run.folder, replace(mine, submitted=1.0))  # the clock was set: it is the same process all the same
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    assert cancel([run])[0].what == "told to save and end" and killed == [os.getpid()]


def test_what_is_no_job_never_reaches_scancel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arclab.runs.slurm._ask", lambda *_: pytest.fail("scancel was called"))
    for job in ("--user=root", "", "12 13", "12_*", "1\n"):
        with pytest.raises(ConfigError, match=r"is no job of SLURM"):
            end_job(job, may_save=False)


SBATCH = "#!/bin/sh\n/bin/sleep 0.1\necho $$ >> {jobs}\necho Submitted batch job $$\n"
SQUEUE = "#!/bin/sh\nwhile read job; do echo $job PENDING; done < {jobs}\n"


def at_once(act: Callable[[], object], times: int) -> None:
    """The same in several processes that begin together."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(times)

    def begin() -> None:
        barrier.wait()
        act()

    processes = [context.Process(target=begin) for _ in range(times)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_submitting_several_times_at_once_sends_each_run_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = tmp_path / "jobs"
    jobs.touch()
    for name, script in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", "#!/bin/sh\n")):
        (tmp_path / name).write_text(script.format(jobs=jobs))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    runs = plan_of(file)
    at_once(lambda: retry(runs, "slurm"), 4)
    first = jobs.read_text().split()
    at_once(lambda: submit(runs, "slurm"), 4)
    sent = jobs.read_text().split()
    assert len(first) == 1 and len(sent) == 2
    assert [job.id for run in runs if (job := read_job(run.folder)) is not None] == sent


def test_two_sweeps_over_the_same_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told of the first, while its command goes on; not of one that has ended."""
    configs = [run.config for run in plan_of(file)]
    folder = tmp_path / "runs/.sweeps/1"
    _prepared(configs, None, folder)
    claim = json.loads((folder / "runs.json").read_text())
    parent = JobRecord.of_process(os.getppid(), "local")
    (folder / "runs.json").write_text(json.dumps({**claim, "pid": os.getppid(), "start_ticks": parent.start_ticks}))
    with pytest.raises(ConfigError, match=rf"an earlier sweep over these runs goes on \(pid {os.getppid()}"):
        _require_unclaimed(configs[:1], None)
    for text in ({**claim, "pid": os.getppid(), "start_ticks": 1}, claim["runs"]):  # ended; of an older version
        (folder / "runs.json").write_text(json.dumps(text))
        _require_unclaimed(configs, None)
    (folder / "runs.json").write_text("{")
    with pytest.raises(ValueError, match=r"runs\.json is damaged .*remove it, if no job of that sweep is left"):
        _require_unclaimed(configs, None)


def test_a_run_that_a_debug_submission_has_yet_to_start_is_queued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    runs = plan_of(file)

    def run_job(folder: Path) -> int:
        seen.append([action.what for action in submit(runs, "slurm", dry_run=True)])
        return 0

    monkeypatch.setattr(submit_module, "run_job", run_job)
    retry(runs[:1], "debug")
    assert seen[0][0] == "skipped: QUEUED"
