"""A run has one word for its state: in the launcher's tables, on the comparison page and in the tracking sheet."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from arclab.files import write_atomically
from arclab.pages.compare import render_comparison
from arclab.pages.tracking import tracking_sheet
from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import JobRecord, write_job
from arclab.runs.lock import Holder
from arclab.runs.statewords import living_folders, read_state

from .conftest import load

NOBODY = 2**22 + 1  # a process that cannot be


@pytest.mark.parametrize(
    ("written", "is_cancelled", "word"),
    [
        (State.submitted, True, "CANCELLED"),
        (State.preempted, True, "CANCELLED"),
        (State.submitted, False, "LOST"),
        (State.running, False, "LOST"),
        (State.failed, False, "FAILED"),
        (State.stopped, False, "STOPPED"),
        (None, None, "NEW"),
    ],
)
def test_pages_say_the_word_of_the_queue(folder: Path, written: State | None, is_cancelled: bool | None, word: str) -> None:
    run = RunDir(folder / "b")
    shutil.rmtree(run.checkpoints)
    (run.path / "status.json").unlink()
    if written is not None:
        run.write_status(written, 3, "why")
    if is_cancelled is not None:
        write_job(run, JobRecord(str(NOBODY), "local", time.time(), is_cancelled=is_cancelled))
    assert read_state(run, living_folders([run]).get(run.path)) == word
    a, b = load(folder, "a", "b")
    why = " (why)" if word in ("FAILED", "STOPPED", "LOST") else ""
    assert b.state_word == word and b.state == f"{word} at step 4 of 4{why}" and b.is_partial
    assert b.state in render_comparison([a, b]) and f"**{b.state}**" in tracking_sheet(b, a)
    assert a.state == "DONE at step 4" and not a.is_partial


def test_a_run_that_works_is_running_and_one_that_waits_is_queued(folder: Path) -> None:
    run = RunDir(folder / "b")
    me = Holder.me()
    run.write_status(State.running, 3)
    write_atomically(run.path / "lock.json", json.dumps(asdict(me)))
    assert load(folder, "b")[0].state_word == "RUNNING"
    (run.path / "lock.json").unlink()
    run.write_status(State.submitted, 0)
    write_job(run, JobRecord.of_process(me.pid, "local"))
    assert load(folder, "b")[0].state_word == "QUEUED"
