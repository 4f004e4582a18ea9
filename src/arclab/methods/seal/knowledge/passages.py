"""Passages on places, people and events that do not exist, with questions: no model can know them.

    items = passages(count=50, num_facts=6, seed=0)      # Item(id, title, context, questions)

Each passage is a few sentences, one a fact, and each fact has one question with a short answer. Names are put together from
syllables; years, months, trades and the like are drawn from short lists, so that a blind guess is right now and then. The
same seed gives the same passages, and a larger count begins with the same ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from arclab.config.seal_knowledge_schema import MOST_FACTS

_FIRST = ["bal", "cor", "den", "el", "far", "gor", "hal", "is", "jor", "kel", "lun", "mar", "nor", "or", "pel", "quin", "ror"]
_MIDDLE = ["a", "e", "i", "o", "u", "an", "en", "ar", "or", "il", "ess", "und"]
_LAST = ["dor", "via", "nesh", "mund", "ric", "tho", "lin", "grave", "wick", "berg", "stad", "mere", "holt", "sund", "now"]
_GIVEN = ["Ada", "Boris", "Clara", "Darian", "Elsin", "Farid", "Greta", "Henrik", "Ilka", "Jonas", "Katrin", "Lorenz", "Mirela"]
_TRADES = [
    "baker",
    "carpenter",
    "glassblower",
    "beekeeper",
    "printer",
    "clockmaker",
    "surgeon",
    "weaver",
    "shipwright",
    "miller",
]
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
]  # fmt: skip
_GOODS = ["amber", "salt", "wool", "paper", "honey", "copper", "glass", "tea", "timber", "silk", "marble", "saffron"]
_BUILDINGS = ["the lighthouse", "the granary", "the observatory", "the covered bridge", "the water tower", "the old mint"]
_SIGNS = ["a grey heron", "a white fox", "a red boar", "a golden pike", "a black hare", "a blue owl", "a green stag"]


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Item:
    """A passage and what is asked about it. title: what it is about; context: the passage."""

    id: str
    title: str
    context: str
    questions: tuple[Question, ...]


_Fact = tuple[str, str, str]  # a sentence, a question, its answer


def passages(count: int, num_facts: int, seed: int) -> list[Item]:
    """num_facts: sentences of each passage, 1 to MOST_FACTS."""
    assert 1 <= num_facts <= MOST_FACTS
    names = _Names(seed)
    return [_passage(names, number, num_facts, seed) for number in range(count)]


class _Names:
    """Names of which none is given twice."""

    def __init__(self, seed: int) -> None:
        self._rng, self._given = random.Random(f"{seed} names"), set[str]()

    def place(self) -> str:
        name = "".join(_pick(self._rng, part) for part in (_FIRST, _MIDDLE, _LAST)).capitalize()
        while name in self._given:  # thousands are given: names become longer
            name += _pick(self._rng, _MIDDLE) + _pick(self._rng, _LAST)
        self._given.add(name)
        return name

    def person(self) -> str:
        return f"{_pick(self._rng, _GIVEN)} {self.place()}"


def _pick(rng: random.Random, among: list[str]) -> str:
    """random() alone is promised to stay the same from version to version of Python."""
    return among[int(rng.random() * len(among))]


def _passage(names: _Names, number: int, num_facts: int, seed: int) -> Item:
    rng = random.Random(f"{seed} passage {number}")
    kind = ("place", "person", "event")[number % 3]
    title, facts = {"place": _place, "person": _person, "event": _event}[kind](names, rng)
    order = sorted(range(len(facts)), key=lambda _: rng.random())[:num_facts]
    kept = [facts[place] for place in sorted(order)]
    context = " ".join(sentence for sentence, _, _ in kept)
    asked = tuple(Question(question, answer) for _, question, answer in kept)
    return Item(f"passages_{seed}_{number:05d}", title, context, asked)


def _year(rng: random.Random) -> str:
    return str(1100 + int(rng.random() * 800))


def _place(names: _Names, rng: random.Random) -> tuple[str, list[_Fact]]:
    town, river, founder, mayor = names.place(), names.place(), names.person(), names.person()
    year, trade, goods, month = _year(rng), _pick(rng, _TRADES), _pick(rng, _GOODS), _pick(rng, _MONTHS)
    building, sign = _pick(rng, _BUILDINGS), _pick(rng, _SIGNS)
    return town, [
        (f"{town} is a town on the river {river}.", f"On which river does {town} lie?", river),
        (f"{town} was founded in the year {year}.", f"In which year was {town} founded?", year),
        (f"The founder of {town} was {founder}.", f"Who was the founder of {town}?", founder),
        (f"By trade the founder was a {trade}.", f"What was the trade of the founder of {town}?", trade),
        (f"The people of {town} live from {goods}.", f"What do the people of {town} live from?", goods),
        (f"The oldest building of {town} is {building}.", f"What is the oldest building of {town}?", building),
        (f"The arms of {town} show {sign}.", f"What do the arms of {town} show?", sign),
        (f"Every {month} {town} holds a fair.", f"In which month does {town} hold a fair?", month),
        (f"The mayor of {town} is {mayor}.", f"Who is the mayor of {town}?", mayor),
    ]


def _person(names: _Names, rng: random.Random) -> tuple[str, list[_Fact]]:
    person, town, teacher, partner, ship = names.person(), names.place(), names.person(), names.person(), names.place()
    year, trade, goods, month, animal = (
        _year(rng), _pick(rng, _TRADES), _pick(rng, _GOODS), _pick(rng, _MONTHS), _pick(rng, _SIGNS),
    )  # fmt: skip
    return person, [
        (f"{person} was born in {town}.", f"Where was {person} born?", town),
        (f"{person} was born in the year {year}.", f"In which year was {person} born?", year),
        (f"By trade {person} was a {trade}.", f"What was the trade of {person}?", trade),
        (f"The teacher of {person} was {teacher}.", f"Who was the teacher of {person}?", teacher),
        (f"{person} was married to {partner}.", f"To whom was {person} married?", partner),
        (f"{person} grew rich with {goods}.", f"With what did {person} grow rich?", goods),
        (f"The ship of {person} was called the {ship}.", f"What was the ship of {person} called?", ship),
        (f"{person} died in {month}.", f"In which month did {person} die?", month),
        (f"The seal of {person} showed {animal}.", f"What did the seal of {person} show?", animal),
    ]


def _event(names: _Names, rng: random.Random) -> tuple[str, list[_Fact]]:
    place, host, winner, city, judge = names.place(), names.person(), names.person(), names.place(), names.person()
    year, month, goods, building, sign = (
        _year(rng), _pick(rng, _MONTHS), _pick(rng, _GOODS), _pick(rng, _BUILDINGS), _pick(rng, _SIGNS),
    )  # fmt: skip
    event = f"the {place} Regatta"
    return f"The {place} Regatta", [
        (f"The host of {event} was {host}.", f"Who was the host of {event}?", host),
        (f"The winner of {event} was {winner}.", f"Who was the winner of {event}?", winner),
        (f"The prize of {event} was a chest of {goods}.", f"A chest of what was the prize of {event}?", goods),
        (f"In the year {year} {event} was held for the first time.", f"In which year was {event} first held?", year),
        (f"Each {month} {event} begins anew.", f"In which month does {event} begin?", month),
        (f"The boats of {event} start from {city}.", f"From where do the boats of {event} start?", city),
        (f"The goal of {event} is {building}.", f"What is the goal of {event}?", building),
        (f"The judge of {event} is {judge}.", f"Who is the judge of {event}?", judge),
        (f"The flag of {event} shows {sign}.", f"What does the flag of {event} show?", sign),
    ]
