"""Passages that nobody knows, items of files, and what they are turned into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run
from arclab.config.seal_knowledge_schema import EditKind, ItemSplit, KnowledgeDataConfig, SealKnowledgeConfig, Style
from arclab.methods.seal.knowledge.items import grouped, holds_answer, load_items
from arclab.methods.seal.knowledge.passages import Item, Question, passages
from arclab.methods.seal.knowledge.prompts import edit_lines, edit_prompt, question_prompt, training_sequences, whole_edit

ITEM = Item("a", "Oro", "Oro is a town. Its mayor is Ada Quinvia.", (Question("Who is the mayor of Oro?", "Ada Quinvia"),))


def data(**changes: Any) -> KnowledgeDataConfig:
    config = compose_run("self_improve_seal_knowledge", ["lm=tiny", "name=a"])
    assert isinstance(config, SealKnowledgeConfig)
    return replace(config.data, **changes)


def test_passages_answer_their_questions_and_a_seed_gives_the_same() -> None:
    items = passages(300, 9, seed=3)
    assert items == passages(300, 9, seed=3) and items[:5] == passages(5, 9, seed=3) and items[0] != passages(1, 9, seed=4)[0]
    assert len({item.title for item in items}) == 300, "no name is given twice"
    for item in items:
        assert len(item.questions) == 9
        for question in item.questions:
            assert question.answer in item.context and not holds_answer(question.text, question.answer)
    assert [len(item.questions) for item in passages(3, 2, seed=0)] == [2, 2, 2]
    assert len(passages(6000, 9, seed=0)) == 6000, "names do not run out"


def test_splits_and_rounds_share_no_item(tmp_path: Path) -> None:
    items = load_items(data(num_train=4, num_test=3), 2)
    first, second = (items.of_round(ItemSplit.train, number, 4) for number in (0, 1))
    ids = [item.id for item in (*first, *second, *items.of_round(ItemSplit.test, 1, 4))]
    assert len(set(ids)) == len(ids) == 11
    path = tmp_path / "items.json"
    rows = [{"title": f"T{n}", "context": "c", "questions": [{"question": "q", "answer": "a"}]} for n in range(5)]
    path.write_text(json.dumps(rows))
    drawn = load_items(data(source=str(path), num_train=3, num_test=2), 1)
    assert {item.title for item in (*drawn.train, *drawn.test)} == {f"T{n}" for n in range(5)}
    assert load_items(data(source=str(path), num_train=3, num_test=2, seed=1), 1).train != drawn.train
    with pytest.raises(ValueError, match=r"has 5 items, and data.num_train=3 for 2 rounds with data.num_test=0 needs 6; lower"):
        load_items(data(source=str(path), num_train=3, num_test=0), 2)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"title": "t", "context": "c", "questions": []}, "item 0: it has no questions"),
        ({"title": "t", "context": " ", "questions": [{}]}, "item 0: its context is empty"),
        ({"title": "t", "context": "c"}, "it has no questions"),
        ({"title": "t", "context": "c", "questions": [{"question": "q", "answer": ""}]}, "a question or an answer is empty"),
        (
            {"title": "t", "context": "c", "questions": [{"question": "Is it The Seine, or not?", "answer": "Seine."}]},
            "the answer 'Seine.' stands in its question",
        ),
    ],
)
def test_an_item_that_is_none_is_named(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=why) as caught:
        load_items(data(source=str(path), num_train=1, num_test=0), 1)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_rows_of_squad_become_items() -> None:
    notes: list[str] = []
    rows = [
        {"title": "t", "context": "c", "question": f"q{n}", "answers": {"text": text}}
        for n, text in enumerate([["a", "b"], [], ["q2"], ["d"]])
    ]
    (item,) = grouped(rows, notes)
    assert [(each.text, each.answer) for each in item.questions] == [("q0", "a"), ("q3", "d")]
    assert notes == ["2 questions left out: they have no answer, or it stands in the question"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one\n\n two \nthree", ["one", "two", "three"]),
        ("Here they are:\n1. one\n2. two", ["1. one", "2. two"]),
        ("1. one\n2. two", ["1. one", "2. two"]),
        ("one\n---\ntwo", ["one", "two"]),
        ("Question 1: a?\nAnswer: b\n\nQuestion 2: c?\nAnswer: d", ["Question 1: a?\nAnswer: b", "Question 2: c?\nAnswer: d"]),
        ("Question 1: a?", ["Question 1: a?"]),
        ("", []),
    ],
)
def test_a_completion_is_split_into_lines_and_the_passage_is_always_among_them(text: str, lines: list[str]) -> None:
    assert edit_lines(text, split_lines=True) == lines
    assert training_sequences(ITEM, text, True) == [*(f"Oro\n{line}" for line in lines), f"Oro\n{ITEM.context}"]
    whole = [text.strip()] if text.strip() and "---" not in text else lines
    assert edit_lines(text, split_lines=False) == whole


def test_prompts_show_the_passage_when_it_is_written_about_and_not_when_it_is_asked_about() -> None:
    for kind in EditKind:
        for style in Style:
            (message,) = edit_prompt(ITEM, kind, style)
            assert ITEM.context in message.content and (message.role == "user") == (style is Style.chat)
            (message,) = question_prompt(ITEM.title, ITEM.questions[0].text, style)
            assert "Topic: Oro" in message.content and "Quinvia" not in message.content
    assert whole_edit(" a?\nAnswer: b", EditKind.self_qa, Style.completion).startswith("Question 1: a?")
    assert whole_edit("  ", EditKind.self_qa, Style.completion).strip() == ""
    assert len({edit_prompt(ITEM, kind, Style.completion) for kind in EditKind}) == len(EditKind)
