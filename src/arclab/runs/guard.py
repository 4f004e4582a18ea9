"""A command that ends when whoever started it does, whatever happens to them.

    command = [sys.executable, "-m", "arclab.runs.guard", str(os.getpid()), "vllm", "serve", MODEL]
    subprocess.Popen(command, start_new_session=True)

When that process is gone, or this one gets SIGINT, the command is killed, with all processes that it has started. Its output is
this process's. It ignores the signals that reach every process of a job. The exit status is the command's; 128 + the signal if
one ended it, 127 if it cannot be started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

from arclab.runs.tied import ignore_signals_of_job, tie_to

_POLL_S = 0.25
_NOT_STARTED = 127


def main(parent: int, command: Sequence[str]) -> int:
    ignore_signals_of_job()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started all of this with it ignored
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=tie_to(os.getpid()))
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return _NOT_STARTED
    try:
        status = _until_ended(child, parent)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    finally:
        _kill_all(child)
    return status if status >= 0 else 128 - status


def _until_ended(child: subprocess.Popen[bytes], parent: int) -> int:
    """A pipe to the parent would not do: a process that it has forked may hold the other end open."""
    while os.getppid() == parent:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(_POLL_S)
    return -signal.SIGKILL


def _kill_all(child: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.Error):  # also those that have left the group
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
