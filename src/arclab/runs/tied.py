"""Child processes that never outlive their parent: a killed launcher must not leave ranks behind that go on writing.

    subprocess.Popen(command, preexec_fn=tie_to(os.getpid()))     # torchrun
    die_with_parent()                                             # first line of a worker

Linux only (PR_SET_PDEATHSIG); elsewhere nothing happens and orphans have to be stopped by hand.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """SIGKILL for this process when its parent ends. parent: who that should be, in case it is gone already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Adopted by init: the parent is gone. In a container the parent may be process 1 itself, and then it has to be said.
    is_orphan = os.getppid() == 1 if parent is None else os.getppid() != parent
    if is_orphan:
        os.kill(os.getpid(), signal.SIGKILL)


def ignore_signals_of_job() -> None:
    """Signals that reach every process of a job (from SLURM, from a closed terminal) are for those who save something. What
    this process starts ignores them too."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def tie_to(parent: int) -> Callable[[], None]:
    """What a child does between fork and exec. It also ignores the signals of a job, which torchrun would die of; workers
    install their own handlers, and leave SIGHUP to the parent, which tells them."""

    def prepare() -> None:
        die_with_parent(parent)
        ignore_signals_of_job()

    return prepare
