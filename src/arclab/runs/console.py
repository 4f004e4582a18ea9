"""Log lines on the console: one format, rank 0 only, never through a progress bar."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

from tqdm import tqdm


class _BarSafeHandler(logging.StreamHandler):  # pyright: ignore[reportMissingTypeArgument]
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a terminal that has gone, or a full disk behind it, must not end the run that reports to it
            tqdm.write(self.format(record), file=sys.stderr)


def setup_logging() -> None:
    """INFO on rank 0, warnings elsewhere. Called once, by the entry points."""
    handler = _BarSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("arclab")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
