"""Replies of a language model, kept as they come: one line of samples.jsonl for each finished task.

    store = SampleStore(folder, settings)       # settings: {dotted key: value} of all that decides a reply
    store.load()                                # ConfigError if the file was made with other settings
    reply = store.get(task_id, prompt)          # None: not drawn yet, or drawn for another prompt
    store.add(task_id, prompt, reply)           # on disk when it returns

Drawing replies is what costs, so they are never thrown away: the same command goes on after a kill or a lost server, and
votes again without drawing. A line that a kill cut short is dropped and drawn again. It does not keep what programs answered.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.llm.language_model import Completion, FinishReason, Prompt, Reply

FILE_NAME = "samples.jsonl"


class SampleStore:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path, self._settings = folder / FILE_NAME, settings
        self._records: dict[str, dict[str, Any]] = {}

    def load(self) -> int:
        """Read what is there; the number of finished tasks. ConfigError: other settings, or no file of this kind."""
        if not self.path.is_file():
            return 0
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            self.path.unlink()
            return 0
        header, *records = (self._parsed(line, number) for number, line in enumerate(lines, start=1))
        self._require_same(header.get("settings", {}))
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        self._records = {record["task"]: record for record in records}
        return len(self._records)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{self.path} is damaged (line {number}: {error}); remove the line, or the file.") from error
        if not isinstance(record, dict) or (number == 1) != ("settings" in record):
            raise ConfigError(f"{self.path} is damaged (line {number} is not of this file); remove the file.")
        return record

    def _require_same(self, before: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self._settings))
        different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if different:
            key = different[0]
            raise ConfigError(
                f"{self.path} holds replies drawn with {key}={before.get(key)}, now {key}={now.get(key)} ({len(different)} keys differ); "
                "choose another output_dir=, or remove the file."
            )

    def get(self, task_id: str, prompt: Prompt) -> Reply | None:
        record = self._records.get(task_id)
        if record is None or record["prompt"] != prompt_digest(prompt):
            return None
        completions = tuple(
            Completion(c["text"], FinishReason(c["finish_reason"]), c["num_tokens"], c["logprob"])
            for c in record["completions"]
        )
        return Reply(completions, record["num_prompt_tokens"], record["too_long"], record["opened"])

    def add(self, task_id: str, prompt: Prompt, reply: Reply) -> None:
        completions = [{**asdict(c), "finish_reason": c.finish_reason.value} for c in reply.completions]
        record = {
            "task": task_id,
            "prompt": prompt_digest(prompt),
            "num_prompt_tokens": reply.num_prompt_tokens,
            "too_long": reply.too_long,
            "opened": reply.opened,
            "completions": completions,
        }
        self._records[task_id] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.is_file()
        with self.path.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(json.dumps({"settings": self._settings}) + "\n")
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def prompt_digest(prompt: Prompt) -> str:
    return hashlib.sha256(json.dumps([[m.role, m.content] for m in prompt]).encode()).hexdigest()[:16]
