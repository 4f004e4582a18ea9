"""How far a run is, read from folders in every state they can be left in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.config.schema import ExperimentConfig
from arclab.launch.queue.jobsfile import JobLine, Section
from arclab.launch.queue.plan import PlannedRun
from arclab.launch.queue.progress import living_jobs, read_progress, steps_per_s
from arclab.launch.queue.submit import cancel, submit
from arclab.launch.queue.tables import duration
from arclab.runs.folder import RunDir, State, open_run
from arclab.runs.jobrecord import JobRecord, write_job
from arclab.runs.lock import Holder, lock_path
from arclab.runs.statewords import read_state

Tiny = Callable[..., ExperimentConfig]
DEAD_PID = 2**22 + 1  # above the kernel's largest


def planned(config: ExperimentConfig) -> PlannedRun:
    return PlannedRun(
        JobLine(1, 1, Section("", "", "", 0), "pretrain_encoder.py", "pretrain_encoder", config.name, (), ()), config, ()
    )


def state_of(run: PlannedRun) -> str:
    return read_state(run.folder, living_jobs([run]).get(run.folder.path))


def test_states_of_a_folder(tiny: Tiny) -> None:
    run = planned(tiny())
    assert state_of(run) == "NEW"
    folder = open_run(run.config)
    folder.write_status(State.submitted, 0)
    assert state_of(run) == "NEW"  # the queue refused the job
    write_job(folder, JobRecord.of_process(os.getpid(), "local"))
    assert state_of(run) == "QUEUED"
    folder.write_status(State.running, 3)
    assert state_of(run) == "RUNNING"
    write_job(folder, JobRecord(str(DEAD_PID), "local", time.time()))
    assert state_of(run) == "LOST"
    write_job(folder, JobRecord(str(DEAD_PID), "local", time.time(), is_cancelled=True))
    assert state_of(run) == "CANCELLED"
    for state in (State.failed, State.stopped, State.preempted):
        write_job(folder, JobRecord(str(DEAD_PID), "local", time.time()))
        folder.write_status(state, 3)
        assert state_of(run) == state.value
    write_job(folder, JobRecord.of_process(os.getpid(), "local"))
    assert state_of(run) == "REQUEUED"  # PREEMPTED, but its job is still there
    folder.write_status(State.done, 3)
    write_job(folder, replace(JobRecord.of_process(os.getpid(), "local"), is_cancelled=True))
    assert state_of(run) == "DONE"


def test_a_number_that_another_process_has_now_is_no_job(tiny: Tiny) -> None:
    run = planned(tiny())
    open_run(run.config).write_status(State.running, 3)
    write_job(run.folder, JobRecord(str(os.getpid()), "local", time.time() - 10 * 86400))
    assert state_of(run) == "LOST"


def test_a_process_of_another_machine_is_believed_and_left_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be anybody's here: the folder's word counts, and nobody is killed."""
    run = planned(tiny())
    open_run(run.config).write_status(State.submitted, 0)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("somebody else's process was killed"))
    for number in (os.getpid(), DEAD_PID):
        write_job(run.folder, JobRecord(str(number), "local", time.time(), host="elsewhere"))
        assert state_of(run) == "QUEUED"
        assert [action.what for action in submit([run], "local")] == ["skipped: QUEUED"]
        assert [action.what for action in cancel([run])] == [
            "not cancelled: it is a process of elsewhere; give the command there"
        ]
    assert state_of(run) == "QUEUED"


def test_a_run_started_by_hand_is_running(tiny: Tiny) -> None:
    run = planned(tiny())
    open_run(run.config).write_status(State.running, 3)
    lock_path(run.folder).write_text(json.dumps(asdict(Holder.me())))
    assert state_of(run) == "RUNNING"


def rows_into(folder: RunDir, rows: list[dict[str, object]], tail: str = "") -> None:
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_numbers_of_a_running_run(tiny: Tiny) -> None:
    run = planned(tiny("trainer.steps=100"))
    folder = open_run(run.config)
    folder.write_status(State.running, 40, "step 40: STARVED ...")
    write_job(folder, JobRecord.of_process(os.getpid(), "local"))
    rows_into(folder, [
        {"_step": 10, "_runtime": 5.0, "health": "HEALTHY"},
        {"_step": 20, "_runtime": 10.0, "all.exact_accuracy": 0.5, "all.count": 20.0, "health": "STARVED"},
        {"_step": 40, "_runtime": 20.0, "all.exact_accuracy": 0.25, "all.count": 20.0},
    ], tail='{"_step": 50, "all.exact_acc')  # fmt: skip
    progress = read_progress(run, living_jobs([run]).get(folder.path))
    assert (progress.state, progress.step, progress.verdict, progress.steps_per_s) == ("RUNNING", 40, "STARVED at 20", 2.0)
    assert progress.eta_s == pytest.approx(30.0)
    assert str(progress.best) == "all.exact_accuracy 50.0 % (10/20) at 20"
    folder.write_status(State.done, 100)
    (folder.path / "criterion.json").write_text(json.dumps({"result": "FAIL"}))
    done = read_progress(run, None)
    assert (done.state, done.result, done.eta_s) == ("DONE", "FAIL", None)


def test_only_the_end_of_a_long_file_is_parsed_for_the_speed(tiny: Tiny) -> None:
    run = planned(tiny())
    folder = open_run(run.config)
    rows_into(folder, [{"_step": i, "_runtime": i / 4, "pad": "x" * 200} for i in range(1, 2000)])
    progress = read_progress(run, None)
    assert (progress.step, progress.steps_per_s) == (1999, 4.0)
    assert steps_per_s([{"_step": 1, "_runtime": 0.0}]) is None


@pytest.mark.parametrize(("seconds", "text"), [
    (None, ""), (4.4, "4 s"), (65, "1 min 5 s"), (3600 * 3 + 720, "3 h 12 min"), (86400 * 2 + 3 * 3600, "2 d 3 h"),
])  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_where_slurm_cannot_be_asked_the_folder_is_believed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tiny())
    open_run(run.config).write_status(State.running, 3)
    write_job(run.folder, JobRecord("12", "slurm", time.time()))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state_of(run) == "RUNNING"  # no SLURM here: another machine may run it
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigError, match=r"SLURM does not answer squeue.*broken"):
        living_jobs([run])
    assert living_jobs([run], must_know=False) == {run.folder.path: "RUNNING"}
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec /bin/sleep 9\n")
    with monkeypatch.context() as patch:
        patch.setattr("arclab.runs.slurm._TIMEOUT_S", 0.05)
        with pytest.raises(
            ConfigError, match=r"does not answer squeue --noheader --array: nothing in 0.05 s; check the cluster"
        ):
            living_jobs([run])
    (tmp_path / "squeue").write_text("#!/bin/sh\n")  # answers, and does not know the job
    assert state_of(run) == "LOST"
