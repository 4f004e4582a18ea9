"""EndpointModel against servers that behave, misbehave and are not there, and against a real one: transformers serve."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from arclab.config.llm_schema import EndpointModelConfig
from arclab.llm.endpoint import EndpointError, EndpointModel
from arclab.llm.language_model import FinishReason, Message, Reply
from arclab.llm.models import load_language_model

from .conftest import sampling, user

Answer = tuple[int, Any, dict[str, str]]
PROMPTS = [user(f"prompt {number}") for number in range(4)]


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class FakeServer:
    """answer: what the next request gets. requests: (time, body, Authorization) of every chat request, as they came."""

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
                content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                kind = "text/html" if isinstance(answer, str) else "application/json"
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None: ...

        self.guard = threading.Lock()
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
            "index": i, "finish_reason": finish, "message": {"role": "assistant", "content": text or f"{body['messages'][-1]['content']}|{body['seed']}|{i}"},
            "logprobs": {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": []}] * (i + 1)} if body.get("logprobs") else None,
            **choice,
        }
        for i in range(n)
    ]  # fmt: skip
    usage = {"prompt_tokens": 11, "completion_tokens": 5 * n, "total_tokens": 11 + 5 * n}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}, {}


def refuse(status: int, message: str, **fields: Any) -> Answer:
    return status, {"error": {"message": message, **fields}}, {}


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.reset()
    return running


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


# What is sent, and read


def test_every_setting_is_sent(server: FakeServer) -> None:
    prompt = (Message("system", "s"), Message("user", "u"))
    endpoint(server.url, thinking=False).generate(
        [prompt], 1, sampling(temperature=0.0, top_p=0.9, min_p=0.1, top_k=7, stop=("END",))
    )
    (body,) = server.bodies
    seed = body.pop("seed")
    assert 0 <= seed < 2**31
    assert body == {
        "model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "max_tokens": 12,
        "temperature": 0.0, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.0, "stop": ["END"],
        "include_stop_str_in_output": True, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    server.reset()
    endpoint(server.url).generate([prompt], 1, sampling())
    assert server.bodies[0]["top_k"] == -1 and server.bodies[0]["min_p"] == 0.0  # a server's own defaults must not apply
    assert not {"stop", "n", "chat_template_kwargs"} & set(server.bodies[0])


def test_samples_that_a_server_draws_together(server: FakeServer) -> None:
    replies = endpoint(server.url).generate(PROMPTS, 3, sampling())
    assert [body["n"] for body in server.bodies] == [3] * 4
    assert [reply.num_prompt_tokens for reply in replies] == [11] * 4
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert [c.text.split("|")[::2] for c in reply.completions] == [[prompt[0].content, str(i)] for i in range(3)]
        assert [c.num_tokens for c in reply.completions] == [1, 2, 3]  # of each sample, not usage of them all
        assert all(c.logprob is None and c.finish_reason is FinishReason.stop for c in reply.completions)


@pytest.mark.parametrize("rejects", [False, True])
def test_samples_of_a_server_without_n(server: FakeServer, rejects: bool) -> None:
    """Requests of their own, whose seeds depend on seed, prompt and sample and on nothing else."""

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return refuse(400, "only one choice, please") if rejects and body.get("n", 1) > 1 else said(body, count=1)

    server.answer = answer
    model = endpoint(server.url)
    texts = every_text(model.generate(PROMPTS, 3, sampling()))
    assert [body.get("n", 1) for body in server.bodies] == [3, *[1] * (12 if rejects else 11)]
    assert len({text for reply in texts for text in reply}) == len({body["seed"] for body in server.bodies}) == 12
    assert every_text(model.generate(PROMPTS[::-1], 2, sampling())) == [reply[:2] for reply in texts[::-1]]
    assert every_text(endpoint(server.url).generate(PROMPTS, 3, sampling())) == texts
    assert not {t for r in every_text(model.generate(PROMPTS, 3, sampling(seed=1))) for t in r} & {t for r in texts for t in r}


def test_a_server_that_takes_only_plain_parameters(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        extra = {"top_k", "min_p", "repetition_penalty", "generation_config"} & set(body)
        return refuse(400, f"Unrecognized request argument: {sorted(extra)}") if extra else said(body)

    server.answer = answer
    model = endpoint(server.url)
    with caplog.at_level(logging.WARNING):
        assert len(model.generate(PROMPTS[:1], 2, sampling())[0].completions) == 2
    assert "takes no top_k and min_p" in caplog.text
    num_requests = len(server.requests)
    fails(model, "takes no top_k and min_p", "sampling.top_k=5", top_k=5)
    fails(endpoint(server.url), "Unrecognized request argument", top_k=5)
    model.generate(PROMPTS, 2, sampling())
    assert len(server.requests) == num_requests + 2 + 4  # it asks no more for what it knows


@pytest.mark.parametrize(
    ("finish", "choice", "text", "expected"),
    [
        ("stop", {}, "a b", ("a b", FinishReason.stop)),
        ("length", {}, "a b", ("a b", FinishReason.length)),
        ("stop", {"stop_reason": "END"}, "a b", ("a bEND", FinishReason.stop)),  # vLLM, if it strips
        ("stop", {"matched_stop": "END"}, "a b", ("a bEND", FinishReason.stop)),  # SGLang
        ("stop", {"stop_reason": 17}, "a b", ("a b", FinishReason.stop)),  # a token
        ("length", {}, "a ENDing", ("a END", FinishReason.stop)),  # transformers serve
        ("stop", {"message": {"role": "assistant", "content": None}}, "", ("", FinishReason.stop)),
    ],
)
def test_how_a_reply_ended(server: FakeServer, finish: str, choice: dict[str, Any], text: str, expected: object) -> None:
    server.answer = lambda number, body: said(body, finish=finish, text=text, **choice)
    (reply,) = endpoint(server.url).generate(PROMPTS[:1], 1, sampling(stop=("END",)))
    assert (reply.completions[0].text, reply.completions[0].finish_reason) == expected
    assert reply.completions[0].num_tokens == 5


def test_requests_are_made_in_parallel_and_stay_in_order(server: FakeServer) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.05 if number == 2 else 0.02)
        return said(body, count=1)

    server.answer = answer
    replies = endpoint(server.url, num_parallel=4).generate(PROMPTS * 2, 1, sampling())
    assert [reply.completions[0].text.split("|")[0] for reply in replies] == [prompt[0].content for prompt in PROMPTS * 2]
    assert 1 < server.most_in_flight <= 4


# What goes wrong


def test_it_tries_again_and_waits_longer(server: FakeServer) -> None:
    server.answer = lambda number, body: refuse(429, "busy") if number < 3 else said(body)
    (reply,) = endpoint(server.url, backoff_s=0.1).generate(PROMPTS[:1], 1, sampling())
    assert len(reply.completions) == 1
    first, second, third = (when for when, _, _ in server.requests)
    assert 0.1 <= second - first < 0.19 < third - second
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server: FakeServer, as_date: bool) -> None:
    wait = formatdate(time.time() + 1.5, usegmt=True) if as_date else "0.3"
    server.answer = lambda number, body: (503, {"error": "later"}, {"Retry-After": wait}) if number == 1 else said(body)
    endpoint(server.url).generate(PROMPTS[:1], 1, sampling())
    first, second = (when for when, _, _ in server.requests)
    assert second - first > 0.29


def test_it_gives_up(server: FakeServer) -> None:
    server.answer = lambda number, body: refuse(500, "out of memory")
    fails(endpoint(server.url), server.url, "failed 3 times", "status 500: out of memory", "model.max_retries=2")
    assert len(server.requests) == 3


def test_a_failure_ends_the_whole_call_at_once(server: FakeServer) -> None:
    """The others are not asked, and whoever waits to try again stops waiting."""

    def answer(number: int, body: dict[str, Any]) -> Answer:
        content = body["messages"][-1]["content"]
        return said(body) if content == "prompt 0" else refuse(401, "no") if content == "prompt 1" else refuse(500, "wait")

    server.answer = answer
    begun = time.monotonic()
    with pytest.raises(EndpointError, match="denies access"):
        endpoint(server.url, backoff_s=60.0, num_parallel=2).generate([*PROMPTS, *PROMPTS[2:] * 20], 1, sampling())
    assert time.monotonic() - begun < 5 and len(server.requests) < 10


def test_a_server_that_hangs(server: FakeServer) -> None:
    release = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Answer:
        release.wait(10)
        return said(body)

    server.answer = answer
    fails(endpoint(server.url, timeout_s=0.15, max_retries=1), "failed 2 times", "no answer within model.timeout_s=0.15")
    release.set()


def test_a_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    fails(endpoint(url, max_retries=1), url, "failed 2 times", "refused", "check that it runs")


def test_a_key(server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("LM_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "not for you")
    with pytest.raises(EndpointError, match=r"model\.api_key_env=LM_KEY is not set"):
        endpoint(server.url, api_key_env="LM_KEY")
    monkeypatch.setenv("LM_KEY", "sk-\u2603")
    with pytest.raises(EndpointError, match="holds characters that no key has") as raised:
        endpoint(server.url, api_key_env="LM_KEY")
    assert "sk-" not in str(raised.value)
    monkeypatch.setenv("LM_KEY", "sk-secret\n")
    server.answer = lambda number, body: refuse(401, "Incorrect API key provided: sk-secret")
    with caplog.at_level(logging.DEBUG):
        message = fails(endpoint(server.url, api_key_env="LM_KEY"), "denies access", "check the key in $LM_KEY")
    assert "sk-secret" not in message + caplog.text
    assert [key for _, _, key in server.requests] == ["Bearer sk-secret"]  # sent, once: a wrong key does not get better
    fails(endpoint(server.url), "model.api_key_env")
    assert server.requests[-1][2] == "Bearer none"


def test_a_model_that_is_not_offered(server: FakeServer) -> None:
    server.answer = lambda number, body: refuse(404, "The model `m` does not exist")
    fails(endpoint(server.url), "model.name=m", "it offers one, two")
    assert len(server.requests) == 1


def test_a_request_that_is_refused_is_not_sent_again(server: FakeServer) -> None:
    server.answer = lambda number, body: refuse(403 if number > 1 else 405, "no")
    fails(endpoint(server.url), "status 405: no")
    assert len(server.requests) == 1


def kept(model: EndpointModel, prompts: list[Any], num_samples: int) -> tuple[dict[int, Reply], str]:
    """Which replies were told of, and the error."""
    told: dict[int, Reply] = {}
    with pytest.raises(EndpointError) as error:
        model.generate(prompts, num_samples, sampling(), told.__setitem__)
    return told, str(error.value)


@pytest.mark.parametrize("bad", [0, 2])
def test_a_refused_prompt_costs_the_others_nothing(server: FakeServer, bad: int) -> None:
    """Also if it is the first of all, from which the dialect is to be learned."""
    server.answer = lambda number, body: refuse(400, "filtered") if f"prompt {bad}" in str(body["messages"]) else said(body)
    model = endpoint(server.url)
    told, error = kept(model, PROMPTS, 2)
    assert sorted(told) == [n for n in range(4) if n != bad] and "filtered" in error
    assert every_text([told[3]]) == every_text(endpoint(server.url).generate(PROMPTS[3:], 2, sampling()))


def test_replies_that_came_before_the_server_was_lost_are_told_of(server: FakeServer) -> None:
    server.answer = lambda number, body: said(body) if number <= 2 else refuse(500, "gone")
    told, error = kept(endpoint(server.url, max_retries=0, num_parallel=1), PROMPTS * 9, 1)
    assert sorted(told) == [0, 1] and "gone" in error
    assert len(server.requests) < 30  # the others are not even asked


@pytest.mark.parametrize("reason", ["content_filter", "abort", "error", None])
def test_a_reply_that_ended_for_another_reason_is_asked_for_again(server: FakeServer, reason: str | None) -> None:
    server.answer = lambda number, body: said(body, finish=reason) if number == 1 else said(body)  # type: ignore[arg-type]
    (reply,) = endpoint(server.url).generate(PROMPTS[:1], 1, sampling())
    assert len(server.requests) == 2 and reply.completions[0].finish_reason is FinishReason.stop
    server.answer = lambda number, body: said(body, finish=reason)  # type: ignore[arg-type]
    fails(endpoint(server.url, max_retries=1), f"at last with: a reply that ended with finish_reason={reason}")


def test_failures_that_may_pass_in_other_words(server: FakeServer) -> None:
    """408, 409 and 425, and an error that comes with status 200."""
    for failure in (
        refuse(408, "slow"),
        refuse(409, "busy"),
        refuse(425, "early"),
        (200, {"error": {"code": 429, "message": "full"}}, {}),
    ):
        server.reset()
        server.answer = lambda number, body, failure=failure: failure if number == 1 else said(body)
        assert len(endpoint(server.url).generate(PROMPTS[:1], 1, sampling())[0].completions) == 1 and len(server.requests) == 2
    server.answer = lambda number, body: (200, {"error": {"code": 429, "message": "full"}}, {})
    fails(endpoint(server.url, max_retries=0), "an error instead of a reply: full")


def test_tokens_that_are_not_told_are_not_zero(server: FakeServer) -> None:
    def untold(number: int, body: dict[str, Any]) -> Answer:
        status, answer, headers = said(body)
        return status, {**answer, "usage": None}, headers

    server.answer = untold
    assert endpoint(server.url).generate(PROMPTS[:1], 1, sampling())[0].completions[0].num_tokens is None


def test_a_reply_longer_than_the_server_allows_is_no_long_prompt(server: FakeServer) -> None:
    """It is the same for every prompt: an error, where a long prompt is a task that is not tried."""
    server.answer = lambda number, body: refuse(
        400,
        "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the `context_window` for this model",
    )
    fails(endpoint(server.url), "allows no reply of sampling.max_new_tokens", "lower it")


@pytest.mark.parametrize(
    "refusal",
    [
        refuse(400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."),
        refuse(400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
        refuse(400, "sorry", code="context_length_exceeded"),
        refuse(400, "the request exceeds the available context size", type="exceed_context_size_error"),
    ],
)
def test_a_prompt_that_is_too_long(server: FakeServer, refusal: Answer) -> None:
    server.answer = lambda number, body: refusal if "prompt 0" in str(body["messages"]) else said(body)
    replies = endpoint(server.url).generate(PROMPTS, 2, sampling())
    assert replies[0].completions == () and refusal[1]["error"]["message"].rstrip(".") in replies[0].too_long
    assert all(len(reply.completions) == 2 and not reply.too_long for reply in replies[1:])
    assert len([body for body in server.bodies if "prompt 0" in str(body["messages"])]) == 1


def test_a_prompt_that_is_longer_than_the_configuration_allows(server: FakeServer) -> None:
    (reply,) = endpoint(server.url, max_context=22).generate(PROMPTS[:1], 1, sampling())
    assert reply.completions == () and "11 tokens" in reply.too_long and "model.max_context=22" in reply.too_long
    assert endpoint(server.url, max_context=23).generate(PROMPTS[:1], 1, sampling())[0].completions


@pytest.mark.parametrize(
    "answer", ["<html>hello</html>", {"hello": 1}, {**said({"messages": [{"content": ""}], "seed": 0})[1], "choices": []}]
)
def test_an_answer_that_is_no_completion(server: FakeServer, answer: Any) -> None:
    server.answer = lambda number, body: (200, answer, {})
    fails(endpoint(server.url), "not with a chat completion", "/v1")


def test_logprobs_are_not_to_be_had(server: FakeServer) -> None:
    with pytest.raises(ValueError, match="use a model of kind hf"):
        endpoint(server.url).logprobs(PROMPTS, ["a"] * 4)


# transformers serve


@pytest.fixture(scope="module")
def served(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. The server has no network and is given nothing but the folder."""
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", str(tiny_lm), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                log.seek(0)
                assert process.poll() is None and time.monotonic() < deadline, log.read()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
        log.close()


