"""Signals that ask a run to end: noted when they come, acted upon at the end of the step. Nothing is saved inside a handler.

    with StopSignals() as signals:
        ...
        if signals.number is not None: save and leave with exit status interrupted_status(signals.number)

SIGUSR2 (SLURM, before a time limit or a preemption), SIGTERM (scancel, kill) and SIGINT (Ctrl-C). A second SIGINT ends the process at once.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """number: the first stop signal that came, or None. The handlers before it are back in place afterwards."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


def interrupted_status(number: int | None) -> int:
    """128 + the signal, as shells count; SIGTERM stands for a request that came without one (the file PREEMPT)."""
    return 128 + (number or signal.SIGTERM)
