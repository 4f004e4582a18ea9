"""Answers of any shape: what is a reply is read, and whatever is none is a failed reply, never another error."""

from __future__ import annotations

import json
import logging
from typing import Any

import hypothesis
import pytest

from arclab.lm.endpoint.answers import NoReply, read_answer, words_of
from arclab.lm.language_model import Completion, FinishReason
from arclab.programs.prompts import ParseProblem, parse_program

from ..damage import REPEATED, damaged_json
from .conftest import sampling
from .endpoint_server import PROMPTS, FakeServer, endpoint, fails, said

WHOLE = said({"messages": [{"content": "p"}], "seed": 1, "n": 3, "logprobs": True})[1]
PROGRAM = "def solve(I):\n    return I\n"


def read(answer: Any, count: int = 3, thinking: bool | None = None) -> tuple[Completion, ...]:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return read_answer(body, count, sampling(), thinking).completions


def with_message(**message: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": "stop", "message": message}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        (["a ", {"type": "output_text", "text": "b"}], "a b"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a b"}], "a b"),
        ([], ""),
        ("half \ud83d a pair", "half \ufffd a pair"),
        ("\ud83d\ude00", "\U0001f600"),
    ],
)
def test_the_text_of_a_content(content: Any, expected: str) -> None:
    (completion,) = read(with_message(content=content))
    assert completion.text == expected and completion.opened == ""
    completion.text.encode("utf-8")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_reply_that_is_all_thinking(server: FakeServer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is no answer, and said once; but where the model does not think, a server has put the answer into the wrong field."""
    message = {"role": "assistant", "content": None, name: PROGRAM}
    server.answer = lambda number, body: said(body, message=message)
    replies = endpoint(server.url).generate(PROMPTS, 2, sampling())
    completion = replies[0].completions[0]
    assert (
        parse_program(completion.whole, entry="solve", finish_reason=completion.finish_reason).problem
        is ParseProblem.unclosed_thinking
    )
    assert caplog.text.count("a whole reply into message.reasoning_content") == 1
    caplog.clear()
    (reply,) = endpoint(server.url, thinking=False).generate(PROMPTS[:1], 1, sampling())
    assert reply.completions[0].whole == PROGRAM and not caplog.text
    server.answer = lambda number, body: said(body, message={**message, "content": "answer"})
    (reply,) = endpoint(server.url).generate(PROMPTS[:1], 1, sampling())
    assert reply.completions[0].whole == "answer" and not caplog.text


def changed(**changes: Any) -> dict[str, Any]:
    """The first choice with other values."""
    return {**WHOLE, "choices": [{**WHOLE["choices"][0], **changes}, *WHOLE["choices"][1:]]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>\x1b[31mhello</html>", "not a chat completion (<html>?[31mhello</html>)"),
        (b"", "it is empty"),
        (b"17", "not a chat completion (17)"),
        (b"[" * 100000, "not a chat completion"),
        (b'{"choices": ' + b"9" * 5000 + b"}", "not a chat completion"),
        (b"\xff\xfe\xfa", "not a chat completion"),
        ({**WHOLE, "choices": None}, "not a chat completion"),
        ({**WHOLE, "choices": []}, "not a chat completion"),
        ({**WHOLE, "choices": {"0": {}}}, "not a chat completion"),
        ({**WHOLE, "choices": [["nested", [[]]]]}, "not a chat completion"),
        (changed(message=None), "without a message"),
        (changed(message="text"), "without a message"),
        (changed(message={"content": {"text": "a"}}), "content is no text"),
        (changed(message={"content": 3}), "content is no text"),
        (changed(message={"content": [{"type": "image_url"}]}), "a part that is no text"),
        (changed(message={"content": [[["nested"]]]}), "a part that is no text"),
        (changed(finish_reason="tool_calls"), "finish_reason=tool_calls"),
        (changed(finish_reason={}), "finish_reason={}"),
    ],
)
def test_an_answer_that_is_no_reply(answer: Any, words: str) -> None:
    with pytest.raises(NoReply) as raised:
        read(answer)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        changed(logprobs={"content": [{"token": "a", "logprob": float("nan")}]}),
        changed(logprobs={"content": None}),
        changed(logprobs=[["a", [0.5]]]),
        changed(index=None),
        changed(index=2),
        changed(index="0"),
        changed(finish_reason="STOP"),
        changed(stop_reason={}, matched_stop=[1]),
        {**WHOLE, "usage": {"prompt_tokens": "11", "completion_tokens": float("inf")}},
        {**WHOLE, "usage": [1, 2]},
        {**WHOLE, "usage": None},
    ],
)
def test_what_is_odd_about_a_whole_reply_costs_nothing(answer: dict[str, Any]) -> None:
    assert [c.text for c in read(answer)] == ["p|1|0", "p|1|1", "p|1|2"]


def test_choices_in_another_order() -> None:
    assert [c.text for c in read({**WHOLE, "choices": WHOLE["choices"][::-1]})] == ["p|1|0", "p|1|1", "p|1|2"]
    assert [c.num_tokens for c in read({**WHOLE, "usage": None}, count=2)] == [1, 2]


@hypothesis.given(body=damaged_json(WHOLE))
@hypothesis.settings(REPEATED, max_examples=150)
def test_any_damage_leaves_replies_or_a_failed_reply(body: bytes) -> None:
    try:
        completions = read(body)
    except NoReply as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert 1 <= len(completions) <= 3
        for completion in completions:
            assert isinstance(completion.text, str) and isinstance(completion.finish_reason, FinishReason)
            assert completion.text.encode("utf-8") is not None and type(completion.num_tokens) in (int, type(None))
    assert "\n" not in words_of(body)


def test_it_is_asked_again_for_an_answer_that_is_none(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = lambda number, body: (200, "<html>starting</html>", {}) if number == 1 else said(body)
    with caplog.at_level(logging.INFO, logger="arclab"):
        (reply,) = endpoint(server.url).generate(PROMPTS[:1], 1, sampling())
    assert reply.completions and "<html>starting</html>" in caplog.text
    server.answer = lambda number, body: (200, "<html>hello</html>", {})
    fails(endpoint(server.url), server.url, "failed 3 times", "<html>hello</html>", "/v1")
