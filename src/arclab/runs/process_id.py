"""Which process a number means: its start in clock ticks since the boot, the boot, and the PID namespace.

    start_ticks(pid)                     # None if there is no such process here, or it has ended and nobody has asked how
    is_running(pid, ticks)               # does this very process still run?
    boot_id(), pid_namespace()           # a number means something only where both are the same

No wall clock: the start of a process in seconds since 1970 moves when the clock is set. It looks at this machine and this
namespace only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil


def start_ticks(pid: int) -> int | None:
    """When the process started; None if there is none. Comparable with other values of the same boot only."""
    if sys.platform != "linux":  # there the start in seconds is a fixed number
        try:
            return round(psutil.Process(pid).create_time() * 100)
        except psutil.NoSuchProcess:
            return None
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # no such process, or one that ends while it is read
        return None
    state, *others = text.rpartition(b")")[2].split()  # the name before it may have spaces and brackets
    return None if state in (b"Z", b"X") else int(others[18])


def is_running(pid: int, ticks: int) -> bool:
    """Is the process with this number the one that started then? Numbers are used again."""
    return pid > 0 and start_ticks(pid) == ticks


def boot_id() -> str:
    """The same for all processes since this machine was started, those in containers too; "" where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Where the numbers of processes are counted: a container has its own; "" where the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
