"""Verdicts: each fires on a window made for it, none on a healthy one, and the run is stopped by the guide's rules only."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from arclab.methods.recursive.health import Kind, RunFacts, judge, stop_reason, verdicts
from arclab.metrics.verdicts import Level, Verdict

from ...conftest import compose

ETRM = RunFacts(has_encoder=True, halt_max_steps=16, warmup_steps=0, rows_per_rank=32, context_gain=1.0)
TRM = RunFacts(has_encoder=False, halt_max_steps=16, warmup_steps=0, rows_per_rank=32, context_gain=1.0)


def window(last_step: int = 500, **changed: Any) -> list[dict[str, Any]]:
    """A run that learns, logged every ten steps; a changed metric is a value, or a function of the step."""
    rows = []
    for step in range(10, last_step + 1, 10):
        row: dict[str, Any] = {
            "_step": step, "train/count": 32.0, "train/lm_loss": 2.5 * math.exp(-step / 400), "train/exact_accuracy": step / 1500,
            "train/accuracy": 0.5 + step / 3000, "train/steps": 16 - step / 100, "train/encoder_cross_sample_var": 0.3,
            "grad/encoder_norm": 0.4, "grad/total_norm": 1.0,
        }  # fmt: skip
        row |= {name: value(step) if callable(value) else value for name, value in changed.items()}
        rows.append(row)
    return rows


def names(**metrics: Any) -> dict[str, Any]:
    """Keyword arguments cannot hold a slash: train__x is train/x."""
    return {name.replace("__", "/"): value for name, value in metrics.items()}


@pytest.mark.parametrize("facts", [ETRM, TRM], ids=["etrm", "trm"])
@pytest.mark.parametrize("last_step", [10, 100, 300, 500, 900])
def test_a_healthy_run_is_healthy_from_its_first_check_on(facts: RunFacts, last_step: int) -> None:
    verdict = judge(window(last_step), facts)
    assert (verdict.kind, verdict.level) == (Kind.healthy, Level.ok)
    assert verdicts(window(last_step), facts) == []


# What is changed in the healthy window, and the verdict it must give: kind, level, metric, value, threshold.
SICK: dict[str, tuple[dict[str, Any], Kind, Level, str, float, float]] = {
    "starved": (names(grad__encoder_norm=0.02), Kind.starved, Level.bad, "grad/encoder_norm", 0.02, 0.05),
    "starved share": (
        names(grad__encoder_norm=0.4, grad__total_norm=8.0), Kind.starved, Level.bad, "grad/encoder_norm / grad/total_norm", 0.05, 0.1,
    ),
    "collapsed": (names(train__encoder_cross_sample_var=0.01), Kind.collapsed, Level.bad, "train/encoder_cross_sample_var", 0.01, 0.05),
    "thin": (names(train__encoder_cross_sample_var=0.08), Kind.collapsed, Level.warning, "train/encoder_cross_sample_var", 0.08, 0.1),
    "posterior": (names(train__encoder_kl=1e-4), Kind.posterior_collapsed, Level.bad, "train/encoder_kl", 1e-4, 0.1),
    "ignored": (
        names(train_encoder__swap_drop=0.01, train_encoder__exact_accuracy=0.6), Kind.ignored, Level.bad, "train_encoder/swap_drop", 0.01, 0.06,
    ),
    "maxed out": (names(train__steps=16.0, train__exact_accuracy=lambda s: 0.4 + s / 2000), Kind.maxed_out, Level.bad, "train/steps", 16, 16),
    "stuck": (names(train__exact_accuracy=0.506), Kind.stuck, Level.bad, "train/exact_accuracy", 0.506, 0.506),
    "stuck at nothing": (names(train__exact_accuracy=0.0, train__accuracy=0.6), Kind.stuck, Level.bad, "train/accuracy", 0.6, 0.6),
    "not a number": (names(train__lm_loss=lambda s: math.nan if s == 500 else 1.0), Kind.diverged, Level.bad, "train/lm_loss", math.nan, math.inf),
    "null in the file": (names(grad__total_norm=lambda s: None if s == 500 else 1.0), Kind.diverged, Level.bad, "grad/total_norm", math.nan, math.inf),
    "loss explodes": (names(train__lm_loss=lambda s: 4.0 if s > 450 else 0.5), Kind.diverged, Level.bad, "train/lm_loss", 4.0, 1.5),
    "gradient explodes": (
        names(grad__total_norm=lambda s: 5000.0 if s > 450 else 1.0, grad__encoder_norm=lambda s: 2000.0 if s > 450 else 0.5),
        Kind.diverged, Level.bad, "grad/total_norm", 5000, 100,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SICK)
def test_each_verdict_fires_with_its_number_and_its_limit(case: str) -> None:
    changed, kind, level, metric, value, threshold = SICK[case]
    verdict = judge(window(**changed), ETRM)
    assert (verdict.kind, verdict.level, verdict.metric) == (kind, level, metric)
    assert (verdict.value, verdict.threshold) == (pytest.approx(value, nan_ok=True), pytest.approx(threshold))
    assert verdict.advice and "\n" not in str(verdict)


@pytest.mark.parametrize("case", SICK)
def test_verdicts_on_the_encoder_do_not_apply_to_a_puzzle_table(case: str) -> None:
    changed, kind, *_ = SICK[case]
    is_about_encoder = kind in (Kind.starved, Kind.collapsed, Kind.posterior_collapsed, Kind.ignored)
    assert judge(window(**changed), TRM).kind is (Kind.healthy if is_about_encoder else kind)


def test_the_guides_bad_run_is_named_and_its_good_run_is_not() -> None:
    bad = names(train__exact_accuracy=0.506, train__encoder_cross_sample_var=0.049, grad__encoder_norm=0.02, train__steps=8.5)
    assert [v.kind for v in verdicts(window(740, **bad), ETRM)] == [Kind.collapsed, Kind.starved, Kind.stuck]
    good = names(
        train__exact_accuracy=lambda s: 0.238 * s / 749,
        train__encoder_cross_sample_var=0.13,
        grad__encoder_norm=0.20,
        train__steps=6.2,
    )
    assert judge(window(740, **good), ETRM).kind is Kind.healthy


def test_the_sentence() -> None:
    verdict = judge(window(10, **names(grad__encoder_norm=0.02)), ETRM)
    assert str(verdict).startswith("STARVED grad/encoder_norm 0.02 < 0.05: gradient starvation does not fix itself")
    thin = judge(window(**names(train__encoder_cross_sample_var=0.08)), ETRM)
    assert str(thin).startswith("warning, COLLAPSED train/encoder_cross_sample_var 0.08 < 0.1: ")
    assert "nan is not finite" in str(judge(window(**names(train__lm_loss=math.nan)), ETRM))


QUIET: dict[str, tuple[int, RunFacts, dict[str, Any]]] = {
    "nothing halts at step 10 by design": (10, ETRM, names(train__steps=16.0, train__exact_accuracy=0.0)),
    "nothing halts while nothing is right": (900, ETRM, names(train__steps=16.0, train__exact_accuracy=lambda s: s / 10000)),
    "a single step is always the last": (500, replace(ETRM, halt_max_steps=1), names(train__steps=1.0, train__exact_accuracy=lambda s: 0.5 + s / 2000)),
    "a converged run has small gradients": (500, ETRM, names(grad__encoder_norm=0.001, train__exact_accuracy=0.97)),
    "a converged run has nowhere to go": (500, ETRM, names(train__exact_accuracy=0.97)),
    "warm-up steps are not counted": (500, replace(ETRM, warmup_steps=400), names(train__exact_accuracy=0.0, train__accuracy=0.6)),
    "one row has no variance": (500, replace(ETRM, rows_per_rank=1), names(train__encoder_cross_sample_var=0.0)),
    "gradients that dip for a while": (500, ETRM, names(grad__encoder_norm=lambda s: 0.3 if s % 30 == 0 else 0.02)),
    "one odd batch": (500, ETRM, names(grad__encoder_norm=lambda s: 0.0 if s == 490 else 0.4)),
    "a KL of zero at the start": (50, ETRM, names(train__encoder_kl=0.0)),
    "a KL that carries something": (500, ETRM, names(train__encoder_kl=3.0)),
    "swapping costs most answers": (500, ETRM, names(train_encoder__swap_drop=0.5, train_encoder__exact_accuracy=0.6)),
    "nothing right to lose": (500, ETRM, names(train_encoder__swap_drop=0.0, train_encoder__exact_accuracy=0.03)),
    "grids stay wrong while cells improve": (500, ETRM, names(train__exact_accuracy=0.0)),
    "a high loss that falls": (500, ETRM, names(train__lm_loss=lambda s: 9.0 - s / 100)),
}  # fmt: skip


@pytest.mark.parametrize("case", QUIET)
def test_no_false_alarm(case: str) -> None:
    last_step, facts, changed = QUIET[case]
    assert verdicts(window(last_step, **changed), facts) == []


def test_a_small_share_is_a_warning_at_first_and_a_fault_later() -> None:
    """Before anything is learned the decoder's output layer has nearly all of the gradient."""
    changed = names(grad__encoder_norm=0.3, grad__total_norm=4.0)
    assert [judge(window(step, **changed), ETRM).level for step in (10, 100, 200)] == [Level.warning, Level.warning, Level.bad]


