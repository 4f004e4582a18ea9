"""What a request may cost, and where it may go: time, bytes, proxies, redirects, and secrets that must not be shown."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from typing import Any, BinaryIO

import pytest

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.lm.endpoint import http as endpoint_http
from arclab.lm.endpoint import server as endpoint_server
from arclab.lm.endpoint.http import EndpointError, connect

from .conftest import sampling
from .endpoint_server import PROMPTS, FakeServer, Writer, endpoint, fails, free_port, said

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def slowly(head: bytes, piece: bytes, pause_s: float = 0.02) -> Writer:
    """Writes head, then piece after piece, until the client or the test has enough."""

    def write(file: BinaryIO, closing: threading.Event) -> None:
        file.write(head)
        for _ in range(5000):
            if closing.wait(pause_s):
                return
            file.write(piece)
            file.flush()

    return write


@pytest.mark.parametrize(
    "writer",
    [
        slowly(b"", b"H"),
        slowly(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n"),
        slowly(HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        slowly(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["first line", "headers", "body", "chunks", "interim answers"],
)
def test_an_answer_that_drips_ends_at_the_deadline(server: FakeServer, writer: Writer) -> None:
    server.answer = lambda number, body: (0, writer, {})
    begun = time.monotonic()
    fails(endpoint(server.url, timeout_s=0.3, max_retries=0), server.url, "failed 1 times")
    assert time.monotonic() - begun < 2


def test_the_deadline_is_for_connecting_too() -> None:
    """A server that accepts nobody: its queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(address)
        begun = time.monotonic()
        fails(endpoint(f"http://127.0.0.1:{address[1]}/v1", timeout_s=0.2, max_retries=0), "no answer within lm.timeout_s=0.2")
        assert time.monotonic() - begun < 2
        for other in others:
            other.close()


@pytest.mark.parametrize("status", [b"200 OK", b"500 Oh"])
def test_an_answer_without_end_ends_at_the_largest_size(
    server: FakeServer, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_server, "_BYTES_AROUND", 2**18)
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n\r\n"
    server.answer = lambda number, body: (0, slowly(head, b" " * 2**16, 0.0), {})
    begun = time.monotonic()
    fails(endpoint(server.url, max_retries=0), "an answer of more than", "bytes")
    assert time.monotonic() - begun < 5


def test_a_compressed_answer(server: FakeServer) -> None:
    """Small ones are read although they were not asked for; one that unfolds to 50 MB takes no such memory."""

    def packed(number: int, body: dict[str, Any]) -> Any:
        return 200, gzip.compress(json.dumps(said(body)[1]).encode()), {"Content-Encoding": "gzip"}

    server.answer = packed
    assert endpoint(server.url).generate(PROMPTS[:1], 1, sampling())[0].completions
    bomb = gzip.compress(b" " * (50 * 2**20), compresslevel=1)
    for content, encoding, words in (
        (bomb, "gzip", "an answer of more than"),
        (b"no gzip", "gzip", "that is no gzip"),
        (b"x", "br", "compressed as br"),
    ):
        server.answer = lambda number, body, content=content, encoding=encoding: (200, content, {"Content-Encoding": encoding})
        fails(endpoint(server.url, max_retries=0), words)


def test_ctrl_c_does_not_wait_for_what_is_under_way(server: FakeServer) -> None:
    server.answer = lambda number, body: said(body) if number == 1 else (0, slowly(HEAD + b"\r\n", b" "), {})

    def interrupt(number: int, reply: object) -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    model = endpoint(server.url)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS, 1, sampling(), interrupt)
    server.answer = lambda number, body: said(body)  # the model is of use afterwards
    assert len(model.generate(PROMPTS, 1, sampling())) == 4 and time.monotonic() - begun < 5


# Several servers


