"""Verdicts on the training of a language model, or of something that is trained through one.

    monitor = HealthMonitor(LanguageRules(), trainer.health_every, rows, step)

DEAD: no gradient arrives. DIVERGING: the loss is far above its best. It does not know how good the answers are: the
evaluation says that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

from arclab.metrics.verdicts import Level, Row, Verdict

_SMALLEST_NORM = 1e-7
_WORSE = 1.5  # times the best loss
_SLACK = 0.5  # nats


class Kind(Enum):
    healthy = "HEALTHY"
    dead = "DEAD"
    diverging = "DIVERGING"


class LanguageRules:
    """See arclab.metrics.verdicts.HealthRules."""

    window_steps = 2000
    finite: Sequence[str] = ("train/lm_loss", "grad/total_norm")

    def judge(self, rows: Sequence[Row]) -> Verdict:
        losses = [float(row["train/lm_loss"]) for row in rows if row.get("train/lm_loss") is not None]
        norm = next(
            (float(row["grad/total_norm"]) for row in reversed(rows) if row.get("grad/total_norm") is not None), math.nan
        )
        loss = losses[-1] if losses else math.nan
        if not math.isfinite(loss):
            return Verdict(
                kind=Kind.diverging, metric="train/lm_loss", value=loss, threshold=0.0, level=Level.bad,
                advice="lower trainer.lr",
            )  # fmt: skip
        if norm < _SMALLEST_NORM:
            return Verdict(
                kind=Kind.dead, metric="grad/total_norm", value=norm, threshold=_SMALLEST_NORM, level=Level.bad,
                advice="nothing that is trained reaches the loss; look at what is inserted and what is frozen",
            )  # fmt: skip
        limit = _WORSE * min(losses) + _SLACK
        if loss > limit:
            return Verdict(
                kind=Kind.diverging, metric="train/lm_loss", value=loss, threshold=limit, level=Level.warning,
                advice="the loss is far above its best; lower trainer.lr, or set trainer.clip_norm=1.0",
            )  # fmt: skip
        return Verdict(kind=Kind.healthy, metric="train/lm_loss", value=loss, threshold=limit, level=Level.ok, advice="goes on")

    def stop_reason(self, now: Verdict, before: str | None) -> str | None:
        """At the second bad verdict in a row of one kind."""
        return now.kind.value if now.level is Level.bad and now.kind.value == before else None

    def outlives_window(self, row: Row) -> bool:
        return False
