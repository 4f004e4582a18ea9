"""What the lines of a job file will take: for the device that they ask for, and against the memory that they ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arclab.config.schema import ExperimentConfig
from arclab.launch.queue import estimates as module
from arclab.launch.queue.estimates import estimates, problems_of
from arclab.launch.queue.jobsfile import JobLine, Section
from arclab.launch.queue.plan import PlannedRun
from arclab.runs.cost import GIB, Cost, Speed

from ...conftest import TINY, compose

COST = Cost(memory_bytes=3 * GIB, step_flops=10**9, evaluation_flops=10**10)


def planned(*overrides: str) -> PlannedRun:
    config: ExperimentConfig = compose("pretrain_encoder", [*TINY, "name=t", *overrides])
    return PlannedRun(JobLine(7, 1, Section("", "", "", 0), "pretrain_encoder.py", "pretrain_encoder", "t", (), ()), config, ())


def test_time_and_memory_are_those_of_what_the_line_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_this_machine", lambda: Speed(1e9, 1e9, 0.0))
    runs = [
        planned("trainer.steps=100"), planned("trainer.steps=100", "trainer.eval_every=50"), planned("launch.cpus=2"),
        planned("launch.gpus=4", "trainer.device=auto", "trainer.steps=100"), planned(),
    ]  # fmt: skip
    found = estimates(runs, [*[COST.counts()] * 4, {"model": 3}])
    assert [estimate.text for estimate in found] == [
        "about 1.7 minutes and 3 GiB on this CPU", "about 2 minutes and 3 GiB on this CPU",
        "about 4 seconds and 3 GiB on each of 2 ranks", "about 1 second and 3 GiB on each of 4 H100s", "",
    ]  # fmt: skip
    assert not problems_of(runs, found)


def test_what_cannot_fit_where_the_job_goes_is_said() -> None:
    """Not where the command is given: the machine that submits may be small."""
    large = replace(COST, memory_bytes=200 * GIB)
    runs = [planned("launch.mem_gib=4", "launch.cpus=2"), planned("launch.gpus=1", "trainer.device=auto"), planned()]
    found = problems_of(runs, estimates(runs, [COST.counts(), large.counts(), large.counts()]))
    assert found == [
        "t (line 7) needs about 6 GiB on a node, and launch.mem_gib=4; raise it, or lower trainer.batch_size.",
        "t (line 7) needs about 200 GiB on each GPU, and an H100 has 80; lower trainer.batch_size, raise "
        "trainer.grad_accumulation, or set trainer.recompute=true.",
    ]  # fmt: skip
