"""How probable it is that a candidate is right, learned from results with known answers: logistic regression.

    curve = fit_calibration(split, "runs/a/x/evaluation/validation")     # ConfigError: nothing to learn from
    curve.probability(share, confidence)                                 # 0 to 1

log odds = bias + a share + b confidence, where share is a candidate's share of the votes of its test input and confidence the
one that its method gave it. A penalty of (a^2 + b^2) / 2 keeps both finite where right and wrong candidates do not mix. Every
kept candidate of a test input with a known answer is an observation. It looks at no task that an ensemble scores: that is the
caller's to check.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arclab.config.compose import ConfigError
from arclab.results.reading import PredictedTest, ScoredSplit

_PENALTY = 1.0
_MOST_STEPS = 100
_SMALL = 1e-10


@dataclass(frozen=True, slots=True)
class Calibration:
    """num_right of num_candidates candidates were right."""

    bias: float
    of_share: float
    of_confidence: float
    num_right: int
    num_candidates: int

    def probability(self, share: float, confidence: float) -> float:
        log_odds = self.bias + self.of_share * share + self.of_confidence * confidence
        return float(1 / (1 + np.exp(-log_odds)))


def vote_share(test: PredictedTest, place: int) -> float:
    """Of the candidate at that place, in all votes of its test input."""
    return test.candidates[place].votes / max(1, test.all_votes)


def fit_calibration(split: ScoredSplit, path: object) -> Calibration:
    """path: stands in the sentence of the ConfigError if all candidates are right, or none is, or answers are hidden."""
    if split.has_hidden_answers:
        raise ConfigError(f"calibration: {path} has tasks with hidden answers; give a result of tasks with known answers.")
    rows = [
        (vote_share(test, place), candidate.confidence, place == test.truth_rank)
        for test in split.predictions.values()
        for place, candidate in enumerate(test.candidates)
        if candidate.grid is not None
    ]
    num_right = sum(is_right for _, _, is_right in rows)
    if num_right in (0, len(rows)):
        raise ConfigError(
            f"calibration: {num_right} of the {len(rows)} candidates of {path} are right, so there is nothing to calibrate on; "
            "give a result with right and wrong ones, or choose merge=votes or merge=rank."
        )
    table = np.array([(1.0, share, confidence) for share, confidence, _ in rows])
    weights = _fitted(table, np.array([float(is_right) for *_, is_right in rows]))
    bias, of_share, of_confidence = map(float, weights)
    return Calibration(bias, of_share, of_confidence, num_right, len(rows))


def _fitted(table: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The weights that minimise the penalised negative log-likelihood, by Newton's method with halved steps."""
    penalty = np.array([0.0, _PENALTY, _PENALTY])

    def loss(weights: npt.NDArray[np.float64]) -> float:
        log_odds = table @ weights
        return float(np.sum(np.logaddexp(0.0, log_odds) - right * log_odds) + (penalty * weights**2).sum() / 2)

    weights = np.zeros(table.shape[1])
    for _ in range(_MOST_STEPS):
        chance = 1 / (1 + np.exp(-(table @ weights)))
        slope = table.T @ (chance - right) + penalty * weights
        curvature = (table * (chance * (1 - chance))[:, None]).T @ table + np.diag(penalty)
        step, before = np.linalg.lstsq(curvature, slope, rcond=None)[0], loss(weights)
        if slope @ step < _SMALL:
            break
        scale = 1.0
        while loss(weights - scale * step) > before and scale > _SMALL:
            scale /= 2
        weights = weights - scale * step
    return weights
