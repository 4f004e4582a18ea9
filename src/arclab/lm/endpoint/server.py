"""One request to servers that speak OpenAI's protocol, sent until it is answered, refused, or has failed too often.

    server = Server(config, [connect(url, key) for url in config.addresses])
    answer = server.ask(prompt, first=0, count=8, sampling=sampling, dialect=DIALECTS[0])

Several addresses are asked in turn; one that fails again and again is left out while there is another. A field that a server
says it does not know is left out from then on, with a warning. Which dialect they speak, and how samples are dealt out to
requests, is decided in model.py.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from arclab.config.llm_schema import EndpointModelConfig
from arclab.lm.endpoint.answers import Answer, Filtered, code_of, is_about_filter, parsed, read_answer, words_of
from arclab.lm.endpoint.dialects import OPTIONAL, Dialect, not_sent, request_fields, unknown_fields
from arclab.lm.endpoint.http import Connection, EndpointError, NoReply, Response, fetch
from arclab.lm.language_model import Prompt, Sampling
from arclab.runs.watched import ServerDown

_LONGEST_WAIT_S = 300.0
_NOTICED_S = 1.0  # until the end of a server that this process has started is known here
# An answer: so much for what is around the replies, so much for a token (with its log-probability and escapes), never more than
# this.
_BYTES_AROUND, _BYTES_PER_TOKEN, _MAX_BYTES = 2**20, 512, 2**28
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|maximum.{0,30}(length|tokens)|(prompt|input).{0,30}too long|longer than the", re.I
)
# A reply longer than the server allows: the same for every prompt.
_REPLY_TOO_LONG = re.compile(r"max_(completion_|new_)?tokens\W{0,3}\s*(must|should|cannot|may not)", re.I)
_NO_SUCH_PARAMETER = (400, 422)
_FILTER_REFUSES = (400, 403, 422, 451)
_MAY_PASS = (408, 409, 425, 429)  # and 500 upwards
log = logging.getLogger(__name__)


class Refused(EndpointError):
    """Status 400 or 422: perhaps only because of a parameter, or of this prompt."""


class Watch(Protocol):
    """What is known of a server that this process has started: arclab.runs.watched.WatchedServer."""

    @property
    def num_starts(self) -> int: ...

    def wait_until_up(self, is_given_up: Callable[[], bool]) -> None: ...


class Server:
    """May be asked by several threads at once. connections: of servers of the same model. watch: of the only one, if this
    process has started it: what fails because it is started again is sent again, and counts for nothing. giving_up: what waits
    to be sent again is not. stopped: what is under way is cut off."""

    def __init__(self, config: EndpointModelConfig, connections: Sequence[Connection], watch: Watch | None = None) -> None:
        self.config, self._in_turn, self._watch = config, InTurn(connections, config.max_retries), watch
        self.giving_up, self.stopped = threading.Event(), threading.Event()
        self._unknown: frozenset[str] = frozenset()  # fields that it refuses
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, prompt: Prompt, first: int, count: int, sampling: Sampling, dialect: Dialect) -> Answer:
        """At least one of `count` samples, from the sample `first` on, or why the prompt gets none. EndpointError: refused, or
        failed too often."""
        num_attempts = 0
        while True:
            connection, num_starts = self._in_turn.next(), self._watch.num_starts if self._watch else 0
            try:
                answer = self._attempt(connection, prompt, first, count, sampling, dialect)
                self._in_turn.answered(connection)
                return answer
            except NoReply as error:
                said = self._hidden(str(error), connection)
                if self._in_turn.failed(connection, said):
                    num_attempts = 0
                    continue
                wait_s = min(max(self.config.backoff_s * 2**num_attempts, error.wait_s), _LONGEST_WAIT_S)
                num_attempts += 1
                is_last = num_attempts > self.config.max_retries
                if self._watch is not None:
                    self.giving_up.wait(max(wait_s, _NOTICED_S))
                elif not is_last:
                    self.giving_up.wait(wait_s)
                if self._is_another_since(num_starts):
                    num_attempts = 0
                elif is_last or self.giving_up.is_set():
                    return self._failed(connection, error, num_attempts)
                log.info("%s: %s; it is asked again", connection.base_url, said)

    def _is_another_since(self, num_starts: int) -> bool:
        """Has the server been started again since? Waits while it is. EndpointError: it is not any more."""
        if self._watch is None or self.giving_up.is_set():
            return False
        try:
            self._watch.wait_until_up(self.giving_up.is_set)
        except ServerDown as error:
            raise EndpointError(str(error)) from error
        return self._watch.num_starts > num_starts

    def _failed(self, connection: Connection, error: NoReply, num_attempts: int) -> Answer:
        """A prompt whose every reply is filtered is no error."""
        url, reason = f"{connection.base_url}{connection.route}", self._hidden(str(error), connection)
        if isinstance(error, Filtered):
            return Answer((), None, refused=f"the filter of the server {url} keeps every reply to the prompt back ({reason}).")
        remedy = error.remedy or (
            f"check that it runs and keeps up, or raise lm.max_retries={self.config.max_retries} or lm.timeout_s"
        )
        raise EndpointError(f"the server {url} failed {num_attempts} times, at last with: {reason}; {remedy}.") from error

    def _attempt(
        self, connection: Connection, prompt: Prompt, first: int, count: int, sampling: Sampling, dialect: Dialect
    ) -> Answer:
        max_bytes = min(_BYTES_AROUND + _BYTES_PER_TOKEN * count * sampling.max_new_tokens, _MAX_BYTES)
        while True:
            unknown = self._unknown
            fields = request_fields(
                self.config.name, prompt, first=first, count=count, sampling=sampling, dialect=dialect, unknown=unknown,
                thinking=self.config.thinking,
            )  # fmt: skip
            response = fetch(
                connection,
                "/chat/completions",
                fields,
                timeout_s=self.config.timeout_s,
                max_bytes=max_bytes,
                stop=self.stopped,
            )
            if 200 <= response.status < 300:
                answer = read_answer(response.body, count, sampling, self.config.thinking)
                return replace(self._within_context(answer, sampling), not_sent=not_sent(dialect, unknown))
            if not self._learns(connection, response, fields):
                return self._refused(connection, response)

    def _within_context(self, answer: Answer, sampling: Sampling) -> Answer:
        if any(completion.opened for completion in answer.completions):
            self.warn(
                "thought",
                "%s wrote a whole reply into message.reasoning_content and no answer behind it: the reply ended inside its "
                "thinking (raise sampling.max_new_tokens), or the server takes answers for thinking (lm.thinking=false, "
                "or its reasoning parser off).",
                self.config.base_url,
            )
        num_prompt, limit = answer.num_prompt_tokens, self.config.max_context
        if limit is None or num_prompt is None or num_prompt + sampling.max_new_tokens <= limit:
            return answer
        problem = (
            f"the prompt has {num_prompt} tokens, which with {sampling.max_new_tokens} for the reply is more than "
            f"lm.max_context={limit}; shorten the prompt or lower sampling.max_new_tokens."
        )
        return Answer((), num_prompt, problem)

    def _learns(self, connection: Connection, response: Response, fields: Mapping[str, Any]) -> bool:
        """Whether the refusal names fields that can be left out. Each is sent no more."""
        if response.status not in (*_NO_SUCH_PARAMETER, 403):
            return False
        found = unknown_fields(words_of(response.body, 4000), fields)
        for name in sorted(found):
            self.warn(
                name, "%s takes no %s (%s): %s.", connection.base_url, name, self._said(response, connection), OPTIONAL[name],
            )  # fmt: skip
        with self._lock:
            self._unknown |= found
        return bool(found)

    def warn(self, topic: str, message: str, *arguments: object) -> None:
        """Once for a topic."""
        with self._lock:
            is_new = topic not in self._warned
            self._warned.add(topic)
        if is_new:
            log.warning(message, *arguments)

    def _refused(self, connection: Connection, response: Response) -> Answer:
        """What asking again would not change, but for NoReply. A prompt that is too long, or filtered, is no error."""
        status, said = response.status, self._said(response, connection)
        where = f"{connection.base_url}{connection.route}"
        if status in _MAY_PASS or status >= 500:
            raise NoReply(f"status {status}: {said}", wait_s=_retry_after_s(response))
        if status < 400:
            raise EndpointError(
                f"the server {where} redirects to {_place(response)} (status {status}), which is not followed because it "
                "would get the key and the prompts; give that address as lm.base_url if it is the right one."
            )
        if status in _NO_SUCH_PARAMETER and _REPLY_TOO_LONG.search(said):
            raise EndpointError(f"the server {where} allows no reply of sampling.max_new_tokens ({said}); lower it.")
        if status in (400, 413, 422) and (code_of(response.body) == "context_length_exceeded" or _TOO_LONG.search(said)):
            problem = f"the server {where} refused the prompt ({said}); shorten it or lower sampling.max_new_tokens."
            return Answer((), None, too_long=problem)
        if status in _FILTER_REFUSES and is_about_filter(parsed(response.body)):
            return Answer((), None, refused=f"the filter of the server {where} refused the prompt ({said}).")
        if status in (401, 403):
            named = self.config.api_key_env
            remedy = f"check the key in ${named}" if named else "name the variable that holds its key as lm.api_key_env"
            raise EndpointError(f"the server {where} denies access (status {status}: {said}); {remedy}.")
        if status == 404:
            raise EndpointError(
                f"the server {where} has no lm.name={self.config.name} (status 404: {said}); {self._offered(connection)}."
            )
        kind = Refused if status in _NO_SUCH_PARAMETER else EndpointError
        raise kind(
            f"the server {where} refuses the request (status {status}: {said}); check lm.name and the sampling settings."
        )

    def _said(self, response: Response, connection: Connection) -> str:
        """The server's own words, on one line."""
        return self._hidden(words_of(response.body), connection) or "it says nothing"

    def _hidden(self, text: str, connection: Connection) -> str:
        """Some servers repeat the key."""
        return text.replace(connection.key, "***") if connection.key else text

    def _offered(self, connection: Connection) -> str:
        """The list is only a help, and may be anything."""
        try:
            response = fetch(connection, "/models", timeout_s=self.config.timeout_s, max_bytes=_BYTES_AROUND, stop=self.stopped)
        except NoReply:
            response = None
        listed = parsed(response.body) if response is not None and response.status == 200 else None
        models = listed.get("data") if isinstance(listed, dict) else None
        ids = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
        names = sorted(name[:100] for name in ids if isinstance(name, str) and name.isprintable())
        return f"it offers {', '.join(names[:20])}" if names else "check lm.name and lm.base_url, which often ends in /v1"


