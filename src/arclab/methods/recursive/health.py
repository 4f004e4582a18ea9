"""Is a run of the recursive model healthy? Verdicts from its rows, by the rules of the experiment guide, as pure functions.

    facts = RunFacts.of(config, rows_per_rank=...)
    verdict = judge(rows, facts)                       # the gravest one, HEALTHY if there is nothing to say
    f"step 10: {verdict}"                              # step 10: STARVED grad/encoder_norm 0.02 < 0.05: ...

RecursiveRules holds the facts and these functions together, for arclab.runs.monitor. `rows` are rows of metrics.jsonl, oldest
first: a missing name was not measured, a null was not finite. The last facts.window_steps steps are enough. A verdict is `bad`
(the guide stops a run for it) or a `warning` (not yet at the limit of a bad one, or too early to be sure). All limits are the
constants below. The guide's further targets (variance above 0.3, encoder gradients above 0.2 after the first 100 steps, halting
accuracy) are no limits here: a sound run may miss them for a while. They are the healthy ranges of the registry, which pages
and sheets compare with. `stop_reason` decides whether a run is stopped. Rules about the encoder are not asked of a run with a
puzzle table. Nothing here reads files or talks to anyone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import median

from arclab.config.encoder_schema import ContextConfig, InContextEncoderConfig
from arclab.config.schema import ExperimentConfig, PuzzleTableConfig
from arclab.metrics.names import REGISTRY
from arclab.metrics.verdicts import Level, Row, Verdict

WINDOW_STEPS = 1000
EARLY_STEPS = 100  # the guide's quick check: before this, gradients are those of an untrained output layer
FIRST_PHASE_STEPS = 500  # after the warm-up: the guide's horizon for stopping early
PATIENCE_STEPS = 300
PATIENCE_SHARE = 0.03  # of all steps, after the first phase: a long run may improve too slowly to see it within 300 steps
# STARVED: of the encoder's gradient norm, and of its share in the norm of all gradients.
STARVED_NORM = 0.05
STARVED_SHARE = 0.1
# COLLAPSED: of the context's variance over the rows of a batch. Below COLLAPSED_VAR is bad, below the others a warning.
COLLAPSED_VAR = 0.05
LOW_VAR = 0.1
LOW_VAR_EARLY = 0.15
# POSTERIOR_COLLAPSED
MIN_KL_NATS = 0.1  # a tenth of a nat tells no two tasks apart
# IGNORED
IGNORED_SHARE = 0.1  # swapped demonstrations cost less than this share of the exact accuracy
IGNORED_MIN_EXACT = 0.1
# MAXED_OUT
MAXED_OUT_SHARE = 0.98  # of halting.halt_max_steps
MAXED_OUT_MIN_EXACT = 0.1  # a warning from here on
MAXED_OUT_BAD_EXACT = 0.5  # more rows than not are right, and still none halts
# DIVERGED: a loss of this many times the best one, gradients of this many times the usual ones; and neither below a floor.
EXPLODED_LOSS_FACTOR = 3.0
EXPLODED_LOSS_NATS = 1.0  # a blind guess among the tokens costs 2.5 nats
EXPLODED_GRAD_FACTOR = 100.0
EXPLODED_GRAD_NORM = 10.0
_SMOOTHING_ROWS = 5
_BLOCK_STEPS = 100
_PATIENCE_BLOCKS = 3
_DIVERGING = ("train/lm_loss", "grad/total_norm")


class Kind(Enum):
    """In the order in which they are named, the gravest first. A collapsed encoder has next to no gradient either, so collapse
    comes before starvation."""

    diverged = "DIVERGED"
    collapsed = "COLLAPSED"
    starved = "STARVED"
    posterior_collapsed = "POSTERIOR_COLLAPSED"
    ignored = "IGNORED"
    maxed_out = "MAXED_OUT"
    stuck = "STUCK"
    healthy = "HEALTHY"


_LASTING = (Kind.starved, Kind.collapsed)


_ADVICE = {
    Kind.diverged: "lower the learning rates or set trainer.clip_norm=1.0; a diverged run does not come back",
    Kind.starved: "gradient starvation does not fix itself; check encoder architecture and loss computation (is the "
    "context detached, gated or scaled away?)",
    Kind.collapsed: "the encoder gives nearly the same context for every task; it may be too weak, or its "
    "initialisation is at fault",
    Kind.posterior_collapsed: "the latent carries nothing about the task; lower the weight of the KL loss or anneal it",
    Kind.ignored: "the decoder answers without the demonstrations; it has memorised its training tasks, so "
    "strengthen the context or add tasks and augmentations",
    Kind.maxed_out: "answers are right but no row halts by its halt logit; check the halting mechanism and "
    "halting.halt_loss_weight",
    Kind.stuck: "no progress; at 35-50 % check gradients and data, at 70-80 % try other hyperparameters or a "
    "stronger architecture",
    Kind.healthy: "nothing needs a look",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the rules need to know of a run and cannot read in its rows.

    rows_per_rank: rows of the batch over which encoder statistics are taken.
    context_gain: what the context is multiplied by at the start, and with it every gradient that reaches the encoder. It is
        the metric context_gain; of() sees no model and takes what the configuration says.
    steps: of the whole run.
    single_steps: as halting.single_steps. Up to this step a row does one supervision step; after it rows do several, and
        accuracy and loss start again.
    compresses: the encoder makes a few tokens of the demonstrations, whose variance means something. in_context keeps every
        cell: the mean over so many varies little.
    """

    has_encoder: bool
    halt_max_steps: int
    warmup_steps: int
    rows_per_rank: int
    context_gain: float
    steps: int = 0
    single_steps: int = 0
    compresses: bool = True

    def is_first_phase(self, step: int) -> bool:
        return step <= self.warmup_steps + FIRST_PHASE_STEPS

    def patience_steps(self, step: int) -> int:
        """For how many steps a run may show no progress before it is stuck: the guide's number in the first phase, after
        that a share of the run."""
        return PATIENCE_STEPS if self.is_first_phase(step) else max(PATIENCE_STEPS, round(PATIENCE_SHARE * self.steps))

    @property
    def window_steps(self) -> int:
        """The last steps whose rows verdicts look at."""
        return max(WINDOW_STEPS, WINDOW_STEPS * self.patience_steps(self.steps) // PATIENCE_STEPS)

    @classmethod
    def of(cls, config: ExperimentConfig, *, rows_per_rank: int) -> RunFacts:
        context: ContextConfig | None = getattr(config.encoder, "context", None)
        return cls(
            has_encoder=not isinstance(config.encoder, PuzzleTableConfig),
            halt_max_steps=config.halting.halt_max_steps,
            warmup_steps=config.trainer.warmup_steps,
            rows_per_rank=rows_per_rank,
            context_gain=1.0 if context is None else context.start_gain(config.decoder.width),
            steps=config.trainer.steps,
            single_steps=config.halting.single_steps,
            compresses=not isinstance(config.encoder, InContextEncoderConfig),
        )


@dataclass(frozen=True, slots=True)
class RecursiveRules:
    """arclab.metrics.verdicts.HealthRules of the recursive model."""

    facts: RunFacts
    finite = _DIVERGING

    @classmethod
    def of(cls, config: ExperimentConfig, *, rows_per_rank: int, rows: Sequence[Row]) -> RecursiveRules:
        """rows: what the run logged so far. The gain that it starts with may not be that of the configuration."""
        facts = RunFacts.of(config, rows_per_rank=rows_per_rank)
        gain = next((row["context_gain"] for row in rows if "context_gain" in row), facts.context_gain)
        return cls(replace(facts, context_gain=gain))

    @property
    def window_steps(self) -> int:
        return self.facts.window_steps

    def judge(self, rows: Sequence[Row]) -> Verdict:
        return judge(rows, self.facts)

    def stop_reason(self, now: Verdict, before: str | None) -> str | None:
        return stop_reason(now, None if before is None else Kind(before))

    def outlives_window(self, row: Row) -> bool:
        return "encoder/swap_drop" in row


def judge(rows: Sequence[Row], facts: RunFacts) -> Verdict:
    """The gravest verdict: bad ones before warnings, then in the order of Kind."""
    found = verdicts(rows, facts)
    return next((v for v in found if v.level is Level.bad), found[0] if found else _healthy(rows, facts))


def verdicts(rows: Sequence[Row], facts: RunFacts) -> list[Verdict]:
    """Everything that is not as it should be at the last row."""
    if not rows:
        return []
    rules = (_diverged, *(_ENCODER_RULES if facts.has_encoder else ()), _maxed_out, _stuck)
    return [verdict for rule in rules if (verdict := rule(rows, facts)) is not None]


def stop_reason(now: Verdict, before: Kind | None) -> str | None:
    """Why a run that may be stopped must stop, by the guide's rules, or None. before: the last bad kind, one check ago.

    Divergence and no progress for PATIENCE_STEPS stop at once; an encoder that is starved or collapsed must still be so at
    the next check.
    """
    if now.level is not Level.bad:
        return None
    lasts = now.kind in _LASTING and before in _LASTING
    return str(now) if lasts or now.kind in (Kind.diverged, Kind.stuck) else None


def _verdict(kind: Kind, level: Level, metric: str, *, value: float, limit: float) -> Verdict:
    return Verdict(kind=kind, metric=metric, value=value, threshold=limit, advice=_ADVICE[kind], level=level)


def _healthy(rows: Sequence[Row], facts: RunFacts) -> Verdict:
    """With the number that says most at this stage: the accuracy once it is high, before that the encoder's gradients, for a
    puzzle table the loss."""
    if _has_learned(rows):
        name = "train/exact_accuracy"
        return _verdict(Kind.healthy, Level.ok, name, value=_recent_exact(rows), limit=_target(name))
    name = "grad/encoder_norm" if facts.has_encoder else "train/lm_loss"
    limit = _gradient_scale(facts) * STARVED_NORM if facts.has_encoder else _loss_limit(rows)
    return _verdict(Kind.healthy, Level.ok, name, value=_recent(rows, name) or 0.0, limit=limit)


def _values(rows: Iterable[Row], name: str) -> list[float]:
    """The finite values of a name, oldest first."""
    return [float(v) for row in rows if (v := row.get(name)) is not None and math.isfinite(v)]


def _recent(rows: Sequence[Row], name: str) -> float | None:
    """The median of the newest few values: one odd batch decides nothing."""
    values = _values(rows, name)[-_SMOOTHING_ROWS:]
    return median(values) if values else None


def _recent_exact(rows: Sequence[Row]) -> float:
    return _recent(rows, "train/exact_accuracy") or 0.0


def _target(name: str) -> float:
    """The lower end of the registry's healthy range."""
    healthy = REGISTRY[name].healthy
    assert healthy is not None
    return healthy[0]


def _has_learned(rows: Sequence[Row]) -> bool:
    return _recent_exact(rows) >= _target("train/exact_accuracy")


def _since_single_steps(rows: Sequence[Row], facts: RunFacts) -> Sequence[Row]:
    """Once rows do further supervision steps, those from before are no measure of progress."""
    return [r for r in rows if r["_step"] > facts.single_steps] if rows[-1]["_step"] > facts.single_steps else rows


def _diverged(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """A loss or gradient that is not finite now, or is far above what it was."""
    rows = _since_single_steps(rows, facts)
    for name in _DIVERGING:
        value = math.nan if rows[-1].get(name, 0.0) is None else float(rows[-1].get(name, 0.0))
        if not math.isfinite(value):
            return _verdict(Kind.diverged, Level.bad, name, value=value, limit=math.inf)
    loss, limit = _recent(rows, "train/lm_loss"), _loss_limit(rows)
    if loss is not None and loss > limit:
        return _verdict(Kind.diverged, Level.bad, "train/lm_loss", value=loss, limit=limit)
    norms = _values(rows, "grad/total_norm")
    if len(norms) > 2 * _SMOOTHING_ROWS:
        norm = median(norms[-_SMOOTHING_ROWS:])
        limit = max(EXPLODED_GRAD_FACTOR * median(norms[:-_SMOOTHING_ROWS]), EXPLODED_GRAD_NORM)
        if norm > limit:
            return _verdict(Kind.diverged, Level.bad, "grad/total_norm", value=norm, limit=limit)
    return None


def _loss_limit(rows: Sequence[Row]) -> float:
    """A loss above this has lost what was learned: three times the best, and more than a nat."""
    losses = _values(rows, "train/lm_loss")
    return max(EXPLODED_LOSS_FACTOR * min(losses), EXPLODED_LOSS_NATS) if losses else math.inf


def _starved(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """Gradients that stay small: the upper quartile of the last 100 steps, because those of a sound run dip for a while.

    Where nearly everything is right all gradients fade, and a small one is no news.
    """
    newest = [row for row in rows if row["_step"] > rows[-1]["_step"] - _BLOCK_STEPS]
    norm = _upper_quartile(_values(newest, "grad/encoder_norm"))
    if norm is None or _has_learned(rows):
        return None
    scale, is_early = _gradient_scale(facts), rows[-1]["_step"] <= EARLY_STEPS
    if norm < scale * STARVED_NORM:
        return _verdict(Kind.starved, Level.bad, "grad/encoder_norm", value=norm, limit=scale * STARVED_NORM)
    share = _upper_quartile(_encoder_shares(newest))
    if share is not None and share < scale * STARVED_SHARE:
        level, name = Level.warning if is_early else Level.bad, "grad/encoder_norm / grad/total_norm"
        return _verdict(Kind.starved, level, name, value=share, limit=scale * STARVED_SHARE)
    target = scale * _target("grad/encoder_norm")
    if is_early and norm < target:
        return _verdict(Kind.starved, Level.warning, "grad/encoder_norm", value=norm, limit=target)
    return None


def _gradient_scale(facts: RunFacts) -> float:
    """What the guide's limits for encoder gradients, which are for a context of gain 1, are multiplied by. A smaller gain makes
    these gradients smaller by the same factor, and the optimiser's steps are the same."""
    return min(1.0, facts.context_gain)


def _encoder_shares(rows: Sequence[Row]) -> list[float]:
    """The encoder's gradient norm over that of the whole model, of the rows that have both and where the latter is not 0."""
    measured = [row for row in rows if _values([row], "grad/encoder_norm") and any(_values([row], "grad/total_norm"))]
    return [row["grad/encoder_norm"] / row["grad/total_norm"] for row in measured]


def _upper_quartile(values: list[float]) -> float | None:
    return sorted(values)[(3 * len(values)) // 4] if values else None


def _collapsed(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """A single row has no variance across rows, whatever the encoder does."""
    name = "train/encoder_cross_sample_var"
    variance = _recent(rows, name)
    if variance is None or facts.rows_per_rank < 2 or not facts.compresses:
        return None
    if variance < COLLAPSED_VAR:
        return _verdict(Kind.collapsed, Level.bad, name, value=variance, limit=COLLAPSED_VAR)
    limit = LOW_VAR_EARLY if rows[-1]["_step"] <= EARLY_STEPS else LOW_VAR
    return _verdict(Kind.collapsed, Level.warning, name, value=variance, limit=limit) if variance < limit else None


def _posterior_collapsed(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """Only variational encoders log a KL divergence, and many start it at zero on purpose. It is judged by its value in nats,
    not by its part of the loss, which free bits (encoder.kl.free_bits) keep from falling to zero."""
    kl = _recent(rows, "train/encoder_kl")
    if kl is None or kl >= MIN_KL_NATS or rows[-1]["_step"] < EARLY_STEPS:
        return None
    return _verdict(Kind.posterior_collapsed, Level.bad, "train/encoder_kl", value=kl, limit=MIN_KL_NATS)


def _ignored(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """By the newest swap of demonstrations between tasks, of training tasks if there was one: the share of right answers that
    it cost."""
    for prefix in ("train_encoder", "encoder"):
        row = next((row for row in reversed(rows) if f"{prefix}/swap_drop" in row), None)
        if row is not None:
            return _ignored_in(row, prefix)
    return None


def _ignored_in(row: Row, prefix: str) -> Verdict | None:
    exact, drop = row[f"{prefix}/exact_accuracy"], row[f"{prefix}/swap_drop"]
    limit = IGNORED_SHARE * exact
    if exact < IGNORED_MIN_EXACT or drop >= limit:
        return None
    return _verdict(Kind.ignored, Level.bad, f"{prefix}/swap_drop", value=drop, limit=limit)


def _maxed_out(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """Rows that do all of their steps. While answers are wrong this is right: the halt logit starts at -5 and means "this is
    right". So it is a fault only once many answers are right, and its first warning waits for the end of the first phase."""
    steps, exact = _recent(rows, "train/steps"), _recent_exact(rows)
    if facts.halt_max_steps == 1 or steps is None or steps < MAXED_OUT_SHARE * facts.halt_max_steps:
        return None
    is_past_first_phase = rows[-1]["_step"] >= facts.warmup_steps + FIRST_PHASE_STEPS
    if exact >= MAXED_OUT_BAD_EXACT:
        level = Level.bad
    elif exact >= MAXED_OUT_MIN_EXACT and is_past_first_phase:
        level = Level.warning
    else:
        return None
    return _verdict(Kind.maxed_out, level, "train/steps", value=steps, limit=float(facts.halt_max_steps))


def _stuck(rows: Sequence[Row], facts: RunFacts) -> Verdict | None:
    """No mean over a third of the patience is better than the best one from before the patience; the warm-up does not count.

    As long as no grid at all was right, the accuracy of cells is looked at instead: a young run has exact accuracy 0 for a
    while and learns. After the guide's first phase it is a warning as long as the loss still falls: whole grids show progress
    late and noisily.
    """
    now, rows = rows[-1]["_step"], _since_single_steps(rows, facts)
    patience = facts.patience_steps(now)
    begin = max(facts.warmup_steps, facts.single_steps if now > facts.single_steps else 0)
    if now - patience < begin or _has_learned(rows):
        return None
    has_exact = any(value > 0 for value in _values(rows, "train/exact_accuracy"))
    name = "train/exact_accuracy" if has_exact else "train/accuracy"
    recent, past = _recent_and_past(rows, name, patience)
    if not recent or not past or max(recent) > max(past):
        return None
    recent_loss, past_loss = _recent_and_past(rows, "train/lm_loss", patience)
    is_loss_falling = bool(recent_loss and past_loss) and min(recent_loss) < min(past_loss)
    level = Level.warning if is_loss_falling and not facts.is_first_phase(now) else Level.bad
    return _verdict(Kind.stuck, level, name, value=max(recent), limit=max(past))


def _recent_and_past(rows: Sequence[Row], name: str, patience: int) -> tuple[list[float], list[float]]:
    """Means over thirds of the patience: those of the last patience steps, and those before."""
    means = _block_means(rows, name, patience // _PATIENCE_BLOCKS)
    recent = [mean for age, mean in means.items() if age < _PATIENCE_BLOCKS]
    return recent, [mean for age, mean in means.items() if age >= _PATIENCE_BLOCKS]


def _block_means(rows: Sequence[Row], name: str, block_steps: int) -> dict[int, float]:
    """{age in blocks: mean of the metric, weighted by the rows it was measured on}."""
    now, sums = rows[-1]["_step"], dict[int, tuple[float, float]]()
    for row in rows:
        if _values([row], name):
            age, weight = (now - row["_step"]) // block_steps, float(row.get("train/count") or 1.0)
            total, total_weight = sums.get(age, (0.0, 0.0))
            sums[age] = (total + weight * row[name], total_weight + weight)
    return {age: total / total_weight for age, (total, total_weight) in sums.items()}


_ENCODER_RULES = (_collapsed, _starved, _posterior_collapsed, _ignored)
