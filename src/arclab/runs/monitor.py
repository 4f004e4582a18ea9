"""Watches the health of a run while it trains: judges its rows, tells everyone who looks, and says when to stop.

    monitor = HealthMonitor(rules, health_every, rows, step)  # on rank 0; rows: what metrics.jsonl holds up to that step
    verdict = monitor.observe(row, step)                      # every logged row; a verdict at steps where health is judged

It does not judge (the rules of the method do) and does not stop anything: the loop raises UnhealthyRun with monitor.stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from arclab.metrics.verdicts import HealthRules, Level, Row, Verdict

log = logging.getLogger(__name__)
_EARLY_CHECKS = (10, 100)


class UnhealthyRun(ValueError):
    """trainer.stop_when_unhealthy ended the run; the message is the verdict and what to do."""


def is_due(health_every: int, step: int) -> bool:
    """Is health judged at this step? The same on every rank."""
    return step in _EARLY_CHECKS or step % health_every == 0


class HealthMonitor:
    """message: the newest verdict as a sentence, for status.json; stop: why the run should stop, or None. key: the node of the
    configuration that stop_when_unhealthy stands in."""

    def __init__(
        self, rules: HealthRules, health_every: int, rows: Sequence[Row], step: int, key: str = "trainer"
    ) -> None:  # fmt: skip
        self._key, self.rules, self._health_every = key, rules, health_every
        self.message, self.stop = "", None
        self._rows = self._window([row for row in rows if row["_step"] <= step], step)
        self._thinned_at = step
        judged = [row for row in self._rows if "health" in row]
        self._last_bad: str | None = judged[-1]["health"] if judged and judged[-1]["health_level"] == Level.bad.value else None
        self._last_told: str | None = judged[-1]["health"] if judged else None

    def observe(self, metrics: dict[str, float], step: int) -> Verdict | None:
        """Remember a row; where health is due, or a number is not finite, the verdict on the run so far."""
        self._rows.append({"_step": step, **metrics})
        if step >= self._thinned_at + self.rules.window_steps:
            self._rows, self._thinned_at = self._window(self._rows, step), step
        is_finite = all(math.isfinite(metrics.get(name, 0.0)) for name in self.rules.finite)
        if is_finite and not is_due(self._health_every, step):
            return None
        verdict = self.rules.judge(self._rows)
        self.message = f"step {step}: {verdict}"
        log.info("%s", self.message)
        reason = self.rules.stop_reason(verdict, self._last_bad)
        self.stop = f"{self.message} (stopped by {self._key}.stop_when_unhealthy=true)" if reason else None
        self._last_bad = verdict.kind.value if verdict.level is Level.bad else None
        return verdict

    def is_news(self, verdict: Verdict) -> bool:
        """Worth an alert: not healthy, and not what the last check said."""
        news = verdict.kind.value != self._last_told and verdict.level is not Level.ok
        self._last_told = verdict.kind.value
        return news

    def _window(self, rows: Sequence[Row], step: int) -> list[Row]:
        """The rows that verdicts look at: those of the last steps, and the newest evaluation however old it is."""
        first = step - self.rules.window_steps
        outlives = [row for row in rows if self.rules.outlives_window(row)][-1:]
        return [*(row for row in outlives if row["_step"] <= first), *(row for row in rows if row["_step"] > first)]
