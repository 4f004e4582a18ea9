"""What SLURM says about its jobs, partitions and nodes, asked with squeue, sinfo and scontrol (no accounting needed).

    queue_states()  -> {"12": "RUNNING", "13_0": "PENDING"}; a job that is not in it has ended
    partitions()    -> ["cpu", "gpu"]

It submits nothing (see arclab.launch.cluster). Where SLURM is not installed, is_installed() is False and the others raise
ConfigError.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable

from arclab.config.compose import ConfigError

_TIMEOUT_S = 60


def is_installed() -> bool:
    return shutil.which("sbatch") is not None


def require_installed() -> None:
    if not is_installed():
        raise ConfigError(
            "there is no sbatch on PATH, so nothing can be sent to SLURM from this machine; log in to a submit node, or run "
            "here with hydra/launcher=submitit_local (a sweep) or --cluster local (a job list)."
        )


def job_id() -> str | None:
    """The SLURM job this process belongs to (ARRAY_TASK for an element of an array), or None."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def queue_states() -> dict[str, str]:
    """{job id: state} of the jobs in the queue; waiting elements of an array are listed one by one."""
    require_installed()
    lines = _ask("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def max_array_size() -> int:
    """How many jobs one array can have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1])) if found else 1000


def is_queued(*jobs: str) -> bool:
    """Is any of the jobs waiting, running or ending?"""
    return bool(queued(jobs))


def queued(jobs: Iterable[str]) -> list[str]:
    """Those of the jobs that wait, run or end; none if SLURM is not here or does not know them any more."""
    known = all_queued()
    return [job for job in jobs if job in known]


def all_queued() -> frozenset[str]:
    """The jobs that wait, run or end; none if SLURM is not here."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
    return frozenset(job for job, state in queue_states().items() if state not in over) if is_installed() else frozenset()


def end_job(job: str, *, may_save: bool) -> None:
    """scancel. may_save: send SIGTERM alone, and leave the end to the job. ConfigError if SLURM refuses, or this is no number
    of a job."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        raise ConfigError(f"{job[:40]!r} is no job of SLURM; nothing was cancelled.")
    _ask("scancel", *(["--signal=TERM"] if may_save else []), job)


def is_preempted() -> bool:
    """Is SLURM about to take the resources of this process's job away, after the partition's GraceTime?"""
    told = _ask("scontrol", "show", "job", os.environ["SLURM_JOB_ID"])
    found = re.search(r"PreemptTime=(\S+)", told)
    return found is not None and found[1] not in ("None", "N/A")


def partitions() -> list[str]:
    require_installed()
    return sorted(set(_ask("sinfo", "--noheader", "--format=%R").split()))


def node_address(node: str) -> str:
    """Where a node can be reached: its NodeAddr (node names need not be host names)."""
    found = re.search(r"NodeAddr=(\S+)", _ask("scontrol", "show", "node", node))
    return found.group(1) if found else node


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        said = done.stderr.strip() if done.returncode else None
    except subprocess.TimeoutExpired:
        said = f"nothing in {_TIMEOUT_S} s"
    if said is not None:
        raise ConfigError(f"SLURM does not answer {' '.join(command[:3])}: {said}; check the cluster and try again.")
    return done.stdout