def test_several_servers_are_asked_in_turn_and_a_dead_one_is_left_out(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    other, dead = FakeServer(), f"http://127.0.0.1:{free_port()}/v1"
    try:
        model = endpoint(server.url, base_urls=[other.url], num_parallel=1)
        alone = [reply.completions[0].text for reply in model.generate(PROMPTS, 1, sampling())]
        assert len(server.requests) == len(other.requests) == 2
        model = endpoint(server.url, base_urls=[dead, other.url], max_retries=1, num_parallel=2)
        with caplog.at_level("WARNING"):
            for _ in range(3):
                assert [reply.completions[0].text for reply in model.generate(PROMPTS, 1, sampling())] == alone
        left_out = [record.message for record in caplog.records if dead in record.message]
        assert len(left_out) == 1 and "is asked no more" in left_out[0] and "Connection refused" in left_out[0]
        assert len(server.requests) + len(other.requests) == 16 and min(len(server.requests), len(other.requests)) > 3
        for one in (server, other):
            one.answer = lambda number, body: (500, {"error": "broken"}, {})
        fails(model, "failed 2 times, at last with: status 500: broken; check that it runs")
        for retries in (0, 1):  # also of requests that were under way when it was left out
            for one in (server, other):
                one.reset()
            model = endpoint(dead, base_urls=[other.url], max_retries=retries, num_parallel=4)
            assert len(model.generate(PROMPTS, 1, sampling())) == 4
    finally:
        other.close()


# Where it may go


def test_a_redirect_is_not_followed(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_KEY", "sk-secret")
    asked: list[int] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0.1)
        place = f"http://user:sk-other@127.0.0.1:{other.getsockname()[1]}/v1/chat/completions?key=sk-third"
        for status in (301, 302, 307, 308):
            server.answer = lambda number, body, status=status: (status, "", {"Location": place})
            message = fails(
                endpoint(server.url, api_key_env="LM_KEY"), server.url, "redirects to http://127.0.0.1", "lm.base_url"
            )
            assert "sk-" not in message
            asked.append(len(server.requests))
        with pytest.raises(TimeoutError):
            other.accept()
    assert asked == [1, 2, 3, 4]
    server.answer = lambda number, body: (302, "", {"Location": "http://[bad"})
    fails(endpoint(server.url), "redirects to an address that is none")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1", "nonsense://x"])
def test_a_server_on_this_machine_needs_no_proxy(
    server: FakeServer, variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    for host in ("127.0.0.1", "localhost"):
        assert endpoint(server.url.replace("127.0.0.1", host)).generate(PROMPTS[:1], 1, sampling())[0].completions
    assert connect("http://[::1]:8000/v1", None).proxy is None


def test_another_server_is_asked_through_the_proxy_which_errors_name(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretended server is the proxy."""
    address = server.url.removesuffix("/v1").replace("http://", "http://user:sk-proxy@")
    monkeypatch.setenv("http_proxy", address)
    assert endpoint("http://elsewhere.invalid/v1").generate(PROMPTS[:1], 1, sampling())[0].completions
    named = f"through the proxy {server.url.removesuffix('/v1')} of $http_proxy"
    server.answer = lambda number, body: (502, "Bad Gateway", {})
    message = fails(endpoint("http://elsewhere.invalid/v1", max_retries=0), named, "status 502")
    assert "sk-proxy" not in message
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{free_port()}")
    fails(endpoint("http://elsewhere.invalid/v1", max_retries=0), "of $http_proxy", "Connection refused")
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    assert endpoint_http.connect("http://elsewhere.invalid/v1", None).route == ""


@pytest.mark.parametrize(
    ("proxy", "words"),
    [("socks5://sk-user:sk-word@proxy:1080", "pip install socksio"), ("nonsense://sk-x", "no address that can be used")],
)
def test_a_proxy_that_cannot_be_used_is_a_sentence(proxy: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setattr(endpoint_http.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EndpointError) as raised:
        connect("https://elsewhere.invalid/v1", None)
    assert "$ALL_PROXY" in str(raised.value) and words in str(raised.value) and "sk-" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("base_url", "http://user:sk-word@localhost:8000/v1", "holds a user name or a password"),
        ("base_url", "user:sk-word@localhost/v1", "holds a user name or a password"),
        ("base_url", "'http://localhost/v1?api-key=sk-word'", "has a query"),
        ("base_url", "'http://localhost/v1#sk-word'", "has a query or a fragment"),
        ("base_url", "'http://localhost:80sk-word/v1'", "is no address"),
        ("base_url", "http://", "must start with http:// or https:// and a host"),
        ("base_url", "ftp://localhost", "=ftp://localhost must start with"),
        ("api_key_env", "sk-word-1234", "must be the name of an environment variable"),
    ],
)
def test_a_secret_where_none_belongs_is_refused_and_not_shown(key: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_evaluate(["solver=program_sampling", "lm=endpoint", "lm.name=m", "dataset=arc1", f"lm.{key}={value}"])
    assert f"lm.{key}" in str(raised.value) and words in str(raised.value) and "sk-word" not in str(raised.value)
    with pytest.raises(EndpointError, match=r"lm\."):
        endpoint(**{"url": "http://localhost/v1", key: value.strip("'")})
