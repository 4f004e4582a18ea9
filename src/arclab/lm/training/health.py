"""Verdicts on the training of a language model, or of something that is trained through one.

    monitor = HealthMonitor(LanguageRules(), trainer.health_every, rows, step)      # supervised
    monitor = HealthMonitor(RlRules(), trainer.health_every, rows, step)            # reinforcement learning

DEAD: no gradient arrives. DIVERGING: the loss is far above its best, or no number. Of reinforcement learning also NO_SIGNAL,
COLLAPSED, CLIPPED, LENGTH_DRIFT and STALE_ROLLOUTS: see docs/health.md. They do not know how good the answers are: the
evaluation says that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import Enum

from arclab.metrics.verdicts import Level, Row, Verdict

_SMALLEST_NORM = 1e-7
_WORSE = 1.5  # times the best loss
_SLACK = 0.5  # nats
_FEW_ROWS = 10  # over which reinforcement learning is judged
_LOWEST_ENTROPY = 0.005  # nats of a token
_MOST_CLIPPED = 0.3  # of all tokens
_DRIFT = 2.0  # times as long, or as short, as at the beginning
_MOST_STALE = 0.1  # nats of a token
_GAIN = 0.1  # of reward, in which case the policy has learned something


_LEARNED = "the reward has risen and stays: these questions teach nothing more; end the run, or give it harder ones"


class Kind(Enum):
    healthy = "HEALTHY"
    dead = "DEAD"
    diverging = "DIVERGING"
    no_signal = "NO_SIGNAL"
    collapsed = "COLLAPSED"
    clipped = "CLIPPED"
    length_drift = "LENGTH_DRIFT"
    stale = "STALE_ROLLOUTS"


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


class RlRules:
    """See arclab.metrics.verdicts.HealthRules. Judged are means over the last rows, and where a verdict needs as many, over no
    fewer: one step of a few groups says little. key: the node of the configuration that its advice names."""

    window_steps = 2000
    finite: Sequence[str] = ("rl/loss", "grad/total_norm")

    def __init__(self, key: str = "trainer") -> None:
        self._key = key

    def judge(self, rows: Sequence[Row]) -> Verdict:
        return next(self._found(rows), None) or Verdict(
            kind=Kind.healthy, metric="rl/zero_variance_share", value=_mean(rows[-_FEW_ROWS:], "rl/zero_variance_share", 0.0),
            threshold=1.0, level=Level.ok, advice="goes on",
        )  # fmt: skip

    def _found(self, rows: Sequence[Row]) -> Iterator[Verdict]:
        """What is wrong, the gravest first."""
        loss, norm = _last(rows, "rl/loss"), _last(rows, "grad/total_norm")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            metric, value = ("rl/loss", loss) if not math.isfinite(loss) else ("grad/total_norm", norm)
            yield _bad(Kind.diverging, metric, value, 0.0, f"lower {self._key}.lr")
        last = rows[-_FEW_ROWS:]
        yield from self._drawn(last, is_enough=len(last) == _FEW_ROWS, is_learned=_is_learned(rows))
        if norm < _SMALLEST_NORM and _mean(last, "rl/dropped_share", 0.0) < 1:
            yield _bad(
                Kind.dead, "grad/total_norm", norm, _SMALLEST_NORM,
                "nothing that is trained reaches the loss; look at what is inserted and what is frozen",
            )  # fmt: skip
        yield from self._length(rows)

    def _drawn(self, rows: Sequence[Row], *, is_enough: bool, is_learned: bool) -> Iterator[Verdict]:
        """A policy that has learned what its questions ask hardly varies either: that is no fault, but worth a word."""
        stale, entropy = _mean(rows, "rl/offpolicy", 0.0), _mean(rows, "rl/entropy", math.inf)
        alike, clipped = _mean(rows, "rl/zero_variance_share", 0.0), _mean(rows, "rl/clip_share", 0.0)
        if stale > _MOST_STALE:
            yield _bad(
                Kind.stale, "rl/offpolicy", stale, _MOST_STALE,
                "sampler and trainer do not compute the same policy, so updates point elsewhere; use lm.dtype=float32",
            )  # fmt: skip
        if entropy < _LOWEST_ENTROPY:
            yield Verdict(
                kind=Kind.collapsed, metric="rl/entropy", value=entropy, threshold=_LOWEST_ENTROPY,
                level=Level.warning if is_learned else Level.bad,
                advice=_LEARNED if is_learned else f"the policy hardly varies any more; lower {self._key}.lr, raise "
                f"{self._key}.clip_high, or set {self._key}.beta=0.04",
            )  # fmt: skip
        if alike == 1.0:
            yield Verdict(
                kind=Kind.no_signal, metric="rl/zero_variance_share", value=alike, threshold=1.0,
                level=Level.bad if is_enough and not is_learned else Level.warning,
                advice=_LEARNED if is_learned else "all rollouts of a group get one reward; use easier or harder questions, "
                f"raise {self._key}.group_size, or begin with supervised training",
            )  # fmt: skip
        if clipped > _MOST_CLIPPED:
            yield Verdict(
                kind=Kind.clipped, metric="rl/clip_share", value=clipped, threshold=_MOST_CLIPPED, level=Level.warning,
                advice=f"updates go further than the rollouts carry; lower {self._key}.lr or {self._key}.updates_per_rollout",
            )  # fmt: skip

    def _length(self, rows: Sequence[Row]) -> Iterator[Verdict]:
        """Against the first rows that there are: those of the last window_steps steps."""
        if len(rows) < 2 * _FEW_ROWS:
            return
        before, now = _mean(rows[:_FEW_ROWS], "rl/tokens", math.nan), _mean(rows[-_FEW_ROWS:], "rl/tokens", math.nan)
        for limit, is_over in ((before * _DRIFT, now > before * _DRIFT), (before / _DRIFT, now < before / _DRIFT)):
            if is_over:
                yield Verdict(
                    kind=Kind.length_drift, metric="rl/tokens", value=now, threshold=limit, level=Level.warning,
                    advice="replies change their length without a reason in the reward; read some, lower "
                    f"{self._key}.lr, or set {self._key}.loss=dr_grpo",
                )  # fmt: skip

    def stop_reason(self, now: Verdict, before: str | None) -> str | None:
        """At the second bad verdict in a row of one kind."""
        return now.kind.value if now.level is Level.bad and now.kind.value == before else None

    def outlives_window(self, row: Row) -> bool:
        return False


def _is_learned(rows: Sequence[Row]) -> bool:
    """Has the reward risen, and is it still where it was best? Means over _FEW_ROWS rows."""
    rewards = [float(row["rl/reward"]) for row in rows if row.get("rl/reward") is not None]
    means = [sum(rewards[start : start + _FEW_ROWS]) / _FEW_ROWS for start in range(len(rewards) - _FEW_ROWS + 1)]
    return len(rewards) >= 2 * _FEW_ROWS and means[-1] - means[0] > _GAIN and max(means) - means[-1] < _GAIN


def _bad(kind: Kind, metric: str, value: float, threshold: float, advice: str) -> Verdict:
    return Verdict(kind=kind, metric=metric, value=value, threshold=threshold, level=Level.bad, advice=advice)


def _last(rows: Sequence[Row], name: str) -> float:
    """The newest value; 1.0 if there is none (a run that has not logged it yet is not sick). NaN: it was no number."""
    found = next((row[name] for row in reversed(rows) if name in row), 1.0)
    return math.nan if found is None else float(found)


def _mean(rows: Sequence[Row], name: str, default: float) -> float:
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else default
