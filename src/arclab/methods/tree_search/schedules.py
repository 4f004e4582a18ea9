"""How the temperature and the prompt change from rollout to rollout.

    temperature(config.temperature, rollout=0, num_rollouts=32, period=2)

The first rollouts are drawn at start, the last ones at end, exactly. period: prompts that take turns; all of one turn are drawn
at the same temperature, so that none of them is always the hottest.
"""

from __future__ import annotations

import math

from arclab.config.tree_search_schema import Schedule, TemperatureConfig

_TERMS = 300


def temperature(config: TemperatureConfig, *, rollout: int, num_rollouts: int, period: int) -> float:
    """Of one rollout, numbered from 0; a search of a single turn is drawn in the middle."""
    if config.schedule is Schedule.constant:
        return config.start
    num_turns = math.ceil(num_rollouts / period)
    way = min(1.0, (rollout // period) / (num_turns - 1)) if num_turns > 1 else 0.5
    if config.schedule is Schedule.beta_cdf:
        way = beta_cdf(way, config.target_fraction * config.concentration, (1 - config.target_fraction) * config.concentration)
    return config.start + (config.end - config.start) * way


def beta_cdf(x: float, a: float, b: float) -> float:
    """The distribution function of the beta distribution at x, 0 to 1."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction below converges fast on the other side only
        return 1 - beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    return front * _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, from its end."""
    value = 1.0
    for number in range(_TERMS, 0, -1):
        half, is_odd = divmod(number, 2)
        if is_odd:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        value = 1 + term / value
    return 1 / value
