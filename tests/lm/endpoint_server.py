"""A pretended server for the tests of lm=endpoint: on this machine only, it answers what a test tells it to, and notes what it is sent."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

import pytest

from arclab.config.llm_schema import EndpointModelConfig
from arclab.lm.endpoint.model import EndpointError, EndpointModel
from arclab.lm.language_model import Reply
from arclab.lm.models import load_language_model

from .conftest import sampling, user

# Status, content and headers. Content: JSON, text (sent as HTML), bytes, or what writes the whole answer, head and all.
Answer = tuple[int, Any, dict[str, str]]
Writer = Callable[[BinaryIO, threading.Event], None]
PROMPTS = [user(f"prompt {number}") for number in range(4)]


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class FakeServer:
    """answer: what the next request gets. requests: (time, body, Authorization) of every chat request, as they came. closing: set when
    whoever writes without end should stop."""

    def __init__(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.guard:
                    fake.requests.append((time.monotonic(), body, self.headers["Authorization"]))
                    number = len(fake.requests)
                    fake.in_flight += 1
                    fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
                status, answer, headers = fake.answer(number, body)
                with fake.guard:
                    fake.in_flight -= 1
                self._send(status, answer, headers)

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in ("one", "two")]}, {})  # fmt: skip

            def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
                if callable(answer):
                    self.close_connection = True
                    answer(self.wfile, fake.closing)
                    return
                content = answer.encode() if isinstance(answer, str) else answer
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                kind = "text/html" if isinstance(answer, str) else "application/json"
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None: ...

        self.guard, self.closing = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda request, client_address: None  # a client that hung up
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self.reset()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def reset(self) -> None:
        self.requests: list[tuple[float, dict[str, Any], str]] = []
        self.in_flight = self.most_in_flight = 0
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: said(body)

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.requests]


def said(body: dict[str, Any], *, count: int | None = None, finish: str = "stop", text: str = "", **choice: Any) -> Answer:
    """A completion as vLLM writes it: the text is the seed and the sample's number unless given."""
    n = body.get("n", 1) if count is None else count
    choices = [
        {
            "index": i, "finish_reason": finish, "message": {"role": "assistant", "content": text or f"{body['messages'][-1]['content']}|{body.get('seed')}|{i}"},
            "logprobs": {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": []}] * (i + 1)} if body.get("logprobs") else None,
            **choice,
        }
        for i in range(n)
    ]  # fmt: skip
    usage = {"prompt_tokens": 11, "completion_tokens": 5 * n, "total_tokens": 11 + 5 * n}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}, {}


def refuse(status: int, message: str, **fields: Any) -> Answer:
    return status, {"error": {"message": message, **fields}}, {}


def endpoint(url: str, **changes: Any) -> EndpointModel:
    fields = {
        "kind": "endpoint", "name": "m", "max_context": None, "thinking": None, "base_url": url, "api_key_env": None, "timeout_s": 20.0,
        "max_retries": 2, "backoff_s": 0.02, "num_parallel": 3,
    }  # fmt: skip
    model = load_language_model(EndpointModelConfig(**{**fields, **changes}))
    assert isinstance(model, EndpointModel)
    return model


def fails(model: EndpointModel, *words: str, num_samples: int = 1, **changes: Any) -> str:
    with pytest.raises(EndpointError) as raised:
        model.generate(PROMPTS[:1], num_samples, sampling(**changes))
    message = str(raised.value)
    assert "\n" not in message and isinstance(raised.value, ValueError)
    for word in words:
        assert word in message, message
    return message


def every_text(replies: list[Reply]) -> list[list[str]]:
    return [[c.text for c in reply.completions] for reply in replies]
