"""A warm interpreter that forks a child for every program. Started by supervisor.py; not for use by hand.

It imports what programs may use, greets (isolation, why not more, whether addresses are fixed), and from then on forks a child
for every byte that it reads. It does nothing else, ever: it sees no request and no answer, so that no program inherits anything
of another one, and its memory is the same at every fork, so that a program finds the same addresses whatever ran before it. The
children belong to the supervisor. See child.py for what they do.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__" and str(Path(__file__).resolve().parents[3]) not in sys.path:
    # As it is started, nothing of ours is on the path. Before any other arclab that is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from arclab.programs.sandbox.child import preload, rehearse, run_program, settle
from arclab.programs.sandbox.execution import Isolation
from arclab.programs.sandbox.fixed_sources import clock, seed_all
from arclab.programs.sandbox.lockdown import (
    SET_PDEATHSIG,
    Fork,
    Lock,
    drop_capabilities,
    has_fixed_addresses,
    locked_down,
    prctl,
)
from arclab.programs.sandbox.supervisor import CLOCK_AT, COMMAND, DONE, FAILED, NUMBER_AT, REPLY, SHARED
from arclab.programs.sandbox.wire import write_frame


def serve_forks(fork: Fork, lock: Lock | None, parent: int) -> NoReturn:
    """Its loop makes no object that outlives a turn, so that every child finds the same memory."""
    mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # a collection touches every young object; most programs end before this many
    while os.read(COMMAND, 1):
        child = fork()
        if child == 0:
            run_program(mapped, lock, parent)  # never returns
        os.write(REPLY, DONE if child > 0 else FAILED)
        del child  # or the next number would lie in another place
    os._exit(0)


def main(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C belongs to the one who asked
    prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    number = mmap.mmap(SHARED, mmap.PAGESIZE, offset=NUMBER_AT)
    number.madvise(mmap.MADV_DONTFORK)  # a child cannot tell its parent the number of another process
    fork = Fork(ctypes.addressof(ctypes.c_char.from_buffer(number)))
    clock.use(mmap.mmap(SHARED, mmap.PAGESIZE, offset=CLOCK_AT))
    os.close(SHARED)
    preload()
    lock, why_not = locked_down()
    rehearse()
    drop_capabilities()
    hello = [(Isolation.seccomp if lock else Isolation.limits).name, why_not, has_fixed_addresses()]
    with os.fdopen(os.dup(REPLY), "wb") as file:
        write_frame(file, json.dumps(hello).encode())
    settle()
    seed_all(0)
    serve_forks(fork, lock, parent)


if __name__ == "__main__":
    main(int(sys.argv[1]))
