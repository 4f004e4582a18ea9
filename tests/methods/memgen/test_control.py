"""What is counted over answers, and what the trained weaver is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arclab.config.memgen_schema import Memory
from arclab.config.run import CriterionConfig
from arclab.methods.memgen.answering import Answered, measure
from arclab.methods.memgen.control import compared
from arclab.results.criterion import judge_criterion

ONE = Answered(
    id="a", question="q", reply="r", answer="1", gold="1", is_right=True, num_tokens=10, inserted=[0, 3, 6], inserted_chars=[0, 9, 20],
    asked=[3, 6, 8], is_cut=False,
    logprob=-1.0, extra={},
)  # fmt: skip


def answered(rights: str, **changes: object) -> list[Answered]:
    return [replace(ONE, id=str(n), is_right=right == "+", **changes) for n, right in enumerate(rights)]  # type: ignore[arg-type]


def test_shares_are_of_all_answers() -> None:
    some = [*answered("+-"), replace(ONE, is_right=False, answer=None, is_cut=True, num_tokens=40, inserted=[0], asked=[])]
    assert measure(some) == {
        "text/accuracy": 1 / 3, "text/count": 3.0, "text/no_answer_share": 1 / 3, "text/cut_share": 1 / 3, "text/insertions": 7 / 3,
        "text/tokens_per_reply": 20.0, "text/insert_share": 4 / 6,
    }  # fmt: skip


def test_the_stronger_control_counts_question_by_question() -> None:
    trained, off, random = answered("++++--+-"), answered("+----+--"), answered("--------")
    found = compared(trained, {Memory.random: random, Memory.off: off})
    assert (found["text/off_accuracy"], found["text/random_accuracy"]) == (2 / 8, 0.0)
    assert (found["text/discordant"], found["text/memory_wins"]) == (5.0, 4 / 5)  # won 1, 2, 3 and 6; lost 5
    assert found["text/p_value"] == pytest.approx(2 * (1 + 5) / 2**5)
    assert "text/memory_wins" not in compared(trained, {Memory.off: trained})


def test_the_criterion_counts_discordant_questions() -> None:
    criterion = CriterionConfig(metric="text/memory_wins", threshold=0.6, phase="p")
    row = {"_step": 4, "text/count": 300.0, "text/discordant": 5.0, "text/memory_wins": 0.8}
    result = judge_criterion(criterion, [row])
    assert (result.n, result.N, result.passed) == (4.0, 5, True)
    accuracy = judge_criterion(replace(criterion, metric="text/accuracy"), [{**row, "text/accuracy": 0.5}])
    assert (accuracy.n, accuracy.N, accuracy.passed) == (150.0, 300, False)
