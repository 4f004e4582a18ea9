"""What is kept of sampled edits: gains alone, the best of each start program, and together they solve most examples."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from arclab.config.program_edit_schema import EditSelectConfig, SelectRule
from arclab.files import DamagedFile
from arclab.methods.program_edit.editing import EditRecord
from arclab.methods.program_edit.replies import (
    accepted,
    read_review,
    read_taught,
    taught,
    without_fluff,
    write_review,
    write_taught,
)
from arclab.methods.program_edit.selection import select_edits, top_covering


def edit(
    id_: str,
    delta: float,
    solved: tuple[int, ...] = (),
    *,
    task: str = "t",
    parent: str = "p",
    source: str | None = "",
    is_cut: bool = False,
) -> EditRecord:
    """solved: numbers of the examples, of three."""
    text = f"def solve(I):\n    return {id_!r}\n" if source == "" else source
    return EditRecord(
        id=id_, task=task, root=parent, turn=0, parent=parent, parent_source="def solve(I):\n    return I\n", prompt=f"prompt of {parent}", thinking="Hmm, line 2 is wrong.", source=text,
        problem="none", is_cut=is_cut, statuses=["ok"] * 3, solved=[n in solved for n in (1, 2, 3)], shares=[1.0] * 3, grids=[None] * 3, r0=0.2, r1=0.2 + delta,
        delta=delta, cost=0.0, signature=id_, tokens=10, thinking_tokens=3, seed=0, sample=0,
    )  # fmt: skip


def config(**fields: object) -> EditSelectConfig:
    return EditSelectConfig(**{"rule": SelectRule.best, "top_k": 3, "epsilon": 0.05, "max_per_task": 10, **fields})  # type: ignore[arg-type]


def kept(records: list[EditRecord], **fields: object) -> list[str]:
    return [record.id for record in select_edits(records, config(**fields), 0).kept]


def test_one_that_solves_1_and_2_and_one_that_solves_3_go_before_two_that_solve_1_and_2() -> None:
    first, third, second = edit("a", 0.5, (1, 2)), edit("b", 0.48, (3,)), edit("c", 0.5, (1, 2))
    assert kept([first, second, third], top_k=2) == ["a", "b"]
    assert kept([second, third, first], top_k=2) == ["c", "b"]
    assert kept([first, second, third], top_k=2, epsilon=0.01) == ["a", "c"]  # no tie: it gains less
    assert kept([edit("z", 0.9, (3,)), first, second, third], top_k=2) == ["z", "a"]  # 3 is solved already


def test_all_sets_of_ties_are_compared() -> None:
    """One after the other, the first choice would be a, and no second one would solve what is left."""
    wide = [edit("a", 0.5, (2, 3)), edit("b", 0.5, (1, 2)), edit("c", 0.5, (3,))]
    assert {record.id for record in top_covering(wide, 2, 0.0)} in ({"a", "b"}, {"b", "c"})
    many = [edit(f"e{n}", 0.5, (1,)) for n in range(60)] + [edit("x", 0.5, (2,)), edit("y", 0.5, (3,))]
    assert {record.id for record in top_covering(many, 10, 0.0)} >= {"x", "y"}  # too many sets


def test_what_gains_nothing_has_no_program_or_is_there_already_is_rejected_by_name() -> None:
    records = [
        edit("zero", 0.0, (1, 2, 3)), edit("worse", -0.1), edit("none", 0.5, source=None), edit("cut", 0.5, is_cut=True), edit("good", 1e-9),
        edit("same", 0.3, source="def solve(J):  # again\n    return 'good'\n"), edit("other", 0.3, parent="q", source="def solve(J):\n    return 'good'\n"),
    ]  # fmt: skip
    selection = select_edits(records, config(), 0)
    assert [record.id for record in selection.kept] == ["good", "other"]
    assert selection.rejected == {"zero": "no_gain", "worse": "no_gain", "none": "no_program", "cut": "cut", "same": "repeated"}


def test_top_k_of_each_start_program_and_no_more_than_the_task_may_have() -> None:
    records = [edit(f"{p}{n}", 0.1 * (n + 1) + 0.01 * p, parent=str(p)) for p in range(5) for n in range(4)]
    Random(0).shuffle(records)
    chosen = kept(records, epsilon=0.0)
    assert len(chosen) == 10 and not any(id_.endswith("0") for id_ in chosen)
    assert sorted(chosen) == sorted([f"{p}3" for p in range(5)] + [f"{p}2" for p in range(5)])
    assert [record.id for record in records if record.id in chosen] == chosen  # in their order
    selection = select_edits(records, config(epsilon=0.0), 0)
    assert sorted(selection.rejected.values()) == ["not_top_k"] * 5 + ["over_max_per_task"] * 5
    assert len(kept([*records, edit("u", 0.1, task="u")])) == 11


def test_the_control_keeps_as_many_whatever_they_do() -> None:
    records = [edit(str(n), 0.3 if n < 2 else -0.3) for n in range(20)] + [edit("none", 0.5, source=None)]
    drawn = [select_edits(records, config(rule=SelectRule.random), seed) for seed in range(5)]
    assert all(len(each.kept) == 2 and "none" not in {r.id for r in each.kept} and len(each.rejected) == 19 for each in drawn)
    assert len({tuple(r.id for r in each.kept) for each in drawn}) > 1
    assert select_edits(records, config(rule=SelectRule.random), 0) == drawn[0]


def test_reasoning_loses_what_says_nothing_and_keeps_a_change_of_mind() -> None:
    thinking = "Okay, so let me think about this.\nHmm...\nOkay, line 2 turns the wrong way.\n\nLet's look at it.\nWait, it is line 3.\nline 2 turns the wrong way.\nLine 3: I[::-1]\nWait, it is line 3.\n  x = 4\nNow x is 4."
    assert without_fluff(thinking).split("\n") == [
        "Line 2 turns the wrong way.",
        "Wait, it is line 3.",
        "line 2 turns the wrong way.",
        "Line 3: I[::-1]",
        "  x = 4",
        "X is 4.",
    ]


def test_a_review_is_honoured_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    rows = taught([edit("a", 0.5), edit("b", 0.25)])
    assert (
        rows[0].reply == "<think>\nLine 2 is wrong.\n</think>\n```python\ndef solve(I):\n    return 'a'\n```"
        and rows[0].prompt == "prompt of p"
    )
    write_taught(tmp_path / "sft.jsonl", rows)
    assert read_taught(tmp_path / "sft.jsonl") == rows
    review = tmp_path / "review.json"
    write_review(review)
    assert accepted(rows, read_review(review, {"a", "b"})) == rows
    review.write_text(json.dumps({"decisions": {"a": "reject", "b": "accept"}}))
    assert accepted(rows, read_review(review, {"a", "b"})) == rows[1:]
    for decisions, said in (
        ({"c": "reject"}, "decides on c, which is no selected edit"),
        ({"a": "no"}, "says no of a, not accept or reject"),
    ):
        review.write_text(json.dumps({"decisions": decisions}))
        with pytest.raises(DamagedFile, match=said):
            read_review(review, {"a", "b"})
