"""A language model behind a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, transformers serve, paid services.

    model = load_endpoint(config)                      # conf/model/endpoint.yaml; nothing is asked of the server yet
    replies = model.generate(prompts, num_samples=8, sampling=sampling)

Every setting of Sampling is sent, neutral ones too, since servers fill what is left open from the model's generation_config.
Servers differ in how they are told (dialects below); the first request finds out. If only plain OpenAI parameters are understood,
neutral top_k and min_p are left out with a warning, and others are an error. Samples that a server does not draw together (n) are
requests of their own, with seeds derived from (seed, prompt, sample); how far a server keeps to a seed is up to it.

A request that fails for good does not cost the others their replies: they are told of before the error is raised. A reply that ended for
another reason than its end or its length (a filter, an abort) counts as a failure, which may pass.

It does not count tokens before asking: a prompt that is too long is known by the server's refusal, or by its count if that
exceeds model.max_context. It cannot tell if a server cuts a prompt silently (Ollama does), and has no logprobs().
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from arclab.config.llm_schema import EndpointModelConfig
from arclab.llm.language_model import Completion, FinishReason, OnReply, Prompt, Reply, Sampling, cut_after_stop, ignore

_LONGEST_WAIT_S = 300.0
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|maximum.{0,30}(length|tokens)|(prompt|input).{0,30}too long|longer than the", re.I
)
# A reply longer than the server allows: the same for every prompt.
_REPLY_TOO_LONG = re.compile(r"max_(completion_|new_)?tokens\W{0,3}\s*(must|should|cannot|may not)", re.I)
_NO_SUCH_PARAMETER = (400, 422)
_MAY_PASS = (408, 409, 425, 429)  # and 500 upwards
_ENDS = {"stop": FinishReason.stop, "eos": FinishReason.stop, "eos_token": FinishReason.stop, "stop_sequence": FinishReason.stop,
         "length": FinishReason.length}  # fmt: skip
log = logging.getLogger(__name__)


class EndpointError(ValueError):
    """A server that cannot be used: its address, what it said, what to do."""


def load_endpoint(config: EndpointModelConfig) -> EndpointModel:
    """ValueError: the environment variable of the key is not set."""
    key = "none"  # the client insists on one, and would take OPENAI_API_KEY
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key or not (key.isascii() and key.isprintable()):  # the client's error for a key of other characters shows it
            wrong = "is not set in the environment" if not key else "holds characters that no key has"
            raise EndpointError(
                f"model.api_key_env={config.api_key_env} {wrong}; export it with the server's key, or use model.api_key_env=null for a "
                "server that wants none."
            )
    return EndpointModel(config, openai.OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=0))


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a server is told the settings that OpenAI's protocol lacks. has_n: several samples in one request."""

    name: str
    has_n: bool

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
_DIALECTS = tuple(
    _Dialect(name, has_n)
    for name, has_n in (("vllm", True), ("vllm", False), ("transformers", False), ("openai", True), ("openai", False))
)


