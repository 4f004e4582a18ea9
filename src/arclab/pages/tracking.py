"""The experiment tracking sheet of a run, as Markdown, filled from its run folder.

    text = tracking_sheet(run, baseline=None)       # baseline None: changes against the experiment's own defaults

Every number carries its n/N, its 95 % Wilson interval and where it was taken. What a folder cannot know (the goal, why it
worked, what comes next) is left as a line to fill in. It judges nothing: the status is that of criterion.json, if there is one.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from arclab.config.compose import CONF_DIR, ConfigError, compose, flat
from arclab.config.encoder_schema import Pooling
from arclab.metrics.names import REGISTRY
from arclab.results.paired import difference_interval
from arclab.results.reading import CONVERGED, Exact, Run, ScoredSplit, own_exact, settings_difference, unlike
from arclab.results.scoring import Share

TO_FILL_IN = "_to fill in_"
_NOT_EVALUATED = "not evaluated"
_LATE_ROWS = 20
_COLOR_GAP = 0.25  # far beyond what chance leaves between two groups of some hundred rows
_HYPERPARAMETERS = (
    "seed",
    "decoder.width",
    "decoder.num_layers",
    "decoder.h_cycles",
    "decoder.l_cycles",
    "decoder.optim.lr",
    "encoder.optim.lr",
    "trainer.steps",
    "trainer.batch_size",
    "trainer.precision",
    "trainer.clip_norm",
    "trainer.ema_decay",
    "halting.halt_loss_weight",
    "dataset.name",
    "dataset.regime",
    "dataset.train_ids",
    "dataset.max_train_tasks",
    "dataset.canvas",
    "dataset.num_augmentations",
)


def tracking_sheet(run: Run, baseline: Run | None) -> str:
    """The whole sheet, ending in a newline. Changes are those from `baseline`, or from the experiment's defaults."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    against, changes = changes_from(run, baseline)
    return environment.get_template("tracking.md.j2").render(
        run=run,
        date=_date(run),
        goal=run.settings.get("goal") or TO_FILL_IN,
        against=against,
        changes=changes,
        encoder=_encoder(run.settings),
        pretrained=_pretrained(run.settings),
        hyperparameters=[(key, run.settings[key]) for key in _HYPERPARAMETERS if run.settings.get(key) is not None],
        phase1=_phase1(run),
        phase2=_phase2(run),
        converged=convergence(run),
        found_issues=issues(run),
        observations=observations(run),
        to_fill_in=TO_FILL_IN,
        wandb=_wandb(run),
    )


def changes_from(run: Run, baseline: Run | None) -> tuple[str, dict[str, list[str]] | None]:
    """(what it is compared with, key -> [there, here]); None if the defaults of the experiment cannot be composed."""
    if baseline is not None:
        return f"the run {baseline.label}", settings_difference(baseline.settings, run.settings)
    name = experiment_of(run)
    overrides = [f"experiment={name}"] if name else []
    source = f"the defaults of experiment={name}" if name else "the defaults of the suite"
    try:
        return source, settings_difference(flat(compose("pretrain_encoder", overrides)), run.settings)
    except ConfigError:
        return source, None


def experiment_of(run: Run) -> str | None:
    """The experiment overlay the run was started with: from its command, else by its experiment_name."""
    match = re.search(r"(?:^|\s)\+?experiment=(\w+)", str(run.provenance.get("command", "")))
    name = match[1] if match else str(run.settings.get("experiment_name"))
    return name if (CONF_DIR / "experiment" / f"{name}.yaml").is_file() else None


def _date(run: Run) -> str:
    if run.provenance.get("started"):
        return str(run.provenance["started"])[:10]
    begun = run.rows[0].get("_timestamp") if run.rows else None
    return "not recorded" if begun is None else time.strftime("%Y-%m-%d", time.localtime(begun))


def _encoder(settings: dict[str, Any]) -> str:
    details = {k.removeprefix("encoder."): v for k, v in settings.items() if k.startswith("encoder.") and ".optim." not in k}
    kind = details.pop("kind", "not recorded")
    return f"{kind}" + (f" ({', '.join(f'{k} {v}' for k, v in details.items())})" if details else "")


def _pretrained(settings: dict[str, Any]) -> str:
    kind = settings.get("decoder_init.kind", "scratch")
    if kind == "scratch":
        return "No"
    until = f" for {settings.get('decoder_init.freeze_steps')} steps" if kind == "staged" else ""
    return f"Yes ({kind}{until}, {settings.get('decoder_init.path')})"


