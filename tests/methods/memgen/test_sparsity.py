"""The sparsity penalty against a hand computation, and that it is part of the reward of a step."""

from __future__ import annotations

import pytest

from arclab.config.run import DeviceChoice
from arclab.lm.training.rollouts import Drawer, Rollout, RolloutSettings
from arclab.methods.memgen.sparsity import ACTION, actions_of, penalty, sparsity, target_share
from arclab.runs.ranks import Ranks, start_ranks

# (reward, decisions) of a batch: the median reward is 0.5, so the first three are good enough.
BATCH = [(1.0, [1, 0]), (1.0, [0, 0, 0, 1]), (0.5, [1]), (0.0, [1, 1, 1]), (0.5, []), (0.0, [0, 1])]


def rollout(actions: list[int], prompt: str = "a") -> Rollout:
    """Decisions at every second token, the first included."""
    tokens = max(2 * len(actions), 1)
    at = {2 * place: action for place, action in enumerate(actions)}
    return Rollout(
        prompt, [5, 6], [7] * tokens, [0.0] * tokens, is_ended=True,
        extra={ACTION: [0, 0, *(at.get(place, 0) for place in range(tokens))]}, is_policy=[place in at for place in range(tokens)],
    )  # fmt: skip


def test_the_penalty_is_that_of_the_paper() -> None:
    assert [actions_of(rollout(actions)) for _, actions in BATCH] == [actions for _, actions in BATCH]
    shares = [(reward, sum(actions) / len(actions) if actions else None) for reward, actions in BATCH]
    target = target_share(shares)
    assert target == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert penalty([1, 0, 1, 1], target) == pytest.approx(3 * (1 - target)) and penalty([0, 0], target) == 0
    assert penalty([1, 1], 1.0) == 0 == penalty([], target)  # where good rollouts always insert, inserting costs nothing
    assert target_share([]) == 1.0 == target_share([(1.0, None)])


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_it_is_a_part_of_the_reward_by_its_weight(monkeypatch: pytest.MonkeyPatch, is_shuffled: bool) -> None:
    """Of the batch of all ranks: here another one has three good rollouts that never insert."""
    ranks = start_ranks(DeviceChoice.cpu)
    monkeypatch.setattr(Ranks, "gather_objects", lambda self, mine: [mine, [(1.0, 0.0)] * 3])
    rewards = {id_: reward for id_, (reward, _) in enumerate(BATCH)}

    def roll_out(prompts, seeds):
        return [rollout(BATCH[place][1]) for place in range(len(prompts))]

    settings = RolloutSettings(group_size=3, refills=0, mask_truncated=False, shuffle_rewards=is_shuffled)
    given = {"right": (1.0, lambda rows: [rewards[place] for place in range(len(rows))])}
    drawn = Drawer(["a", "b"], roll_out, given, settings, 0, ("sparsity", 0.1, sparsity(0.1, ranks))).drawn([0, 1], 0, 0)
    # Rewards of all: 1 1 .5 0 .5 0 1 1 1, the median is 1.
    target = (0.5 + 0.25 + 0 + 0 + 0) / 5
    wanted = [reward - 0.1 * sum(actions) * (1 - target) for reward, actions in BATCH]
    found = [row.reward for row in drawn.rows]
    assert sorted(map(float, found)) == pytest.approx(sorted(wanted)) and (found == pytest.approx(wanted)) != is_shuffled
    sums = drawn.sums(3)
    assert sums["rl/reward_sparsity"] == pytest.approx(-sum(sum(actions) for _, actions in BATCH) * (1 - target))
    assert sums["rl/insert_target"] == pytest.approx(6 * target) and sums["rl/sparsity_weight"] == pytest.approx(0.6)


def test_groups_that_differ_in_the_penalty_alone_are_not_alike() -> None:
    ranks = start_ranks(DeviceChoice.cpu)
    settings = RolloutSettings(group_size=2, refills=0, mask_truncated=False, shuffle_rewards=False)
    for weight, is_alike in ((0.1, False), (0.0, True)):
        drawer = Drawer(
            ["a"], lambda prompts, seeds: [rollout([1, 1]), rollout([0, 1])], {"right": (1.0, lambda rows: [1.0, 1.0])},
            settings, 0, ("sparsity", weight, sparsity(weight, ranks)),
        )  # fmt: skip
        assert [row.is_alike for row in drawer.drawn([0], 0, 0).rows] == [is_alike] * 2
