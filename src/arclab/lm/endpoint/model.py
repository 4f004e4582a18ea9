"""A language model behind a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, transformers serve, paid services.

    model = load_endpoint(config)                      # conf/lm/endpoint.yaml; nothing is asked of the server yet
    replies = model.generate(prompts, num_samples=8, sampling=sampling)

Every setting of Sampling is sent, neutral ones too, since servers fill what is left open from the model's generation_config.
Servers differ in how they are told (dialects.py); the first request finds out, and several of one model are taken to be alike.
If only plain OpenAI parameters are understood, neutral top_k and min_p are left out with a warning, and others are an error.
What newer models refuse of OpenAI's own (a seed, a temperature) is left out for as long as the model lives, with a warning and
in Reply.not_sent. Samples that a server does not draw together (n) are requests of their own, with seeds derived from (seed,
prompt, sample); how far a server keeps to a seed is up to it.

A request that fails for good does not cost the others their replies: they are told of before the error is raised. A reply that
ended for another reason than its end or its length (an abort), or an answer that is none, counts as a failure, which may pass.
A prompt, or every reply to it, that the server's filter refuses is a reply without completions, as is a prompt that is too
long.

A reply that was begun is continued by servers that know continue_final_message (vLLM, SGLang) and by llama.cpp. One that
refuses the field is an error in one sentence; one that ignores it begins anew, which cannot be told from here.

It does not count tokens before asking: a prompt that is too long is known by the server's refusal, or by its count if that
exceeds model.max_context. It cannot tell if a server cuts a prompt silently (Ollama does), and has no logprobs().
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace

from arclab.config.llm_schema import EndpointModelConfig
from arclab.lm.endpoint.answers import Answer
from arclab.lm.endpoint.dialects import DIALECTS, Dialect
from arclab.lm.endpoint.http import EndpointError, connect
from arclab.lm.endpoint.server import Refused, Server, Watch
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, Samplings, begun_reply, ignore, sampling_of_each

Found = list[tuple[int, Answer]]  # of a prompt: the first sample of each request, and what it brought


def load_endpoint(config: EndpointModelConfig, watch: Watch | None = None, key: str | None = None) -> EndpointModel:
    """watch: of the server, if this process has started it; key: that of such a server.
    EndpointError: an address or a proxy that cannot be used, or the environment variable of the key is not set."""
    for problem in config.check("lm"):
        raise EndpointError(problem)
    key = key or key_of(config)
    return EndpointModel(Server(config, [connect(url, key) for url in config.addresses], watch))


def key_of(config: EndpointModelConfig) -> str | None:
    """The key in the variable that lm.api_key_env names; None: it names none. EndpointError: it is not set."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        wrong = "is not set in the environment" if not key else "holds characters that no key has"
        raise EndpointError(  # without the name: it may be the key itself
            f"the variable that lm.api_key_env names {wrong}; export it with the server's key, or use lm.api_key_env=null for "
            "a server that wants none."
        )
    return key


@dataclass(frozen=True, slots=True)
class _Request:
    """count samples of a prompt, from the sample `first` on."""

    prompt: int
    first: int
    count: int


