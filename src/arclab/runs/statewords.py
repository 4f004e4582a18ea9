"""The one word for the state of a run, the same in every table and on every page.

    living = living_folders([run])                         # {folder: "QUEUED" or "RUNNING"}; one squeue for all of them
    word = read_state(run, living.get(run.path))           # "CANCELLED"

Beside the states of status.json there are NEW (no folder), QUEUED, REQUEUED (told to end, and will continue by itself),
CANCELLED (by the command cancel), DAMAGED (a file of it cannot be read; the message says which) and LOST: the folder says that
it was submitted or runs, but there is no such job or process. Where it is certain that the process was killed
(arclab.runs.killed), the run is FAILED.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.runs import slurm
from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import JobRecord, read_job
from arclab.runs.killed import status_now
from arclab.runs.lock import living_holder

log = logging.getLogger(__name__)
NEW, QUEUED, REQUEUED, LOST, CANCELLED, DAMAGED = "NEW", "QUEUED", "REQUEUED", "LOST", "CANCELLED", "DAMAGED"
ENDED_BADLY = (State.failed.value, State.stopped.value, LOST, DAMAGED)  # the message of the run says why
_RUNNING = State.running.value
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED")


def living_folders(folders: Sequence[RunDir], *, must_know: bool = True) -> dict[Path, str]:
    """Folder -> QUEUED or RUNNING, for the runs that have a job in the queue or a process of this machine.

    Where SLURM is not installed (a machine that only sees the folders), or with must_know=False does not answer, the word of
    the folder counts for SLURM's jobs, as it does for processes of other machines. ConfigError if it must be known and SLURM
    does not answer.
    """
    jobs = {folder.path: job for folder in folders if (job := read_job(folder)) is not None}
    queue = _queue(must_know) if any(job.cluster == "slurm" for job in jobs.values()) else None
    states = {path: _job_state(RunDir(path), job, queue) for path, job in jobs.items()}
    return {path: state for path, state in states.items() if state is not None}


def _queue(must_know: bool) -> dict[str, str] | None:
    """SLURM's states by job id; None if it cannot be asked."""
    if not slurm.is_installed():
        return None
    try:
        return slurm.queue_states()
    except ConfigError as error:
        if must_know:
            raise
        log.warning("states are those of the run folders: %s", error)
        return None


def _job_state(run: RunDir, job: JobRecord, queue: Mapping[str, str] | None) -> str | None:
    if job.cluster == "slurm" and queue is not None:
        state = queue.get(job.id)
        return None if state is None or state in _ENDED else QUEUED if state in _WAITING else _RUNNING
    written = (run.read_status() or {}).get("state")
    is_unseen = job.cluster == "slurm" or job.is_elsewhere
    is_open = written in (State.submitted.value, _RUNNING)
    # The process of a debug job goes on after its run.
    is_alive = is_open if is_unseen else job.is_running_here() and (is_open or job.cluster == "local")
    return None if not is_alive else QUEUED if written == State.submitted.value else _RUNNING


def read_state(run: RunDir, living: str | None) -> str:
    """The state in one word. living: what living_folders() knows of it."""
    written = (run.read_status() or {}).get("state")
    if written == State.done.value:
        return written
    if living is not None:
        return REQUEUED if written == State.preempted.value else living
    if living_holder(run) is not None:
        return _RUNNING
    job = read_job(run)
    if job is not None and job.is_cancelled:
        return CANCELLED
    if written == _RUNNING:
        written = (status_now(run) or {}).get("state")
    if written in (_RUNNING, State.submitted.value):
        return NEW if job is None and written == State.submitted.value else LOST
    return written or NEW
