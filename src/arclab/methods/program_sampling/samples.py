"""Replies of a language model, kept as they come: one line of samples.jsonl for each finished task.

    store = SampleStore(folder, settings)       # settings: {dotted key: value} of all that decides a reply
    store.check()                               # ConfigError if the file was made with other settings; changes nothing
    store.load()                                # reads it and mends its end: for who holds the folder's lock
    reply = store.get(task_id, prompt)          # None: not drawn yet, or drawn for another prompt
    store.add(task_id, prompt, reply)           # on disk when it returns

Drawing replies is what costs, so they are never thrown away: the same command goes on after a kill or a lost server, and
votes again without drawing. A line that a kill cut short is dropped and drawn again. A damaged line is named in a warning,
stays where it is, and counts for nothing: its task is drawn again. Each line has a checksum, so that a changed reply is not
taken for what the model said; lines of earlier versions have none. It does not keep what programs answered.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile, is_kind, naming, parse_object, require_kinds
from arclab.lm.language_model import Completion, FinishReason, Prompt, Reply

FILE_NAME = "samples.jsonl"
_REMEDY = "remove the file, or choose another output_dir="
_LINE_REMEDY = "its task is drawn again unless another line holds it; remove the line to hear no more of it"
_RECORD = {"task": str, "prompt": str, "num_prompt_tokens": int | None, "too_long": str, "completions": list}
_COMPLETION = {"text": str, "opened": str, "finish_reason": str, "num_tokens": int | None}
_CHECKSUM = "crc32"
log = logging.getLogger(__name__)


class SampleStore:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path, self._settings = folder / FILE_NAME, settings
        self._known: dict[str, tuple[str, Reply]] = {}  # task id -> digest of the prompt, reply

    def check(self) -> None:
        """ConfigError: other settings. DamagedFile: no file of this kind. Another process may be writing to it."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                first = file.readline()
            if first.endswith(b"\n"):
                self._require_same(self._settings_of(first))

    def load(self) -> int:
        """Read what is there; the number of finished tasks. ConfigError: other settings. DamagedFile: no file of this kind. A
        half-written end is cut off, so nobody else may be writing."""
        if not self.path.is_file():
            return 0
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end == 0:
            self.path.unlink()
            return 0
        first, *lines = data[: end - 1].split(b"\n")
        self._require_same(self._settings_of(first))
        known: dict[str, tuple[str, Reply]] = {}
        for number, line in enumerate(lines, start=2):
            try:
                known |= [self._entry(line, number)]
            except DamagedFile as error:
                log.warning("%s", error)
        if end < len(data):
            with self.path.open("r+b") as file:
                file.truncate(end)
        self._known = known
        return len(known)

    def _settings_of(self, line: bytes) -> dict[str, Any]:
        record = self._record(line, 1, _REMEDY)
        require_kinds(record, {"settings": dict}, self.path, line=1, remedy=_REMEDY)
        return record["settings"]

    def _entry(self, line: bytes, number: int) -> tuple[str, tuple[str, Reply]]:
        record = self._record(line, number, _LINE_REMEDY)
        require_kinds(record, _RECORD, self.path, line=number, remedy=_LINE_REMEDY)
        opened = record.get("opened", "")  # where earlier versions wrote it, for all samples of a prompt
        completions = tuple(self._completion(drawn, opened, number) for drawn in record["completions"])
        not_sent = record.get("not_sent", [])
        if not is_kind(not_sent, list[str]):
            raise self._damaged(number, "not_sent is no list of names")
        reply = Reply(completions, record["num_prompt_tokens"], record["too_long"], not_sent=tuple(not_sent))
        return record["task"], (record["prompt"], reply)

    def _completion(self, drawn: Any, opened: object, number: int) -> Completion:
        if not isinstance(drawn, dict):
            raise self._damaged(number, "a completion is no object")
        drawn = {"opened": opened, **drawn}
        require_kinds(drawn, _COMPLETION, self.path, line=number, remedy=_LINE_REMEDY)
        ends = {reason.value: reason for reason in FinishReason}
        if drawn["finish_reason"] not in ends:
            raise self._damaged(number, f"finish_reason is none of {', '.join(ends)}")
        logprob = drawn.get("logprob")
        if not (logprob is None or type(logprob) is float or is_kind(logprob, int)):  # minus infinity is one
            raise self._damaged(number, "logprob is no number")
        return Completion(drawn["text"], ends[drawn["finish_reason"]], drawn["num_tokens"], logprob, drawn["opened"])

    def _record(self, line: bytes, number: int, remedy: str) -> dict[str, Any]:
        """The object in a line, without its checksum, which must be right if there is one."""
        record = parse_object(line, self.path, line=number, remedy=remedy)
        if _CHECKSUM in record:
            told = record.pop(_CHECKSUM)
            if told != _checksum(record):
                raise DamagedFile(self.path, "it was changed: its checksum is another", line=number, remedy=remedy)
        return record

    def _damaged(self, number: int, why: str) -> DamagedFile:
        return DamagedFile(self.path, why, line=number, remedy=_LINE_REMEDY)

    def _require_same(self, before: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self._settings))
        different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if different:
            key = different[0]
            raise ConfigError(
                f"{self.path} holds replies drawn with {key}={before.get(key)}, now {key}={now.get(key)} ({len(different)} "
                "keys differ); choose another output_dir=, or remove the file."
            )

    def get(self, task_id: str, prompt: Prompt) -> Reply | None:
        digest, reply = self._known.get(task_id, ("", None))
        return reply if digest == prompt_digest(prompt) else None

    def add(self, task_id: str, prompt: Prompt, reply: Reply) -> None:
        assert all(is_kind(c.text, str) for c in reply.completions), task_id
        completions = [{**asdict(c), "finish_reason": c.finish_reason.value} for c in reply.completions]
        record = {
            "task": task_id,
            "prompt": prompt_digest(prompt),
            "num_prompt_tokens": reply.num_prompt_tokens,
            "too_long": reply.too_long,
            "not_sent": list(reply.not_sent),
            "completions": completions,
        }
        self._known[task_id] = (record["prompt"], reply)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.is_file()
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(_line({"settings": self._settings}))
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())


def _line(record: dict[str, Any]) -> str:
    return json.dumps({**record, _CHECKSUM: _checksum(record)}) + "\n"


def _checksum(record: dict[str, Any]) -> int:
    """Of what the line says, however it is written."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())


def prompt_digest(prompt: Prompt) -> str:
    return sha256(json.dumps([[m.role, m.content] for m in prompt]).encode()).hexdigest()[:16]
