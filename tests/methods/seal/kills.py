"""Commands in processes of their own that are killed with -9, and files that hold seconds.

killed_once(["method=seal_fewshot", ...], lambda: path.is_file())       # begun, and killed once it is time
assert begun([...]).wait(TIMEOUT_S) == 0                                # the same command goes on
assert lines(one) == lines(other)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arclab.files import read_lines

from ...conftest import ROOT

TIMEOUT_S = 600
_TIMES = ("seconds", "fit_s", "answer_s", "train_s", "crc32")


def begun(overrides: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "self_improve.py", *overrides], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def killed_once(overrides: Sequence[str], is_time: Callable[[], bool]) -> None:
    process, until_s = begun(overrides), time.monotonic() + TIMEOUT_S
    try:
        while not is_time():
            assert process.poll() is None and time.monotonic() < until_s, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def lines(path: Path) -> list[dict[str, Any]]:
    """Without seconds, in the order of their ids: what is tried again after a kill stands behind the rest."""
    rows = [{key: value for key, value in row.items() if key not in _TIMES} for row in read_lines(path)]
    return sorted((row for row in rows if "settings" not in row), key=lambda row: json.dumps(row, sort_keys=True))
