"""The items of a run: passages with questions, invented ones or those of a file or a data set in the form of SQuAD.

    items = load_items(config.data, rounds)           # train and test items, split by seed
    chosen = items.of_round(ItemSplit.train, 0, 50)  # those of a round

A JSON file holds a list of {"title", "context", "questions": [{"question", "answer"}]}. A data set of the Hugging Face hub has
the columns of SQuAD: title, context, question, answers. Anything else about a file is one sentence; of the hub's questions
those that hold their answer are left out and counted, since nobody can correct them there.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.seal_knowledge_schema import PASSAGES, ItemSplit, KnowledgeDataConfig
from arclab.files import DamagedFile, read_json, require_kinds
from arclab.methods.seal.knowledge.passages import Item, Question, passages
from arclab.text.short_answers import normalised

_REMEDY = "correct that item, or remove it"


@dataclass(frozen=True, slots=True)
class Items:
    """train is written about and learned from, test is for final numbers. notes: sentences that the user must see."""

    train: tuple[Item, ...]
    test: tuple[Item, ...]
    notes: tuple[str, ...]

    def of_round(self, split: ItemSplit, number: int, per_round: int) -> tuple[Item, ...]:
        """Of the training items those of a round, so that rounds share none."""
        return self.test if split is ItemSplit.test else self.train[number * per_round : (number + 1) * per_round]


def load_items(data: KnowledgeDataConfig, rounds: int) -> Items:
    """data.num_train items for each of the rounds, data.num_test others. ValueError: there are not as many, or one is no item,
    in one sentence."""
    num_train = data.num_train * rounds
    wanted, notes = num_train + data.num_test, list[str]()
    if data.source == PASSAGES:
        found = passages(wanted, data.num_facts, data.seed)
    else:
        is_file = data.source.endswith(".json")
        found = _of_file(Path(data.source).expanduser()) if is_file else _of_hub(data.source, data.hub_split, notes)
        rng = random.Random(f"{data.seed} items")
        found = sorted(found, key=lambda _: rng.random())
    if len(found) < wanted:
        raise ValueError(
            f"data.source={data.source} has {len(found)} items, and data.num_train={data.num_train} for {rounds} rounds with "
            f"data.num_test={data.num_test} needs {wanted}; lower one of them."
        )
    return Items(tuple(found[:num_train]), tuple(found[num_train:wanted]), tuple(notes))


def item_id(title: str, context: str) -> str:
    text = f"{title}\n{context}"
    return f"item_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def holds_answer(question: str, answer: str) -> bool:
    """Does the answer stand in the question, word for word?"""
    wanted = normalised(answer)
    return wanted != "" and f" {wanted} " in f" {normalised(question)} "


def _of_file(path: Path) -> list[Item]:
    if not path.is_file():
        raise ValueError(f"data.source={path} is not a file; give a JSON file of items, a name on the hub, or {PASSAGES}.")
    given = read_json(path)
    if not isinstance(given, list) or not given:
        raise DamagedFile(path, "it holds no list of items", remedy="give a list of objects with title, context and questions")
    return [_item(row, number, path) for number, row in enumerate(given)]


def _item(row: Any, number: int, path: Path) -> Item:
    def wrong(why: str) -> DamagedFile:
        return DamagedFile(path, f"item {number}: {why}", remedy=_REMEDY)

    if not isinstance(row, dict):
        raise wrong("no object")
    require_kinds(row, {"title": str, "context": str, "questions": list[dict]}, path, remedy=f"item {number}: {_REMEDY}")
    if not row["context"].strip():
        raise wrong("its context is empty")
    if not row["questions"]:
        raise wrong("it has no questions")
    for asked in row["questions"]:
        require_kinds(asked, {"question": str, "answer": str}, path, remedy=f"item {number}: {_REMEDY}")
        if not asked["question"].strip() or not asked["answer"].strip():
            raise wrong("a question or an answer is empty")
        if holds_answer(asked["question"], asked["answer"]):
            raise wrong(f"the answer {asked['answer']!r} stands in its question {asked['question']!r}")
    questions = tuple(Question(asked["question"], asked["answer"]) for asked in row["questions"])
    return Item(item_id(row["title"], row["context"]), row["title"], row["context"], questions)


def _of_hub(name: str, split: str, notes: list[str]) -> list[Item]:
    """By the library datasets, which keeps what it has downloaded."""
    import datasets
    import httpx
    from datasets.exceptions import DatasetsError

    try:
        data: Any = datasets.load_dataset(name, split=split)
    # DatasetNotFoundError and ConnectionError are OSErrors; an unknown split is a ValueError.
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, DatasetsError) as error:
        lines = str(error).strip().splitlines()
        why = (lines[0] if lines else type(error).__name__).rstrip(".")
        raise ValueError(
            f"data.source={name} cannot be loaded ({why}); check the name, data.hub_split={split} and the network, or give a "
            "JSON file of items."
        ) from error
    if missing := [column for column in ("title", "context", "question", "answers") if column not in data.column_names]:
        raise ValueError(f"data.source={name} has no column {missing[0]}; give a data set in the form of SQuAD.")
    return grouped(data, notes)


def grouped(rows: Sequence[Any], notes: list[str]) -> list[Item]:
    """Rows of SQuAD, one a question, as one item for each passage."""
    asked: dict[tuple[str, str], list[Question]] = {}
    left_out = 0
    for row in rows:
        answers = row["answers"]["text"]
        if not answers or not answers[0].strip() or holds_answer(row["question"], answers[0]):
            left_out += 1
            continue
        asked.setdefault((row["title"], row["context"]), []).append(Question(row["question"], answers[0]))
    if left_out:
        notes.append(f"{left_out} questions left out: they have no answer, or it stands in the question")
    return [Item(item_id(*key), *key, tuple(questions)) for key, questions in asked.items()]
