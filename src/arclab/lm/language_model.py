"""What a language model is to the rest of the project: prompts in, replies out, with how each one ended.

    sampling = Sampling(max_new_tokens=256, temperature=1.0, ...)
    replies = model.generate([(Message("user", "..."),)], num_samples=8, sampling=sampling)
    replies[0].completions[3].text

Kinds: hf.py (transformers, in this process), endpoint.py (a server), scripted.py (tests). A prompt that leaves no room for
max_new_tokens in the context is not cut, one that a server's filter refuses is not rewritten: their replies have no completions
and say why. A prompt whose last message is the assistant's is a reply that was begun: the model goes on where it ends, and the
completions hold only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

PLAIN = "text"


@dataclass(frozen=True, slots=True)
class Message:
    """role: system, user or assistant; or PLAIN, of a prompt's only message: a text that the model goes on with as it is,
    without a chat template."""

    role: str
    content: str


Prompt = tuple[Message, ...]


def is_plain(prompt: Prompt) -> bool:
    return [message.role for message in prompt] == [PLAIN]


def begun_reply(prompt: Prompt) -> tuple[Prompt, str]:
    """What is asked, and the beginning of the reply that the prompt ends with; "" for a prompt that ends with a question."""
    if prompt and prompt[-1].role == "assistant":
        return prompt[:-1], prompt[-1].content
    return prompt, ""


class FinishReason(Enum):
    """stop: the model ended its turn (or wrote a stop string). length: cut at max_new_tokens."""

    stop = "stop"
    length = "length"


def prompt_digest(prompt: Prompt) -> str:
    """What tells prompts apart in files."""
    return hashlib.sha256(json.dumps([[m.role, m.content] for m in prompt]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every setting of one generation, none with a default: nothing is taken from a model's own generation_config.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token. seed: with the prompt and the sample's number it
    decides the draws, whatever else is in the batch. stop: strings that end a reply (and stand at its end).
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop: tuple[str, ...]
    seed: int


# One for all prompts of a call, or one for each; these may differ in temperature and seed only.
Samplings = Sampling | Sequence[Sampling]


def sampling_of_each(sampling: Samplings, num_prompts: int) -> list[Sampling]:
    """The settings of every prompt, in order."""
    if isinstance(sampling, Sampling):
        return [sampling] * num_prompts
    assert len(sampling) == num_prompts, (len(sampling), num_prompts)
    assert len({replace(one, temperature=0.0, seed=0) for one in sampling}) <= 1, "only temperature and seed may differ"
    return list(sampling)


@dataclass(frozen=True, slots=True)
class Completion:
    """num_tokens: generated, the end mark included. logprob: sum of the log-probabilities of these tokens under the model at
    temperature 1, untruncated (nats). Both None where a server does not tell. opened: what stands before the text and is not in
    it: a <think> that the chat template wrote, or that a server cut off."""

    text: str
    finish_reason: FinishReason
    num_tokens: int | None
    logprob: float | None
    opened: str = ""

    @property
    def whole(self) -> str:
        """The reply with what the template opened: what a parser must see."""
        return self.opened + self.text


@dataclass(frozen=True, slots=True)
class Reply:
    """All samples of one prompt. too_long: a sentence if the prompt does not fit into the context, refused: one if the server's
    filter refuses it; then there are none. not_sent: names of settings that the server takes no value of, so that its own
    apply."""

    completions: tuple[Completion, ...]
    num_prompt_tokens: int | None
    too_long: str = ""
    refused: str = ""
    not_sent: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """Why there are no completions; empty if there are."""
        return self.too_long or self.refused


OnReply = Callable[[int, Reply], None]


def ignore(number: int, reply: Reply) -> None:
    """An OnReply for who waits for all."""


class LanguageModel(Protocol):
    @property
    def name(self) -> str: ...

    def num_prompts(self, num_samples: int) -> int:
        """Prompts, of so many samples each, that it works on at once: fewer in one call leave it idle."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        """A reply for every prompt, in order. sampling: of all, or of each prompt. on_reply: told of each (the prompt's number,
        its reply) as soon as it is whole, in the calling thread. ValueError: a model or server that cannot be used, in one
        sentence; replies told of until then are good."""
        ...

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        """For every prompt, the log-probability (nats, temperature 1) of each token of texts[i] as its reply."""
        ...


def num_parameters(model: LanguageModel) -> int | None:
    """Of a model that says it, as those of this process do; None: a server's."""
    return getattr(model, "num_parameters", None)


def cut_after_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the end of the first stop string in it, and whether there was one."""
    ends = [text.index(string) + len(string) for string in stop if string in text]
    return (text[: min(ends)], True) if ends else (text, False)
