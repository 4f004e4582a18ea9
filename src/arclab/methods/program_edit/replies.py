"""Selected edits as what a model learns: prompt, <think> reasoning, program; and the reader's word on each.

    rows = taught(selection.kept)                       # what is written to sft.jsonl
    rows = accepted(read_taught(path), read_review(review))

Reasoning loses its fluff by rule: lines that only say that one is thinking, and lines that were said before. What changes its
mind ("Wait, ...") stays. The review is a JSON file that the page of stage=select saves: {"decisions": {id: accept or reject}}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arclab.files import DamagedFile, read_lines, read_object, write_atomically
from arclab.methods.program_edit.editing import EditRecord
from arclab.programs.edits import write_reply

_OPENING = re.compile(r"^(?:(?:okay|ok|alright|all right|well|hmm+|hm|so|right|now)\b[,.! ]+)+", re.IGNORECASE)
_EMPTY = re.compile(
    r"^(?:let(?:'s| me| us) (?:think|see|look|start|begin|try)\b[^.:]{0,60}[.:!]*|i need to think\b[^.:]{0,60}[.:]*|[.…!?-]+)$",
    re.IGNORECASE,
)
ACCEPT, REJECT = "accept", "reject"


@dataclass(frozen=True, slots=True)
class Taught:
    """A row that is learned: prompt of the user, reply, and what the edit gained."""

    id: str
    task: str
    prompt: str
    reply: str
    delta: float


def without_fluff(thinking: str) -> str:
    """The reasoning without lines that say nothing; what is left stays as it was written, but for its first words."""
    kept: list[str] = []
    for line in thinking.splitlines():
        text = line.strip()
        said = _OPENING.sub("", text)
        if not said or _EMPTY.match(said) or said in kept:
            continue
        kept.append(line.rstrip() if said == text else said[0].upper() + said[1:])
    return "\n".join(kept)


def taught(records: Sequence[EditRecord]) -> list[Taught]:
    rows = []
    for record in records:
        assert record.source is not None
        reply = write_reply(without_fluff(record.thinking), record.source)
        rows.append(Taught(record.id, record.task, record.prompt, reply, record.delta))
    return rows


def write_taught(path: Path, rows: Sequence[Taught]) -> None:
    write_atomically(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_taught(path: Path) -> list[Taught]:
    """DamagedFile: a line is not what was written."""
    kinds = {"id": str, "task": str, "prompt": str, "reply": str, "delta": float}
    return [Taught(**{key: row[key] for key in kinds}) for row in read_lines(path, kinds)]


def write_review(path: Path) -> None:
    """A review in which nothing is decided: everything is learned."""
    write_atomically(path, json.dumps({"decisions": {}}, indent=1) + "\n")


def read_review(path: Path, ids: Collection[str]) -> set[str]:
    """The ids that were rejected. DamagedFile: another word than accept and reject, or an edit that is not there."""
    remedy = "save it again from the page of stage=select"
    decisions = read_object(path, {"decisions": dict[str, str]}, remedy=remedy)["decisions"]
    for id_, word in decisions.items():
        if id_ not in ids:
            raise DamagedFile(path, f"it decides on {id_}, which is no selected edit", remedy=remedy)
        if word not in (ACCEPT, REJECT):
            raise DamagedFile(path, f"it says {word} of {id_}, not {ACCEPT} or {REJECT}", remedy=remedy)
    return {id_ for id_, word in decisions.items() if word == REJECT}


def accepted(rows: Sequence[Taught], rejected: Collection[str]) -> list[Taught]:
    return [row for row in rows if row.id not in rejected]
