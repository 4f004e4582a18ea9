"""A run whose process was killed without a word: its status.json says RUNNING, and nobody will ever change that.

    status = status_now(run)        # FAILED with a sentence, for such a run; else what status.json says
    say_if_killed(run)              # before the same command goes on with it

Whoever looks first writes FAILED into status.json. It is said only where it is certain: who held the folder (lock.json) was a
process of this machine, and neither the kernel's lock nor its number is alive. A job of SLURM may be requeued, and a process of
another machine cannot be looked up: their word counts.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

from arclab.files import step_folders
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import folder_lock, living_holder, read_holder

log = logging.getLogger(__name__)
KILLED = 137  # exit status: 128 + SIGKILL, as a shell says it


def status_now(run: RunDir) -> dict[str, Any] | None:
    """As RunDir.read_status, and FAILED for a run that was killed; written down, unless the folder cannot be written."""
    status = run.read_status()
    if status is None or status["state"] != State.running.value or not _is_killed(run):
        return status
    try:
        with folder_lock(run):  # nobody takes the folder over meanwhile
            status = run.read_status()
            if status is None or status["state"] != State.running.value or not _is_killed(run):
                return status
            run.write_status(State.failed, status["step"], _sentence(run, status), KILLED, num_steps=status.get("num_steps"))
            return run.read_status()
    except OSError:  # of somebody else, or read-only: to be seen, not to be changed
        assert status is not None
        return {**status, "state": State.failed.value, "message": _sentence(run, status), "exit_status": KILLED}


def was_killed(run: RunDir) -> bool:
    """Is it FAILED because it was killed?"""
    status = status_now(run) or {}
    return status.get("state") == State.failed.value and status.get("exit_status") == KILLED


def say_if_killed(run: RunDir) -> None:
    if was_killed(run):
        status = run.read_status() or {"message": ""}
        log.info("%s %s", run.path, status["message"] or "was killed")


def _is_killed(run: RunDir) -> bool:
    holder = read_holder(run)
    if holder is None or holder.slurm_job is not None:
        return False
    is_here = holder.is_of_this_boot or holder.host == socket.gethostname()
    return is_here and living_holder(run) is None


def _sentence(run: RunDir, status: dict[str, Any]) -> str:
    steps = step_folders(run.checkpoints)
    goes_on = "continues from its last checkpoint" if steps else "goes on with it"
    return (
        f"was killed after step {status['step']} without a word (if nobody did it, by the kernel, because memory ran out: "
        f"see dmesg); the same command {goes_on}"
    )