def test_a_real_server(served: str, tiny_lm: Path, hf_config: Callable[..., Any]) -> None:
    """It says what the same model says in this process, token for token when greedy; samples differ and come again."""
    from arclab.llm.hf import load_hf

    model, local = endpoint(served, name=str(tiny_lm)), load_hf(hf_config())
    greedy = sampling(temperature=0.0, max_new_tokens=6)
    for mine, theirs in zip(local.generate(PROMPTS, 1, greedy), model.generate(PROMPTS, 1, greedy), strict=True):
        assert theirs.num_prompt_tokens == mine.num_prompt_tokens
        a, b = mine.completions[0], theirs.completions[0]
        assert (a.text, a.num_tokens, a.finish_reason) == (b.text, b.num_tokens, b.finish_reason)
    one_at_a_time = endpoint(served, name=str(tiny_lm), num_parallel=1)  # its seed is one for all requests
    replies = one_at_a_time.generate(PROMPTS[:2], 3, sampling())
    assert len({c.text for reply in replies for c in reply.completions}) == 6
    assert every_text(one_at_a_time.generate(PROMPTS[:2], 3, sampling())) == every_text(replies)
    (nearly_greedy,) = model.generate(PROMPTS[:1], 2, sampling(top_k=1, max_new_tokens=6))  # it arrives
    assert {c.text for c in nearly_greedy.completions} == {local.generate(PROMPTS[:1], 1, greedy)[0].completions[0].text}
    fails(endpoint(served, name="another"), "another", "pinned")
