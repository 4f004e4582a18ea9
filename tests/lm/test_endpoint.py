"""EndpointModel against servers that behave, misbehave and are not there, and against a real one: transformers serve."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from arclab.lm.endpoint.answers import words_of
from arclab.lm.endpoint.model import EndpointError, EndpointModel
from arclab.lm.language_model import FinishReason, Message, Reply

from .conftest import sampling
from .endpoint_server import PROMPTS, Answer, FakeServer, endpoint, every_text, fails, free_port, refuse, said

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
    fails(endpoint(server.url), server.url, "failed 3 times", "status 500: out of memory", "lm.max_retries=2")
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
    fails(endpoint(server.url, timeout_s=0.15, max_retries=1), "failed 2 times", "no answer within lm.timeout_s=0.15")
    release.set()


def test_a_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    fails(endpoint(url, max_retries=1), url, "failed 2 times", "refused", "check that it runs")


def test_a_key(server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("LM_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "not for you")
    with pytest.raises(EndpointError, match=r"the variable that lm\.api_key_env names is not set"):
        endpoint(server.url, api_key_env="LM_KEY")
    for pasted in ("sk-pasted-1234", "PASTED1234567890"):
        with pytest.raises(EndpointError, match=r"lm\.api_key_env") as raised:
            endpoint(server.url, api_key_env=pasted)
        assert pasted not in str(raised.value)
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
    fails(endpoint(server.url), "lm.api_key_env")
    assert server.requests[-1][2] is None


def test_a_model_that_is_not_offered(server: FakeServer) -> None:
    server.answer = lambda number, body: refuse(404, "The model `m` does not exist")
    fails(endpoint(server.url), "lm.name=m", "it offers one, two")
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
    server.answer = lambda number, body: refuse(400, "odd") if f"prompt {bad}" in str(body["messages"]) else said(body)
    model = endpoint(server.url)
    told, error = kept(model, PROMPTS, 2)
    assert sorted(told) == [n for n in range(4) if n != bad] and "odd" in error
    assert every_text([told[3]]) == every_text(endpoint(server.url).generate(PROMPTS[3:], 2, sampling()))


def test_replies_that_came_before_the_server_was_lost_are_told_of(server: FakeServer) -> None:
    server.answer = lambda number, body: said(body) if number <= 2 else refuse(500, "gone")
    told, error = kept(endpoint(server.url, max_retries=0, num_parallel=1), PROMPTS * 9, 1)
    assert sorted(told) == [0, 1] and "gone" in error
    assert len(server.requests) < 30  # the others are not even asked


@pytest.mark.parametrize("reason", ["abort", "error", "tool_calls", None, 3, ["stop"]])
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
    assert reply.completions == () and "11 tokens" in reply.too_long and "lm.max_context=22" in reply.too_long
    assert endpoint(server.url, max_context=23).generate(PROMPTS[:1], 1, sampling())[0].completions


# A prompt that the server's filter refuses


@pytest.mark.parametrize(
    "refusal",
    [
        refuse(
            400,
            "The response was filtered due to the prompt triggering Azure's content management policy",
            code="content_filter",
        ),
        refuse(
            400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"
        ),
        refuse(403, "Your input was flagged by the moderation"),
        said({"messages": [{"content": ""}]}, finish="content_filter", message={"role": "assistant", "content": None}),
        (200, {"error": {"code": 400, "message": "content policy violation"}}, {}),
    ],
)
@pytest.mark.parametrize("bad", [0, 2])
def test_a_prompt_that_a_filter_refuses_is_skipped_and_the_others_are_answered(
    server: FakeServer, refusal: Answer, bad: int
) -> None:
    server.answer = lambda number, body: refusal if f"prompt {bad}" in str(body["messages"]) else said(body)
    replies = endpoint(server.url, max_retries=1).generate(PROMPTS, 2, sampling())
    assert replies[bad].completions == () and server.url in replies[bad].refused and "filter" in replies[bad].refused
    assert replies[bad].problem == replies[bad].refused and not replies[bad].too_long
    assert all(len(reply.completions) == 2 and not reply.problem for n, reply in enumerate(replies) if n != bad)


def test_samples_that_are_missing_are_asked_for(server: FakeServer) -> None:
    """A server that draws fewer at once than asked for, or whose filter keeps one back, also of the prompt it is met with."""

    def answer(number: int, body: dict[str, Any]) -> Answer:
        status, content, headers = said(body, count=min(body.get("n", 1), 3))
        if number % 3 == 1:
            content["choices"][1]["finish_reason"] = "content_filter"
        return status, content, headers

    server.answer = answer
    replies = endpoint(server.url, num_parallel=1).generate(PROMPTS[:2], 5, sampling())
    assert [body.get("n", 1) for body in server.bodies] == [5, 3, 5, 2, 1]
    for reply in replies:
        assert len(reply.completions) == len({c.text for c in reply.completions}) == 5


# Fields that newer models do not know


def only(**refusals: str) -> Callable[[int, dict[str, Any]], Answer]:
    """A server that knows the plain fields of OpenAI but for those given with the words it refuses them in."""
    beyond = ("top_k", "min_p", "repetition_penalty", "generation_config")

    def answer(number: int, body: dict[str, Any]) -> Answer:
        for name in beyond:
            if name in body:
                return refuse(400, f"Unrecognized request argument supplied: {name}")
        found = next((words for name, words in refusals.items() if name in body), None)
        return refuse(400, found) if found else said(body)

    return answer


def test_a_server_of_other_parameters(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    """Newer OpenAI models: what they refuse is left out from then on, said once each, and stands in the reply."""
    server.answer = only(
        max_tokens="Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        temperature="Unsupported value: 'temperature' does not support 0.8 with this model. Only the default (1) value is supported.",
        logprobs="You are not allowed to request logprobs from this model",
    )
    model = endpoint(server.url)
    with caplog.at_level(logging.WARNING):
        replies = [
            *model.generate(PROMPTS, 2, sampling(temperature=0.8)),
            *model.generate(PROMPTS, 2, sampling(temperature=0.8)),
        ]
    last = server.bodies[-1]
    assert last["max_completion_tokens"] == 12 and last["n"] == 2 and last["top_p"] == 1.0 and "seed" in last
    assert not {"max_tokens", "temperature", "logprobs"} & set(last)
    for name in ("max_tokens", "temperature", "logprobs"):
        assert caplog.text.count(f"takes no {name} (") == 1
    assert all(reply.not_sent == ("min_p", "temperature", "top_k") for reply in replies)
    assert [c.num_tokens for c in replies[0].completions] == [5, 5]
    assert sum("max_tokens" in body for body in server.bodies) < 6  # it does not ask again for what it knows


@pytest.mark.parametrize(
    "words",
    [
        'Invalid JSON payload received. Unknown name "seed": Cannot find field.',
        "[{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs are not permitted'}]",
        "Additional properties are not allowed ('seed' was unexpected)",
    ],
)
def test_a_server_without_a_seed(server: FakeServer, words: str, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = lambda number, body: refuse(422, words) if "seed" in body else said(body)
    (reply,) = endpoint(server.url).generate(PROMPTS[:1], 1, sampling())
    assert words_of(json.dumps([refuse(400, words)[1]]).encode()) == words.rstrip(".")  # Gemini's error is in a list
    assert "seed" not in server.bodies[-1] and server.bodies[-1]["top_k"] == -1 and len(server.bodies) == 2
    assert reply.not_sent == ("seed",) and "takes no seed" in caplog.text and "cannot be drawn again" in caplog.text


@pytest.mark.parametrize(
    "words", ["temperature must be at most 2", "Unknown parameter: top_q. Supported: seed, temperature, max_tokens"]
)
def test_a_value_out_of_range_is_no_unknown_field(server: FakeServer, words: str) -> None:
    server.answer = lambda number, body: refuse(400, words)
    fails(endpoint(server.url), words, temperature=3.0)
    assert all(body["temperature"] == 3.0 and "seed" in body and "max_tokens" in body for body in server.bodies)


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
    from arclab.lm.hf import load_hf

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
