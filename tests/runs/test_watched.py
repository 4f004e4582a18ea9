"""Servers that are started and watched: health, restarts, giving up, and that nothing outlives who started them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from arclab.runs import watched
from arclab.runs.watched import ServerDown, WatchedServer, Wished

from ..conftest import script_env

# Answers GET /health; says its pid at /pid; starts a child; POST-free. What it does later is told by files in its folder.
SERVER = """
import http.server, os, pathlib, subprocess, sys, time
folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
print("loading", flush=True)
if (folder / "broken").exists():
    sys.exit("no such model\\n")
child = subprocess.Popen(["sleep", "1000"])
(folder / "pids").write_text(f"{os.getpid()} {child.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        while (folder / "hangs").exists():
            time.sleep(0.05)
        known = {"/health": not (folder / "old").exists(), "/v1/models": True}
        status = 404 if not known.get(self.path) else 500 if (folder / "sick").exists() else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): ...
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def wished(folder: Path, **changes: Any) -> Wished:
    def command(port: int) -> list[str]:
        return [sys.executable, "-c", SERVER, str(folder), str(port)]

    fields = {
        "name": "the server", "command": command, "log_file": folder / "server.log", "health": ("/health", "/v1/models"),
        "start_s": 60.0, "silent_s": 0.5, "restarts": 2, "remedy": "try another",
    }  # fmt: skip
    return Wished(**{**fields, **changes})


def pids(folder: Path) -> list[int]:
    return [int(word) for word in (folder / "pids").read_text().split()]


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def are_gone(numbers: list[int]) -> bool:
    return all(not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE for number in numbers)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_HEALTH_EVERY_S", 0.1)
    monkeypatch.setattr(watched, "_HEALTH_TIMEOUT_S", 0.3)


def test_a_server_that_dies_or_hangs_is_started_again_at_its_address_a_few_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), WatchedServer(wished(tmp_path)) as server:
        url = server.start()
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200 and server.num_starts == 1
        first = pids(tmp_path)
        os.kill(first[0], signal.SIGKILL)
        assert eventually(lambda: server.num_starts == 2)
        server.wait_until_up(lambda: False)
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        assert are_gone(first) and "ended with status 137 and is started again (1 of 2)" in caplog.text
        second = pids(tmp_path)
        (tmp_path / "hangs").touch()
        assert eventually(lambda: "has not been healthy for 0.5 s and is started again (2 of 2)" in caplog.text)
        (tmp_path / "hangs").unlink()
        server.wait_until_up(lambda: False)
        third = pids(tmp_path)
        assert are_gone(second) and server.num_starts == 3
        os.kill(third[0], signal.SIGKILL)
        with pytest.raises(
            ServerDown, match=r"the server ended with status 137 \(loading\) and is not started again: it was, 2"
        ):
            while True:
                server.wait_until_up(lambda: False)
                time.sleep(0.05)
    assert (tmp_path / "server.log").read_text() == "loading\n" * 3 and are_gone([*first, *second, *third])


def test_a_server_that_never_becomes_healthy_is_one_sentence_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with (
        WatchedServer(wished(tmp_path)) as server,
        pytest.raises(
            ServerDown, match=r"^the server did not start \(loading / no such model\): it ended with status 1; try another\.$"
        ),
    ):
        server.start()
    (tmp_path / "broken").unlink()
    (tmp_path / "sick").touch()
    with WatchedServer(wished(tmp_path, start_s=1.0)) as server:
        with pytest.raises(
            ServerDown,
            match=r"did not start \(loading\): it was not healthy within 1 s \(/health answers with status 500\); try",
        ):
            server.start()
        assert are_gone(pids(tmp_path))
    with (
        WatchedServer(wished(tmp_path, command=lambda port: ["no-such-program"])) as server,
        pytest.raises(ServerDown, match="no-such-program: No such file or directory"),
    ):
        server.start()


def test_another_path_is_asked_where_the_first_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with WatchedServer(wished(tmp_path)) as server:
        server.start()
        last = pids(tmp_path)
    assert are_gone(last)


def test_a_port_that_another_has_taken_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WatchedServer(wished(tmp_path)) as other:
        taken = int(other.start().rpartition(":")[2])
        ports = iter([taken])
        free_port = watched._free_port
        monkeypatch.setattr(watched, "_free_port", lambda: next(ports, None) or free_port())
        with WatchedServer(wished(tmp_path)) as server:
            assert server.start() != other.url and server.num_starts == 2


def test_a_killed_parent_leaves_no_server_behind(tmp_path: Path) -> None:
    """kill -9 of the process that started it, while one that it has forked lives on."""
    script = f"""
import os, subprocess, sys, time
from pathlib import Path
from tests.runs.test_watched import wished
from arclab.runs.watched import WatchedServer
server = WatchedServer(wished(Path({str(tmp_path)!r})))
server.start()
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    environment = {
        **script_env(),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=120, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert eventually(lambda: are_gone(pids(tmp_path)))


def test_it_ends_where_sigint_is_ignored(tmp_path: Path) -> None:
    """As in a shell script that starts the run with &."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with WatchedServer(wished(tmp_path)) as server:
            server.start()
            found = pids(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert eventually(lambda: are_gone(found), 10.0)
