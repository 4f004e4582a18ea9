"""Run folders as submitit jobs, on SLURM or on this machine: resources, submission, requeueing.

    executor = build_executor(config.launch, "slurm", log_dir)
    job = executor.submit(JobTask(run_dir))            # does not block
    queue_states()                                     # {"12": "RUNNING"}

kind "local" runs jobs as processes of this machine, "debug" in this process. Told to end by SIGUSR2 (time limit, preemption),
or by the SIGTERM of a preemption with GraceTime, a job saves, is requeued by submitit and continues; after any other end it
keeps its exit status, so that SLURM says FAILED.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, UncompletedJobError

from arclab.config.compose import ConfigError
from arclab.config.launch_schema import LaunchConfig
from arclab.launch.job import run_job
from arclab.runs import slurm
from arclab.runs.jobrecord import Kind
from arclab.runs.signals import interrupted_status
from arclab.runs.slurm import queue_states

__all__ = ["JobTask", "build_executor", "queue_states", "shared_parameters", "slurm_parameters", "submission_errors"]
log = logging.getLogger(__name__)
_WAIT_FOR_REQUEUE_S = 120
# sbatch --requeue: a cluster with JobRequeue=0 would refuse it otherwise.
ALWAYS_REQUEUED = {"requeue": True}


def shared_parameters(launch: LaunchConfig) -> dict[str, Any]:
    """What is asked of any executor for one run, by submitit's names."""
    parameters = {
        "timeout_min": launch.timeout_min, "nodes": launch.nodes, "tasks_per_node": 1, "gpus_per_node": launch.gpus or None,
        "cpus_per_task": launch.devices_per_node * launch.cpus_per_rank, "mem_gb": launch.mem_gib,
    }  # fmt: skip
    return {key: value for key, value in parameters.items() if value is not None}


def slurm_parameters(launch: LaunchConfig) -> dict[str, Any]:
    """What is asked of SLURM beside that, by submitit's names without their prefix slurm_."""
    parameters = {
        "partition": launch.partition, "account": launch.account, "qos": launch.qos, "constraint": launch.constraint,
        # From SLURM 22.05 on srun does not inherit the cores of the job unless this says so.
        "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", *launch.setup],
        "signal_delay_s": launch.signal_delay_s, "max_num_timeout": launch.max_requeues,
    }  # fmt: skip
    return {key: value for key, value in parameters.items() if value is not None}


def build_executor(
    launch: LaunchConfig, kind: Kind, log_dir: Path, name: str = "arclab", after: Sequence[str] = (), array_size: int = 1
) -> submitit.AutoExecutor:
    """An executor with the resources of launch. after: the ids of SLURM jobs that must end well before; if one does not, the
    job leaves the queue. array_size: of the arrays that are submitted, whose elements may all run at once. ConfigError if SLURM
    is asked for and is not here."""
    special: dict[str, Any] = {}
    if kind == "slurm":
        slurm.require_installed()
        special = {f"slurm_{key}": value for key, value in slurm_parameters(launch).items()}
        dependency = {"dependency": f"afterok:{':'.join(after)}", "kill_on_invalid_dep": "yes"} if after else {}
        special["slurm_additional_parameters"] = ALWAYS_REQUEUED | dependency
        special["slurm_array_parallelism"] = array_size
    limits = {key: special.pop(key) for key in ("slurm_max_num_timeout",) if key in special}
    executor = submitit.AutoExecutor(folder=log_dir, cluster=kind, **limits)
    executor.update_parameters(name=name, **shared_parameters(launch), **special)
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
            f"SLURM refused the job: {words} (launch.partition={launch.partition}; partitions here: "
            f"{', '.join(slurm.partitions())}); change launch.* and submit again."
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
    if status == interrupted_status(signal.SIGUSR2) or (status == interrupted_status(signal.SIGTERM) and _is_preempted()):
        _requeue(status)
    if status:
        raise SystemExit(status)


def _is_preempted() -> bool:
    """Did SLURM's SIGTERM mean a preemption with GraceTime? A job that ends by itself in that time would not be queued
    again."""
    if slurm.job_id() is None:
        return False
    try:
        return slurm.is_preempted()
    except ConfigError as error:
        log.warning("%s", error)
        return False


def _requeue(status: int) -> None:
    """Let submitit's own handler of the signal requeue the job, now that everything is saved."""
    if not callable(signal.getsignal(signal.SIGUSR2)):
        return  # not a submitit job
    try:
        signal.raise_signal(signal.SIGUSR2)
    except UncompletedJobError as error:  # too many time limits
        log.warning("%s", error)
        raise SystemExit(status) from None
    except subprocess.CalledProcessError as error:
        log.warning("SLURM does not requeue this job (%s); it is saved: submit it again", error)
        raise SystemExit(status) from None
    if int(os.environ.get("SLURM_PROCID", "0")):
        time.sleep(_WAIT_FOR_REQUEUE_S)  # the first node requeues; leaving before it has would fail the job
