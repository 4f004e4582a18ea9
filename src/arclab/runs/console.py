"""Log lines and progress bars on the console: one format, rank 0 only, never one through the other.

    setup_logging()
    with progress_bar(total=20, desc="evaluating", unit="grid") as bar: bar.update()

What standard error does not take (a terminal that has gone, a log on a full disk) is dropped: it must not end the run that
reports to it.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm
from tqdm.utils import ObjectWrapper


class _BarSafeHandler(logging.StreamHandler):  # pyright: ignore[reportMissingTypeArgument]
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            tqdm.write(self.format(record), file=sys.stderr)


class _Lenient(ObjectWrapper):
    """A stream whose failures to write are nobody's. Equal to the stream itself, by which tqdm finds the bars to clear for a
    line."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._wrapped.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._wrapped.flush()

    def __eq__(self, other: object) -> bool:
        return self._wrapped == getattr(other, "_wrapped", other)

    __hash__ = None  # type: ignore[assignment]


def progress_bar(*, total: int, desc: str, unit: str, initial: int = 0, disable: bool = False) -> tqdm[Any]:
    """A bar on standard error, drawn again every half second on a terminal, every 20 s in a file."""
    interval_s = 0.5 if sys.stderr.isatty() else 20.0
    return tqdm(
        total=total, desc=desc, unit=unit, initial=initial, disable=disable, mininterval=interval_s, file=_Lenient(sys.stderr)
    )


def setup_logging() -> None:
    """INFO on rank 0, warnings elsewhere. Called once, by the entry points."""
    handler = _BarSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("arclab")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
