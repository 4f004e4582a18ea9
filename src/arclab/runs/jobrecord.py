"""job.json: the job last submitted for a run, and whether the process that it names is still that job.

    write_job(run, JobRecord.of_process(pid, "local"))
    job = read_job(run)                             # None without one; DamagedFile if it names no job
    job is not None and job.is_running_here()

A local job is known by its process' number, start and boot, so that nothing else is ever signalled in its place. It asks SLURM
nothing.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import asdict, dataclass
from typing import Literal

import psutil

from arclab.files import DamagedFile, read_record, write_atomically
from arclab.runs.folder import RunDir
from arclab.runs.process_id import boot_id, is_running, pid_namespace, start_ticks

Kind = Literal["slurm", "local", "debug"]  # where a job runs: see arclab.launch.cluster
_REMEDY = "restore it; or see that no job of the run is left, and remove the file"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """submitted: seconds since 1970. host: the machine whose process a local job is; start_ticks, boot_id, pid_namespace: which
    process of it (arclab.runs.process_id); files of older versions do not say."""

    id: str
    cluster: Kind
    submitted: float
    is_cancelled: bool = False
    host: str = ""
    start_ticks: int | None = None
    boot_id: str = ""
    pid_namespace: str = ""

    @classmethod
    def of_slurm(cls, job: str) -> JobRecord:
        return cls(job, "slurm", time.time(), host=socket.gethostname())

    @classmethod
    def of_process(cls, pid: int, cluster: Kind) -> JobRecord:
        """A process of this machine that runs now."""
        return cls(
            str(pid), cluster, time.time(), host=socket.gethostname(), start_ticks=start_ticks(pid), boot_id=boot_id(),
            pid_namespace=pid_namespace(),
        )  # fmt: skip

    @property
    def is_elsewhere(self) -> bool:
        """A process of another machine, or of a container that counts its own: its number says nothing here."""
        if self.cluster == "slurm":
            return False
        if self.boot_id and self.boot_id == boot_id():
            return self.pid_namespace != pid_namespace()
        return self.host not in ("", socket.gethostname())

    @property
    def is_certain(self) -> bool:
        """Does it say which process it means, and not its number alone?"""
        return self.start_ticks is not None and self.boot_id == boot_id() and self.pid_namespace == pid_namespace()

    def is_running_here(self) -> bool:
        """Is the process of a local job still there?"""
        if self.cluster == "slurm" or self.is_elsewhere:
            return False
        if self.start_ticks is None:  # of an older version
            return _runs_since(int(self.id), self.submitted)
        return self.is_certain and is_running(int(self.id), self.start_ticks)


def _runs_since(pid: int, not_after: float) -> bool:
    """Does this process run, and has it since that time?"""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= not_after + 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # ValueError, OverflowError: no number of a process
        return False


def read_job(run: RunDir) -> JobRecord | None:
    """DamagedFile if the file is no such record, or names what can be no job: it goes to kill and scancel."""
    path = run.path / "job.json"
    if not path.is_file():
        return None
    job = read_record(path, JobRecord, remedy=_REMEDY)
    is_name = r"[0-9]+(_[0-9]+)?" if job.cluster == "slurm" else r"[0-9]{1,10}"
    if not re.fullmatch(is_name, job.id) or (job.cluster != "slurm" and int(job.id) < (2 if job.cluster == "local" else 1)):
        raise DamagedFile(path, f"id={job.id[:40]!r} is no job of {job.cluster}", remedy=_REMEDY)
    return job


def write_job(run: RunDir, job: JobRecord) -> None:
    write_atomically(run.path / "job.json", json.dumps(asdict(job)) + "\n")
