"""How a server is told the settings of a request: the fields that it is sent, and which of them it says it does not know.

    dialect, none = DIALECTS[0], frozenset()
    fields = request_fields("m", prompt, first=0, count=8, sampling=sampling, dialect=dialect, unknown=none, thinking=None)
    unknown_fields(what_the_refusal_says, fields)            # {"seed"}
    not_sent(DIALECTS[3], unknown={"seed"})                  # ("min_p", "seed", "top_k"): settings that do not reach the server

Servers differ in what they know beyond OpenAI's parameters (dialects), and newer models know fewer of those. Which dialect a
server speaks is found out by whoever asks it; nothing is asked here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from arclab.lm.language_model import Prompt, Sampling, begun_reply

# Fields that a server may refuse although they are OpenAI's own, and what is done without them.
OPTIONAL = {
    "max_tokens": "max_completion_tokens is sent in its place",
    "seed": "the same samples cannot be drawn again",
    "temperature": "replies are drawn at the server's own",
    "top_p": "replies are drawn at the server's own",
    "stop": "replies are cut here instead",
    "logprobs": "the tokens of a reply are counted as a mean",
}
_SETTINGS = {"seed", "temperature", "top_p"}
_BEYOND_OPENAI = {"top_k", "min_p"}
_UNKNOWN = (
    r"(?:un(?:supported|known|recogni[sz]ed|expected)|extra[_ ](?:forbidden|inputs|fields)|additional (?:properties|fields)"
    r"|no such|not (?:be )?(?:supported|available|accepted|recogni[sz]ed)|not allowed to (?:request|use|set)"
    r"|(?:does|do)(?: not|n't) support|cannot find field|deprecated)"
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is told the settings that OpenAI's protocol lacks. has_n: several samples in one request."""

    name: str
    has_n: bool

    @property
    def continues(self) -> bool:
        """Whether it can say that the last message is a reply to be continued. (llama.cpp does so unasked.)"""
        return self.name == "vllm"

    def extra(self, sampling: Sampling) -> dict[str, Any] | None:
        """Fields beside the plain ones; None if it cannot say what sampling asks for."""
        if self.name == "vllm":  # also SGLang, llama.cpp. -1: all of them understand it as every token
            stop: dict[str, Any] = {"include_stop_str_in_output": True} if sampling.stop else {}
            return {"top_k": sampling.top_k or -1, "min_p": sampling.min_p, "repetition_penalty": 1.0, **stop}
        if self.name == "transformers":
            greedy = sampling.temperature == 0
            settings: dict[str, Any] = {"do_sample": not greedy, "num_beams": 1, "repetition_penalty": 1.0}
            settings |= {} if greedy else {"top_k": sampling.top_k, "min_p": sampling.min_p}
            return {"generation_config": json.dumps(settings)}
        return {} if sampling.top_k == 0 and sampling.min_p == 0 else None


# In this order: a server that knows the first may also ignore what makes up the second.
DIALECTS = tuple(
    Dialect(name, has_n)
    for name, has_n in (("vllm", True), ("vllm", False), ("transformers", False), ("openai", True), ("openai", False))
)


def request_fields(
    model: str, prompt: Prompt, *, first: int, count: int, sampling: Sampling, dialect: Dialect, unknown: Collection[str],
    thinking: bool | None,
) -> dict[str, Any]:  # fmt: skip
    """The body of a request for `count` samples of a prompt, from the sample `first` on. unknown: fields that the server
    refuses."""
    extra = dialect.extra(sampling)
    assert extra is not None, dialect
    if begun_reply(prompt)[1]:
        assert dialect.continues, dialect
        extra |= {"add_generation_prompt": False, "continue_final_message": True}
    if thinking is not None:
        extra["chat_template_kwargs"] = {"enable_thinking": thinking}
    fields: dict[str, Any] = {
        "model": model, "messages": [{"role": message.role, "content": message.content} for message in prompt],
        "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "seed": request_seed(sampling.seed, prompt, first), **extra,
    }  # fmt: skip
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if count > 1:
        fields |= {"n": count, "logprobs": True}  # usage counts all samples together, logprobs have an entry for each token
    if "max_tokens" in unknown:
        fields["max_completion_tokens"] = fields["max_tokens"]
    return {name: value for name, value in fields.items() if name not in unknown}


def request_seed(seed: int, prompt: Prompt, sample: int) -> int:
    """31 bits: what every server takes."""
    text = json.dumps([seed, sample, [[message.role, message.content] for message in prompt]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def not_sent(dialect: Dialect, unknown: Collection[str]) -> tuple[str, ...]:
    """The settings of Sampling that the server takes no value of: its own apply."""
    return tuple(sorted(_SETTINGS & set(unknown) | (_BEYOND_OPENAI if dialect.name == "openai" else set())))


def unknown_fields(said: str, fields: Collection[str]) -> set[str]:
    """Which of the optional fields that were sent a refusal calls unknown or not supported. A value out of range is no such
    thing."""
    return {name for name in OPTIONAL.keys() & set(fields) if _is_called_unknown(name, said)}


def _is_called_unknown(name: str, said: str) -> bool:
    """Both in one clause, so that a list of what is supported, behind the refusal of another field, does not count."""
    word = rf"(?<![\w.]){name}(?!\w)"
    before = rf"{_UNKNOWN}[^.;(]{{0,60}}?{word}"
    after = rf"{word}[^.;(]{{0,60}}?{_UNKNOWN}"
    return re.search(f"{before}|{after}", said, re.IGNORECASE) is not None
