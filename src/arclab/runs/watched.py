"""A server that this process starts, asks for its health, starts again when it dies or hangs, and ends.

    wished = Wished(name="the search tool", command=of_port, log_file=path, health=("/health",), start_s=600, silent_s=60,
                    restarts=5)
    with WatchedServer(wished) as server:
        url = server.start()                   # "http://127.0.0.1:43210"; ServerDown, in one sentence: it never got healthy
        server.wait_until_up(is_given_up)      # for who got no answer: it may be being started again, at the same address

It runs below arclab.runs.guard, so it ends with this process whatever happens. It is healthy when the first of `health` that it
knows (an answer other than 404) is answered with 200. Of a server that does not speak HTTP, `health` is a function that says
whether it is, and its command knows where it listens: it gets port 0. What it prints is appended to log_file. Whether its
answers make sense is not looked at.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import psutil

_HOST = "127.0.0.1"
_POLL_S, _HEALTH_EVERY_S, _HEALTH_TIMEOUT_S = 0.1, 2.0, 10.0
_END_S = 15.0
_PORTS_TRIED = 3  # another process may take the port before the server does
_LAST_LINES, _LAST_BYTES = 3, 4096
log = logging.getLogger(__name__)


class ServerDown(ValueError):
    """It does not run and is not started again: why, and its last lines, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wished:
    """name: for messages. command: for a port. health: paths, or see the module. start_s: how long it may take to become
    healthy. silent_s: after so long without a sign of health it is ended. restarts: how often it is started again. remedy:
    what to do if it does not start. environment: for the server, beside this process's; headers: of the look at its health.
    Both may hold a key, which a command line would show to everybody."""

    name: str
    command: Callable[[int], Sequence[str]]
    log_file: Path
    health: Sequence[str] | Callable[[], bool]
    start_s: float
    silent_s: float
    restarts: int
    remedy: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class WatchedServer:
    """Its methods may be called by several threads, start() once."""

    def __init__(self, wished: Wished) -> None:
        self._wished = wished
        self._changed = threading.Condition()
        self._is_closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._port = self._log_start = 0
        self._num_starts, self._is_up, self._down = 0, False, ""
        self._heard = ""  # what it answered to the last look at its health, where that was not 200

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closing.set()
            self._changed.notify_all()
            self._end()
        if self._watcher is not None:
            self._watcher.join()

    @property
    def num_starts(self) -> int:
        """How often it has been started; who got no answer sees whether it was another process that was asked."""
        return self._num_starts

    @property
    def url(self) -> str:
        """Of one that speaks HTTP."""
        return f"http://{_HOST}:{self._port}"

    def start(self) -> str:
        """Its address, once it is healthy. ServerDown: it ended, or did not become healthy in time."""
        for _ in range(_PORTS_TRIED):
            self._port = 0 if callable(self._wished.health) else _free_port()
            why = self._bring_up()
            if not why or not self._port or not _is_listened_at(self._port):
                break
        if why:
            remedy = f"; {self._wished.remedy}" if self._wished.remedy else ""
            raise ServerDown(f"{self._wished.name} did not start ({self._last_lines()}): it {why}{remedy}.")
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self.url

    def wait_until_up(self, is_given_up: Callable[[], bool]) -> None:
        """Returns at once if it is healthy as far as is known, or when is_given_up says so. ServerDown: it is not started
        again."""
        with self._changed:
            while not (self._is_up or self._down or self._is_closing.is_set() or is_given_up()):
                self._changed.wait(_POLL_S)
            if self._down:
                raise ServerDown(self._down)

    def _watch(self) -> None:
        why, wished = "", self._wished
        for number in range(wished.restarts + 1):
            why = why or self._until_down()
            with self._changed:
                self._is_up = False
            if self._is_closing.is_set():
                return
            if number == wished.restarts:
                break
            log.warning("%s %s and is started again (%d of %d); see %s", wished.name, why, number + 1, wished.restarts,
                        wished.log_file)  # fmt: skip
            why = self._bring_up()
        with self._changed:
            self._down = (
                f"{wished.name} {why} ({self._last_lines()}) and is not started again: it was, {wished.restarts} times; see "
                f"{wished.log_file}."
            )
            self._changed.notify_all()
        log.error("%s", self._down)

    def _until_down(self) -> str:
        """Why it is no longer up, once it is not. A process that has ended, or that says nothing and is ended here."""
        assert self._process is not None
        heard_s = time.monotonic()
        while (status := self._ended_within(_HEALTH_EVERY_S)) is None:
            if self._is_healthy():
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > self._wished.silent_s:
                self._end()
                return f"has not been healthy for {self._wished.silent_s:g} s{self._heard}"
        return f"ended with status {status}"

    def _bring_up(self) -> str:
        """Starts it and waits for its health. Why it is not up; empty if it is."""
        if not self._launch():
            return ""
        assert self._process is not None
        deadline = time.monotonic() + self._wished.start_s
        while (status := self._ended_within(_POLL_S)) is None:
            if self._is_healthy() and (not self._port or _listens(self._process.pid, self._port)):
                with self._changed:
                    self._is_up = True
                    self._changed.notify_all()
                return ""
            if time.monotonic() > deadline:
                self._end()
                return f"was not healthy within {self._wished.start_s:g} s{self._heard}"
        return f"ended with status {status}"

    def _launch(self) -> bool:
        """False: this process is done with it."""
        command = [sys.executable, "-m", "arclab.runs.guard", str(os.getpid()), *self._wished.command(self._port)]
        with self._changed, self._wished.log_file.open("ab") as output:
            if self._is_closing.is_set():
                return False
            self._log_start = output.tell()
            self._num_starts += 1
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **self._wished.environment},
            )  # fmt: skip
        return True

    def _ended_within(self, seconds: float) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            if self._ended_within(_END_S) is None:
                self._process.kill()
                self._process.wait()

    def _is_healthy(self) -> bool:
        if callable(self._wished.health):
            return self._wished.health()
        self._heard = ""
        for path in self._wished.health:
            try:
                answer = httpx.get(
                    f"{self.url}{path}", headers=dict(self._wished.headers), timeout=_HEALTH_TIMEOUT_S, trust_env=False
                )
            except (httpx.HTTPError, httpx.InvalidURL):
                return False
            self._heard = "" if answer.status_code == 200 else f" ({path} answers with status {answer.status_code})"
            if answer.status_code != 404:
                return answer.status_code == 200
        return False

    def _last_lines(self) -> str:
        """Of what it printed since it was started the last time, on one line."""
        with self._wished.log_file.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self._log_start, size - _LAST_BYTES))
            said = file.read().decode("utf-8", "replace")
        lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
        text = " / ".join(lines[-_LAST_LINES:])
        return "".join(c if c.isprintable() else "?" for c in text).rstrip(".") or "it says nothing"


def _listens(guard: int, port: int) -> bool:
    """Is it one of the guard's processes that listens there? It may be another's server, which has taken the port meanwhile."""
    with suppress(psutil.Error):
        children = psutil.Process(guard).children(recursive=True)
        return any(
            found.status == psutil.CONN_LISTEN and found.laddr.port == port
            for child in children
            for found in child.net_connections("tcp")
        )
    return False


def _free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])


def _is_listened_at(port: int) -> bool:
    with closing(socket.socket()) as asked:
        return asked.connect_ex((_HOST, port)) == 0
