"""The server of the inner loop: one reply to each request, whatever happens to clients, messages and the server itself."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from arclab.config.compose import ConfigError
from arclab.config.seal_knowledge_schema import ServeConfig
from arclab.methods.seal.knowledge.client import Client, ServerDown, address_in
from arclab.methods.seal.knowledge.engine import Outcome, Request
from arclab.methods.seal.knowledge.messages import VERSION, message, request_message
from arclab.methods.seal.knowledge.server import Server, socket_address
from arclab.methods.seal.knowledge.watched import Watched

from .common import request

WISHED = ServeConfig(address="ipc", heartbeat_s=0.05, max_bytes=4096, num_kept=3)


class Engine:
    """In place of the real one: says back the sequences, takes a step for each, and fails where it is told to."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(name="stub")
        self.asked: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def answer(self, request: Request, before_step: Callable[[], None] = lambda: None) -> Outcome:
        self.asked.append(request.id)
        for text in request.sequences:
            before_step()
            if text == "fault":
                raise RuntimeError("a fault inside")
            if text == "bad":
                raise ValueError("sequence 0 is too long.")
            while not self.goes_on.wait(0.01):
                before_step()
        return Outcome(request.sequences, len(request.sequences), 1, 1, 0, None, 0.0, "")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def address(tmp_path: Path, engine: Engine) -> Iterator[str]:
    server = Server(engine, WISHED, socket_address("ipc", tmp_path))  # pyright: ignore
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield server.address
    Client(server.address, 5).shutdown()
    thread.join(5)
    assert not thread.is_alive(), "shutdown ends it"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    found = Client(address, timeout_s=5, resend_s=1)
    yield found
    found.close()


def test_requests_are_answered_one_after_the_other_also_without_training(client: Client, engine: Engine) -> None:
    assert client.hello() == "stub"
    assert client.ask(request("x", "y", id="a")).texts == ("x", "y")
    for number in range(3):
        assert client.ask(request(id=f"base{number}")).texts == ()
    assert client.ask(request("z", id="b")).texts == ("z",) and engine.asked == ["a", "base0", "base1", "base2", "b"]


def test_a_fault_inside_is_told_and_the_server_goes_on(client: Client) -> None:
    with pytest.raises(ServerDown, match=r"cannot answer \(RuntimeError: a fault inside\)\.$"):
        client.ask(request("fault", id="a"))
    with pytest.raises(ServerDown, match=r"cannot answer \(sequence 0 is too long\)\.$"):
        client.ask(request("bad", id="b"))
    assert client.ask(request("x", id="c")).texts == ("x",)


def replies(address: str, *sent: bytes, count: int, within_s: float = 3.0) -> list[dict[str, Any]]:
    """What comes back, heartbeats left out; waits a little for one too many."""
    socket, found = zmq.Context.instance().socket(zmq.DEALER), list[dict[str, Any]]()
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    for data in sent:
        socket.send(data)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if socket.poll(50):
            said = json.loads(socket.recv())
            found += [] if said["kind"] == "heartbeat" else [said]
            deadline = min(deadline, time.monotonic() + 0.2) if len(found) == count else deadline
    socket.close()
    return found


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no UTF-8"),
        (b"[1]", "no JSON object"),
        (
            json.dumps({"version": VERSION + 1, "kind": "request"}).encode(),
            f"is of version {VERSION + 1}, and this program speaks version {VERSION}",
        ),
        (message("dance"), "the message is a dance; send a request"),
        (message("request", id="a"), "it has no sequences"),
        (request_message(request("x", rank=1)).replace(b'"rank": 1', b'"rank": 0'), "adaptation.rank=0 must be at least 1"),
        (request_message(request("x")).replace(b'"lora"', b'"other"'), "AdaptKind 'other' is not known"),
    ],
)
def test_what_is_no_request_is_one_error(data: bytes, why: str, address: str, engine: Engine) -> None:
    (said,) = replies(address, data, count=1)
    assert said["kind"] == "error" and why in said["error"] and engine.asked == []


