"""Runs on a real SLURM: sweeps, preemption, time limits, kills, crashes, two nodes, and what is said when it cannot be."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from arclab.launch.cluster import queue_states
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import read_holder

from ..conftest import refused
from .cluster import Cluster
from .conftest import assert_like, has_reached, prepared, submit, wait_for_end, wait_until, weights

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

Sweep = Callable[..., subprocess.CompletedProcess[str]]
Whole = tuple[subprocess.CompletedProcess[str], RunDir]


def test_sweep_runs_two_jobs_on_two_ranks_each(whole: Whole, slurm: Cluster) -> None:
    done, run = whole
    other = RunDir(run.path.with_name("seed-1"))
    assert done.returncode == 0, done.stderr
    assert run.state is other.state is State.done
    assert weights(run) != weights(other)
    assert {"carry_rank0.safetensors", "carry_rank1.safetensors"} <= weights(run).keys()
    done_jobs = [job for job, state in queue_states().items() if "_" in job and state == "COMPLETED"]
    assert 2 in Counter(job.partition("_")[0] for job in done_jobs).values()  # others have arrays there, too
    assert read_holder(run) is None


def test_preempted_run_is_requeued_and_loses_nothing(whole: Whole, runs_dir: Path, slurm: Cluster) -> None:
    """A job that comes first wants the cores: SLURM sends SIGTERM, all ranks save at the same step and the job is requeued, long before
    its grace is over; the run ends like one that was left alone."""
    run = prepared(
        runs_dir, "preempted", "trainer.checkpoint_every=1000", "launch.partition=spare"
    )  # the only checkpoint is that of the preemption
    job = submit(run)
    wait_until(lambda: has_reached(run, 5), "step 5")
    worker = processes(run)["worker"]
    worker.suspend()  # SLURM may take longer to decide than the rest of the run
    slurm.run("sbatch", "--partition=urgent", "--cpus-per-task=3", "--output=/dev/null", "--wrap=sleep 1")
    wait_until(lambda: run.preempt.exists() or run.state is not State.running, "being told to end")
    worker.resume()
    wait_until(lambda: run.state is State.preempted, "PREEMPTED")
    step = run.step
    assert 5 <= step < 60 and [p.name for p in run.checkpoints.iterdir()] == [f"step_{step:08d}"]
    assert "the same command continues" in (run.read_status() or {})["message"]
    assert wait_for_end(job) == "COMPLETED"
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", job)
    assert f"continuing from step {step}" in run.console.read_text()
    assert_like(run, whole[1])


def resumed(run: RunDir) -> list[int]:
    """The steps from which a run was continued."""
    return [int(step) for step in re.findall(r"continuing from step (\d+)", run.console.read_text())]


def processes(run: RunDir) -> dict[str, psutil.Process]:
    """The parent, torchrun and last worker of a run."""
    holder = read_holder(run)
    assert holder is not None
    parent = psutil.Process(holder.pid)
    (torchrun,) = [c for c in parent.children() if "torch.distributed.run" in c.cmdline()]
    return {"parent": parent, "torchrun": torchrun, "worker": workers_of(torchrun)[-1]}


def workers_of(torchrun: psutil.Process) -> list[psutil.Process]:
    return [child for child in torchrun.children() if "arclab.launch.worker" in child.cmdline()]


def wait_for_steps(run: RunDir, number: int) -> None:
    """Until a run, whose last job has just started it, has made so many more steps; at once an error if it ends before."""

    def has_made_them() -> bool:
        assert run.state is not State.done, f"it ended at step {run.step}, before step {start + number}"
        return has_reached(run, start + number)

    start = ([0, *resumed(run)])[-1]
    wait_until(has_made_them, f"step {start + number}")


def test_killed_and_submitted_again_until_it_is_done(whole: Whole, runs_dir: Path, slurm: Cluster) -> None:
    """kill -9 of a worker, of torchrun, of the parent: FAILED each time, nobody left behind, and the next job continues."""
    run = prepared(runs_dir, "killed")
    for number, target in enumerate(("worker", "torchrun", "parent")):
        job = submit(run)
        wait_until(lambda number=number: run.console.is_file() and len(resumed(run)) == number, f"start {number}")
        wait_for_steps(run, 8)
        family = processes(run)
        workers = workers_of(family["torchrun"])
        for worker in workers:
            worker.suspend()  # on a busy machine what follows may take longer than the rest of the run
        if target == "worker":
            second = submit(run)
            assert wait_for_end(second) == "FAILED"
            log = next((run.path / "jobs").glob(f"{second}_0_log.err")).read_text()
            assert "is in use by pid" in log and f"SLURM job {job}, since 2" in log
            assert run.state is State.running
        family[target].kill()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.resume()
        assert wait_for_end(job) == "FAILED", target
        wait_until(
            lambda family=family: not any(p.is_running() and p.status() != "zombie" for p in family.values()),
            "orphans to end",
            15,
        )
        if target != "parent":  # who could have said it is dead
            status = run.read_status() or {}
            assert status["state"] == "FAILED" and "was killed by SIGKILL" in status["message"], status
            assert target in status["message"]
    holder = read_holder(run)
    assert holder is not None and not holder.is_alive()
    assert wait_for_end(submit(run)) == "COMPLETED"
    assert_like(run, whole[1])


def test_a_job_time_limit_requeues_as_often_as_allowed(limited: tuple[str, RunDir], slurm: Cluster) -> None:
    """A run far longer than its limit of one minute is told to save, requeued once, goes on, and ends saved but not COMPLETED."""
    job, run = limited
    assert wait_for_end(job, 200) == "FAILED"
    (step,) = resumed(run)
    assert 0 < step < run.step and run.state is State.preempted
    assert [row["_step"] for row in read_rows(run.metrics)] == list(range(run.step + 1))
    log = next((run.path / "jobs").glob(f"{job}_0_log.err")).read_text()
    assert log.count("told to end by SIGUSR2") == 2 and "timed-out too many times" in log


def test_a_crash_is_failed_with_its_traceback(runs_dir: Path, slurm: Cluster, tmp_path: Path) -> None:
    code = "import sys\nif 'worker' in ' '.join(sys.orig_argv):\n    import safetensors.torch\n    safetensors.torch.save_file = {}.__getitem__\n"
    (tmp_path / "sitecustomize.py").write_text(code)  # a bug that the first checkpoint meets
    run = prepared(runs_dir, "crashed", f'launch.setup=["export PYTHONPATH={tmp_path}"]')
    assert wait_for_end(submit(run)) == "FAILED"
    status = run.read_status() or {}
    assert (status["state"], status["exit_status"]) == ("FAILED", 1)
    assert status["message"].splitlines()[-1].startswith("TypeError: ") and "checkpoints.py" in status["message"]


def test_two_nodes_train_like_two_ranks_on_one(whole: Whole, runs_dir: Path, slurm: Cluster) -> None:
    run = prepared(runs_dir, "nodes", "launch.nodes=2", "launch.cpus=1")
    job = submit(run)
    assert wait_for_end(job) == "COMPLETED"
    assert "NodeList=n[1-2]" in slurm.run("scontrol", "show", "job", job)
    assert_like(run, whole[1])


def test_unknown_partition_is_slurms_own_sentence(sweep: Sweep, runs_dir: Path) -> None:
    refused(
        sweep("seed=5,6", "launch.partition=nope"), "invalid partition specified: nope", "partitions here: main, spare, urgent"
    )
    assert RunDir(runs_dir / "quickstart" / "seed-5").state is None  # it waits nowhere


def test_without_sbatch_the_remedy_is_named(sweep: Sweep, tmp_path: Path) -> None:
    refused(sweep("seed=5,6", PATH=str(tmp_path)), "no sbatch on PATH", "hydra/launcher=submitit_local", "--cluster local")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.stpes=3,4"], ["unknown key trainer.stpes; did you mean trainer.steps?"]),
        (["halting=paper,shrt8"], ["halting=shrt8 is not an option", "short8"]),
        (["trainer.batch_size=8,7"], ["trainer.batch_size=7 must be divisible by ranks"]),
        (["name=a,a"], ["2 jobs of the sweep would use the run folder"]),
        (["launch=slurm_cpu,slurm_gpu"], ["launch cannot be swept"]),
        (["launch.timeout_min=2", "seed=0,1"], ["launch.timeout_min=2 is 120 s, not longer than launch.signal_delay_s=180"]),
        (["hydra.launcher.timeout_min=2", "seed=0,1"], ["hydra.launcher.timeout_min is set from launch.*"]),
    ],
)
def test_nothing_is_submitted_unless_all_is_well(overrides: list[str], words: list[str], sweep: Sweep, slurm: Cluster) -> None:
    before = queue_states()
    refused(sweep(*overrides), *words)
    assert queue_states().keys() == before.keys()  # jobs of other tests may end meanwhile
