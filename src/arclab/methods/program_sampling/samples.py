"""Replies of a language model, kept as they come: one line of samples.jsonl for each finished task.

    store = SampleStore(folder, settings)       # settings: {dotted key: value} of all that decides a reply
    store.check()                               # ConfigError if the file was made with other settings; changes nothing
    store.load()                                # reads it and mends its end: for who holds the folder's lock
    reply = store.get(task_id, prompt)          # None: not drawn yet, or drawn for another prompt
    store.add(task_id, prompt, reply)           # on disk when it returns

Drawing replies is what costs, so they are never thrown away: the same command goes on after a kill or a lost server, and
votes again without drawing. What the file does with kills and damage: see arclab.runs.worklist. It does not keep what programs
answered.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from arclab.files import is_kind
from arclab.lm.language_model import Completion, FinishReason, Prompt, Reply, prompt_digest
from arclab.runs.worklist import ItemKind, Line, Worklist

FILE_NAME = "samples.jsonl"
SAMPLES = ItemKind(id_key="task", holds="replies drawn", again="its task is drawn again")
_RECORD = {"prompt": str, "num_prompt_tokens": int | None, "too_long": str, "completions": list}
_COMPLETION = {"text": str, "opened": str, "finish_reason": str, "num_tokens": int | None}


class SampleStore:
    """settings: values that JSON can hold."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._worklist = Worklist(folder / FILE_NAME, settings, SAMPLES)
        self._known: dict[str, tuple[str, Reply]] = {}  # task id -> digest of the prompt, reply

    @property
    def path(self) -> Path:
        return self._worklist.path

    def check(self) -> None:
        """ConfigError: other settings. DamagedFile: no file of this kind. Another process may be writing to it."""
        self._worklist.check()

    def load(self) -> int:
        """Read what is there; the number of finished tasks. ConfigError: other settings. DamagedFile: no file of this kind. A
        half-written end is cut off, so nobody else may be writing."""
        self._known = self._worklist.load(_parse)
        return len(self._known)

    def get(self, task_id: str, prompt: Prompt) -> Reply | None:
        """The reply to this prompt; None: not drawn yet, or drawn for another prompt."""
        digest, reply = self._known.get(task_id, ("", None))
        return reply if digest == prompt_digest(prompt) else None

    def add(self, task_id: str, prompt: Prompt, reply: Reply) -> None:
        """Keep a reply, in place of an earlier one of the task."""
        assert all(is_kind(c.text, str) for c in reply.completions), task_id
        digest = prompt_digest(prompt)
        record = {
            "prompt": digest,
            "num_prompt_tokens": reply.num_prompt_tokens,
            "too_long": reply.too_long,
            "not_sent": list(reply.not_sent),
            "completions": [{**asdict(c), "finish_reason": c.finish_reason.value} for c in reply.completions],
        }
        self._known[task_id] = (digest, reply)
        self._worklist.add(task_id, record)


def _parse(record: dict[str, Any], line: Line) -> tuple[str, Reply]:
    """(digest of the prompt, reply) of a line."""
    line.require(record, _RECORD)
    opened = record.get("opened", "")  # where earlier versions wrote it, for all samples of a prompt
    completions = tuple(_completion(drawn, opened, line) for drawn in record["completions"])
    not_sent = record.get("not_sent", [])
    if not is_kind(not_sent, list[str]):
        raise line.damaged("not_sent is no list of names")
    return record["prompt"], Reply(completions, record["num_prompt_tokens"], record["too_long"], not_sent=tuple(not_sent))


def _completion(drawn: Any, opened: object, line: Line) -> Completion:
    if not isinstance(drawn, dict):
        raise line.damaged("a completion is no object")
    drawn = {"opened": opened, **drawn}
    line.require(drawn, _COMPLETION)
    ends = {reason.value: reason for reason in FinishReason}
    if drawn["finish_reason"] not in ends:
        raise line.damaged(f"finish_reason is none of {', '.join(ends)}")
    logprob = drawn.get("logprob")
    if not (logprob is None or type(logprob) is float or is_kind(logprob, int)):  # minus infinity is one
        raise line.damaged("logprob is no number")
    return Completion(drawn["text"], ends[drawn["finish_reason"]], drawn["num_tokens"], logprob, drawn["opened"])
