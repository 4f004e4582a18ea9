"""The server of the inner loop: one reply to each request, whatever happens to clients, messages and the server itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import zmq

from arclab.config.compose import ConfigError
from arclab.config.seal_knowledge_schema import ServeConfig
from arclab.methods.seal.knowledge.client import Client, address_in, watched_server
from arclab.methods.seal.knowledge.engine import Outcome, Request
from arclab.methods.seal.knowledge.keys import make_keys
from arclab.methods.seal.knowledge.messages import VERSION, message, request_message
from arclab.methods.seal.knowledge.server import Server, socket_address
from arclab.runs.watched import ServerDown

from ....conftest import script_env
from .common import request

ROOT = Path(__file__).parents[4]
WISHED = ServeConfig(address="ipc", keys=None, heartbeat_s=0.05, max_bytes=4096, num_kept=3)


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
import os, sys
from pathlib import Path
from tests.methods.seal.knowledge.test_server import Engine, Server, WISHED
folder, address = Path(sys.argv[1]), sys.argv[2]
engine = Engine()
if not (folder / "pid").exists():
    engine.goes_on.clear()  # the first start never ends its work
server = Server(engine, WISHED, address)
(folder / "pid").write_text(str(os.getpid()))
server.serve()
"""


def test_a_server_that_is_killed_is_started_again_and_the_request_is_answered_once(tmp_path: Path) -> None:
    address, killed = socket_address("ipc", tmp_path), list[int]()
    with watched_server(address, tmp_path, command=(sys.executable, "-c", _SCRIPT)) as watched:
        watched.start()
        client = Client(address, timeout_s=60, resend_s=0.5, require_up=lambda: watched.wait_until_up(lambda: True))

        def kill(beat: dict[str, Any]) -> None:
            if not killed:
                killed.append(int((tmp_path / "pid").read_text()))
                os.kill(killed[0], signal.SIGKILL)

        assert client.ask(request("x"), on_beat=kill).texts == ("x",) and killed and watched.num_starts == 2
        assert not client._socket.poll(300), "one reply"
        client.close()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text())), "it ends with who watches it"


def test_a_server_that_does_not_start_is_one_sentence(tmp_path: Path) -> None:
    broken = (sys.executable, "-c", "raise SystemExit('no such model')")
    with (
        watched_server(f"ipc://{tmp_path}/s", tmp_path, command=broken) as watched,
        pytest.raises(
            ServerDown, match=r"^the server of the inner loop did not start \(no such model\): it ended with status 1; "
        ),
    ):
        watched.start()


def test_who_has_no_key_is_not_heard(tmp_path: Path, engine: Engine) -> None:
    make_keys(tmp_path / "own")
    make_keys(tmp_path / "strange")
    wished = replace(WISHED, keys=str(tmp_path / "own"))
    server = Server(engine, wished, socket_address("tcp://127.0.0.1:0", tmp_path))  # pyright: ignore
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    shutil.copytree(tmp_path / "strange", tmp_path / "mixed")
    shutil.copy(tmp_path / "own" / "server.key", tmp_path / "mixed")
    for keys in (None, str(tmp_path / "strange"), str(tmp_path / "mixed")):
        with pytest.raises(ServerDown, match=r"has said nothing for 0\.3 s"):
            Client(server.address, 1, keys=keys).hello(0.3)
    owner = Client(server.address, 5, keys=wished.keys)
    assert owner.ask(request("x")).texts == ("x",) and engine.asked == ["a"]
    owner.shutdown()
    thread.join(5)
    assert not thread.is_alive() and (tmp_path / "own/server.key_secret").stat().st_mode & 0o77 == 0
    with pytest.raises(ConfigError, match="has keys already"):
        make_keys(tmp_path / "own")
    (tmp_path / "own/client.key_secret").write_text("x")
    with pytest.raises(ConfigError, match=r"client\.key_secret holds no key; make keys with python -m"):
        Client(server.address, 5, keys=wished.keys)
    with pytest.raises(ConfigError, match=r"serve\.keys=nowhere has no server\.key_secret"):
        Server(engine, replace(WISHED, keys="nowhere"), "tcp://127.0.0.1:*")  # pyright: ignore


@pytest.mark.parametrize("key", ["serve.address", "query.server"])
def test_an_address_of_other_hosts_needs_keys(key: str) -> None:
    from .test_trials import config

    with pytest.raises(ConfigError, match=rf"{key}=tcp://10\.0\.0\.1:5555 is of other hosts, .* give serve\.keys=FOLDER"):
        config(f"{key}=tcp://10.0.0.1:5555")
    config(f"{key}=tcp://10.0.0.1:5555", "serve.keys=keys")


_MANY = """
import os, sys, threading
from pathlib import Path
from arclab.config.run import DeviceChoice
from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.lm.hf import load_hf
from arclab.methods.seal.knowledge.client import Client
from arclab.methods.seal.knowledge.engine import Engine
from tests.methods.seal.knowledge.common import request
from tests.methods.seal.knowledge.test_server import Server, WISHED, socket_address
import psutil
model = load_hf(HfModelConfig(kind="hf", name=sys.argv[1], max_context=None, thinking=None, adapter=None, dtype=Dtype.float32,
                              attention=LmAttention.sdpa, device=DeviceChoice.cpu, batch_size=8))
server = Server(Engine(model), WISHED, socket_address("ipc", Path(sys.argv[2])))
def ask():
    client = Client(server.address, 60)
    for number in range(1000):
        client.ask(request(id=str(number)))
        if number + 1 in (200, 1000):
            print(psutil.Process().memory_info().rss, flush=True)
    client.shutdown()
threading.Thread(target=ask).start()
server.serve()
"""


@pytest.mark.slow
def test_a_thousand_requests_do_not_grow_the_memory(seal_lm: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MANY, str(seal_lm), str(tmp_path)], env=script_env(), cwd=ROOT, capture_output=True, text=True
    )
    early, late = map(int, done.stdout.split())
    assert late - early < 16 << 20, f"{early} bytes after 200 requests, {late} after 1,000"
