"""Replies of a language model, kept as they come: one line of samples.jsonl for each finished task.

    store = SampleStore(folder, settings)       # settings: {dotted key: value} of all that decides a reply
    store.check()                               # ConfigError if the file was made with other settings; changes nothing
    store.load()                                # reads it and mends its end: for who holds the folder's lock
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
        self._known: dict[str, tuple[str, Reply]] = {}  # task id -> digest of the prompt, reply

    def check(self) -> None:
        """ConfigError: other settings, or no file of this kind. Another process may be writing to it."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                first = file.readline()
            if first.endswith(b"\n"):
                self._require_same(self._settings_of(first))

    def load(self) -> int:
        """Read what is there; the number of finished tasks. ConfigError: other settings, or no file of this kind. A half-written end is
        cut off, so nobody else may be writing."""
        if not self.path.is_file():
            return 0
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            self.path.unlink()
            return 0
        self._require_same(self._settings_of(lines[0]))
        known = dict(self._entry(line, number) for number, line in enumerate(lines[1:], start=2))
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        self._known = known
        return len(known)

    def _settings_of(self, line: bytes) -> dict[str, Any]:
        try:
            settings = json.loads(line)["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(1, error) from error
        if not isinstance(settings, dict):
            raise self._damaged(1, "no settings")
        return settings

    def _entry(self, line: bytes, number: int) -> tuple[str, tuple[str, Reply]]:
        try:
            record = json.loads(line)
            drawn = record["completions"]
            opened = record.get("opened", "")  # where earlier versions wrote it, for all samples of a prompt
            completions = tuple(
                Completion(c["text"], FinishReason(c["finish_reason"]), c["num_tokens"], c["logprob"], c.get("opened", opened))
                for c in drawn
            )
            reply = Reply(completions, record["num_prompt_tokens"], record["too_long"])
            return record["task"], (record["prompt"], reply)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(number, error) from error

    def _damaged(self, number: int, why: object) -> ConfigError:
        kind = type(why).__name__ if isinstance(why, Exception) else "content"
        return ConfigError(
            f"{self.path} is damaged or of another version (line {number}: {kind} {why}); remove the file, or choose another output_dir=."
        )

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
        digest, reply = self._known.get(task_id, ("", None))
        return reply if digest == prompt_digest(prompt) else None

    def add(self, task_id: str, prompt: Prompt, reply: Reply) -> None:
        completions = [{**asdict(c), "finish_reason": c.finish_reason.value} for c in reply.completions]
        record = {
            "task": task_id,
            "prompt": prompt_digest(prompt),
            "num_prompt_tokens": reply.num_prompt_tokens,
            "too_long": reply.too_long,
            "completions": completions,
        }
        self._known[task_id] = (record["prompt"], reply)
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
