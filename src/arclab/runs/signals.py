"""Signals that ask a run to end: noted when they come, acted upon at the end of the step. Nothing is saved inside a handler.

    with StopSignals() as signals:
        ...
        if signals.number is not None: save and leave with exit status interrupted_status(signals.number)

SIGUSR2 (SLURM, before a time limit or a preemption), SIGTERM (scancel, kill), SIGINT (Ctrl-C) and SIGHUP (the terminal is
closed, unless nohup has it ignored). A second SIGINT ends the process at once.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """number: the first stop signal that came, or None. The handlers before it are back in place afterwards."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        noted = [number for number in STOP_SIGNALS if not (is_nohup and number == signal.SIGHUP)]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        if number == signal.SIGHUP:
            _leave_closed_terminal()


def _leave_closed_terminal() -> None:
    """Every write to a terminal that is gone fails, a progress bar's too, and would end the run before it has saved."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream)
            os.close(nothing)


def ignore_stop_signals(_worker: int = 0) -> None:
    """In a data loader's worker: SLURM signals every process of a job, and a worker that obeys on its own would take the run
    down before it has saved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupted_status(number: int | None) -> int:
    """128 + the signal, as shells count; SIGTERM stands for a request that came without one (the file PREEMPT)."""
    return 128 + (number or signal.SIGTERM)