def percent(share: Share | None, num_tasks: float | None = None) -> str:
    """x% (n/N, 95 % interval), or that it was not evaluated. num_tasks: of which the N are copies, which are no independent
    trials."""
    if share is None or share.total == 0:
        return _NOT_EVALUATED
    independent = share.total if num_tasks is None else min(share.total, round(num_tasks))
    low, high = Share(share.value * independent, independent).interval
    return f"{100 * share.value:.1f}% ({round(share.n, 2):g}/{share.total}, 95 % [{100 * low:.1f}, {100 * high:.1f}])"


def is_overfit_run(run: Run) -> bool:
    """Phase 1: the tasks it trains on are those that are scored. Anything else measures generalisation (phase 2)."""
    return run.settings.get("evaluation.split") == "train"


def _phase1(run: Run) -> dict[str, Any] | None:
    """Fields of phase 1; None if this run is of phase 2."""
    if not is_overfit_run(run):
        return None
    own, scored = run.own_scores, run.split("train")
    trained = run.last("num_train_tasks")
    num_tasks = (
        round(trained)
        if trained
        else scored.shares["ARC/solved@2"].total
        if scored
        else own[2]["ARC/pass@1"].total
        if own
        else None
    )
    where = (
        f", rows halted since the previous log at step {run.series('train/exact_accuracy')[-1][0]:,}" if run.train_exact else ""
    )
    return {
        "group": f"{num_tasks} groups" if num_tasks else f"{run.settings.get('dataset.train_ids')}",
        "train_accuracy": percent(run.train_exact, run.last("num_train_tasks")) + where,
        "status": status(run),
    }


def status(run: Run) -> str:
    """Pass or fail with the sentence of criterion.json, or "no criterion"."""
    mark = {"PASS": "✅ Pass", "FAIL": "❌ Fail"}.get(run.verdict, run.verdict)
    sentence = (run.criterion or {}).get("sentence")
    return f"{mark}: {sentence}" if sentence else mark


def convergence(run: Run) -> str:
    """First step with train/exact_accuracy of at least 0.9, or how far it came."""
    if run.steps_to_converge is not None:
        return f"{run.steps_to_converge:,} (first logged step with train/exact_accuracy >= {CONVERGED})"
    series = run.series("train/exact_accuracy")
    if not series:
        return "not known (train/exact_accuracy was not logged)"
    step, value = max(series, key=lambda point: point[1])
    return f"not reached in {run.step:,} steps (best train/exact_accuracy {100 * value:.1f}% at step {step:,})"


def issues(run: Run) -> list[str]:
    """What a reader must know before believing a number: state, stamps, notes on the data, metrics that ended unhealthy."""
    found = [run.state] if run.is_partial else []
    found += run.stamps + [str(note) for note in run.provenance.get("notes", ())]
    if run.health is not None and "HEALTHY" not in run.health:
        found.append(f"health at {run.health}")
    for name, metric in REGISTRY.items():
        value = run.last(name) if name.startswith(("train/", "grad/")) else None
        if value is None or metric.healthy is None:
            continue
        low, high = metric.healthy
        if name.startswith("grad/"):
            if (run.train_exact or Share(0, 0)).value >= CONVERGED:
                continue  # where nearly everything is right all gradients fade
            low *= min(1.0, run.last("context_gain") or 1.0) if name == "grad/encoder_norm" else 1.0
        if not low <= value <= high:
            wanted = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
            found.append(f"{name} ended at {value:.3g} (healthy: {wanted})")
    return found + color_gap(run)


def color_gap(run: Run) -> list[str]:
    """A sentence if, over the last rows, answers whose colours only demonstrations tell lag far behind the others; else
    nothing.

    Health cannot see it: gradients flow and swapped demonstrations cost everything, while little more than which task it is
    gets through.
    """
    needed = ("train/new_colors_exact", "train/new_colors_count", "train/exact_accuracy", "train/count")
    rows = [r for r in run.rows if all(r.get(name) is not None for name in needed)][-_LATE_ROWS:]
    total, new = (sum(r[f"train/{name}count"] for r in rows) for name in ("", "new_colors_"))
    if not 0 < new < total:
        return []
    right, new_right = (
        sum(r[f"train/{name}"] * r[f"train/{count}"] for r in rows)
        for name, count in (("exact_accuracy", "count"), ("new_colors_exact", "new_colors_count"))
    )
    share, others = new_right / new, (right - new_right) / (total - new)
    if others - share < _COLOR_GAP:
        return []
    other = {"trainer.optimizer": "muon", "encoder.pooling": "colors"}
    remedies = [f"{k}={v}" for k, v in other.items() if run.settings.get(k) not in (None, v, Pooling.cls.value)]
    return [
        f"train/new_colors_exact ended at {share:.3g}, other rows at {others:.3g}: colours that only demonstrations show are "
        f"missing; give it more steps{''.join(f', {r}' for r in remedies)}"
    ]