def test_one_large_gradient_does_not_hide_starvation() -> None:
    assert judge(window(**names(grad__encoder_norm=lambda s: 3.0 if s == 480 else 0.02)), ETRM).kind is Kind.starved


def test_a_small_context_gain_scales_the_limits() -> None:
    """Gain 0.1: a tenth of the gradient is as healthy, and nothing at all is as starved."""
    facts = RunFacts.of(compose("pretrain_encoder", ["experiment=quickstart"]), rows_per_rank=32)
    assert facts.context_gain == 0.1
    assert judge(window(**names(grad__encoder_norm=0.04)), facts).kind is Kind.healthy
    assert judge(window(**names(grad__encoder_norm=0.004)), facts).kind is Kind.starved
    matched = RunFacts.of(compose("pretrain_encoder", ["encoder/context=trm_compat"]), rows_per_rank=32)
    assert matched.context_gain == pytest.approx(1 / math.sqrt(512))


def test_a_weak_gradient_is_for_the_quick_check() -> None:
    changed = names(grad__encoder_norm=0.15)
    assert [judge(window(step, **changed), ETRM).level for step in (10, 100, 500)] == [Level.warning, Level.warning, Level.ok]


def test_the_quick_check_wants_more_variance_than_later_checks() -> None:
    changed = names(train__encoder_cross_sample_var=0.13)
    assert [judge(window(step, **changed), ETRM).kind for step in (100, 500)] == [Kind.collapsed, Kind.healthy]


