"""What is tried of each item, and what came of it: a trial trains on one text and answers the item's questions.

    trials = first_trials(config, items, completions)         # Trial(item, edit, text, repetition)
    more = further_trials(config, rows, items, completions)   # of the two best completions of each item
    rows = read_rows(path)                                     # Row(item, edit, repetition, answers, right, base, ...)

edit: the number of a completion; PASSAGE, the passage alone; REPEATED, the passage as often as the first completion has
sequences, so that as many steps are taken; OTHER, a completion of another item with that item's passage in
place of the own one, which must not help.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arclab.config.seal_knowledge_schema import QueryConfig, SealKnowledgeConfig
from arclab.files import as_record, read_lines, write_atomically
from arclab.methods.seal.knowledge.engine import Asked, Request, seed_of
from arclab.methods.seal.knowledge.passages import Item
from arclab.methods.seal.knowledge.prompts import training_sequences

PASSAGE, REPEATED, OTHER = "passage", "repeated", "other"
ROWS = "results.jsonl"
_BEST = 2  # completions of an item that are tried again


@dataclass(frozen=True, slots=True)
class Trial:
    """sequences: what is trained on. others: items that are asked about too, behind the own one."""

    item: Item
    edit: str
    repetition: int
    sequences: tuple[str, ...]
    others: tuple[Item, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.item.id}/{self.edit}/{self.repetition}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.sequences).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Row:
    """A trial with its answers. right, base: of each question whether the adapted model, and the model as it is, answer it
    right; null: ungraded. loss: of the last epoch. problem: why the model was not adapted; then its answers are the base's.
    retained, retained_base: as right and base, of the questions of other items; empty without query.num_retained."""

    item: str
    edit: str
    repetition: int
    questions: list[str]
    answers: list[str]
    right: list[bool | None]
    base_answers: list[str]
    base: list[bool | None]
    num_sequences: int
    num_steps: int
    num_tokens: int
    num_padding: int
    loss: float | None
    train_s: float
    problem: str
    retained: list[bool | None]
    retained_base: list[bool | None]

    @property
    def is_completion(self) -> bool:
        return self.edit not in (PASSAGE, REPEATED, OTHER)

    @property
    def gain(self) -> float | None:
        """In share of the questions that are graded both times; None: there are none."""
        return _more_right(self.right, self.base)

    @property
    def drop(self) -> float:
        """What the model loses of other items, in share of their questions that are graded both times; below 0: it gains."""
        return -(_more_right(self.retained, self.retained_base) or 0.0)


def _more_right(own: Sequence[bool | None], base: Sequence[bool | None]) -> float | None:
    both = [(a, b) for a, b in zip(own, base, strict=True) if a is not None and b is not None]
    return sum(a - b for a, b in both) / len(both) if both else None


def first_trials(config: SealKnowledgeConfig, items: Sequence[Item], completions: Mapping[str, Sequence[str]]) -> list[Trial]:
    """Empty completions are left out."""
    wished, found = config.query, list[Trial]()
    for place, item in enumerate(items):
        edits = {str(number): _sequences(item, text, wished) for number, text in enumerate(completions[item.id]) if text}
        if wished.passage_alone:
            edits[PASSAGE] = _sequences(item, "", wished)
        if wished.passage_repeated:
            count = len(_sequences(item, completions[item.id][0], wished))
            edits[REPEATED] = _sequences(item, "", wished) * count
        if wished.other_item and len(items) > 1:
            other = items[(place + 1) % len(items)]
            edits[OTHER] = _sequences(other, completions[other.id][0], wished)
        others = _others(items, place, wished.num_retained)
        found += [
            Trial(item, edit, number, texts, others) for edit, texts in edits.items() for number in range(wished.repetitions)
        ]
    return found


def further_trials(
    config: SealKnowledgeConfig, rows: Iterable[Row], items: Sequence[Item], completions: Mapping[str, Sequence[str]]
) -> list[Trial]:
    """The two best completions of each item by the repetitions so far, tried again."""
    wished, gains = config.query, mean_gains(rows)
    numbers = range(wished.repetitions, wished.repetitions + wished.more_repetitions)
    found: list[Trial] = []
    for place, item in enumerate(items):
        own = {edit: gain for (name, edit), gain in gains.items() if name == item.id}
        best = sorted(own, key=lambda edit: (-own[edit], int(edit)))[:_BEST]
        others = _others(items, place, wished.num_retained)
        found += [
            Trial(item, edit, number, _sequences(item, completions[item.id][int(edit)], wished), others)
            for edit in best
            for number in numbers
        ]
    return found


def _others(items: Sequence[Item], place: int, count: int) -> tuple[Item, ...]:
    """Those behind an item, around the end."""
    return tuple(items[(place + step) % len(items)] for step in range(1, min(count, len(items) - 1) + 1))


def mean_gains(rows: Iterable[Row], drop_weight: float = 0.0) -> dict[tuple[str, str], float]:
    """{(item, completion): mean over its repetitions of the gain, less drop_weight times the drop of other items}; those
    without a graded answer are left out."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.is_completion and row.gain is not None:
            found.setdefault((row.item, row.edit), []).append(row.gain - drop_weight * row.drop)
    return {key: sum(gains) / len(gains) for key, gains in found.items()}


def request_of(config: SealKnowledgeConfig, trial: Trial, model: str) -> Request:
    """model: what names its content. The seed belongs to the run, the item, the completion and the repetition."""
    wished = config.query
    asked = tuple(Asked(item.title, question.text) for item in (trial.item, *trial.others) for question in item.questions)
    seed = seed_of(config.seed, config.round, trial.key)
    content = [model, trial.sequences, [asdict(each) for each in asked], trial.key, config.seed, config.round]
    id_ = hashlib.sha256(json.dumps([*content, repr(wished.adaptation), wished.max_new_tokens]).encode()).hexdigest()[:24]
    return Request(id_, trial.sequences, asked, wished.adaptation, config.style, wished.max_new_tokens, seed)


def _sequences(item: Item, text: str, wished: QueryConfig) -> tuple[str, ...]:
    return tuple(training_sequences(item, text, wished.split_lines))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    write_atomically(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """DamagedFile: a line that is none."""
    return [as_record(line, Row, path) for line in read_lines(path)]