def _phase2(run: Run) -> dict[str, Any] | None:
    """Fields of phase 2; None if this run is of phase 1 and was evaluated on no other split."""
    test = run.split("evaluation", "validation")
    if is_overfit_run(run) and test is None:
        return None
    train = run.split("train")
    own = run.own_scores
    pass2 = percent(test.shares.get("ARC/pass@2")) + f" of tasks, {test.split} split" if test else _NOT_EVALUATED
    if test is None and own is not None:
        pass2 = f"{percent(own[2].get('ARC/pass@2'))}, {own[1]} split, during training at step {own[0]:,}"
    return {
        "train_em": _exact(train.exact, "train split") if train else _NOT_EVALUATED,
        "test_em": _exact(test.exact, f"{test.split} split") if test else _test_em_of_training(run),
        "pass2": pass2,
        "steps": average_steps(run),
        "status": "no criterion" if is_overfit_run(run) else status(run),
    }


def _test_em_of_training(run: Run) -> str:
    own = run.own_scores
    return _exact(own_exact(run), f"{own[1]} split, during training at step {own[0]:,}") if own else _NOT_EVALUATED


def _exact(exact: Exact | None, where: str) -> str:
    """all.exact_accuracy, and over how many tasks its interval is taken."""
    if exact is None:
        return f"not logged, {where}"
    low, high = exact.interval
    n, total = round(exact.copies.n, 2), exact.copies.total
    interval = f"95 % [{100 * low:.1f}, {100 * high:.1f}] over {exact.num_tasks} tasks"
    return f"{100 * exact.copies.value:.1f}% ({n:g}/{total} augmented copies, {interval}), {where}"


def average_steps(run: Run) -> str:
    mean, limit = run.late_mean("train/steps"), run.settings.get("halting.halt_max_steps")
    return "not logged" if mean is None else f"{mean:.2f} of {limit} (mean of train/steps over the last tenth of training)"


def gap(train: ScoredSplit, test: ScoredSplit, name: str = "ARC/pass@2") -> str:
    """Train share minus test share in points, with a 95 % interval."""
    first, second = train.shares[name], test.shares[name]
    if not first.total or not second.total:
        return "no scored task"
    low, high = difference_interval(first, second)
    return f"{100 * (first.value - second.value):+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def observations(run: Run) -> list[str]:
    """Sentences that follow from the folder alone: train against test, and how rows halted."""
    train, test = run.split("train"), run.split("evaluation", "validation")
    lines = []
    if train and test:
        different = "; ".join(unlike("train", train, test.split, test))
        lines.append(
            f"Train minus {test.split} split, ARC/pass@2: {gap(train, test)}"
            + (f" (made differently: {different})" if different else "")
        )
    elif train or test:
        only = train or test
        assert only is not None
        lines.append(f"Only the {only.split} split was evaluated, so the train/test gap is not known")
    else:
        lines.append("No evaluation folder, so the train/test gap is not known")
    lines.append(f"Average supervision steps: {average_steps(run)}")
    agreement = run.late_mean("train/q_halt_accuracy")
    if agreement is not None:
        lines.append(f"The halt logit agrees with exactness for {100 * agreement:.1f}% of rows (same window)")
    return lines


def _wandb(run: Run) -> str:
    mode, project = run.settings.get("wandb.mode"), run.settings.get("wandb.project")
    if mode == "disabled":
        return "none (wandb.mode=disabled)"
    if run.wandb.get("url"):
        return str(run.wandb["url"])
    name = f"{run.settings.get('experiment_name')}/{run.settings.get('name')}"
    if run.wandb.get("mode") == "offline":
        return f"offline (project {project}, run {name}); upload it with `wandb sync {run.path}/wandb/offline-run-*`"
    return f"{TO_FILL_IN} (project {project}, run {name})"