def test_progress_is_counted_anew_after_single_steps() -> None:
    """Accuracy falls and loss rises where rows begin to do more than one step; what stands still from there on is stuck all the same."""
    config = compose("pretrain_encoder", ["experiment=quickstart", "halting.single_steps=300"])
    facts = replace(ETRM, single_steps=RunFacts.of(config, rows_per_rank=32).single_steps)
    fallen = names(
        train__exact_accuracy=lambda s: 0.7 if s <= 300 else 0.3 + (s - 300) / 4000,
        train__lm_loss=lambda s: 0.1 if s <= 300 else 1.6,
    )
    assert {judge(window(step, **fallen), ETRM).kind for step in (500, 700)} == {Kind.diverged}
    assert {judge(window(step, **fallen), facts).kind for step in (200, 310, 400, 500, 600, 700)} == {Kind.healthy}
    slow = names(train__exact_accuracy=fallen["train/exact_accuracy"])
    assert judge(window(700, **slow), ETRM).kind is Kind.stuck and judge(window(700, **slow), facts).kind is Kind.healthy
    standing = names(train__exact_accuracy=lambda s: 0.7 if s <= 300 else 0.3)
    assert (
        judge(window(590, **standing), facts).kind is Kind.healthy and judge(window(710, **standing), facts).kind is Kind.stuck
    )


