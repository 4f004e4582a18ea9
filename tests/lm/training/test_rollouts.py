"""Groups of rollouts: who is counted, what is drawn anew, and rewards that fail. No model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from arclab.lm.training.rollouts import Drawer, Rollout, RolloutSettings, metrics_of

SETTINGS = RolloutSettings(group_size=4, refills=0, mask_truncated=True, shuffle_rewards=False)


def roll_out(prompts: Sequence[Any], seeds: Sequence[int]) -> list[Rollout]:
    """The prompt says how rewards come out: each of them is 0 or 1 by a coin, or always 1."""
    coins = [random.Random(seed).random() < 0.5 for seed in seeds]
    return [
        Rollout(prompt, [1], [7, 8], [-1.0, -1.0], is_ended=prompt != "cut", numbers={"rl/insertions": float(coin)})
        for prompt, coin in zip(prompts, coins, strict=True)
    ]


def right(rollouts: Sequence[Rollout]) -> list[float]:
    if any(row.prompt == "broken" for row in rollouts):
        raise ValueError("no such answer")
    return [1.0 if row.prompt == "easy" else row.numbers["rl/insertions"] for row in rollouts]


def drawer(prompts: Sequence[str], settings: RolloutSettings = SETTINGS, seed: int = 0) -> Drawer:
    return Drawer(prompts, roll_out, {"right": (2.0, right)}, settings, seed)


def test_groups_that_say_nothing_are_no_part_of_the_loss_nor_are_replies_that_were_cut() -> None:
    drawn = drawer(["coin", "easy", "cut"]).drawn([0, 1, 2], step=0, first=0)
    assert [row.rollout.prompt for row in drawn.rows] == ["coin"] * 4 + ["easy"] * 4 + ["cut"] * 4
    assert [row.is_counted for row in drawn.rows] == [True] * 4 + [False] * 8
    assert {row.reward for row in drawn.rows[:4]} == {0.0, 2.0}  # with its weight
    assert [row.is_alike for row in drawn.rows[4:8]] == [True] * 4
    kept = drawer(["cut"], RolloutSettings(4, 0, mask_truncated=False, shuffle_rewards=False)).drawn([0], step=0, first=2)
    assert all(row.is_counted for row in kept.rows)
    metrics = metrics_of([drawn.sums(4)])
    assert metrics["rl/zero_variance_share"] == pytest.approx(1 / 3) and metrics["rl/dropped_share"] == pytest.approx(8 / 12)
    assert metrics["rl/truncated_share"] == pytest.approx(1 / 3) and metrics["rl/tokens"] == 2
    assert metrics["rl/reward"] == pytest.approx(2 * metrics["rl/reward_right"])


def test_a_group_that_says_nothing_is_drawn_anew_with_another_prompt() -> None:
    drawn = drawer(["easy", *["coin"] * 9], RolloutSettings(4, 3, True, False)).drawn([0, 1], step=0, first=0)
    assert [row.rollout.prompt for row in drawn.first] == ["easy"] * 4 + ["coin"] * 4
    assert [row.rollout.prompt for row in drawn.rows] == ["coin"] * 8 and all(row.is_counted for row in drawn.rows)
    assert drawn.num_drawn > 8
    metrics = metrics_of([drawn.sums(4)])
    assert metrics["rl/zero_variance_share"] == 0.5 and metrics["rl/dropped_share"] == 0  # of those asked first; of the loss


def test_what_is_drawn_does_not_depend_on_who_draws_it() -> None:
    def said(drawn: Any) -> list[Any]:
        return [(row.rollout.prompt, row.reward) for row in drawn.rows]

    many = drawer(["coin", "easy", *"abcdefgh"], RolloutSettings(4, 2, True, False))
    whole = said(many.drawn([0, 1, 2, 3], step=5, first=0))
    parts = said(many.drawn([0, 1], step=5, first=0)) + said(many.drawn([2, 3], step=5, first=2))
    assert whole == parts != said(many.drawn([0, 1, 2, 3], step=6, first=0))
    assert sorted(many.order(20)[:10]) == list(range(10)) == sorted(many.order(20)[10:]) and many.order(25)[:20] == many.order(
        20
    )


def test_a_reward_that_fails_marks_its_row_and_the_others_go_on() -> None:
    drawn = drawer(["coin", "broken"]).drawn([0, 1], step=0, first=0)
    assert [row.reward is None for row in drawn.rows] == [False] * 4 + [True] * 4
    assert [row.is_counted for row in drawn.rows] == [True] * 4 + [False] * 4
    assert drawn.failures == ["right: ValueError: no such answer"] * 4
    assert metrics_of([drawn.sums(4)])["rl/failed_share"] == 0.5

    def counted(rollouts: Sequence[Rollout]) -> list[float]:
        return [float("nan")] * len(rollouts)

    failed = Drawer(["coin"], roll_out, {"right": (1.0, right), "boxed": (1.0, counted)}, SETTINGS, 0).drawn([0], 0, 0)
    assert all(row.reward is None for row in failed.rows) and "not one finite number for each" in failed.failures[0]


def test_shuffled_rewards_are_the_same_rewards_of_other_rollouts() -> None:
    prompts = ["coin"] * 6
    plain = drawer(prompts).drawn(range(6), step=0, first=0)
    mixed = drawer(prompts, RolloutSettings(4, 0, True, shuffle_rewards=True)).drawn(range(6), step=0, first=0)
    assert [row.rollout.numbers for row in plain.rows] == [row.rollout.numbers for row in mixed.rows]
    mine, other = [row.reward for row in plain.rows], [row.reward for row in mixed.rows]
    assert mine != other and sorted(map(str, mine)) == sorted(map(str, other))
