"""When more votes cannot change who is first: the sequential test of evaluation.votes=adaptive.

Two candidates with a and b votes (a > b). Each of the a + b augmentations that voted for one of the two is a trial that
the leader wins with probability p. Null hypothesis: the leader is not ahead, p <= 1/2. The likelihood ratio of a mixture
with a uniform prior on p in (1/2, 1] against p = 1/2 is

    R(a, b) = integral_{1/2}^1 2 p^a (1 - p)^b dp / (1/2)^(a + b).

The integral is an incomplete beta function of whole arguments, B(a+1, b+1) * P[Binomial(n + 1, 1/2) <= a] with n = a + b, so

    R(a, b) = sum_{k=0}^{a} C(n + 1, k) / ((n + 1) C(n, a)),

which is computed in whole numbers. Written one vote at a time, R is multiplied by 2q (the leader wins) or 2(1 - q), where
q >= 1/2 is the prediction of the mixture; its expectation under p <= 1/2 is at most what it was, so R is a nonnegative
supermartingale and by Ville's inequality P[R ever exceeds 1000] <= 1/1000 for a pair in the wrong order, however often one
looks. 1000 : 1 is reached by 13 votes to none.

A candidate must beat the one behind it; that is the strongest of all its rivals, and R falls when a rival has more votes, so
every other rival (also those tied with it, and grids not seen so far, with 0 votes) is beaten at least as clearly. A tie is
never settled by the test. What is limited to 1/1000 is each comparison, not the evaluation as a whole, and it concerns the
ranking that endless random augmentations would give, of which all the votes of a finite table are a sample themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

ODDS = 1000
FIRST_ROUND = 16  # the least that can settle anything is 13
_GROWTH = 1.5


@lru_cache(maxsize=65536)
def outvotes(ahead: int, behind: int) -> bool:
    """R(ahead, behind) > ODDS."""
    if ahead <= behind:
        return False
    trials = ahead + behind
    term = numerator = 1
    for k in range(ahead):
        term = term * (trials + 1 - k) // (k + 1)  # C(trials + 1, k + 1)
        numerator += term
    return numerator > ODDS * (trials + 1) * math.comb(trials, ahead)


def is_settled(top_votes: Sequence[int], remaining: int) -> bool:
    """Can `remaining` more votes no longer change the order of top_votes (most first)? For certain, or by the test."""
    return all(ahead - behind > remaining or outvotes(ahead, behind) for ahead, behind in pairwise(top_votes))


def round_ends(num_augmentations: int) -> Iterator[int]:
    """After how many augmentations of a task its votes are looked at: 16, 24, 36, ... and the last one."""
    end = FIRST_ROUND
    while end < num_augmentations:
        yield end
        end = int(end * _GROWTH)
    yield num_augmentations
