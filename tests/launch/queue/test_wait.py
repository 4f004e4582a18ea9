"""Waiting for runs: each is handed over once, when it has ended, and LOST is believed only when it is seen twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arclab.launch.queue import wait
from arclab.launch.queue.plan import PlannedRun, read_plan
from arclab.launch.queue.progress import RunProgress
from arclab.launch.queue.wait import wait_until_ended
from arclab.runs.folder import State, open_run
from arclab.runs.jobrecord import JobRecord, write_job

from ...conftest import TINY


@pytest.fixture
def runs(tmp_path: Path) -> tuple[PlannedRun, ...]:
    """Two runs whose jobs are this process, so that they live."""
    lines = [
        f"pretrain_encoder.py {' '.join(TINY)} runs_dir={tmp_path}/runs name={name} seed={n}" for n, name in enumerate("ab")
    ]
    (tmp_path / "jobs.txt").write_text("\n".join(["## Wait", "## Criterion: none", *lines]))
    planned = read_plan(tmp_path / "jobs.txt").runs
    for run in planned:
        open_run(run.config)
        run.folder.write_status(State.running, 1)
        write_job(run.folder, JobRecord.of_process(os.getpid(), "local"))
    return planned


def lose(run: PlannedRun) -> None:
    """Its job is gone, and the folder says that it runs."""
    job = JobRecord.of_process(os.getpid(), "local")
    assert job.start_ticks is not None
    write_job(run.folder, replace(job, start_ticks=job.start_ticks + 1))


def while_asleep(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """One step in each sleep; a sleep more than there are steps fails the test."""
    pending: Iterator[Callable[[], object]] = iter(steps)
    monkeypatch.setattr(wait.time, "sleep", lambda _: next(pending)())


def test_each_run_is_handed_over_when_it_ends(runs: tuple[PlannedRun, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = runs
    while_asleep(
        monkeypatch,
        lambda: None,  # nothing changes: nothing is told
        lambda: second.folder.write_status(State.running, 3),
        lambda: second.folder.write_status(State.done, 4),
        lambda: first.folder.write_status(State.done, 4),
    )
    told: list[list[tuple[str, int]]] = []

    def on_change(progress: object) -> None:
        told.append([(p.state, p.step) for _, p in progress])  # type: ignore[attr-defined]

    ended: list[tuple[str, str, int]] = [(run.name, p.state, len(told)) for run, p in wait_until_ended(runs, on_change)]
    assert ended == [("b", "DONE", 3), ("a", "DONE", 4)]  # b before a, which still ran
    assert told == [
        [("RUNNING", 1), ("RUNNING", 1)],
        [("RUNNING", 1), ("RUNNING", 3)],
        [("RUNNING", 1), ("DONE", 4)],
        [("DONE", 4), ("DONE", 4)],
    ]


def test_a_run_is_lost_when_it_is_seen_so_twice(runs: tuple[PlannedRun, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    late, gone = runs
    lose(late)
    lose(gone)
    while_asleep(monkeypatch, lambda: late.folder.write_status(State.done, 4))  # its last word came late
    ended: list[tuple[PlannedRun, RunProgress]] = list(wait_until_ended(runs))
    assert [(run.name, progress.state) for run, progress in ended] == [("a", "DONE"), ("b", "LOST")]


def test_failed_and_damaged_runs_have_ended(runs: tuple[PlannedRun, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    failed, damaged = runs
    failed.folder.write_status(State.failed, 2, "why", 1)
    (damaged.folder.path / "status.json").write_text("{")
    while_asleep(monkeypatch, lambda: lose(failed))  # its job ends a moment after it has said FAILED
    ended = [(run.name, progress.state, progress.message) for run, progress in wait_until_ended(runs)]
    assert [words[:2] for words in ended] == [("b", "DAMAGED"), ("a", "FAILED")] and ended[1][2] == "why"
