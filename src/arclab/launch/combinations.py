"""How many runs a sweep stands for, counted before any of them is made: range(0,1000000000) is quickly written.

    require_countable([parse(word) for word in words])      # ConfigError that names the largest sweep, the number and the limit

It counts Hydra's overrides and expands none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arclab.config.compose import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MAX_COMBINATIONS = 10_000


def require_countable(overrides: Sequence[Override]) -> None:
    """ConfigError if the product of the sweeps is more than MAX_COMBINATIONS, or a range never ends."""
    require_few({override.get_key_element(): num_values(override) for override in overrides})


def require_few(counts: dict[str, float]) -> None:
    """The same of counts by key."""
    total = math.prod(counts.values())
    if total > MAX_COMBINATIONS:
        largest = max(counts, key=lambda key: counts[key])
        values = f"{counts[largest]:,.0f} values" if math.isfinite(counts[largest]) else "values without end"
        runs = f"{total:,.0f}" if math.isfinite(total) else "endlessly many"
        raise ConfigError(
            f"{largest} has {values}, and the sweep would be {runs} runs, more than the {MAX_COMBINATIONS:,} allowed; sweep "
            "fewer values."
        )


def num_values(override: Override) -> float:
    """How many values one override stands for; infinite for a range that never reaches its end."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep):
        return 1
    start, stop, step = value.start, value.stop, value.step
    if start is None or stop is None:  # sort and shuffle of a list
        return 1
    if step == 0 or not all(map(math.isfinite, (start, stop, step))):
        return math.inf
    return max(0, math.ceil((stop - start) / step))
