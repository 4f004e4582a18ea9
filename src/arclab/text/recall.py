r"""Questions that a memory helps with in one place and spoils in another: a constructed control for triggers.

    items = recall_items(Recall(words=3, seed=0), "train", 1000)
    items[0].question      # "How many does a box hold: coins, keys, shells?"
    items[0].answer        # "528": one digit for each word

A reply names the words in the order of the question, each with its digit, so before each word stands a delimiter (the first
stands after the prompt). Half of the words are KNOWN: a reasoner is taught what a box of them holds. Of the HIDDEN half it is
taught random digits, so it can only guess. A weaver is taught the reverse: where memory was inserted right before a word, the
digit of a hidden word is right and that of a known one wrong; where nothing was inserted, the digits are those of the
reasoner. So memory is needed before hidden words and harmful before known ones, place by place within one reply, and only a
trigger that looks at what comes next answers all of it. That is with max_inference_aug_num one less than there are words, so
that a weaver is not taught to insert behind the last one.

Held out: a fixed hash puts the words of a question, in their order, into train (70 %), test (20 %) or validation (10 %). In
train a question stands several times, with other random digits; elsewhere once.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from arclab.text.arithmetic import FIRST_BUCKET

KNOWN = {"apples": 6, "books": 4, "cards": 9, "coins": 5, "eggs": 8, "pens": 3}
HIDDEN = {"shells": 7, "stamps": 2, "keys": 1, "rings": 6, "cups": 4, "hats": 9}
_WRONG_BY = 5  # what memory says of a known word, modulo ten


@dataclass(frozen=True, slots=True)
class Recall:
    """words: of each question, all different."""

    words: int
    seed: int


@dataclass(frozen=True, slots=True)
class RecallItem:
    """taught: the digits of the reasoner's reply; woven: those of the weaver's, where memory was inserted before the words for
    which inserts is True. answer: the right digits."""

    words: tuple[str, ...]
    taught: str
    woven: str
    inserts: tuple[bool, ...]
    answer: str

    @property
    def question(self) -> str:
        return f"How many does a box hold: {', '.join(self.words)}?"

    def solution(self, digits: str) -> str:
        return ", ".join(f"{word} {digit}" for word, digit in zip(self.words, digits, strict=True)) + "."


def recall_items(wish: Recall, split: str, count: int) -> list[RecallItem]:
    """ValueError: validation or test would have a question twice."""
    low, high = FIRST_BUCKET[split]
    asked = [
        words
        for words in itertools.permutations([*KNOWN, *HIDDEN], wish.words)
        if low <= zlib.crc32(" ".join(words).encode()) % 10 < high
    ]
    if split != "train" and count > len(asked):
        raise ValueError(
            f"dataset.num_{split}={count} is more than the {len(asked)} questions of {wish.words} words that {split} has; "
            "lower it, or raise dataset.words."
        )
    random.Random(f"{wish.seed} {split}").shuffle(asked)
    return [_item(asked[number % len(asked)], random.Random(f"{wish.seed} {split} {number}")) for number in range(count)]


def _item(words: Sequence[str], rng: random.Random) -> RecallItem:
    inserts = tuple(rng.random() < 0.5 for _ in range(len(words)))
    right = [(KNOWN | HIDDEN)[word] for word in words]
    taught = [digit if word in KNOWN else int(10 * rng.random()) for word, digit in zip(words, right, strict=True)]
    woven = [
        taught[place] if not inserts[place] else right[place] if word in HIDDEN else (right[place] + _WRONG_BY) % 10
        for place, word in enumerate(words)
    ]
    return RecallItem(tuple(words), _joined(taught), _joined(woven), inserts, _joined(right))


def _joined(digits: Sequence[int]) -> str:
    return "".join(map(str, digits))
