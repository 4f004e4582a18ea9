"""Which self-edits are learned, what they are compared with, and the sentence about one configuration for everything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arclab.config.seal_fewshot_schema import SelectSealConfig, Strategy
from arclab.methods.seal.fewshot.baselines import Signs, constant_note, modal_share, rows_of, share_of, signs, successes_of
from arclab.methods.seal.fewshot.edits import SelfEdit
from arclab.methods.seal.fewshot.evaluate import table
from arclab.methods.seal.fewshot.records import Outcome
from arclab.methods.seal.fewshot.select import select_edits, with_shuffled_rewards

SELECT = SelectSealConfig(max_per_task=2, even_tasks=True)
EDIT = SelfEdit((), Strategy.output_tokens, 1e-3, 2)


def outcome(task: str, key: str, reward: float, number: int = 0, verdict: str = "ok") -> Outcome:
    return Outcome(
        id=f"{task}/{key}/{number}",
        task=task,
        round=0,
        seed=0,
        verdict=verdict,
        config={},
        key=key,
        response=key,
        reward=reward,
        right=[],
    )


def test_all_positives_are_kept_once_capped_and_every_task_counts_alike() -> None:
    outcomes = [outcome("a", "x", 1), outcome("a", "x", 1, 1), outcome("a", "y", 0), outcome("a", "y", 1), outcome("a", "z", 1), outcome("b", "x", 1), outcome("c", "x", 0)]  # fmt: skip
    kept = select_edits(outcomes, SELECT)
    assert [(each.task, each.key) for each in kept] == [("a", "x"), ("a", "y"), ("b", "x")]
    assert [each.weight for each in kept] == [0.75, 0.75, 1.5] and sum(each.weight for each in kept) == len(kept)
    assert {each.weight for each in select_edits(outcomes, replace(SELECT, even_tasks=False))} == {1.0}
    assert len(select_edits(outcomes, replace(SELECT, max_per_task=9))) == 4


def test_the_twin_has_as_many_rewards_on_other_self_edits_that_could_be_tried() -> None:
    outcomes = [outcome(f"t{n % 4}", f"k{n}", float(n < 6)) for n in range(20)] + [
        outcome("t0", "", 0, n, "bad_json") for n in range(20)
    ]
    drawn = with_shuffled_rewards(outcomes, 0)
    assert sum(each.reward for each in drawn) == 6 and drawn == with_shuffled_rewards(outcomes, 0) != outcomes
    assert not any(each.reward for each in drawn if each.verdict != "ok")
    assert [replace(each, reward=0.0) for each in drawn] == [replace(each, reward=0.0) for each in outcomes]


def test_every_reply_counts_in_a_share() -> None:
    outcomes = [outcome("a", "x", 1), outcome("a", "", 0, 1, "bad_json"), outcome("b", "x", 0)]
    tasks = [type("Task", (), {"id": id_})() for id_ in ("a", "b", "c")]
    found = successes_of(outcomes, tasks)  # pyright: ignore[reportArgumentType]
    assert found == {"a": [1, 0], "b": [0], "c": []} and share_of(found) == pytest.approx(1 / 3)
    (row,) = rows_of({"start": found}, 0)
    assert (row.num_successes, row.num_trials, row.num_any, row.num_tasks, row.share) == (1, 3, 1, 3, pytest.approx(1 / 3))
    assert "| before the first round | 1/3 | 33.3 % | 0.0 to 50.0 % | 1/3 |" in table({"start": found}, 0, ["it says so"])


def test_signs_go_by_the_share_of_each_task() -> None:
    first = {"a": [1, 0, 0], "b": [1.0], "c": [0, 0], "d": [1.0]}
    second = {"a": [0.0], "b": [1, 0], "c": [1, 0], "d": [1, 1]}
    assert (signs(first, second).more, signs(first, second).fewer) == (2, 1) and signs(second, first).discordant == 3
    assert signs({"a": [1.0]}, {"a": []}).discordant == 0 and Signs(6, 0).p_value == pytest.approx(2 / 64)


def test_one_configuration_for_everything_is_called_that() -> None:
    alike = [outcome(f"t{n}", EDIT.key, 1) for n in range(9)] + [outcome("t9", "other", 1), outcome("t9", "", 0, 1, "bad_json")]
    assert modal_share(alike) == 0.9 and modal_share([]) == 0
    note = constant_note(alike, EDIT, Signs(0, 1))
    assert "for 0 tasks and less often for 1: one good configuration was learned, not one for each task (90 % of" in note
    assert note.endswith("one and the same, 9 of 11 proposals the constant best one)")
    assert constant_note(alike, EDIT, Signs(9, 0)) == "", "it is better than the constant one"
    assert constant_note(alike, None, None) == "", "nothing is known of the constant one"
    assert "nothing shows that they fit the task (11 %" in constant_note(
        [outcome(f"t{n}", f"k{n}", 1) for n in range(9)], EDIT, Signs(0, 0)
    )
