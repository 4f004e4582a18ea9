"""The files that stages hand to each other: solutions, preference pairs, curated programs.

    write_records(path, solutions)               # JSONL, whole or not at all
    solutions = read_records(path, Solution)     # DamagedFile: a line that is none

A program is kept as the model wrote it (`written`: from the beginning of the reply, marks included), so that what is learned
is what the search would read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from arclab.files import as_record, read_lines, write_atomically

SOLUTIONS, PAIRS, CURATED, AUGMENTED = "solutions.jsonl", "preference_pairs.jsonl", "curated.jsonl", "augmented.jsonl"


@dataclass(frozen=True, slots=True)
class Solution:
    """A finished program that reproduces every demonstration. right: also every hidden test output. mean_q: over the nodes of
    its path; q_values: of these, from the first step. number: of the round that found it. prompt: its id in the tree; asked:
    the digest of its messages."""

    task: str
    tag: str
    number: int
    prompt: str
    asked: str
    written: str
    right: bool
    mean_q: float
    q_values: list[float]
    temperatures: list[float]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two continuations of one prefix in one prompt. kind: step, or trace (whole programs). prefix, chosen, rejected: texts as
    they were written from the beginning of the reply; of traces the prefix is what every reply begins with. prompt, asked: as
    of a solution. right, wrong: finished programs below, labelled by hidden test outputs."""

    task: str
    kind: str
    prompt: str
    asked: str
    prefix: str
    chosen: str
    rejected: str
    chosen_tag: str
    rejected_tag: str
    chosen_q: float
    rejected_q: float
    chosen_right: int
    chosen_wrong: int
    rejected_right: int
    rejected_wrong: int


@dataclass(frozen=True, slots=True)
class Curated:
    """A program to learn from, cleaned. weight: of its task's 1. origin: the task that labels and rule are of, another one than
    `task` for pseudo-tasks of generated examples. examples: of these, {"train", "test"} as JSON text; empty: the task's own."""

    task: str
    origin: str
    number: int
    prompt: str
    written: str
    mean_q: float
    weight: float
    examples: str


R = TypeVar("R", Solution, PreferencePair, Curated)


def write_records(path: Path, records: Iterable[R]) -> None:
    write_atomically(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_records(path: Path, kind: type[R]) -> list[R]:
    return [as_record(line, kind, path) for line in read_lines(path)]
