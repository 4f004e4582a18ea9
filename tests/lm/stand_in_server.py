"""A pretended model server as a process of its own, without any package: python stand_in_server.py FOLDER PORT [DELAY_S [MODEL]]

A reply depends on the prompt and the seed alone. A file in FOLDER makes it fail: `dies`, `hangs` (until it is killed) and `errs`
(status 500) each for one chat request, after which the file is gone; `broken` keeps it from starting. FOLDER/requests has a line
for each chat request, FOLDER/starts one for each start. Who does not send the key in MODEL_SERVER_KEY is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
DELAY_S = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0  # before each reply
MODEL = sys.argv[4] if len(sys.argv) > 4 else ""
KEY = os.environ.get("MODEL_SERVER_KEY")
HANGS = threading.Event()


def took(name: str) -> bool:
    try:
        (FOLDER / name).unlink()
    except FileNotFoundError:
        return False
    return True


def reply(messages: list[dict[str, str]], seed: int) -> str:
    """A program that answers with one cell."""
    number = hashlib.sha256(f"{messages}/{seed}".encode()).digest()[0] % 10
    return f"```python\ndef solve(grid):\n    return [[{number}]]\n```"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        while HANGS.is_set():
            time.sleep(0.1)
        self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if KEY and self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"error": {"message": "no such key"}})
            return
        with (FOLDER / "requests").open("a") as file:
            file.write(f"{body['seed']}\n")
        if took("dies"):
            os._exit(3)
        if took("hangs"):
            HANGS.set()
        while HANGS.is_set():
            time.sleep(0.1)
        if took("errs"):
            self.answer(500, {"error": {"message": "out of memory"}})
            return
        time.sleep(DELAY_S)
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": reply(body["messages"], body["seed"] + i)}}
            for i in range(body.get("n", 1))
        ]  # fmt: skip
        self.answer(200, {"object": "chat.completion", "model": body["model"], "choices": choices})

    def answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


if __name__ == "__main__":
    with (FOLDER / "starts").open("a") as starts:
        starts.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('PYTHONPATH')} {MODEL}\n")
    sys.stdout.write("loading the model\n")
    sys.stdout.flush()
    if (FOLDER / "broken").exists():
        sys.exit("CUDA out of memory\n")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
