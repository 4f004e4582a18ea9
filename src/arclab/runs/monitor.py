"""Watches the health of a run while it trains: judges its rows, tells everyone who looks, and says when to stop.

    monitor = HealthMonitor(config, run, ranks)              # on rank 0; picks up where metrics.jsonl stands
    note = monitor.observe(row, step)                        # every logged row; a note at steps where health is judged

It does not judge (metrics/health.py does) and does not stop anything: the loop raises UnhealthyRun with monitor.stop.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from arclab.config.schema import ExperimentConfig
from arclab.metrics.health import Kind, Level, RunFacts, Verdict, judge, stop_reason
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir
from arclab.runs.ranks import Ranks

log = logging.getLogger(__name__)
_EARLY_CHECKS = (10, 100)


class UnhealthyRun(ValueError):
    """trainer.stop_when_unhealthy ended the run; the message is the verdict and what to do."""


def is_due(config: ExperimentConfig, step: int) -> bool:
    """Is health judged at this step? The same on every rank."""
    return step in _EARLY_CHECKS or step % config.trainer.health_every == 0


class HealthMonitor:
    """message: the newest verdict as a sentence, for status.json; stop: why the run should stop, or None."""

    def __init__(self, config: ExperimentConfig, run: RunDir, ranks: Ranks, step: int) -> None:
        trainer = config.trainer
        rows_per_rank = trainer.num_rows // (ranks.world_size * trainer.grad_accumulation)
        rows = read_rows(run.metrics)
        facts = RunFacts.of(config, rows_per_rank=rows_per_rank)
        self.facts = replace(
            facts, context_gain=next((r["context_gain"] for r in rows if "context_gain" in r), facts.context_gain)
        )
        self.message, self.stop = "", None
        self._config = config
        self._rows = _window([row for row in rows if row["_step"] <= step], step, self.facts.window_steps)
        self._thinned_at = step
        judged = [row for row in self._rows if "health" in row]
        self._last_bad = Kind(judged[-1]["health"]) if judged and judged[-1]["health_level"] == Level.bad.value else None
        self._last_told: Kind | None = Kind(judged[-1]["health"]) if judged else None

    def observe(self, metrics: dict[str, float], step: int) -> Verdict | None:
        """Remember a row; where health is due, or a number is not finite, the verdict on the run so far."""
        self._rows.append({"_step": step, **metrics})
        if step >= self._thinned_at + self.facts.window_steps:
            self._rows, self._thinned_at = _window(self._rows, step, self.facts.window_steps), step
        is_finite = all(math.isfinite(metrics.get(name, 0.0)) for name in ("train/lm_loss", "grad/total_norm"))
        if is_finite and not is_due(self._config, step):
            return None
        verdict = judge(self._rows, self.facts)
        self.message = f"step {step}: {verdict}"
        log.info("%s", self.message)
        reason = stop_reason(verdict, self._last_bad)
        self.stop = f"{self.message} (stopped by trainer.stop_when_unhealthy=true)" if reason else None
        self._last_bad = verdict.kind if verdict.level is Level.bad else None
        return verdict

    def is_news(self, verdict: Verdict) -> bool:
        """Worth an alert: not healthy, and not what the last check said."""
        news = verdict.kind is not self._last_told and verdict.level is not Level.ok
        self._last_told = verdict.kind
        return news


def _window(rows: list[dict[str, Any]], step: int, window_steps: int) -> list[dict[str, Any]]:
    """The rows that verdicts look at: those of the last steps, and the newest evaluation however old it is."""
    evaluated = [row for row in rows if "encoder/swap_drop" in row][-1:]
    return [
        *(r for r in evaluated if r["_step"] <= step - window_steps),
        *(r for r in rows if r["_step"] > step - window_steps),
    ]
