"""Conversations of a run as a file: what was said in every turn, where memory stood, and what it earned.

    append_transcripts(run / TRANSCRIPTS, [Transcript(...), ...])
    for transcript in read_transcripts(run / TRANSCRIPTS): ...

JSON lines. A run that is continued draws some of them again: the last one of a step, an id and a sample counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arclab.files import as_record, naming, numbered_lines, require_kinds

TRANSCRIPTS = "transcripts.jsonl"


@dataclass(frozen=True, slots=True)
class Said:
    """One turn. inserted_chars: where in the reply memory was inserted. is_ended: else cut at max_new_tokens. observation: what
    the environment said to it; empty: nothing."""

    reply: str
    inserted_chars: list[int]
    num_tokens: int
    is_ended: bool
    observation: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """source: training or evaluation. sample: its number among those of one step and id. is_over: else cut at max_turns.
    reward: None: it could not be computed, and failure says why. parts: of the score, by name. is_counted: part of the loss."""

    step: int
    source: str
    id: str
    sample: int
    question: str
    gold: str
    turns: list[dict]  # of Said  # pyright: ignore[reportMissingTypeArgument]
    is_over: bool
    reward: float | None
    parts: dict[str, float]
    failure: str
    is_counted: bool

    @property
    def said(self) -> list[Said]:
        return [Said(**{name: turn[name] for name in Said.__dataclass_fields__}) for turn in self.turns]


def append_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    with path.open("a", encoding="utf-8") as file, naming(path):
        file.write("".join(json.dumps(asdict(each)) + "\n" for each in transcripts))


def read_transcripts(path: Path) -> list[Transcript]:
    """In the order of their steps. ValueError: a line that is none."""
    kinds = {"reply": str, "inserted_chars": list[int], "num_tokens": int, "is_ended": bool, "observation": str}
    found: dict[tuple[str, int, str, int], Transcript] = {}
    for line, record in numbered_lines(path):
        transcript = as_record(record, Transcript, path)
        for turn in transcript.turns:
            require_kinds(turn, kinds, path, line=line)
        found[transcript.source, transcript.step, transcript.id, transcript.sample] = transcript
    return sorted(found.values(), key=lambda each: (each.step, each.source))
