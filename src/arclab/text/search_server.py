"""The search tool as a server: documents in a file, queries over HTTP.

    python -m arclab.text.search_server wiki.jsonl --port 8001

    GET  /health                                         {"documents": 21015324}
    POST /search  {"queries": ["a", "b"], "top_k": 3}    {"results": [[{"title": ..., "text": ..., "score": ...}, ...], ...]}

It says its address in one line when it is ready (port 0: a free one) and listens on this machine alone, unless told --host. It
asks nobody who they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, run_main
from arclab.files import DamagedFile, parse_object
from arclab.text.search_index import SearchIndex, read_documents

_MAX_BYTES = 2**24
_MOST_DOCUMENTS = 1000  # of one query
log = logging.getLogger(__name__)


class _Handler(BaseHTTPRequestHandler):
    index: SearchIndex  # of the class that serve() makes
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, {"documents": len(self.index.documents)})
        else:
            self._answer(404, {"error": "GET /health or POST /search"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/search" or not length.isdecimal() or int(length) > _MAX_BYTES:
            self.close_connection = True  # what was sent has not been read
            self._answer(400, {"error": f"POST /search with a body of at most {_MAX_BYTES} bytes"})
            return
        try:
            asked = parse_object(self.rfile.read(int(length)), Path("request"), {"queries": list[str], "top_k": int})
        except DamagedFile as error:
            self._answer(400, {"error": str(error)})
            return
        found = self.index.search(asked["queries"], min(max(asked["top_k"], 1), _MOST_DOCUMENTS))
        self._answer(200, {"results": [[asdict(each) for each in answer] for answer in found]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """A line for each request says nothing."""


def serve(index: SearchIndex, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens; serve_forever() answers. ConfigError: the port cannot be had."""
    try:
        return ThreadingHTTPServer((host, port), type("Handler", (_Handler,), {"index": index}))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port} cannot be listened on ({error}); choose another port.") from error


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m arclab.text.search_server", description="Search documents over HTTP.")
    parser.add_argument("documents", type=Path, help="a JSONL file with title and text")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8001, help="port to listen on (8001; 0: a free one)")
    given = parser.parse_args(argv)
    index = SearchIndex(read_documents(given.documents))
    server = serve(index, given.host, given.port)
    sys.stdout.write(f"http://{given.host}:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    run_main(main)
