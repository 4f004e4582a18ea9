"""The reward-adaptive sparsity penalty on a trigger's decisions (MemGen, arXiv 2509.24704, equations 8 and 9).

    name, weight, shaping = "sparsity", 0.05, sparsity(0.05, ranks)         # for arclab.lm.training.rollouts.Drawer

What is maximised is R - lambda * sum over decisions j of max(0, d_j - p). d_j is 1 where memory was inserted, else 0. p is the
mean share of insertions in the rollouts that are at least as good as the median of the batch, of all ranks: so inserting costs
less where good rollouts insert much. Rollouts without a decision have no share, and without a penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

from arclab.lm.training.rollouts import Rollout, Scored, Shaping
from arclab.runs.ranks import Ranks

ACTION = "action_BL"  # of Rollout.extra: 1 at a token before which the trigger has inserted memory


def actions_of(rollout: Rollout) -> list[int]:
    """The decisions of a rollout, in order: 1 for memory."""
    assert rollout.is_policy is not None
    own = rollout.extra[ACTION][len(rollout.prompt_ids) :]
    return [action for action, decides in zip(own, rollout.is_policy, strict=True) if decides]


def insert_share(actions: Sequence[int]) -> float | None:
    return fmean(actions) if actions else None


def target_share(scored: Sequence[tuple[float, float | None]]) -> float:
    """p, of (reward, share of insertions) of a batch. 1 where nothing is known: no penalty."""
    if not scored:
        return 1.0
    middle = median(reward for reward, _ in scored)
    shares = [share for reward, share in scored if share is not None and reward >= middle]
    return fmean(shares) if shares else 1.0


def penalty(actions: Sequence[int], target: float) -> float:
    return sum(max(0.0, action - target) for action in actions)


def sparsity(weight: float, ranks: Ranks) -> Shaping:
    """The part of the reward, before its weight. Also writes down p and the weight, for the metrics."""

    def of_batch(rows: Sequence[Scored]) -> Callable[[Scored], float]:
        mine = [(row.reward, insert_share(actions_of(row.rollout))) for row in rows if row.reward is not None]
        target = target_share([each for part in ranks.gather_objects(mine) for each in part])
        for row in rows:
            row.rollout.numbers |= {"rl/insert_target": target, "rl/sparsity_weight": weight}
        return lambda row: -penalty(actions_of(row.rollout), target)

    return of_batch