def test_stuck_is_counted_from_the_last_improvement() -> None:
    """Improves until step 200, then stands still: not stuck at 400, stuck once 300 steps have passed."""
    changed = names(train__exact_accuracy=lambda s: min(s, 200) / 500)
    assert judge(window(400, **changed), ETRM).kind is Kind.healthy
    assert judge(window(600, **changed), ETRM).kind is Kind.stuck


def test_after_the_first_phase_a_falling_loss_makes_a_standstill_a_warning() -> None:
    """As in runs of phase 1 that stood at 0.71 for 300 steps and went on to 0.86; the guide's rule for the first 500 steps asks for grids only."""
    standing = names(train__exact_accuracy=lambda s: min(s, 100) / 250)
    falling, flat = standing, standing | {"train/lm_loss": lambda s: 2.5 * math.exp(-min(s, 500) / 400)}
    for step, loss, level in ((500, falling, Level.bad), (900, falling, Level.warning), (900, flat, Level.bad)):
        verdict = judge(window(step, **loss), ETRM)
        assert (verdict.kind, verdict.level) == (Kind.stuck, level)
        assert (stop_reason(verdict, None) is None) == (level is Level.warning)


def test_a_long_run_may_take_long_to_show_progress() -> None:
    """From 10 % to 60 % over half a million steps, each row noisier than what 300 steps bring: no standstill; without progress it is one."""
    facts = replace(ETRM, steps=518_000)
    noise = random.Random(0)

    def late(step: int, rises: bool) -> list[dict[str, Any]]:
        rows = window(facts.window_steps)
        for row in rows:
            row["_step"] += step - facts.window_steps
            row["train/exact_accuracy"] = (0.1 + 0.5 * row["_step"] / 518_000 if rises else 0.2) + noise.gauss(0, 0.02)
            row["train/accuracy"], row["train/steps"], row["train/lm_loss"] = 0.8, 9.0, 0.5
        return rows

    rising = [judge(late(step, True), facts).kind for step in range(60_000, 500_000, 20_000)]
    assert set(rising) == {Kind.healthy}
    standing = [judge(late(step, False), facts).kind for step in range(60_000, 500_000, 20_000)]
    assert standing.count(Kind.stuck) > len(standing) / 3
    assert (
        judge(window(400, **names(train__exact_accuracy=0.5)), facts).kind is Kind.stuck
    )  # the first phase keeps the guide's 300 steps


def test_demonstrations_in_full_cannot_collapse() -> None:
    """in_context shows the decoder every cell: the mean over them varies little between tasks (0.0496 at step 10 of a sound run)."""
    thin = window(100, **names(train__encoder_cross_sample_var=0.0496))
    for encoder, kind in (("in_context", Kind.healthy), ("standard", Kind.collapsed)):
        facts = RunFacts.of(compose("pretrain_encoder", ["experiment=quickstart", f"encoder={encoder}"]), rows_per_rank=32)
        assert judge(thin, facts).kind is kind


def test_a_fault_comes_before_a_warning() -> None:
    changed = names(train__encoder_cross_sample_var=0.08, train__exact_accuracy=0.5)
    assert judge(window(**changed), ETRM).kind is Kind.stuck


def test_stopping_follows_the_guide() -> None:
    def verdict(kind: Kind, level: Level = Level.bad) -> Verdict:
        return Verdict(kind=kind, metric="m", value=0.0, threshold=1.0, advice="advice", level=level)

    for kind in (Kind.diverged, Kind.stuck):
        assert stop_reason(verdict(kind), None)
    for kind in (Kind.starved, Kind.collapsed):
        assert stop_reason(verdict(kind), None) is None and stop_reason(verdict(kind), Kind.stuck) is None
        assert stop_reason(verdict(kind), Kind.starved) and stop_reason(verdict(kind), Kind.collapsed)
        assert stop_reason(verdict(kind, Level.warning), kind) is None
    for kind in (Kind.ignored, Kind.maxed_out, Kind.posterior_collapsed, Kind.healthy):
        assert stop_reason(verdict(kind), kind) is None
