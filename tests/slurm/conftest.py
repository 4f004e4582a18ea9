"""A SLURM for the session, and runs that are submitted to it the way users do. Skipped where SLURM is not installed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arclab.launch.cluster import JobTask, build_executor, queue_states
from arclab.launch.job import prepare_run
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State

from ..conftest import ROOT, TINY, compose, script_env
from ..slurm import cluster
from .cluster import Cluster

STEPS = 60
# Two ranks on CPU cores for some seconds; every step is logged.
RUN = [
    *TINY,
    "launch=slurm_cpu",
    "launch.mem_gib=1",
    f"trainer.steps={STEPS}",
    "trainer.checkpoint_every=7",
    "trainer.keep_last=2",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not cluster.is_available():
        for item in items:
            if "slurm" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=cluster.INSTALL))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster", nodes=2) as running:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = running.environment["SLURM_CONF"]
        yield running
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def sweep(slurm: Cluster, runs_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """sweep("key=a,b", ...) runs pretrain_encoder.py -m ... hydra/launcher=submitit_slurm to its end."""

    def run(*overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "pretrain_encoder.py",
            "-m",
            *RUN,
            f"runs_dir={runs_dir}",
            "hydra/launcher=submitit_slurm",
            *overrides,
        ]
        environment = {**script_env(), **env}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)

    return run


@pytest.fixture(scope="session")
def limited(slurm: Cluster, runs_dir: Path) -> tuple[str, RunDir]:
    """A job far longer than its limit of one minute; it runs on while other tests do."""
    overrides = [
        "launch.timeout_min=1",
        "launch.signal_delay_s=1",
        "launch.cpus=1",
        "launch.max_requeues=1",
        "trainer.steps=100000",
        "trainer.checkpoint_every=100000",
    ]
    run = prepared(runs_dir, "limited", *overrides)
    return submit(run), run


@pytest.fixture(scope="session")
def whole(
    limited: tuple[str, RunDir], sweep: Callable[..., subprocess.CompletedProcess[str]], runs_dir: Path
) -> tuple[subprocess.CompletedProcess[str], RunDir]:
    """A sweep over two seeds; the run with seed 0 is the uninterrupted run that others are compared with."""
    done = sweep("seed=0,1")
    return done, RunDir(runs_dir / "quickstart" / "seed-0")


def prepared(runs_dir: Path, name: str, *overrides: str) -> RunDir:
    return prepare_run(compose("pretrain_encoder", [*RUN, f"runs_dir={runs_dir}", f"name={name}", *overrides]))


def submit(run: RunDir) -> str:
    """The SLURM job id of a new job for the run."""
    from arclab.config.compose import thaw

    executor = build_executor(thaw(run.config).launch, "slurm", run.path / "jobs")
    return executor.submit(JobTask(run.path)).job_id


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def has_reached(run: RunDir, step: int) -> bool:
    rows = read_rows(run.metrics)
    return bool(rows) and rows[-1]["_step"] >= step


def wait_for_end(job: str, timeout_s: float = 120) -> str:
    """SLURM's word for how the job ended."""
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: queue_states().get(job, "") in ended, f"the end of job {job} ({queue_states().get(job)})", timeout_s)
    return queue_states()[job]


def weights(run: RunDir) -> dict[str, str]:
    """{file: hash} of the newest checkpoint's tensors."""
    newest = sorted(run.checkpoints.glob("step_*"))[-1]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(newest.glob("*.safetensors"))}


def assert_like(run: RunDir, reference: RunDir) -> None:
    """DONE, the reference's weights bit for bit, every step once in metrics.jsonl, and still the same run for W&B."""
    assert run.state is State.done
    newest = sorted(run.checkpoints.glob("step_*"))[-1]
    assert json.loads((newest / "state.json").read_text())["run_id"] == run.run_id != reference.run_id
    assert len(weights(run)) > 3 and weights(run) == weights(reference)
    assert [row["_step"] for row in read_rows(run.metrics)] == list(range(STEPS + 1))
