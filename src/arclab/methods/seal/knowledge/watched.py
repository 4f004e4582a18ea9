"""A server that a run starts, watches and ends: a process that says its address in one line when it is ready.

    with Watched(lambda address: [sys.executable, "-m", "...", address], log_file, what="the server") as address:
        ...                             # started again at the same address if it dies, a few times

The command is asked with "" for the first start, and with the address that was said for every other one. The process gets a
pipe as its standard input that ends with this process, so that it can end as well. What it writes to standard error goes into
log_file. Whoever asks it must wait while it is started again. (arclab.runs.watched watches servers that answer over HTTP; this
one does not.)
"""

from __future__ import annotations

import logging
import select
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from arclab.files import read_text

_START_S = 600.0  # to load a model
_MOST_STARTS = 5
log = logging.getLogger(__name__)


class Watched:
    """what: the server, for messages. Entering it raises ValueError, in one sentence, if the server does not start."""

    def __init__(self, command: Callable[[str], Sequence[str]], log_file: Path, what: str) -> None:
        self._command, self._log_file, self._what = command, log_file, what
        self._is_closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def __enter__(self) -> str:
        self._address = self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self._address

    def __exit__(self, *_: object) -> None:
        self._is_closing.set()
        if self._process is not None:
            self._process.kill()
        self._watcher.join()

    def _start(self) -> str:
        with self._log_file.open("ab") as errors:
            process = subprocess.Popen(
                list(self._command(self._address)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        self._process = process
        assert process.stdout is not None
        is_said = select.select([process.stdout], [], [], _START_S)[0]
        said = process.stdout.readline().decode().strip() if is_said else ""
        if not said:
            process.kill()
            process.wait()
            lines = read_text(self._log_file).strip().splitlines()
            raise ValueError(f"{self._what} did not start ({lines[-1].rstrip('.') if lines else 'it says nothing'}).")
        return said

    def _watch(self) -> None:
        for number in range(_MOST_STARTS + 1):
            assert self._process is not None
            status = self._process.wait()
            if self._is_closing.is_set():
                return
            if number == _MOST_STARTS:
                log.error("%s ended %d times and is not started again; see %s", self._what, number + 1, self._log_file)
                return
            log.warning("%s ended (status %d) and is started again; see %s", self._what, status, self._log_file)
            try:
                self._start()
            except (OSError, ValueError) as error:
                log.warning("%s", error)
            if self._is_closing.is_set():
                self._process.kill()
