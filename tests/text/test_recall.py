"""The constructed task of triggers: what reasoner and weaver are taught, and that its splits share no question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT, thinned
from arclab.text.examples import same_question
from arclab.text.load import load_text
from arclab.text.recall import HIDDEN, KNOWN, Recall, recall_items

from .conftest import TextConfig


def test_memory_is_right_for_hidden_words_and_wrong_for_known_ones_where_it_is_inserted() -> None:
    items = recall_items(Recall(words=3, seed=0), "train", 600)
    seen = {(word in KNOWN, inserts): [] for word in (*KNOWN, *HIDDEN) for inserts in (True, False)}
    for item in items:
        assert item.solution(item.answer).startswith(f"{item.words[0]} {(KNOWN | HIDDEN)[item.words[0]]}, ")
        for word, taught, woven, right, inserts in zip(
            item.words, item.taught, item.woven, item.answer, item.inserts, strict=True
        ):
            assert inserts or woven == taught  # without memory they say the same
            assert taught == right or word in HIDDEN
            seen[word in KNOWN, inserts].append(woven == right)
    assert all(seen[False, True]) and not any(seen[True, True]) and all(seen[True, False])
    guessed = seen[False, False]
    assert 0.03 < sum(guessed) / len(guessed) < 0.2  # one of ten digits, at random


def test_every_key_counts(text_config: TextConfig) -> None:
    small: Any = replace(text_config("recall"), num_train=2000, num_validation=20, num_test=30)
    base = load_text(small)
    assert [len(base.named(name)) for name in ("train", "validation", "test")] == [2000, 20, 30]
    scored = [same_question(example) for example in (*base.validation, *base.test)]
    assert len(set(scored)) == 50 and not set(scored) & {same_question(example) for example in base.train}
    assert load_text(replace(small, seed=1)).train != base.train
    assert all(len(example.answer) == 2 == len(example.inserts) for example in load_text(replace(small, words=2, num_validation=8, num_test=20)).train)  # fmt: skip
    with pytest.raises(
        ValueError, match=r"dataset.num_test=9999 is more than the \d+ questions of 3 words that test has; lower"
    ):
        load_text(replace(small, num_test=9999))
    assert replace(small, words=5).check("dataset") == [
        "dataset.words=5 must be between 2 and 4; choose a value in that range."
    ]


def test_a_plan_is_thinned_insertion_by_insertion() -> None:
    plan = [NONE, PROMPT, NONE, INFERENCE, INFERENCE, NONE, INFERENCE]
    assert thinned(plan, [False, True, False]) == [NONE, NONE, NONE, INFERENCE, NONE, NONE, INFERENCE]