class InTurn:
    """Addresses that are asked one after the other. One that fails more than max_retries times without an answer between is
    left out, but for the last one. May be used by several threads."""

    def __init__(self, connections: Sequence[Connection], max_retries: int) -> None:
        self._living, self._max_retries, self._turn = list(connections), max_retries, 0
        self._failures = dict.fromkeys((connection.base_url for connection in connections), 0)
        self._lock = threading.Lock()

    def next(self) -> Connection:
        with self._lock:
            self._turn += 1
            return self._living[(self._turn - 1) % len(self._living)]

    def answered(self, connection: Connection) -> None:
        self._failures[connection.base_url] = 0

    def failed(self, connection: Connection, said: str) -> bool:
        """Is it left out from now on, so that others are asked? said: why it failed."""
        with self._lock:
            if connection not in self._living:
                return True
            self._failures[connection.base_url] += 1
            if self._failures[connection.base_url] <= self._max_retries or len(self._living) == 1:
                return False
            self._living.remove(connection)
        log.warning("%s: %s; it has failed again and again and is asked no more", connection.base_url, said)
        return True


def _place(response: Response) -> str:
    """Where a redirect points to, without what may be secret in it."""
    try:
        parts = urlsplit(response.headers.get("location", ""))
        host = parts.hostname
    except ValueError:
        return "an address that is none"
    port = parts.netloc.rpartition("@")[2].removeprefix(host or "")
    place = (f"{parts.scheme}://{host}{port}" if host else "") + parts.path
    return place[:200] if place.isprintable() and place else "nowhere"


def _retry_after_s(response: Response) -> float:
    """Retry-After as seconds or as a date; 0 if there is none."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