@dataclass(frozen=True, slots=True)
class _Request:
    """count samples of a prompt, from the sample `first` on."""

    prompt: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one request brought: its completions, or why the prompt does not fit."""

    completions: tuple[Completion, ...]
    num_prompt_tokens: int | None
    too_long: str = ""


class EndpointModel:
    """See LanguageModel. Used by one thread at a time; it has threads of its own."""

    def __init__(self, config: EndpointModelConfig, client: openai.OpenAI) -> None:
        self.config, self._client = config, client
        self._dialect: _Dialect | None = None
        self._giving_up = threading.Event()

    @property
    def name(self) -> str:
        return self.config.name

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        raise EndpointError(
            f"the server {self.config.base_url} cannot score given texts through the chat protocol; use a model of kind hf for logprobs."
        )

    def num_prompts(self, num_samples: int) -> int:
        """A prompt is one request at least."""
        return self.config.num_parallel

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
    ) -> list[Reply]:
        self._giving_up.clear()
        answers, failed = self._introduced(prompts, num_samples, sampling)
        waiting = {number: self._requests(number, answers[number], num_samples) for number in answers}
        replies: dict[int, Reply] = {}

        def tell_if_whole(number: int) -> None:
            if not waiting[number]:
                replies[number] = _joined(answers[number], num_samples)
                on_reply(number, replies[number])

        for number in answers:
            tell_if_whole(number)
        requests = [request for number in answers for request in waiting[number]]
        with closing(self._answered(prompts, requests, sampling)) as answered:
            for request, answer in answered:
                if isinstance(answer, EndpointError):
                    failed = failed or answer
                    continue
                answers[request.prompt].append((request.first, answer))
                waiting[request.prompt].remove(request)
                tell_if_whole(request.prompt)
        if failed is not None:
            raise failed
        return [replies[number] for number in range(len(prompts))]

    def _answered(
        self, prompts: Sequence[Prompt], requests: Sequence[_Request], sampling: Sampling
    ) -> Generator[tuple[_Request, _Answer | EndpointError]]:
        """Each request with what it brought, as they come. Without a server those that wait to be sent, or sent again, are given up."""

        def ask(request: _Request) -> _Answer:
            assert self._dialect is not None
            answer = self._ask(prompts[request.prompt], request.first, request.count, sampling, self._dialect)
            if not answer.too_long and len(answer.completions) < request.count:
                raise EndpointError(
                    f"the server {self.config.base_url} drew {len(answer.completions)} samples at once where {request.count} were asked for, though "
                    "it did so before; ask for fewer."
                )
            return answer

        pool = ThreadPoolExecutor(self.config.num_parallel)
        try:
            asked = {pool.submit(ask, request): request for request in requests}
            for future in as_completed(asked):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is not None and not isinstance(error, EndpointError):
                    raise error
                if isinstance(error, EndpointError) and not isinstance(error, _Refused):
                    self._giving_up.set()
                    for other in asked:
                        other.cancel()
                yield asked[future], error or future.result()
        finally:  # also after Ctrl-C
            self._giving_up.set()
            pool.shutdown(cancel_futures=True)

    def _introduced(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling
    ) -> tuple[dict[int, list[tuple[int, _Answer]]], EndpointError | None]:
        """By prompt, what is answered once the server's dialect is known: [(first sample, answer)]. A prompt that is refused is left out and
        its error comes beside them, unless the next prompt is refused as well: then it is not the prompt, and that is the error."""
        answers: dict[int, list[tuple[int, _Answer]]] = {number: [] for number in range(len(prompts))}
        refused: EndpointError | None = None
        for number, prompt in enumerate(prompts):
            if self._dialect is not None:
                break
            try:
                answers[number].append((0, self._introduce(prompt, num_samples, sampling)))
            except _Refused as error:
                if refused is not None:
                    raise refused from error
                refused = error
                del answers[number]
        if refused is not None and self._dialect is None:
            raise refused
        return answers, refused

    def _requests(self, number: int, have: Sequence[tuple[int, _Answer]], num_samples: int) -> list[_Request]:
        """Those that are left to make for a prompt."""
        first = sum(len(answer.completions) for _, answer in have)
        if first >= num_samples or any(answer.too_long for _, answer in have):
            return []
        if self._dialect is not None and self._dialect.has_n:
            return [_Request(number, first, num_samples - first)]
        return [_Request(number, sample, 1) for sample in range(first, num_samples)]

    def _introduce(self, prompt: Prompt, num_samples: int, sampling: Sampling) -> _Answer:
        """Ask in one dialect after the other until one is understood, and keep to that one."""
        refusal: EndpointError | None = None
        for dialect in _DIALECTS:
            if dialect.extra(sampling) is None or (dialect.has_n and num_samples == 1):
                continue
            try:
                answer = self._ask(prompt, 0, num_samples if dialect.has_n else 1, sampling, dialect)
            except _Refused as error:
                # Refused with nothing but plain parameters, it is something else; else the first refusal says what it lacks.
                refusal = error if refusal is None or dialect.name == "openai" else refusal
                continue
            if answer.too_long:
                return answer  # it may be refused before its parameters are looked at
            if dialect.has_n and len(answer.completions) < num_samples:
                dialect = _Dialect(dialect.name, has_n=False)  # n was ignored
            self._settle(dialect)
            return answer
        assert refusal is not None
        raise refusal

    def _settle(self, dialect: _Dialect) -> None:
        self._dialect = dialect
        if dialect.name == "openai":
            log.warning(
                "%s takes no top_k and min_p: if the server has defaults of its own for them, they apply.", self.config.base_url
            )

    def _ask(self, prompt: Prompt, first: int, count: int, sampling: Sampling, dialect: _Dialect) -> _Answer:
        """One request, sent again for as long as its failure may pass. EndpointError: it does not."""
        fields = self._fields(prompt, first, count, sampling, dialect)
        reason = ""
        for attempt in range(self.config.max_retries + 1):
            wait_s = self.config.backoff_s * 2**attempt
            try:
                return self._read(self._client.chat.completions.create(**fields), count, sampling)
            except openai.APITimeoutError:
                reason = f"no answer within model.timeout_s={self.config.timeout_s:g}"
            except openai.APIConnectionError as error:
                reason = f"no connection: {error.__cause__ or error}"
            except (openai.APIResponseValidationError, json.JSONDecodeError):
                raise self._no_completion() from None
            except openai.APIStatusError as error:
                if error.status_code not in _MAY_PASS and error.status_code < 500:
                    return self._refused(error)
                reason = f"status {error.status_code}: {self._said(error)}"
                wait_s = max(wait_s, _retry_after_s(error))
            except _NoReply as error:
                reason = str(error)
            if attempt < self.config.max_retries and self._giving_up.wait(min(wait_s, _LONGEST_WAIT_S)):
                break
        raise EndpointError(
            f"the server {self.config.base_url} failed {attempt + 1} times, at last with: {reason}; check that it runs and keeps up, or "
            f"raise model.max_retries={self.config.max_retries} or model.timeout_s."
        )

    def _fields(self, prompt: Prompt, first: int, count: int, sampling: Sampling, dialect: _Dialect) -> dict[str, Any]:
        extra = dialect.extra(sampling)
        if extra is None:
            raise EndpointError(
                f"the server {self.config.base_url} takes no top_k and min_p, and sampling.top_k={sampling.top_k} and "
                f"sampling.min_p={sampling.min_p} need them; use sampling.top_k=0 sampling.min_p=0."
            )
        if self.config.thinking is not None:
            extra["chat_template_kwargs"] = {"enable_thinking": self.config.thinking}
        fields: dict[str, Any] = {
            "model": self.name, "messages": [{"role": message.role, "content": message.content} for message in prompt],
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "seed": request_seed(sampling.seed, prompt, first), "extra_body": extra,
        }  # fmt: skip
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if count > 1:
            fields |= {"n": count, "logprobs": True}  # usage counts all samples together, logprobs have an entry for each token
        return fields

    def _read(self, answer: Any, count: int, sampling: Sampling) -> _Answer:
        if (error := getattr(answer, "error", None)) is not None:  # some services say so with status 200
            raise _NoReply(f"an error instead of a reply: {_words(error)}".replace(self._client.api_key, "***"))
        if not isinstance(answer, ChatCompletion) or not answer.choices:
            raise self._no_completion()
        usage, limit = answer.usage, self.config.max_context
        num_prompt = usage.prompt_tokens if usage else None
        if limit is not None and num_prompt is not None and num_prompt + sampling.max_new_tokens > limit:
            problem = (
                f"the prompt has {num_prompt} tokens, which with {sampling.max_new_tokens} for the reply is more than "
                f"model.max_context={limit}; shorten the prompt or lower sampling.max_new_tokens."
            )
            return _Answer((), num_prompt, problem)
        choices = answer.choices[:count]
        mean = round(usage.completion_tokens / len(answer.choices)) if usage else None
        return _Answer(tuple(_completion(choice, mean, sampling) for choice in choices), num_prompt)

    def _no_completion(self) -> EndpointError:
        return EndpointError(
            f"the server {self.config.base_url} answers, but not with a chat completion; check model.base_url, which often ends in /v1."
        )

    def _refused(self, error: openai.APIStatusError) -> _Answer:
        """What asking again would not change. A prompt that is too long is no error."""
        url, status, said = self.config.base_url, error.status_code, self._said(error)
        if status in _NO_SUCH_PARAMETER and _REPLY_TOO_LONG.search(said):
            raise EndpointError(f"the server {url} allows no reply of sampling.max_new_tokens ({said}); lower it.") from error
        if status in (400, 413, 422) and (error.code == "context_length_exceeded" or _TOO_LONG.search(said)):
            return _Answer(
                (), None, f"the server {url} refused the prompt ({said}); shorten it or lower sampling.max_new_tokens."
            )
        if status in (401, 403):
            named = self.config.api_key_env
            remedy = f"check the key in ${named}" if named else "name the variable that holds its key as model.api_key_env"
            raise EndpointError(f"the server {url} denies access (status {status}: {said}); {remedy}.") from error
        if status == 404:
            raise EndpointError(
                f"the server {url} has no model.name={self.name} (status 404: {said}); {self._offered()}."
            ) from error
        kind = _Refused if status in _NO_SUCH_PARAMETER else EndpointError
        raise kind(
            f"the server {url} refuses the request (status {status}: {said}); check model.name and the sampling settings."
        ) from error

    def _said(self, error: openai.APIStatusError) -> str:
        """The server's own words, on one line; some repeat the key."""
        return _words(error.body or error.message).replace(self._client.api_key, "***")

    def _offered(self) -> str:
        try:
            names = sorted(model.id for model in self._client.models.list().data)
        except (openai.APIError, AttributeError, TypeError):  # the list is only a help, and may be anything
            names = []
        return f"it offers {', '.join(names[:20])}" if names else "check model.name and model.base_url, which often ends in /v1"


