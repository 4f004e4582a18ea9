"""The experiment tracking sheet of a run, as Markdown, filled from its run folder.

    text = tracking_sheet(run, baseline=None)       # baseline None: changes against the experiment's own defaults

Every number carries its n/N, its 95 % Wilson interval and where it was taken. What a folder cannot know (the goal, why it
worked, what comes next) is left as a line to fill in. It judges nothing: the status is that of criterion.json, if there is one.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
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
    first_row_s = run.rows[0].get("_timestamp") if run.rows else None
    return "not recorded" if first_row_s is None else time.strftime("%Y-%m-%d", time.localtime(first_row_s))


def _encoder(settings: dict[str, Any]) -> str:
    details = {k.removeprefix("encoder."): v for k, v in settings.items() if k.startswith("encoder.") and ".optim." not in k}
    kind = str(details.pop("kind", "not recorded"))
    return f"{kind} ({', '.join(f'{k} {v}' for k, v in details.items())})" if details else kind


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
    num_groups = _num_groups(run)
    accuracy = percent(run.train_exact, run.last("num_train_tasks"))
    if run.train_exact:
        accuracy += f", rows halted since the previous log at step {run.series('train/exact_accuracy')[-1][0]:,}"
    return {
        "group": f"{num_groups} groups" if num_groups else f"{run.settings.get('dataset.train_ids')}",
        "train_accuracy": accuracy,
        "status": status(run),
    }


def _num_groups(run: Run) -> int | None:
    """How many tasks it trained on: as it logged, else as many as were evaluated, else as many as it evaluated itself."""
    trained, scored, own = run.last("num_train_tasks"), run.split("train"), run.own_scores
    if trained:
        return round(trained)
    if scored:
        return scored.shares["ARC/solved@2"].total
    return own[2]["ARC/pass@1"].total if own else None


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
    return [*found, *_unhealthy_metrics(run), *color_gap(run)]


def _unhealthy_metrics(run: Run) -> Iterator[str]:
    """A sentence for every metric of training whose last value is outside its healthy range."""
    for name in REGISTRY:
        healthy, value = _healthy_range(run, name), run.last(name)
        if healthy is None or value is None or healthy[0] <= value <= healthy[1]:
            continue
        low, high = healthy
        wanted = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        yield f"{name} ended at {value:.3g} (healthy: {wanted})"


def _healthy_range(run: Run, name: str) -> tuple[float, float] | None:
    """That of the registry, made to fit this run; None if there is none, or none that the run's last step can be held to."""
    healthy, (group, _, _) = REGISTRY[name].healthy, name.partition("/")
    if healthy is None or group not in ("train", "grad"):
        return None
    if group == "grad" and run.train_exact is not None and run.train_exact.value >= CONVERGED:
        return None  # where nearly everything is right all gradients fade
    low, high = healthy
    scale = min(1.0, run.last("context_gain") or 1.0) if name == "grad/encoder_norm" else 1.0
    return low * scale, high


def color_gap(run: Run) -> list[str]:
    """One sentence if, over the last rows, answers whose colours only demonstrations tell lag far behind the others; else none.

    Health cannot see it: gradients flow and swapped demonstrations cost everything, while little more than which task it is
    gets through.
    """
    shares = _late_color_shares(run)
    if shares is None or shares[1] - shares[0] < _COLOR_GAP:
        return []
    new, others = shares
    remedies = {"trainer.optimizer": "muon", "encoder.pooling": "colors"}
    possible = [f"{k}={v}" for k, v in remedies.items() if run.settings.get(k) not in (None, v, Pooling.cls.value)]
    return [
        f"train/new_colors_exact ended at {new:.3g}, other rows at {others:.3g}: colours that only demonstrations show are "
        f"missing; {', '.join(['give it more steps', *possible])}"
    ]


def _late_color_shares(run: Run) -> tuple[float, float] | None:
    """(share of right answers with colours that only demonstrations tell, share of the others) over the last rows; None if one
    of them has no rows."""
    needed = ("train/new_colors_exact", "train/new_colors_count", "train/exact_accuracy", "train/count")
    rows = [r for r in run.rows if all(r.get(name) is not None for name in needed)][-_LATE_ROWS:]
    total, new_total = sum(r["train/count"] for r in rows), sum(r["train/new_colors_count"] for r in rows)
    if not 0 < new_total < total:
        return None
    right = sum(r["train/exact_accuracy"] * r["train/count"] for r in rows)
    new_right = sum(r["train/new_colors_exact"] * r["train/new_colors_count"] for r in rows)
    return new_right / new_total, (right - new_right) / (total - new_total)


def _phase2(run: Run) -> dict[str, Any] | None:
    """Fields of phase 2; None if this run is of phase 1 and was evaluated on no other split."""
    train, test = run.split("train"), run.split("evaluation", "validation")
    if is_overfit_run(run) and test is None:
        return None
    return {
        "train_em": _NOT_EVALUATED if train is None else _exact(train.exact, "train split"),
        **(_test_scores_of_training(run) if test is None else _test_scores(test)),
        "steps": average_steps(run),
        "status": "no criterion" if is_overfit_run(run) else status(run),
    }


def _test_scores(test: ScoredSplit) -> dict[str, str]:
    """The fields test_em and pass2, from an evaluation of the run."""
    where = f"{test.split} split"
    return {
        "test_em": _exact(test.exact, where),
        "pass2": f"{percent(test.shares.get('ARC/pass@2'))} of tasks, {where}",
    }


def _test_scores_of_training(run: Run) -> dict[str, str]:
    """The same from the newest evaluation that training itself made."""
    if run.own_scores is None:
        return {"test_em": _NOT_EVALUATED, "pass2": _NOT_EVALUATED}
    step, split, shares = run.own_scores
    where = f"{split} split, during training at step {step:,}"
    return {"test_em": _exact(own_exact(run), where), "pass2": f"{percent(shares.get('ARC/pass@2'))}, {where}"}


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
    lines = [_train_test_gap(run), f"Average supervision steps: {average_steps(run)}"]
    agreement = run.late_mean("train/q_halt_accuracy")
    if agreement is not None:
        lines.append(f"The halt logit agrees with exactness for {100 * agreement:.1f}% of rows (same window)")
    return lines


def _train_test_gap(run: Run) -> str:
    train, test = run.split("train"), run.split("evaluation", "validation")
    if train is None and test is None:
        return "No evaluation folder, so the train/test gap is not known"
    if train is None or test is None:
        only = "train" if test is None else test.split
        return f"Only the {only} split was evaluated, so the train/test gap is not known"
    different = "; ".join(unlike("train", train, test.split, test))
    made_differently = f" (made differently: {different})" if different else ""
    return f"Train minus {test.split} split, ARC/pass@2: {gap(train, test)}{made_differently}"


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
