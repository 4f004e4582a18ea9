"""What a server's answer says: its completions, or why there are none. Of plain JSON, of which every value may be of any type.

    answer = read_answer(response.body, count=8, sampling=sampling, thinking=None)     # NoReply: there is no whole reply in it
    words_of(response.body), is_about_filter(body)                                     # of an answer that is an error

A reply is the text of message.content: a string, or a list of parts. Where there is none but text in message.reasoning_content
(or reasoning), the reply ended inside its thinking, or the server takes an answer for thinking: it is kept as thinking that did
not end, unless the configuration says that the model does not think. Nothing here asks for anything again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arclab.lm.endpoint.http import NoReply
from arclab.lm.language_model import Completion, FinishReason, Sampling, cut_after_stop

THINK = "<think>\n"
_ENDS = {
    "stop": FinishReason.stop,
    "eos": FinishReason.stop,
    "eos_token": FinishReason.stop,
    "stop_sequence": FinishReason.stop,
    "length": FinishReason.length,
}
_FILTERED = re.compile(r"content.?filter|safety\b|prohibited.?content|sensitive\b", re.I)
_FILTER_SPEAKS = re.compile(
    r"content.?(filter|policy|management)|responsible ?ai|usage polic|(prompt|input|request).{0,40}(flagged|blocked)"
    r"|flagged as|moderation|data.?inspection|prohibited.?content",
    re.I,
)
_NO_COMPLETION_REMEDY = "check lm.base_url, which often ends in /v1"


class Filtered(NoReply):
    """The server's filter kept every sample back."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request brought: its completions, fewer than asked for if the server drew fewer, or why there are none."""

    completions: tuple[Completion, ...]
    num_prompt_tokens: int | None
    too_long: str = ""
    refused: str = ""
    not_sent: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        return self.too_long or self.refused


def read_answer(body: bytes, count: int, sampling: Sampling, thinking: bool | None) -> Answer:
    """NoReply: an error, no chat completion, or a sample that did not come to its end."""
    answer = parsed(body)
    if not isinstance(answer, dict):
        raise _no_completion(body)
    if answer.get("error"):  # some services say so with status 200
        failure = Filtered if is_about_filter(answer) else NoReply
        raise failure(f"an error instead of a reply: {words_of(body)}")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise _no_completion(body)
    usage = answer.get("usage")
    drawn = _count(usage, "completion_tokens")
    mean = None if drawn is None else round(drawn / len(choices))
    kept = [choice for choice in _in_order(choices)[:count] if not _is_filtered(choice)]
    if not kept:
        raise Filtered("a reply that ended with finish_reason=content_filter")
    completions = tuple(_completion(choice, mean, sampling, thinking) for choice in kept)
    return Answer(completions, _count(usage, "prompt_tokens"))


def parsed(body: bytes) -> Any:
    """The JSON value; None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number of thousands of digits; nested too deep
        return None


def words_of(body: bytes, limit: int = 300) -> str:
    """What an error says, on one line."""
    said = parsed(body)
    if said is None:
        said = body[: 4 * limit].decode("utf-8", "replace")
    if isinstance(said, list) and len(said) == 1:  # Gemini's
        said = said[0]
    for key in ("error", "message", "detail"):
        said = (said.get(key) or said) if isinstance(said, dict) else said
    return _line(said, limit).rstrip(".")


def code_of(body: bytes) -> str:
    """The code that OpenAI's protocol gives an error; empty if there is none."""
    answer = parsed(body)
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def is_about_filter(answer: Any) -> bool:
    """Whether an error speaks of a filter that refuses the prompt or its reply."""
    return _FILTER_SPEAKS.search(_line(answer, 4000)) is not None


def _line(value: Any, limit: int) -> str:
    """Anything on one line, without what a terminal would obey."""
    try:
        text = value if isinstance(value, str) else ascii(value)
    except RecursionError:
        text = "something nested too deep"
    return "".join(c if c.isprintable() else "?" for c in " ".join(text[: 20 * limit].split())[:limit])


def _no_completion(body: bytes) -> NoReply:
    came = _line(body[:400].decode("utf-8", "replace"), 100)
    return NoReply(f"an answer that is not a chat completion ({came or 'it is empty'})", remedy=_NO_COMPLETION_REMEDY)


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens; None if it is not told."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 2**53 else None


def _in_order(choices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By their index if each has one of its own, else as they came."""
    indices = [choice.get("index") for choice in choices]
    told = [index for index in indices if type(index) is int]
    if len(set(told)) < len(choices):
        return list(choices)
    return [choice for _, choice in sorted(zip(told, choices, strict=True), key=lambda each: each[0])]


def _is_filtered(choice: dict[str, Any]) -> bool:
    finish = choice.get("finish_reason")
    return isinstance(finish, str) and _FILTERED.match(finish) is not None


def _completion(choice: dict[str, Any], mean_num_tokens: int | None, sampling: Sampling, thinking: bool | None) -> Completion:
    finish = choice.get("finish_reason")
    reason = _ENDS.get(finish.lower()) if isinstance(finish, str) else None
    if reason is None:
        raise NoReply(f"a reply that ended with finish_reason={_line(finish, 60)}")
    text, opened = _text_of(choice.get("message"), thinking)
    for name in ("stop_reason", "matched_stop"):  # vLLM, SGLang
        matched = choice.get(name)
        if isinstance(matched, str) and matched in sampling.stop and matched not in text:
            text += matched
    text, was_cut = cut_after_stop(text, sampling.stop)
    logprobs = choice.get("logprobs")
    counted = logprobs.get("content") if isinstance(logprobs, dict) else None
    num_tokens = len(counted) if isinstance(counted, list) and counted else mean_num_tokens
    return Completion(text, FinishReason.stop if was_cut else reason, num_tokens, None, opened)


def _text_of(message: Any, thinking: bool | None) -> tuple[str, str]:
    """The text of a reply, and what is to stand before it (see Completion.opened)."""
    if not isinstance(message, dict):
        raise NoReply(f"a reply without a message but {_line(message, 60)}", remedy=_NO_COMPLETION_REMEDY)
    text, thought = _joined_parts(message.get("content"))
    text = text or _string(message.get("refusal"))
    if text.strip():
        return text, ""
    thought = _string(message.get("reasoning_content")) or _string(message.get("reasoning")) or thought
    if not thought.strip():
        return text, ""
    return (thought, "") if thinking is False else (thought, THINK)


def _joined_parts(content: Any) -> tuple[str, str]:
    """The text of a content and the thinking in it."""
    if content is None or isinstance(content, str):
        return _string(content), ""
    if not isinstance(content, list):
        raise NoReply(f"a reply whose content is no text ({_line(content, 60)})")
    texts, thoughts = [], []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "output_text", "refusal") and isinstance(part.get("refusal" if kind == "refusal" else "text"), str):
            texts.append(_string(part["refusal" if kind == "refusal" else "text"]))
        elif kind in ("thinking", "reasoning"):
            inner = part.get(kind, part.get("text"))
            thoughts.append(inner if isinstance(inner, str) else "".join(_joined_parts(inner)))
        else:
            raise NoReply(f"a reply with a part that is no text ({_line(part, 60)})")
    return "".join(texts), "".join(thoughts)


def _string(value: Any) -> str:
    """Text that can be written as UTF-8: half a surrogate pair becomes the replacement character."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else ""
