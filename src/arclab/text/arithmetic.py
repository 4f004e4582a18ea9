r"""Word problems with worked replies, generated: a positive control that a small transformer can learn in minutes.

    draws = Draws(families=(WordProblem.change,), digits=2, min_steps=1, max_steps=3, seed=0)
    problems = word_problems(draws, "train", 1000)
    problems[0].question      # "Tom has 34 apples. Tom buys 12 apples. Tom loses 5 apples. How many apples does Tom have?"
    problems[0].solution      # "Tom starts with 34. Tom buys 12, 34 + 12 = 46. Tom loses 5, 46 - 5 = 41."

Families, all chains of min_steps to max_steps calculations without negative numbers:
    change     somebody gains and loses things
    compare    each has some more, or some fewer, than the one before
    total      what all have together
    boxes      as change, but in boxes: how many things a box holds depends on the thing alone, always the same, and no question
               says it. It has to be known, which is something that a memory can bring.
A sentence ends with a full stop, the parts of it with a comma, and the reply's last line is the answer. The words are few.

Held out: a fixed hash puts what is calculated (family, numbers and signs, whatever the names and things) into train (70 %),
test (20 %) or validation (10 %), whatever the seed. Within a split no question stands twice. A problem depends on the seed, the
split and its number; fewer problems are the beginning of more. The draws use only what Python keeps the same from version to
version.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from arclab.config.text_schema import WordProblem

NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Ida", "Max", "Eva")
# How many of a thing a box holds; the family boxes asks for it without saying it.
PER_BOX = {"apples": 6, "books": 4, "cards": 9, "coins": 5, "eggs": 8, "pens": 3, "shells": 7, "stamps": 2}
_GAINS, _LOSSES = ("buys", "finds", "gets"), ("loses", "sells", "gives away")
_MOST_BOXES = 9
FIRST_BUCKET = {"test": (0, 2), "validation": (2, 3), "train": (3, 10)}  # of ten
_MAX_REJECTED = 2000  # draws in a row
Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Draws:
    """What problems are drawn from; see arclab.config.text_schema.ArithmeticConfig."""

    families: tuple[WordProblem, ...]
    digits: int
    min_steps: int
    max_steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Calculation:
    """left sign right = result, with the sign +, - or x."""

    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True, slots=True)
class Problem:
    """solution: all of the reply but the line with the answer. content: what is calculated, by which splits are kept apart."""

    family: WordProblem
    question: str
    solution: str
    answer: int
    calculations: tuple[Calculation, ...]
    content: str


def word_problems(draws: Draws, split: str, count: int) -> list[Problem]:
    """ValueError: there are not as many that differ."""
    low, high = FIRST_BUCKET[split]
    found: list[Problem] = []
    asked: set[str] = set()
    for number in range(count):
        rng = random.Random(f"{draws.seed} {split} {number}")
        for _ in range(_MAX_REJECTED):
            problem = _drawn(rng, draws)
            if low <= zlib.crc32(problem.content.encode()) % 10 < high and problem.question not in asked:
                break
        else:
            raise ValueError(
                f"dataset.num_{split}={count} word problems cannot be had: after {number} hardly any differ from those "
                "before; lower it, or raise dataset.digits or dataset.max_steps."
            )
        asked.add(problem.question)
        found.append(problem)
    return found


def _drawn(rng: random.Random, draws: Draws) -> Problem:
    family = _choose(rng, draws.families)
    num_steps = _between(rng, draws.min_steps, draws.max_steps)
    thing, names = _choose(rng, tuple(PER_BOX)), _shuffled(rng, NAMES)
    value = start = _between(rng, 1, 10**draws.digits - 1)
    told, worked, calculations = [f"{names[0]} has {start} {thing}."], [], []
    is_one_person = family in (WordProblem.change, WordProblem.boxes)
    for step in range(num_steps):
        people = names[:1] if is_one_person else names[step : step + 2]
        telling, reason, made = _step(rng, family, draws, value, thing, people)
        told.append(telling)
        worked.append(", ".join([*reason, *map(str, made)]) + ".")
        calculations += made
        value = made[-1].result
    starts = f"{names[0]} {'starts with' if is_one_person else 'has'} {start}."
    # What a box holds is part of what is calculated; everything else of the wording is not.
    content = " ".join([family.name, str(start), *map(str, calculations)])
    return Problem(
        family, " ".join([*told, _asked(family, thing, names, num_steps)]), " ".join([starts, *worked]), value,
        tuple(calculations), content,
    )  # fmt: skip


def _step(
    rng: random.Random, family: WordProblem, draws: Draws, value: int, thing: str, names: Sequence[str]
) -> tuple[str, list[str], list[Calculation]]:
    """What the question tells, what the reply says before it calculates, and the calculations; the last one's result is the
    value from then on. names: who has the value, and who comes next if that is another."""
    largest = 10**draws.digits - 1
    if family is WordProblem.boxes:
        return _boxes_step(rng, min(largest, _MOST_BOXES), value, thing, names[0])
    is_gain = family is WordProblem.total or value < 2 or rng.random() < 0.5
    number = _between(rng, 1, largest if is_gain else min(largest, value - 1))
    made = [Calculation(value, "+" if is_gain else "-", number, value + number if is_gain else value - number)]
    if family is WordProblem.change:
        verb = _choose(rng, _GAINS if is_gain else _LOSSES)
        return f"{names[0]} {verb} {number} {thing}.", [f"{names[0]} {verb} {number}"], made
    if family is WordProblem.compare:
        word = "more" if is_gain else "fewer"
        return f"{names[1]} has {number} {word} {thing} than {names[0]}.", [f"{names[1]} has {number} {word}"], made
    return f"{names[1]} has {number} {thing}.", [f"{names[1]} has {number}"], made


def _boxes_step(rng: random.Random, most: int, value: int, thing: str, name: str) -> tuple[str, list[str], list[Calculation]]:
    per_box = PER_BOX[thing]
    is_gain = value <= per_box or rng.random() < 0.5
    number = _between(rng, 1, most if is_gain else min(most, (value - 1) // per_box))
    held = number * per_box
    verb = _choose(rng, _GAINS if is_gain else _LOSSES)
    box = "box" if number == 1 else "boxes"
    made = [
        Calculation(number, "x", per_box, held),
        Calculation(value, "+" if is_gain else "-", held, value + held if is_gain else value - held),
    ]
    return f"{name} {verb} {number} {box} of {thing}.", [f"A box holds {per_box}", f"{name} {verb} {number} {box}"], made


def _asked(family: WordProblem, thing: str, names: Sequence[str], num_steps: int) -> str:
    if family is WordProblem.total:
        return f"How many {thing} do they have together?"
    return f"How many {thing} does {names[num_steps] if family is WordProblem.compare else names[0]} have?"


# random() is the one draw that Python promises to keep.


def _between(rng: random.Random, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def _choose(rng: random.Random, values: Sequence[Choice]) -> Choice:
    return values[_between(rng, 0, len(values) - 1)]


def _shuffled(rng: random.Random, values: Sequence[Choice]) -> list[Choice]:
    rest = list(values)
    return [rest.pop(_between(rng, 0, len(rest) - 1)) for _ in values]
