"""The inner loop as a server: requests over ZeroMQ, each answered once.

    python self_improve.py method=seal_knowledge lm=smollm2_135m name=a stage=serve       # until it is told to end
    python -m arclab.methods.seal.knowledge.server RUN_FOLDER ADDRESS                     # what query.server=start starts

It listens on this machine alone (a socket in the file system, or 127.0.0.1), or for those that have keys (serve.keys), and
writes its address into endpoint.json of the run folder when it is ready. One request is worked on at a time; the others wait,
and who waits gets a heartbeat every serve.heartbeat_s, with the step and the time that is left. A request is known by its id:
one that is sent again, by whoever, waits for the same result or gets the result that is kept. Whatever goes wrong with a
message is an error reply to who sent it, and the server goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import socket
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import zmq

from arclab.config.compose import ConfigError, run_main, thaw_run
from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig, ServeConfig
from arclab.files import write_atomically
from arclab.lm.hf import load_hf
from arclab.methods.seal.knowledge.engine import Engine, Request
from arclab.methods.seal.knowledge.keys import lock_socket
from arclab.methods.seal.knowledge.messages import VERSION, message, read_message, request_in
from arclab.methods.seal.knowledge.policy import policy_inputs, policy_of
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

ENDPOINT = "endpoint.json"
_POLL_MS = 20
_LONGEST_SOCKET = 100  # bytes of a path; the system takes 107
log = logging.getLogger(__name__)


class Stopped(Exception):
    """The server is told to end while a request is worked on."""


@dataclass(slots=True)
class _Job:
    """A request that is waited for. waiting: the clients' identities. step, num_steps: how far its training is."""

    request: Request
    content: bytes
    waiting: list[bytes]
    began_s: float = 0.0
    step: int = 0
    num_steps: int = 0


@dataclass(slots=True)
class _Desk:
    """What the two threads share. done: results to be sent, as (id, message)."""

    jobs: queue.Queue[_Job] = field(default_factory=queue.Queue)
    done: queue.Queue[tuple[str, bytes]] = field(default_factory=queue.Queue)
    ending: threading.Event = field(default_factory=threading.Event)