class EndpointModel:
    """See LanguageModel. Used by one thread at a time; it has threads of its own."""

    def __init__(self, server: Server) -> None:
        self.config, self._server = server.config, server
        self._dialect: Dialect | None = None

    @property
    def name(self) -> str:
        return self.config.name

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        raise EndpointError(
            f"the server {self.config.base_url} cannot score given texts through the chat protocol; use a model of kind hf "
            "for logprobs."
        )

    def num_prompts(self, num_samples: int) -> int:
        """A prompt is one request at least."""
        return self.config.num_parallel

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        self._server.giving_up.clear()
        self._server.stopped.clear()
        pool = ThreadPoolExecutor(self.config.num_parallel)
        try:
            return self._generate(pool, prompts, num_samples, sampling_of_each(sampling, len(prompts)), on_reply)
        finally:  # also after Ctrl-C: what is under way is not waited for
            self._server.giving_up.set()
            self._server.stopped.set()
            pool.shutdown(cancel_futures=True)

    def _generate(
        self, pool: ThreadPoolExecutor, prompts: Sequence[Prompt], num_samples: int, each: Sequence[Sampling], on_reply: OnReply
    ) -> list[Reply]:
        found, failed = self._introduced(pool, prompts, num_samples, each)
        waiting = {number: self._requests(number, found[number], num_samples) for number in found}
        replies: dict[int, Reply] = {}

        def tell_if_whole(number: int) -> None:
            if not waiting[number]:
                replies[number] = _joined(found[number], num_samples)
                on_reply(number, replies[number])

        for number in found:
            tell_if_whole(number)
        requests = [request for number in found for request in waiting[number]]
        with closing(self._answered(pool, prompts, requests, each)) as answered:
            for request, answers in answered:
                if isinstance(answers, EndpointError):
                    failed = failed or answers
                    continue
                found[request.prompt] += answers
                waiting[request.prompt].remove(request)
                tell_if_whole(request.prompt)
        if failed is not None:
            raise failed
        return [replies[number] for number in range(len(prompts))]

    def _answered(
        self, pool: ThreadPoolExecutor, prompts: Sequence[Prompt], requests: Sequence[_Request], each: Sequence[Sampling]
    ) -> Generator[tuple[_Request, Found | EndpointError]]:
        """Each request with what it brought, as they come. Without a server those that wait to be sent, or sent again, are
        given up."""
        asked: dict[Future[Found], _Request] = {}
        for request in requests:
            asked[pool.submit(self._answers_of, request, prompts[request.prompt], each[request.prompt])] = request
        for future in as_completed(asked):
            if future.cancelled():
                continue
            error = future.exception()
            if error is not None and not isinstance(error, EndpointError):
                raise error
            if isinstance(error, EndpointError) and not isinstance(error, Refused):
                self._server.giving_up.set()
                for other in asked:
                    other.cancel()
            yield asked[future], error or future.result()

    def _answers_of(self, request: _Request, prompt: Prompt, sampling: Sampling) -> Found:
        """Asks for the rest as long as the server draws fewer samples at once than asked for."""
        assert self._dialect is not None
        self._require_expressible(self._dialect, prompt, sampling)
        found: Found = []
        first, end = request.first, request.first + request.count
        while first < end and not (found and found[-1][1].problem):
            answer = self._server.ask(prompt, first, end - first, sampling, self._dialect)
            found.append((first, answer))
            first += len(answer.completions)
        return found

    def _require_expressible(self, dialect: Dialect, prompt: Prompt, sampling: Sampling) -> None:
        if begun_reply(prompt)[1] and not dialect.continues:
            raise self._cannot_continue()
        if dialect.extra(sampling) is None:
            raise EndpointError(
                f"the server {self.config.base_url} takes no top_k and min_p, and sampling.top_k={sampling.top_k} and "
                f"sampling.min_p={sampling.min_p} need them; use sampling.top_k=0 sampling.min_p=0."
            )

    def _cannot_continue(self) -> EndpointError:
        return EndpointError(
            f"the server {self.config.base_url} does not continue a reply that was begun (continue_final_message), which "
            "solver=tree_search needs; use vLLM or SGLang, a model of kind hf, or solver=program_sampling."
        )

    def _introduced(
        self, pool: ThreadPoolExecutor, prompts: Sequence[Prompt], num_samples: int, each: Sequence[Sampling]
    ) -> tuple[dict[int, Found], EndpointError | None]:
        """By prompt, what is answered once the server's dialect is known. A prompt that is refused is left out and its error
        comes beside them, unless the next prompt is refused as well: then it is not the prompt, and that is the error."""
        found: dict[int, Found] = {number: [] for number in range(len(prompts))}
        refused: EndpointError | None = None
        for number, prompt in enumerate(prompts):
            if self._dialect is not None:
                break
            try:
                found[number].append((0, pool.submit(self._introduce, prompt, num_samples, each[number]).result()))
            except Refused as error:
                if refused is not None:
                    raise refused from error
                refused = error
                del found[number]
        if refused is not None and self._dialect is None:
            raise refused
        return found, refused

    def _requests(self, number: int, have: Found, num_samples: int) -> list[_Request]:
        """Those that are left to make for a prompt."""
        first = sum(len(answer.completions) for _, answer in have)
        if first >= num_samples or any(answer.problem for _, answer in have):
            return []
        if self._dialect is not None and self._dialect.has_n:
            return [_Request(number, first, num_samples - first)]
        return [_Request(number, sample, 1) for sample in range(first, num_samples)]

    def _introduce(self, prompt: Prompt, num_samples: int, sampling: Sampling) -> Answer:
        """Ask in one dialect after the other until one is understood, and keep to that one."""
        refusal: EndpointError | None = None
        for dialect in DIALECTS:
            if dialect.extra(sampling) is None or (dialect.has_n and num_samples == 1):
                continue
            if begun_reply(prompt)[1] and not dialect.continues:
                raise self._cannot_continue() from refusal
            try:
                answer = self._server.ask(prompt, 0, num_samples if dialect.has_n else 1, sampling, dialect)
            except Refused as error:
                # Refused with nothing but plain parameters, it is something else; else the first refusal says what it lacks.
                refusal = error if refusal is None or dialect.name == "openai" else refusal
                continue
            if answer.problem:
                return answer  # it may be refused before its parameters are looked at
            if dialect.has_n and len(answer.completions) == 1:
                dialect = replace(dialect, has_n=False)  # n was ignored
            self._settle(dialect)
            return answer
        assert refusal is not None
        raise refusal

    def _settle(self, dialect: Dialect) -> None:
        self._dialect = dialect
        if dialect.name == "openai":
            self._server.warn(
                "dialect",
                "%s takes no top_k and min_p: if the server has defaults of its own for them, they apply.",
                self.config.base_url,
            )


def _joined(found: Found, num_samples: int) -> Reply:
    """The answers of a prompt in the order of its samples."""
    in_order = [answer for _, answer in sorted(found, key=lambda each: each[0])]
    too_long = next((answer.too_long for answer in in_order if answer.too_long), "")
    refused = next((answer.refused for answer in in_order if answer.refused), "")
    completions = () if too_long or refused else tuple(completion for answer in in_order for completion in answer.completions)
    assert too_long or refused or len(completions) == num_samples, (len(completions), num_samples)
    num_prompt_tokens = next((a.num_prompt_tokens for a in in_order if a.num_prompt_tokens is not None), None)
    unsent = {name for answer in in_order for name in answer.not_sent}
    return Reply(completions, num_prompt_tokens, too_long, refused, tuple(sorted(unsent)))
