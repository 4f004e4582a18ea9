"""Groups of rollouts with their rewards, for reinforcement learning: what a step is computed from. No trainer.

    drawer = Drawer(prompts, roll_out, {"right": (1.0, right)}, RolloutSettings(group_size=8, ...), seed=0)
    step = drawer.drawn(numbers, step=3, first=0)        # every prompt of numbers group_size times
    step.rows[0].is_counted                              # is it part of the loss?

roll_out is the method's: prompts and seeds in, finished rollouts out. A rollout depends on (seed, step, place of its group, its
number in the group), not on the rank that draws it. A group whose rewards are all alike says nothing about what is better: its
prompt is replaced by another one up to `refills` times, and if that does not help the group is left out of the loss. So are
rollouts that were cut, and those whose reward could not be computed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arclab.metrics.verdicts import Row

log = logging.getLogger(__name__)
_ALIKE = 1e-6  # rewards that differ by less are the same
# What a reward function may fail of because of a row. Anything else is a fault of this program.
_FAILURES = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(slots=True)
class Rollout:
    """prompt: what it answers, as the method calls it. completion_ids: as generated, with the end token if is_ended. logprobs:
    of each of them, under the policy that drew them (its temperature included). extra: for the model's forward pass, a number
    for each token of prompt and completion. numbers: registered metrics, of which the mean over rollouts is logged.

    turns: spans of completion_ids (first, one after the last) that the policy drew; what lies between them an environment said,
    and is no part of the loss. None: it drew all of them. Each turn was drawn from the plain tokens before it: in its pass,
    extra is 0 before the token that stands before its first one. is_policy: of each completion token, whether its
    log-probability is the policy's own and part of the loss; None: of all that were drawn. record: what the method keeps."""

    prompt: Any
    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    is_ended: bool
    extra: dict[str, list[int]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    turns: list[tuple[int, int]] | None = None
    is_policy: list[bool] | None = None
    record: Any = None

    @property
    def turn_numbers(self) -> list[int]:
        """For each token of the completion the turn in which it was drawn, from 1; 0: an environment said it."""
        numbers = [0] * len(self.completion_ids)
        for turn, (start, end) in enumerate(self.turns or [(0, len(self.completion_ids))], start=1):
            numbers[start:end] = [turn] * (end - start)
        return numbers

    @property
    def num_drawn(self) -> int:
        return sum(number > 0 for number in self.turn_numbers)


RollOut = Callable[[Sequence[Any], Sequence[int]], list[Rollout]]  # (prompts, seeds) -> one rollout for each
Reward = Callable[[Sequence[Rollout]], Sequence[float]]
# A part of the reward that depends on all rollouts of a step: it is given those of this rank as they were first drawn, with
# their reward so far, once a step on every rank, and returns what the part is for a rollout.
Shaping = Callable[[Sequence["Scored"]], Callable[["Scored"], float]]


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """refills: how often a group of equal rewards is drawn anew, with another prompt. mask_truncated: rollouts that were cut
    are no part of the loss. shuffle_rewards: the control, in which rewards say nothing about the rollouts that they are given
    to."""

    group_size: int
    refills: int
    mask_truncated: bool
    shuffle_rewards: bool


@dataclass(slots=True)
class Scored:
    """reward: None where it could not be computed. parts: by the name of the reward function, before weights. is_alike: all
    rewards of its group are the same."""

    rollout: Rollout
    reward: float | None
    parts: dict[str, float]
    is_alike: bool = False
    is_counted: bool = True


@dataclass(slots=True)
class Drawn:
    """rows: what the step is computed from, group after group. first: the groups as they were first drawn, which metrics are
    means over: later ones were chosen. failures: sentences."""

    rows: list[Scored]
    first: list[Scored]
    num_drawn: int
    seconds: float
    failures: list[str]

    def sums(self, group_size: int) -> Row:
        """What ranks add up to metrics; see metrics_of."""
        known = [row for row in self.first if row.reward is not None]
        values = [row.reward for row in known if row.reward is not None]
        sums: dict[str, float] = {
            "rows": len(self.first), "groups": len(self.first) / group_size, "known": len(known), "reward": sum(values),
            "square": sum(value * value for value in values), "alike": sum(row.is_alike for row in self.first) / group_size,
            "left": sum(not row.is_counted for row in self.rows), "drawn": self.num_drawn, "seconds": self.seconds,
            "tokens": sum(row.rollout.num_drawn for row in self.first),
            "cut": sum(not row.rollout.is_ended for row in self.first), "failed": len(self.first) - len(known),
        }  # fmt: skip
        for row in self.first:
            for name, value in row.rollout.numbers.items():
                sums[name] = sums.get(name, 0.0) + value
        for row in known:
            for name, value in row.parts.items():
                sums[f"rl/reward_{name}"] = sums.get(f"rl/reward_{name}", 0.0) + value
        return sums


def metrics_of(sums: Sequence[Row]) -> dict[str, float]:
    """Registered metrics of a step, from the sums of all ranks."""
    total = {name: sum(float(each.get(name, 0.0)) for each in sums) for name in {name for each in sums for name in each}}
    rows, known = total["rows"], max(total["known"], 1.0)
    mean = total["reward"] / known
    found = {
        "rl/reward": mean,
        "rl/reward_std": math.sqrt(max(total["square"] / known - mean * mean, 0.0)),
        "rl/zero_variance_share": total["alike"] / total["groups"],
        "rl/dropped_share": total["left"] / rows,
        "rl/failed_share": total["failed"] / rows,
        "rl/tokens": total["tokens"] / rows,
        "rl/truncated_share": total["cut"] / rows,
        "timing/rollouts_per_s": total["drawn"] / max(max(float(each["seconds"]) for each in sums), 1e-9),
    }
    for name, value in total.items():
        if name.startswith(("rl/", "timing/")):
            found[name] = value / (known if name.startswith("rl/reward_") else rows)
    return found


Told = Callable[[int, Sequence[Scored]], None]
# (number of the drawing, places of groups among those of all ranks, attempt: above 0 for refills) -> the prompt of each
Choose = Callable[[int, Sequence[int], int], Sequence[Any]]


class Drawer:
    """See the module. rewards: name -> (weight, function); their weighted sum is the reward. shaping: (name, weight, function)
    of a part that comes to it. told: is shown the rows of every drawing, with its number. choose: which prompts are drawn for,
    where that is not settled before a training begins; then prompts are not read."""

    def __init__(
        self, prompts: Sequence[Any], roll_out: RollOut, rewards: Mapping[str, tuple[float, Reward]], settings: RolloutSettings,
        seed: int, shaping: tuple[str, float, Shaping] | None = None, told: Told | None = None, choose: Choose | None = None,
    ) -> None:  # fmt: skip
        assert prompts and rewards
        self._told, self._choose = told, choose
        self._prompts, self._roll_out, self._rewards = prompts, roll_out, rewards
        self.settings, self._seed, self._shaping = settings, seed, shaping

    def order(self, num_groups: int) -> list[int]:
        """The numbers of the prompts of a whole training: all of them in a random order, then all in another one, ..."""
        found: list[int] = []
        while len(found) < num_groups:
            epoch = list(range(len(self._prompts)))
            random.Random(f"{self._seed} prompts {len(found)}").shuffle(epoch)
            found += epoch
        return found[:num_groups]

    def drawn(self, numbers: Sequence[int], step: int, first: int) -> Drawn:
        """A group of rollouts for each prompt. first: the place of the first group among those of all ranks."""
        start = time.monotonic()
        failures: list[str] = []
        groups = self._groups({first + at: number for at, number in enumerate(numbers)}, step, 0, failures)  # by their place
        shape = self._shaping[2]([row for group in groups.values() for row in group]) if self._shaping is not None else None
        self._settle(groups, step, 0, shape)
        before, num_drawn = dict(groups), len(groups)
        for attempt in range(1, self.settings.refills + 1):
            alike = [at for at, group in groups.items() if group[0].is_alike]
            other = {at: _generator(self._seed, step, at, attempt).randrange(len(self._prompts)) for at in alike}
            drawn = self._groups(other, step, attempt, failures) if other else {}
            self._settle(drawn, step, attempt, shape)
            groups |= drawn
            num_drawn += len(alike)
        rows = [row for at in sorted(groups) for row in groups[at]]
        for row in rows:
            is_cut = self.settings.mask_truncated and not row.rollout.is_ended
            row.is_counted = not (row.is_alike or is_cut or row.reward is None)
        size = self.settings.group_size
        asked = [row for at in sorted(before) for row in before[at]]
        if self._told is not None:
            self._told(step, rows)
        return Drawn(rows, asked, num_drawn * size, time.monotonic() - start, failures)

    def _groups(self, numbers: Mapping[int, int], step: int, attempt: int, failures: list[str]) -> dict[int, list[Scored]]:
        size = self.settings.group_size
        if self._choose is None:
            asked: Sequence[Any] = [self._prompts[number] for number in numbers.values()]
        else:
            asked = self._choose(step, list(numbers), attempt)
        prompts = [prompt for prompt in asked for _ in range(size)]
        seeds = [self._draw_seed(step, at, attempt, sample) for at in numbers for sample in range(size)]
        rollouts = self._roll_out(prompts, seeds)
        assert len(rollouts) == len(prompts) and all(row.completion_ids for row in rollouts)
        assert all(len(row.logprobs) == len(row.completion_ids) for row in rollouts)
        rows = self._scored(rollouts, failures)
        return {at: rows[place * size : (place + 1) * size] for place, at in enumerate(numbers)}

    def _settle(
        self, groups: Mapping[int, list[Scored]], step: int, attempt: int, shape: Callable[[Scored], float] | None
    ) -> None:
        """The whole reward of new groups, and which of them are alike."""
        rows = [row for group in groups.values() for row in group]
        if shape is not None and self._shaping is not None:
            name, weight, _ = self._shaping
            for row in rows:
                if row.reward is not None:
                    row.parts[name] = shape(row)
                    row.reward += weight * row.parts[name]
        if self.settings.shuffle_rewards and rows:
            _shuffle(rows, _generator(self._seed, step, min(groups), attempt))
        for group in groups.values():
            known = [row.reward for row in group if row.reward is not None]
            is_alike = len(known) < 2 or max(known) - min(known) < _ALIKE
            for row in group:
                row.is_alike = is_alike

    def _draw_seed(self, *key: int) -> int:
        words = " ".join(map(str, (self._seed, *key)))
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1

    def _scored(self, rollouts: list[Rollout], failures: list[str]) -> list[Scored]:
        parts: list[dict[str, float] | None] = [{} for _ in rollouts]
        for name, (_, reward) in self._rewards.items():
            for place, value in enumerate(_values(name, reward, rollouts, failures)):
                part = parts[place]
                if part is not None and value is not None:
                    part[name] = value
                else:
                    parts[place] = None
        return [
            Scored(rollout, None if part is None else sum(self._rewards[name][0] * part[name] for name in part), part or {})
            for rollout, part in zip(rollouts, parts, strict=True)
        ]


def _values(name: str, reward: Reward, rollouts: Sequence[Rollout], failures: list[str]) -> list[float | None]:
    """Of all rollouts at once; if that fails, one by one, so that it is known which of them it was."""
    try:
        return _numbers(name, reward, rollouts)
    except _FAILURES as error:
        first = f"{type(error).__name__}: {error}"
    found: list[float | None] = []
    for rollout in rollouts:
        try:
            found += _numbers(name, reward, [rollout])
        except _FAILURES as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
            found.append(None)
    count = sum(value is None for value in found)
    log.warning("the reward %s failed for %d of %d rollouts (%s)", name, count, len(rollouts), first)
    return found


def _numbers(name: str, reward: Reward, rollouts: Sequence[Rollout]) -> list[float | None]:
    """ValueError: not one finite number for each."""
    values = [float(value) for value in reward(rollouts)]
    if len(values) != len(rollouts) or not all(map(math.isfinite, values)):
        raise ValueError(f"the reward {name} gave {values} for {len(rollouts)} rollouts, not one finite number for each")
    return list(values)


def _shuffle(rows: Sequence[Scored], generator: random.Random) -> None:
    """Give every row whose reward is known the reward of another one."""
    known = [row for row in rows if row.reward is not None]
    rewards = [(row.reward, row.parts) for row in known]
    generator.shuffle(rewards)
    for row, (reward, parts) in zip(known, rewards, strict=True):
        row.reward, row.parts = reward, parts


def _generator(*key: int) -> random.Random:
    return random.Random(" ".join(map(str, key)))
