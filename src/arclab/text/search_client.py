"""Asking the search tool: a server that somebody else runs, or one that is started here, watched, and ended.

    with search_tool(config.search, documents, log_file) as tool:        # rank 0 of a run; tool.url for the others
        found = tool.search(["capital of Peru"])                          # [[Found, ...]]
    tool = SearchTool("http://127.0.0.1:8001", top_k=3)

A server that is started is watched (arclab.runs.watched): if it dies or hangs it is started again at the same address, a few
times; what is asked meanwhile waits for it. A server that does not answer is a SearchDown, which names the remedy: a rollout
that needs it is marked, and the run goes on unless all of them are.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from arclab.config.text_schema import START, SearchConfig
from arclab.files import DamagedFile, parse_object, require_kinds
from arclab.runs.watched import WatchedServer, Wished
from arclab.text.search_index import Found

_START_S = 600.0  # to index a large file
_WAIT_S = 30.0  # for a server that is being started again
_TIMEOUT_S = 60.0  # of one answer
_SILENT_S = 60.0
_RESTARTS = 5
_PAUSE_S = 0.2
log = logging.getLogger(__name__)


class SearchDown(RuntimeError):
    """The server does not answer, or nothing that makes sense."""


class SearchTool:
    """wait_s: how long a server that does not answer is asked again. May be used by several threads."""

    def __init__(self, url: str, top_k: int, wait_s: float = _WAIT_S) -> None:
        self.url, self._top_k, self._wait_s = url.rstrip("/"), top_k, wait_s

    def require_health(self) -> int:
        """The number of documents. SearchDown: there is no such server."""
        body = self._asked("GET", "/health", None)
        require_kinds(body, {"documents": int}, Path(self.url))
        return body["documents"]

    def search(self, queries: Sequence[str]) -> list[list[Found]]:
        """An answer for every query. SearchDown: see the class."""
        if not queries:
            return []
        body = self._asked("POST", "/search", {"queries": list(queries), "top_k": self._top_k})
        results = body.get("results")
        kinds = {"title": str, "text": str, "score": float}
        try:
            if not isinstance(results, list) or len(results) != len(queries):
                raise DamagedFile(self.url, f"no {len(queries)} results")
            for each in results:
                for found in each:
                    require_kinds(found, kinds, Path(self.url))
            return [[Found(each["title"], each["text"], each["score"]) for each in answer] for answer in results]
        except (DamagedFile, TypeError) as error:
            raise self._down(str(error)) from error

    def _asked(self, method: str, route: str, body: dict[str, object] | None) -> dict[str, Any]:
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                answer = httpx.request(method, f"{self.url}{route}", json=body, timeout=_TIMEOUT_S, trust_env=False)
                answer.raise_for_status()
                return parse_object(answer.content, Path(self.url))
            except httpx.HTTPStatusError as error:
                raise self._down(f"status {error.response.status_code}") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if time.monotonic() > deadline:
                    raise self._down(str(error) or type(error).__name__) from error
                time.sleep(_PAUSE_S)
            except DamagedFile as error:
                raise self._down("its answer is no JSON object") from error

    def _down(self, why: str) -> SearchDown:
        return SearchDown(
            f"the search tool {self.url} does not answer ({why}); start it with python -m arclab.text.search_server FILE "
            "--port PORT, or set dataset.search.server=start"
        )


@contextmanager
def search_tool(config: SearchConfig, documents: Path | None, log_file: Path) -> Iterator[SearchTool]:
    """documents: for a server that is started. ValueError, in one sentence: it does not start, or nobody answers."""
    if config.server != START:
        tool = SearchTool(config.server, config.top_k)
        _require(SearchTool(config.server, config.top_k, wait_s=0.0))
        yield tool
        return
    assert documents is not None
    with WatchedServer(_wished(documents, log_file)) as server:
        tool = SearchTool(server.start(), config.top_k)
        log.info("the search tool %s has %d documents", tool.url, _require(tool))
        yield tool


def _wished(documents: Path, log_file: Path) -> Wished:
    command = [sys.executable, "-m", "arclab.text.search_server", str(documents), "--port"]
    return Wished(
        name="the search tool", command=lambda port: [*command, str(port)], log_file=log_file, health=("/health",),
        start_s=_START_S, silent_s=_SILENT_S, restarts=_RESTARTS,
    )  # fmt: skip


def _require(tool: SearchTool) -> int:
    try:
        return tool.require_health()
    except (SearchDown, DamagedFile) as error:
        raise ValueError(f"dataset.search: {str(error).rstrip('.')}.") from error