class Server:
    """address: what it listens on; that of a client. serve() works until a client says shutdown, or told() is true."""

    def __init__(self, engine: Engine, wished: ServeConfig, address: str) -> None:
        self._engine, self._wished, self._desk = engine, wished, _Desk()
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wished.max_bytes)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._doorman = None if wished.keys is None else lock_socket(self._socket, Path(wished.keys))
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._close(0)
            raise ConfigError(
                f"serve.address={address} cannot be listened on ({error.strerror}); choose another one, or end who uses it."
            ) from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._pending: dict[str, _Job] = {}
        self._kept: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()  # id: content of the request, reply
        self.num_answered = 0

    def serve(self, told: Callable[[], bool] = lambda: False) -> None:
        """Messages are read in a thread of their own; training is in this one."""
        speaker = threading.Thread(target=self._speak, daemon=True)
        speaker.start()
        try:
            while not self._desk.ending.is_set():
                if told():
                    self._desk.ending.set()
                try:
                    job = self._desk.jobs.get(timeout=0.1)
                except queue.Empty:
                    continue
                self._work(job, told)
        finally:
            self._desk.ending.set()
            speaker.join()

    def _work(self, job: _Job, told: Callable[[], bool]) -> None:
        request = job.request
        job.began_s = time.monotonic()
        batches = -(-len(request.sequences) // request.adaptation.batch_size)
        job.num_steps = batches * request.adaptation.epochs

        def before_step() -> None:
            job.step += 1
            if self._desk.ending.is_set() or told():
                raise Stopped

        try:
            reply = message("reply", id=request.id, outcome=asdict(self._engine.answer(request, before_step)))
        except Stopped:
            self._desk.ending.set()
            return
        except ValueError as error:
            reply = message("error", id=request.id, error=str(error))
        # A bug, or a fault of the machine: the client hears of it, the log has the rest, and the base model is put back.
        except (RuntimeError, ArithmeticError, LookupError, TypeError, AssertionError, OSError) as error:
            log.exception("request %s", request.id)
            reply = message("error", id=request.id, error=f"{type(error).__name__}: {error}")
        self._desk.done.put((request.id, reply))

    def _speak(self) -> None:
        beat_at = time.monotonic()
        try:
            while True:
                is_ending = self._desk.ending.is_set()
                self._send_done()
                if is_ending:
                    return
                if self._socket.poll(_POLL_MS):
                    self._read()
                if time.monotonic() - beat_at >= self._wished.heartbeat_s:
                    beat_at = time.monotonic()
                    self._beat()
        finally:
            self._close(None)

    def _close(self, linger_ms: int | None) -> None:
        self._socket.close(linger_ms)
        if self._doorman is not None:
            self._doorman.stop()

    def _read(self) -> None:
        frames = self._socket.recv_multipart()
        client, data = frames[0], frames[-1]
        try:
            found = read_message(data)
            if found["kind"] == "shutdown":
                self._socket.send_multipart([client, message("bye")])
                self._desk.ending.set()
            elif found["kind"] == "hello":
                self._socket.send_multipart([client, message("hello", model=self._engine.model.name)])
            elif found["kind"] == "request":
                self._accept(client, request_in(found), data)
            else:
                raise ValueError(f"the message is a {found['kind'][:40]}; send a request, hello or shutdown.")
        except ValueError as error:
            self._socket.send_multipart([client, message("error", id=_id_in(data), error=str(error))])

    def _accept(self, client: bytes, request: Request, content: bytes) -> None:
        """ValueError: the id is that of another request."""
        kept, pending = self._kept.get(request.id), self._pending.get(request.id)
        before = kept[0] if kept else pending.content if pending else content
        if before != content:
            raise ValueError(f"the id {request.id[:40]} is that of another request; give each request an id of its own.")
        if kept:
            self._socket.send_multipart([client, kept[1]])
        elif pending:
            pending.waiting += [] if client in pending.waiting else [client]
        else:
            self._pending[request.id] = job = _Job(request, content, [client])
            self._desk.jobs.put(job)

    def _send_done(self) -> None:
        while not self._desk.done.empty():
            id_, reply = self._desk.done.get()
            job = self._pending.pop(id_)
            self._kept[id_] = (job.content, reply)
            while len(self._kept) > self._wished.num_kept:
                self._kept.popitem(last=False)
            for client in job.waiting:  # who has gone is not reached, which the socket takes in silence
                self._socket.send_multipart([client, reply])
            self.num_answered += 1

    def _beat(self) -> None:
        for job in self._pending.values():
            spent_s = time.monotonic() - job.began_s
            left_s = spent_s / job.step * (job.num_steps - job.step) if job.step else None
            beat = message("heartbeat", id=job.request.id, step=job.step, num_steps=job.num_steps, left_s=left_s)
            for client in job.waiting:
                self._socket.send_multipart([client, beat])


def _id_in(data: bytes) -> str:
    """Of a message that may be anything."""
    try:
        return str(read_message(data).get("id", ""))
    except ValueError:
        return ""


def socket_address(wished: str, folder: Path) -> str:
    """wished: of serve.address. A socket lies in the run folder, or, where its path would be too long, in one of its own.
    Port 0: one that is free now."""
    if wished != "ipc":
        address = wished.replace("localhost", "127.0.0.1")
        return f"{address.removesuffix('0')}{_free_port()}" if address.endswith(":0") else address
    path = folder.resolve() / "server.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        path = Path(tempfile.mkdtemp(prefix="arclab_")) / "server.sock"
    path.unlink(missing_ok=True)
    return f"ipc://{path}"


def _free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def open_server(config: SealKnowledgeConfig, folder: Path, address: str = "") -> Server:
    """address: "" chooses one. ConfigError: it cannot be had. ValueError: the model cannot."""
    policy = policy_of(config, config.round)
    assert isinstance(policy, HfModelConfig), "the schema refuses others"
    engine = Engine(load_hf(policy))
    server = Server(engine, config.serve, address or socket_address(config.serve.address, folder))
    record = {
        "address": server.address.replace("0.0.0.0", socket.gethostname()),
        "version": VERSION,
        "pid": os.getpid(),
        "model": policy.name,
    }
    write_atomically(folder / ENDPOINT, json.dumps(record, indent=1) + "\n")
    return server


def serve(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """stage=serve: until a client says shutdown, or the run is told to end."""

    def work(run: RunDir, progress: WorkProgress) -> Made:
        server = open_server(config, run.path)
        log.info("serving at %s: query.server=%s", server.address, run.path)
        server.serve(lambda: progress.is_told)
        (run.path / ENDPOINT).unlink(missing_ok=True)
        progress.require_not_told()
        told = f"{server.num_answered} requests answered"
        return Made(outputs=[], counts={"answered": float(server.num_answered)}, message=told)

    return make_stage(config, ranks, signals, folder, policy_inputs(config), 1, work)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m arclab.methods.seal.knowledge.server", description="Serve the inner loop.")
    parser.add_argument("folder", type=Path, help="the folder of a stage, with its config.yaml")
    parser.add_argument("address", help="where it listens")
    given = parser.parse_args(argv)
    config = thaw_run(given.folder / "config.yaml")
    if not isinstance(config, SealKnowledgeConfig):
        raise ConfigError(f"{given.folder} is no run of method=seal_knowledge; give the folder of one of its stages.")
    open_server(config, given.folder, given.address).serve()


if __name__ == "__main__":
    run_main(main)
