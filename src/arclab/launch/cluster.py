"""Run folders as submitit jobs, on SLURM or on this machine: resources, submission, requeueing.

    executor = build_executor(config.launch, "slurm", log_dir)
    job = executor.submit(JobTask(run_dir))            # does not block
    queue_states()                                     # {"12": "RUNNING"}

kind "local" runs jobs as processes of this machine, "debug" in this process. Told to end by SIGUSR2 (time limit, preemption) a
job saves, is requeued by submitit and continues; after any other end it keeps its exit status, so that SLURM says FAILED.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, UncompletedJobError

from arclab import slurm
from arclab.config.compose import ConfigError
from arclab.config.launch_schema import LaunchConfig
from arclab.interrupt import interrupted_status
from arclab.launch.job import run_job
from arclab.slurm import queue_states

__all__ = ["JobTask", "build_executor", "job_parameters", "queue_states", "submission_errors"]
log = logging.getLogger(__name__)
Kind = Literal["slurm", "local", "debug"]
_WAIT_FOR_REQUEUE_S = 120


def job_parameters(launch: LaunchConfig, kind: Kind) -> dict[str, Any]:
    """What is asked of submitit for one run, by the names of its executors; SLURM's own under slurm.* names without prefix."""
    shared = {
        "timeout_min": launch.timeout_min, "nodes": launch.nodes, "tasks_per_node": 1, "gpus_per_node": launch.gpus or None,
        "cpus_per_task": launch.ranks_per_node * launch.cpus_per_rank, "mem_gb": launch.mem_gib,
    }  # fmt: skip
    if kind != "slurm":
        return {key: value for key, value in shared.items() if value is not None}
    special = {
        "partition": launch.partition, "account": launch.account, "qos": launch.qos, "constraint": launch.constraint,
        # From SLURM 22.05 on srun does not inherit the cores of the job unless this says so.
        "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", *launch.setup], "signal_delay_s": launch.signal_delay_s,
    }  # fmt: skip
    return {key: value for key, value in (shared | special).items() if value is not None}


_SHARED = ("timeout_min", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb")


def build_executor(launch: LaunchConfig, kind: Kind, log_dir: Path, name: str = "arclab") -> submitit.AutoExecutor:
    """An executor with the resources of launch. ConfigError if SLURM is asked for and is not here."""
    if kind == "slurm":
        slurm.require_installed()
    limits = {"slurm_max_num_timeout": launch.max_requeues} if kind == "slurm" else {}
    executor = submitit.AutoExecutor(folder=log_dir, cluster=kind, **limits)
    parameters = job_parameters(launch, kind)
    executor.update_parameters(
        name=name, **{key if key in _SHARED else f"slurm_{key}": value for key, value in parameters.items()}
    )
    return executor


@contextmanager
def submission_errors(launch: LaunchConfig) -> Iterator[None]:
    """SLURM's refusal of a job as a ConfigError: its own words, and the partitions there are."""
    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        if not isinstance(error.__cause__, subprocess.CalledProcessError):
            raise  # not sbatch: a job that ran and failed
        words = " ".join(str(error).split())
        raise ConfigError(
            f"SLURM refused the job: {words} (launch.partition={launch.partition}; partitions here: {', '.join(slurm.partitions())}); "
            "change launch.* and submit again."
        ) from error


@dataclass(frozen=True, slots=True)
class JobTask:
    """One prepared run folder as a submitit job; picklable, and the same again after a requeue."""

    run_dir: Path

    def __call__(self) -> None:
        try:
            status = run_job(self.run_dir)
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from None
        leave(status)

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)


def leave(status: int) -> None:
    """End a submitit job with the exit status of its run: requeued if SLURM told it to end, not COMPLETED unless it is."""
    if status == interrupted_status(signal.SIGUSR2):
        _requeue(status)
    if status:
        raise SystemExit(status)


def _requeue(status: int) -> None:
    """Let submitit's own handler of the signal requeue the job, now that everything is saved."""
    if not callable(signal.getsignal(signal.SIGUSR2)):
        return  # not a submitit job
    try:
        signal.raise_signal(signal.SIGUSR2)
    except UncompletedJobError as error:  # too many time limits
        log.warning("%s", error)
        raise SystemExit(status) from None
    if int(os.environ.get("SLURM_PROCID", "0")):
        time.sleep(_WAIT_FOR_REQUEUE_S)  # the first node requeues; leaving before it has would fail the job
