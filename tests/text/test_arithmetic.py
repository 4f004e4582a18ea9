"""Word problems: right, worked in short sentences, apart by what is calculated, and the same everywhere."""

from __future__ import annotations

import hashlib
import re

import pytest

from arclab.config.text_schema import WordProblem
from arclab.text import arithmetic
from arclab.text.arithmetic import NAMES, PER_BOX, Draws, Problem, word_problems

ALL = tuple(WordProblem)


def draws(*families: WordProblem, digits: int = 2, steps: tuple[int, int] = (1, 3), seed: int = 0) -> Draws:
    return Draws(families or ALL, digits, *steps, seed)


def told_answer(problem: Problem) -> int:
    """Worked out from the question's words alone."""
    start, *sentences = problem.question.split(". ")[:-1]
    thing = start.split()[-1]
    value = {start.split()[0]: int(start.split()[2])}
    owner, total = start.split()[0], int(start.split()[2])
    for sentence in sentences:
        number = int(re.findall(r"\d+", sentence)[0]) * (PER_BOX[thing] if "box" in sentence else 1)
        who = sentence.split()[0]
        if problem.family is WordProblem.total:
            total += number
        elif problem.family is WordProblem.compare:
            other = sentence.split()[-1]
            value[who] = value[other] + (number if " more " in sentence else -number)
            owner = who
        else:
            assert who == owner, problem.question
            value[owner] += -number if re.search("loses|sells|gives away", sentence) else number
    return total if problem.family is WordProblem.total else value[owner]


@pytest.mark.parametrize("family", ALL)
def test_the_reply_is_what_the_question_says(family: WordProblem) -> None:
    for problem in word_problems(draws(family, steps=(1, 4)), "train", 200):
        assert problem.family is family and problem.answer == told_answer(problem) >= 1
        assert all(eval(f"{c.left} {c.sign.replace('x', '*')} {c.right}") == c.result >= 1 for c in problem.calculations)
        assert problem.calculations[-1].result == problem.answer
        assert re.findall(r"\d+ [+x-] \d+ = \d+", problem.solution) == [str(c) for c in problem.calculations]
        assert problem.solution.endswith(".") and problem.solution.count(",") >= len(problem.calculations) / 2
        people = {name for name in NAMES if name in problem.question}
        assert len(people) == 1 or family in (WordProblem.compare, WordProblem.total)


def test_difficulty_is_what_the_keys_say() -> None:
    for digits, steps in ((1, (1, 1)), (3, (4, 5))):
        problems = word_problems(draws(WordProblem.change, WordProblem.compare, digits=digits, steps=steps), "test", 60)
        assert {len(p.calculations) for p in problems} == set(range(steps[0], steps[1] + 1))
        numbers = [int(number) for p in problems for number in re.findall(r"\d+", p.question)]
        assert len(str(max(numbers))) == digits
    assert max(len(p.calculations) for p in word_problems(draws(WordProblem.boxes, steps=(2, 2)), "test", 20)) == 4


def test_a_box_holds_what_no_question_says() -> None:
    problems = word_problems(draws(WordProblem.boxes, digits=3, steps=(1, 1)), "train", 300)
    held = {thing: {c.right for p in problems if f" {thing}." in p.question for c in p.calculations if c.sign == "x"} for thing in PER_BOX}  # fmt: skip
    assert held == {thing: {number} for thing, number in PER_BOX.items()}
    assert len(set(PER_BOX.values())) == len(PER_BOX)


def test_splits_share_nothing_that_is_calculated_whatever_the_seeds() -> None:
    contents = {}
    for split, seed in (("train", 0), ("validation", 5), ("test", 7)):
        problems = word_problems(draws(digits=1, steps=(1, 2), seed=seed), split, 300)
        assert len({p.question for p in problems}) == 300
        contents[split] = {p.content for p in problems}
    assert not contents["train"] & (contents["validation"] | contents["test"]) and not contents["validation"] & contents["test"]
    assert all(len(content) > 50 for content in contents.values())


def test_the_same_for_a_seed_on_any_machine() -> None:
    problems = word_problems(draws(seed=3), "train", 50)
    assert problems[:20] == word_problems(draws(seed=3), "train", 20) != word_problems(draws(seed=4), "train", 20)
    text = "\n".join(f"{p.question} {p.solution} {p.answer}" for p in problems)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "737c5b1b6972afa1"


def test_more_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_MAX_REJECTED", 60)
    with pytest.raises(ValueError, match=r"dataset\.num_validation=9000 .* lower it, or raise dataset\.digits or"):
        word_problems(draws(WordProblem.total, digits=1, steps=(1, 1)), "validation", 9000)
