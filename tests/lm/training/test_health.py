"""Verdicts on reinforcement learning, each on a run that has what it is about and no other fault."""

from __future__ import annotations

import pytest

from arclab.lm.training.health import RlRules
from arclab.metrics.verdicts import Level, Verdict

WELL = {
    "rl/loss": 0.01, "grad/total_norm": 1.0, "rl/zero_variance_share": 0.4, "rl/dropped_share": 0.4, "rl/entropy": 0.3,
    "rl/clip_share": 0.01, "rl/offpolicy": 1e-6, "rl/tokens": 40.0,
}  # fmt: skip


def judged(count: int = 30, last: int = 10, **changed: float) -> Verdict:
    """Of a run whose last rows are changed. Names without rl/."""
    sick = {name if "/" in name else f"rl/{name}": value for name, value in changed.items()}
    return RlRules().judge([{"_step": n, **WELL, **(sick if n >= count - last else {})} for n in range(count)])


@pytest.mark.parametrize(
    ("kind", "level", "changed", "words"),
    [
        ("HEALTHY", Level.ok, {}, "goes on"),
        ("NO_SIGNAL", Level.bad, {"zero_variance_share": 1.0, "dropped_share": 1.0}, "rl/zero_variance_share 1 = 1"),
        ("COLLAPSED", Level.bad, {"entropy": 0.001}, "rl/entropy 0.001 < 0.005"),
        ("CLIPPED", Level.warning, {"clip_share": 0.5}, "rl/clip_share 0.5 > 0.3"),
        ("LENGTH_DRIFT", Level.warning, {"tokens": 90.0}, "rl/tokens 90 > 80"),
        ("LENGTH_DRIFT", Level.warning, {"tokens": 10.0}, "rl/tokens 10 < 20"),
        ("STALE_ROLLOUTS", Level.bad, {"offpolicy": 0.5}, "rl/offpolicy 0.5 > 0.1"),
        ("DIVERGING", Level.bad, {"loss": float("nan")}, "rl/loss nan is not finite: lower trainer.lr"),
        ("DEAD", Level.bad, {"grad/total_norm": 0.0}, "grad/total_norm 0 < 1e-07"),
    ],
)
def test_verdicts(kind: str, level: Level, changed: dict[str, float], words: str) -> None:
    verdict = judged(**changed)
    assert (verdict.kind.value, verdict.level) == (kind, level) and words in str(verdict), str(verdict)


def test_one_step_is_no_verdict() -> None:
    for name, value in (("zero_variance_share", 1.0), ("clip_share", 0.9), ("tokens", 200.0), ("entropy", 0.0)):
        assert judged(last=1, **{name: value}).kind.value == "HEALTHY", name
    early = judged(count=3, last=3, zero_variance_share=1.0, dropped_share=1.0)
    assert early.level is Level.warning and early.kind.value == "NO_SIGNAL"
    # A step without any group that says something has no gradient, and nothing is dead.
    assert (
        judged(count=3, last=3, zero_variance_share=0.9, dropped_share=1.0, **{"grad/total_norm": 0.0}).kind.value == "HEALTHY"
    )


@pytest.mark.parametrize(
    ("kind", "changed"),
    [("COLLAPSED", {"entropy": 0.001}), ("NO_SIGNAL", {"zero_variance_share": 1.0, "dropped_share": 1.0, "entropy": 0.1})],
)
def test_a_policy_that_has_learned_is_warned_and_one_that_has_lost_it_is_not_spared(
    kind: str, changed: dict[str, float]
) -> None:
    start = [{**WELL, "rl/reward": 0.2} for _ in range(10)]
    best, end = (
        [{**WELL, **{f"rl/{name}": value for name, value in changed.items()}, "rl/reward": reward}] * 10
        for reward in (0.9, 0.5)
    )
    learned, fallen, flat = (
        RlRules().judge([{"_step": n, **row} for n, row in enumerate(rows)])
        for rows in (start + best, start + best + end, [{**row, "rl/reward": 0.9} for row in best * 2])
    )
    assert [each.kind.value for each in (learned, fallen, flat)] == [kind] * 3
    assert [each.level for each in (learned, fallen, flat)] == [Level.warning, Level.bad, Level.bad]
    assert "give it harder ones" in str(learned) and "harder ones" not in str(fallen)
