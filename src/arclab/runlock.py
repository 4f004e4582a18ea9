"""One process at a time works in a run folder: lock.json names it, and a lock whose holder is dead is taken over.

    with locked(run): ...            # ConfigError that names the holder (host, pid, SLURM job, since when) if there is one
    holder = read_holder(run); holder is not None and holder.is_alive()

A holder on this host is looked up by pid and start time, one on another host by its SLURM job. A holder on another host without a
SLURM job cannot be looked up and counts as alive. The lock is advice for arclab's own processes, not protection against others.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from arclab import slurm
from arclab.config.compose import ConfigError
from arclab.files import read_object, write_atomically
from arclab.rundir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who works in a run folder. started: the process' start, seconds since 1970; incarnation: SLURM's count of restarts of the job."""

    host: str
    pid: int
    started: float
    slurm_job: str | None
    incarnation: str
    since: str

    @classmethod
    def me(cls) -> Holder:
        return cls(
            host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time(), slurm_job=slurm.job_id(),
            incarnation=os.environ.get("SLURM_RESTART_COUNT", "0"), since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )  # fmt: skip

    def is_alive(self) -> bool:
        if self.host == socket.gethostname():
            return _runs(self.pid, self.started)
        if self.slurm_job is None:
            return True
        if self.slurm_job == slurm.job_id():  # an earlier life of this very job, before it was requeued
            return self.incarnation == os.environ.get("SLURM_RESTART_COUNT", "0")
        return slurm.is_queued(self.slurm_job)

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"pid {self.pid} on {self.host}{job}, since {self.since}"


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lock_path(run: RunDir) -> Path:
    return run.path / "lock.json"


def read_holder(run: RunDir) -> Holder | None:
    """Who holds the run folder, dead or alive; None if nobody does."""
    path = lock_path(run)
    return Holder(**read_object(path)) if path.is_file() else None


def require_free(run: RunDir) -> None:
    """ConfigError if a living process works in the folder."""
    holder = read_holder(run)
    if holder is not None and holder.is_alive():
        raise ConfigError(
            f"the run folder {run.path} is in use by {holder}; wait for it or stop it, or choose another folder (name=, output_dir=) "
            f"(if it is certainly gone, remove {lock_path(run)})."
        )


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run folder, which is created if need be. ConfigError if a living process holds it."""
    me, path = Holder.me(), lock_path(run)
    run.path.mkdir(parents=True, exist_ok=True)
    with FileLock(run.path / ".lock"):  # held for a moment only: makes looking and taking one action
        require_free(run)
        holder = read_holder(run)
        if holder is not None:
            log.info("taking over %s from %s, which is no longer there", run.path, holder)
        write_atomically(path, json.dumps(asdict(me)) + "\n")
    try:
        yield
    finally:
        with FileLock(run.path / ".lock"):
            if read_holder(run) == me:
                path.unlink()