class _Refused(EndpointError):
    """Status 400 or 422: perhaps only because of a parameter, or of this prompt."""


class _NoReply(ValueError):
    """An answer without a whole reply. Another attempt may bring one."""


def _words(body: Any) -> str:
    """What an error says, on one line."""
    for key in ("error", "message", "detail"):
        body = body.get(key, body) if isinstance(body, dict) else body
    return " ".join(str(body).split())[:300].rstrip(".")


def request_seed(seed: int, prompt: Prompt, sample: int) -> int:
    """31 bits: what every server takes."""
    text = json.dumps([seed, sample, [[message.role, message.content] for message in prompt]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def _completion(choice: Any, mean_num_tokens: int | None, sampling: Sampling) -> Completion:
    text = choice.message.content or ""
    matched = getattr(choice, "stop_reason", None) or getattr(choice, "matched_stop", None)  # vLLM, SGLang
    if isinstance(matched, str) and matched in sampling.stop and matched not in text:
        text += matched
    text, was_cut = cut_after_stop(text, sampling.stop)
    if choice.finish_reason not in _ENDS:
        raise _NoReply(f"a reply that ended with finish_reason={choice.finish_reason}")
    reason = FinishReason.stop if was_cut else _ENDS[choice.finish_reason]
    counted = choice.logprobs.content if choice.logprobs else None
    return Completion(text, reason, len(counted) if counted else mean_num_tokens, None)


def _joined(answers: Sequence[tuple[int, _Answer]], num_samples: int) -> Reply:
    """The answers of a prompt in the order of its samples."""
    in_order = [answer for _, answer in sorted(answers, key=lambda each: each[0])]
    problem = next((answer.too_long for answer in in_order if answer.too_long), "")
    completions = () if problem else tuple(completion for answer in in_order for completion in answer.completions)
    assert problem or len(completions) == num_samples, (len(completions), num_samples)
    return Reply(completions, next((a.num_prompt_tokens for a in in_order if a.num_prompt_tokens is not None), None), problem)


def _retry_after_s(error: openai.APIStatusError) -> float:
    """Retry-After as seconds or as a date; 0 if there is none."""
    value = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
