"""Intervals for means of trials that come in groups: several trials of one task are not independent.

    low, high = clustered_interval([[1, 0, 1], [0, 0], ...], seed=0)        # one list for each task

Groups are drawn with replacement, whole, and the mean over all trials of those drawn is taken again and again. Few groups give
an interval that is too narrow; none is given for a single one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 10_000


def clustered_interval(groups: Sequence[Sequence[float]], seed: int, draws: int = DRAWS) -> tuple[float, float] | None:
    """95 % percentile interval of the mean over all trials. Groups without trials count for nothing. None: fewer than two are
    left."""
    kept = [group for group in groups if group]
    if len(kept) < 2:
        return None
    sums_G, sizes_G = np.array([sum(group) for group in kept], float), np.array([len(group) for group in kept], float)
    chosen_DG = np.random.default_rng(seed).integers(len(kept), size=(draws, len(kept)))
    means_D = sums_G[chosen_DG].sum(1) / sizes_G[chosen_DG].sum(1)
    low, high = np.quantile(means_D, [0.025, 0.975])
    return float(low), float(high)
