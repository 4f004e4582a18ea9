"""Asking the server of the inner loop.

    with server_asked(config, run.path) as client:              # config.query.server: start, an address, or a run folder
        outcome = client.ask(request, progress.require_not_told)

A request that is not answered is sent again with the same id, so that nothing is trained twice: the server may have been
started again, or may still be at work. Signs of life count: what ends the waiting is query.timeout_s without one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from arclab.config.seal_knowledge_schema import START, SealKnowledgeConfig
from arclab.files import DamagedFile, read_object
from arclab.methods.seal.knowledge.engine import Outcome, Request
from arclab.methods.seal.knowledge.keys import unlock_socket
from arclab.methods.seal.knowledge.messages import message, outcome_of, read_message, request_message
from arclab.methods.seal.knowledge.server import ENDPOINT, socket_address
from arclab.runs.watched import ServerDown, WatchedServer, Wished

SERVER = "arclab.methods.seal.knowledge.server"  # the module
_POLL_MS = 100
_HELLO_S = 10.0  # for a server that somebody else runs
_HEALTH_S = 2.0  # for one that is watched
_START_S, _SILENT_S, _RESTARTS = 600.0, 120.0, 5  # of one that is watched: to load a model, without a sign of life


class Client:
    """timeout_s: without a sign of life. resend_s: after so long a silence a request is sent again, over a new socket.
    keys: the folder of the keys of a server that has some. require_up: raises what is known of a server that is gone for
    good. Used by one thread."""

    def __init__(
        self, address: str, timeout_s: float, resend_s: float = 10.0, keys: str | None = None,
        require_up: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.address, self._timeout_s, self._resend_s, self._keys = address, timeout_s, resend_s, keys
        self._require_up = require_up
        self._socket = self._connected()

    def close(self) -> None:
        self._socket.close(0)

    def hello(self, timeout_s: float = _HELLO_S) -> str:
        """The name of the server's model. ServerDown: nobody answers, or another version does."""
        return self._exchange(message("hello"), "hello", "", timeout_s, lambda: None)["model"]

    def shutdown(self) -> None:
        self._exchange(message("shutdown"), "bye", "", _HELLO_S, lambda: None)

    def ask(
        self,
        request: Request,
        require_time: Callable[[], None] = lambda: None,
        on_beat: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Outcome:
        """require_time: may end the waiting by what it raises. ServerDown: see the class; what the server says is wrong with
        the request."""
        data = request_message(request)
        reply = self._exchange(data, "reply", request.id, self._timeout_s, require_time, on_beat)
        return outcome_of(reply["outcome"])

    def _exchange(
        self, data: bytes, kind: str, id_: str, timeout_s: float, require_time: Callable[[], None],
        on_beat: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:  # fmt: skip
        heard_at = sent_at = time.monotonic()
        self._socket.send(data)
        while True:
            require_time()
            now = time.monotonic()
            if now - heard_at > timeout_s:
                raise ServerDown(
                    f"the server {self.address} has said nothing for {timeout_s:g} s; start it with stage=serve, or set "
                    "query.server=start, or query.server=none."
                )
            if now - max(heard_at, sent_at) > self._resend_s:
                self._require_up()
                self._socket.close(0)
                self._socket, sent_at = self._connected(), now
                self._socket.send(data)
            if not self._socket.poll(_POLL_MS):
                continue
            found = read_message(self._socket.recv())
            if found.get("id", "") != id_:
                continue  # of a request that was given up
            heard_at = time.monotonic()
            if found["kind"] == "error":
                raise ServerDown(f"the server {self.address} cannot answer ({str(found.get('error')).rstrip('.')}).")
            if found["kind"] == kind:
                return found
            on_beat(found)

    def _connected(self) -> zmq.Socket[bytes]:
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        if self._keys is not None:
            unlock_socket(socket, Path(self._keys))
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ServerDown(
                f"query.server={self.address} is no address ({error.strerror}); give ipc://FILE, tcp://HOST:PORT or a run "
                "folder."
            ) from error
        return socket


@contextmanager
def server_asked(config: SealKnowledgeConfig, folder: Path) -> Iterator[Client]:
    """folder: of the stage that asks. ServerDown, ValueError: there is no server, or it does not start."""
    server, timeout_s, keys = config.query.server, config.query.timeout_s, config.serve.keys
    if server == START:
        address = socket_address(config.serve.address, folder)
        with watched_server(address, folder, keys) as watched:
            watched.start()
            yield from _open(Client(address, timeout_s, keys=keys, require_up=lambda: watched.wait_until_up(lambda: True)))
        return
    yield from _open(Client(address_in(server), timeout_s, keys=keys), is_elsewhere=True)


def watched_server(
    address: str, folder: Path, keys: str | None = None, command: Sequence[str] = (sys.executable, "-m", SERVER)
) -> WatchedServer:
    """command: of a server, without its folder and address."""

    def is_healthy() -> bool:
        client = Client(address, _HELLO_S, keys=keys)
        try:
            client.hello(_HEALTH_S)
        except (ServerDown, DamagedFile):
            return False
        finally:
            client.close()
        return True

    return WatchedServer(
        Wished(
            name="the server of the inner loop", command=lambda _: [*command, str(folder), address],
            log_file=folder / "server.log", health=is_healthy, start_s=_START_S, silent_s=_SILENT_S, restarts=_RESTARTS,
            remedy=f"see {folder / 'server.log'}",
        )
    )  # fmt: skip


def _open(client: Client, is_elsewhere: bool = False) -> Iterator[Client]:
    try:
        if is_elsewhere:
            client.hello()
        yield client
    finally:
        client.close()


def address_in(server: str) -> str:
    """An address as it is; of a run folder what endpoint.json says. ServerDown: there is none."""
    if "://" in server:
        return server
    path = Path(server).expanduser() / ENDPOINT
    if not path.is_file():
        raise ServerDown(f"query.server={server} has no {ENDPOINT}: no server runs there; start it with stage=serve.")
    return read_object(path, {"address": str})["address"]