def test_a_message_that_is_too_large_is_not_read(address: str, client: Client, engine: Engine) -> None:
    assert replies(address, request_message(request("x" * 5000)), count=1, within_s=0.3) == []
    assert client.ask(request("x")).texts == ("x",) and engine.asked == ["a"]


def test_a_request_that_is_sent_again_is_worked_on_once(address: str, engine: Engine) -> None:
    data = request_message(request("x"))
    first = replies(address, data, data, data, count=3)
    again = replies(address, data, count=1)
    assert engine.asked == ["a"] and 1 <= len(first) <= 3 and again[0]["outcome"]["texts"] == ["x"]
    (other,) = replies(address, request_message(request("y")), count=1)
    assert "the id a is that of another request" in other["error"]
    for number in range(3):
        replies(address, request_message(request("x", id=str(number))), count=1)
    assert replies(address, data, count=1)[0]["kind"] == "reply" and engine.asked.count("a") == 2, "only so many are kept"


def test_who_waits_hears_how_far_it_is_and_who_has_gone_is_not_missed(address: str, client: Client, engine: Engine) -> None:
    engine.goes_on.clear()
    assert replies(address, request_message(request("x", "y", id="gone")), count=1, within_s=0.1) == []
    beats: list[dict[str, Any]] = []

    def heard(beat: dict[str, Any]) -> None:
        beats.append(beat)
        if len(beats) == 3:
            engine.goes_on.set()

    assert client.ask(request("z", epochs=2), on_beat=heard).texts == ("z",)
    assert engine.asked == ["gone", "a"] and {beat["num_steps"] for beat in beats} <= {0, 2} and beats[0]["kind"] == "heartbeat"


def test_a_request_that_is_given_up_does_not_answer_the_next(client: Client, engine: Engine) -> None:
    class Enough(Exception):
        pass

    def enough() -> None:
        if engine.asked:
            raise Enough

    engine.goes_on.clear()
    with pytest.raises(Enough):
        client.ask(request("x", id="a"), enough)
    engine.goes_on.set()
    assert client.ask(request("y", id="b")).texts == ("y",)


def test_nobody_there_and_an_address_that_is_none_are_sentences(tmp_path: Path, address: str) -> None:
    with pytest.raises(ServerDown, match=r"has said nothing for 0\.2 s; start it with stage=serve"):
        Client(f"ipc://{tmp_path}/nobody", 0.2).ask(request("x"))
    with pytest.raises(ServerDown, match=r"query\.server=nowhere has no endpoint\.json"):
        address_in("nowhere")
    with pytest.raises(ServerDown, match=r"query\.server=http://x is no address"):
        Client("http://x", 1)
    taken = Server(Engine(), WISHED, socket_address("tcp://127.0.0.1:0", tmp_path))  # pyright: ignore
    with pytest.raises(ConfigError, match=r"serve\.address=tcp://127\.0\.0\.1:\d+ cannot be listened on"):
        Server(Engine(), replace(WISHED), taken.address)  # pyright: ignore
    assert len(socket_address("ipc", tmp_path / ("x" * 120))) < 107


_SCRIPT = """
import sys
from pathlib import Path
from tests.methods.seal.knowledge.test_server import Engine, Server, WISHED, socket_address
engine = Engine()
if not sys.argv[2]:
    engine.goes_on.clear()  # the first start never ends its work
server = Server(engine, WISHED, sys.argv[2] or socket_address("ipc", Path(sys.argv[1])))
print(server.address, flush=True)
server.serve()
"""


def test_a_server_that_is_killed_is_started_again_and_the_request_is_answered_once(tmp_path: Path) -> None:
    def command(address: str) -> list[str]:
        return [sys.executable, "-c", _SCRIPT, str(tmp_path), address]

    watched = Watched(command, tmp_path / "log", "the server")
    with watched as address:
        client, killed = Client(address, timeout_s=60, resend_s=0.5), list[int]()

        def kill(beat: dict[str, Any]) -> None:
            assert watched._process is not None
            if not killed:
                killed.append(watched._process.pid)
                os.kill(killed[0], signal.SIGKILL)

        assert client.ask(request("x"), on_beat=kill).texts == ("x",) and killed
        assert not client._socket.poll(300), "one reply"
        client.close()
