"""One HTML page for several runs: scores side by side, what was set differently, curves laid over one another, paired tests.

    html = render_comparison(read_runs([Path("runs/quickstart/a"), Path("runs/quickstart/b")]))

Like the page of one evaluation it is a single file that loads nothing; it uses the same drawing functions. The first run is the
baseline. A run that has not finished is shown with what there is, under a large badge. Numbers that training itself logged
stand in where evaluate.py was not run, and say so. Pictures are made in compare_pictures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from arclab.metrics.names import REGISTRY
from arclab.pages.compare_pictures import color_of, disagreements, failures, overlay_svgs
from arclab.pages.report import MAX_POINTS, ScoreRow, score_rows
from arclab.pages.sheet import sheet_html
from arclab.pages.tracking import average_steps, changes_from, convergence, gap, issues, percent, tracking_sheet
from arclab.results.paired import Paired, compare_splits
from arclab.results.reading import Run, ScoredSplit, settings_difference, unlike
from arclab.results.scoring import Share
from arclab.runs.folder import short_commit

_HEADLINES = ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
_STATISTICS = (
    "all.exact_accuracy",
    "all.accuracy",
    "all.q_halt_accuracy",
    "ARC/undecodable",
    "encoder/swap_drop",
    "encoder/zero_context_drop",
    "encoder/retrieval_accuracy",
    "encoder/retrieval_chance",
    "encoder/between_task_share",
    "train_encoder/swap_drop",
)
_CURVES = (
    "train/exact_accuracy",
    "train/new_colors_exact",
    "train/accuracy",
    "all.exact_accuracy",
    "train/lm_loss",
    "train/q_halt_loss",
    "grad/encoder_norm",
    "grad/total_norm",
    "train/encoder_cross_sample_var",
)
_SPLITS = ("train", "validation", "evaluation")


def render_comparison(runs: Sequence[Run]) -> str:
    """The whole page as one HTML string without any reference to another file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pairs = paired_tests(runs)
    trained = [(i, run) for i, run in enumerate(runs) if not run.is_evaluation]
    return environment.get_template("compare.html.j2").render(
        runs=[_run_card(i, run) for i, run in enumerate(runs)],
        warnings=_warnings(runs),
        groups=score_groups(runs),
        pairs=pairs,
        num_tests=sum(len(pair.tests) for pair in pairs),
        gaps=[gap_row(i, run) for i, run in trained],
        difference=_difference(runs),
        curves=overlay_svgs(runs, _CURVES),
        halting=[_halting_row(i, run) for i, run in trained if "halting.halt_max_steps" in run.settings],
        halting_curves=overlay_svgs(runs, halting_names()),
        galleries=[*disagreements(runs), *failures(runs)],
        sheets=[(run.label, sheet_html(tracking_sheet(run, baseline_of(run, runs)))) for _, run in trained],
        max_points=MAX_POINTS,
        p_text=p_text,
    )


@dataclass(frozen=True, slots=True)
class RunCard:
    """A run at the top of the page. facts: label -> text, in reading order."""

    label: str
    color: str
    is_partial: bool
    state: str
    verdict: str
    sentence: str
    facts: dict[str, str]
    issues: tuple[str, ...]


def commits(run: Run) -> str:
    """What the run was made with: the newest start's commit, and those of earlier steps where they are others."""
    now = short_commit(run.provenance)
    earlier = {short_commit(start): start.get("to_step") for start in run.provenance.get("earlier", [])}
    others = [f"{commit} to step {step}" for commit, step in earlier.items() if commit != now]
    return f"{now} ({', '.join(others)})" if others else now


def _run_card(index: int, run: Run) -> RunCard:
    facts = {
        "experiment": str(run.settings.get("experiment_name", "not recorded")),
        "started": str(run.provenance.get("started", "not recorded")),
        **(_scored_facts(run) if run.is_evaluation else _trained_facts(run)),
        "commit": commits(run),
        "folder": str(run.path),
    }
    known = (run.state, *run.stamps)
    found = (
        ()
        if run.is_evaluation
        else tuple(text for text in issues(run) if text not in known and not text.startswith("health at "))
    )
    sentence = str((run.criterion or {}).get("sentence", ""))
    return RunCard(run.label, color_of(index), run.is_partial, run.state, run.verdict, sentence, facts, found)


def _scored_facts(run: Run) -> dict[str, str]:
    """Of an evaluation alone."""
    counts = [f"{split.record.get('num_tasks', '?')} tasks of the {split.split} split" for split in run.splits]
    sources = [source for split in run.splits if (source := _source_of(split))]
    return {"scored": ", ".join(counts) or "nothing yet", **({"from": ", ".join(sources)} if sources else {})}


def _trained_facts(run: Run) -> dict[str, str]:
    accuracy = run.train_exact
    return {
        "train/exact_accuracy, last": percent(accuracy, run.last("num_train_tasks")) if accuracy else "not logged",
        "steps to 90 %": convergence(run).split(" (")[0],
        "steps taken": average_steps(run).split(" (")[0],
        "health": ": ".join((run.health or "not judged").split(": ")[:2]),  # without the advice
    }


def _warnings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(badge, runs it belongs to): unfinished runs, then the stamps of the evaluations."""
    found = [(run.state, run.label) for run in runs if run.is_partial]
    stamps = dict.fromkeys(stamp for run in runs for stamp in run.stamps)
    return found + [(stamp, ", ".join(run.label for run in runs if stamp in run.stamps)) for stamp in stamps]


@dataclass(frozen=True, slots=True)
class ScoreColumn:
    """Scores of one run on one split. source: where they were taken; rows is empty if there are none."""

    label: str
    color: str
    source: str
    stamps: tuple[str, ...]
    rows: dict[str, ScoreRow]
    statistics: dict[str, str]


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """One split with a column for every run. names: rows of the short table; more: those of the long one."""

    split: str
    columns: tuple[ScoreColumn, ...]
    names: tuple[str, ...]
    more: tuple[str, ...]
    statistics: tuple[str, ...]


def score_groups(runs: Sequence[Run]) -> list[ScoreGroup]:
    """A group for every split that any run was scored on."""
    found = {split.split for run in runs for split in run.splits} | {run.own_scores[1] for run in runs if run.own_scores}
    return [_score_group(split, runs) for split in sorted(found, key=lambda s: (s not in _SPLITS, s))]


def _score_group(split: str, runs: Sequence[Run]) -> ScoreGroup:
    columns = tuple(_score_column(i, run, split) for i, run in enumerate(runs))
    names = [name for name in REGISTRY if any(name in column.rows for column in columns)]
    statistics = tuple(name for name in _STATISTICS if any(name in column.statistics for column in columns))
    more = tuple(name for name in names if name not in _HEADLINES)
    return ScoreGroup(split, columns, tuple(name for name in names if name in _HEADLINES), more, statistics)


def _score_column(index: int, run: Run, split: str) -> ScoreColumn:
    scored, own = run.split(split), run.own_scores
    shares: dict[str, Share] = {}
    statistics: dict[str, float] = {}
    source, stamps = "not evaluated", ()
    if scored is not None:
        shares, statistics, stamps = scored.shares, scored.statistics, tuple(scored.record.get("stamps", ()))
        source = _source_of(scored)
    elif own is not None and own[1] == split:
        shares, source = own[2], f"during training, step {own[0]:,}; evaluate.py was not run"
        statistics = {name: value for name in _STATISTICS if (value := run.last(name)) is not None}
        stamps = run.own_stamps
    rows = {row.name: row for row in score_rows({name: s for name, s in shares.items() if name in REGISTRY})}
    texts = {name: f"{100 * statistics[name]:.1f} %" for name in _STATISTICS if statistics.get(name) is not None}
    return ScoreColumn(run.label, color_of(index), source, stamps, rows, texts)


def _source_of(split: ScoredSplit) -> str:
    """What the numbers were made with, as far as the results say."""
    record = split.record
    said = {
        "step": lambda step: f"step {step:,}",
        "weights": lambda weights: f"{weights} weights",
        "num_augmentations": lambda copies: f"up to {copies} augmented copies vote",
        "num_samples": lambda samples: f"{samples} programs a task",
        "model": lambda model: f"model {model}",
    }
    return ", ".join(text(record[key]) for key, text in said.items() if record.get(key) is not None)


def paired_tests(runs: Sequence[Run]) -> list[Paired]:
    """Every two runs on every split that both were evaluated on; a sentence where there is none."""
    results = []
    for first, second in combinations(runs, 2):
        both = [(a, b) for a in first.splits for b in second.splits if a.split == b.split]
        results += [compare_splits(first.label, a, second.label, b) for a, b in both]
        if not both:
            problem = "not comparable: evaluate.py has scored no split of both (evaluation/<split>/predictions.jsonl)"
            results.append(Paired(first.label, second.label, "none", problem, (), ()))
    return results


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


@dataclass(frozen=True, slots=True)
class GapRow:
    """Train against held-out score of one run; note says why there is no gap."""

    label: str
    color: str
    split: str
    train: ScoreRow | None
    test: ScoreRow | None
    gap: str
    note: str


def gap_row(index: int, run: Run) -> GapRow:
    """ARC/pass@2 on the train split and on the evaluation (else the validation) split of a run."""
    train, test = run.split("train"), run.split("evaluation", "validation")
    shown = [score_rows({"ARC/pass@2": s.shares["ARC/pass@2"]})[0] if s else None for s in (train, test)]
    text = gap(train, test) if train and test else ""
    missing = [name for name, split in (("train", train), ("evaluation or validation", test)) if split is None]
    note = f"not evaluated on the {' nor the '.join(missing)} split" if missing else ""
    if train and test:
        note = "; ".join(unlike("train", train, test.split, test))
    return GapRow(run.label, color_of(index), test.split if test else "", shown[0], shown[1], text, note)


def baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """What a tracking sheet is written against: the first run that trained; None for that one itself."""
    first = next((other for other in runs if not other.is_evaluation), None)
    return None if run is first else first


def _difference(runs: Sequence[Run]) -> dict[str, Any]:
    """Keys that differ between the runs; for a single run those that differ from its experiment's defaults."""
    if len(runs) > 1:
        labels = [run.label for run in runs]
        return {"title": "between the runs", "labels": labels, "rows": settings_difference(*(run.settings for run in runs))}
    against, changes = changes_from(runs[0], None)
    return {"title": f"from {against}", "labels": ["default", runs[0].label], "rows": changes or {}}


def halting_names() -> tuple[str, ...]:
    """The curves of the halting section; forced halts are drawn where a registered metric counts them."""
    forced = tuple(name for name in REGISTRY if name.startswith("train/") and "forced" in name)
    return ("train/steps", "train/q_halt_accuracy", *forced)


@dataclass(frozen=True, slots=True)
class HaltingRow:
    """How rows of one run halted. cells: column -> text."""

    label: str
    color: str
    cells: dict[str, str]


def _halting_row(index: int, run: Run) -> HaltingRow:
    def setting(key: str) -> str:
        return str(run.settings.get(f"halting.{key}", "not set"))

    def late(name: str, *, is_share: bool) -> str:
        value = run.late_mean(name)
        return "not logged" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.2f}"

    first = run.series("train/steps")[:1]
    split = run.split("evaluation", "validation", "train")
    agreement = split.statistics.get("all.q_halt_accuracy") if split else run.last("all.q_halt_accuracy")
    where = split.split if split else f"{run.settings.get('evaluation.split')}, during training"
    cells = {
        "halt_max_steps": setting("halt_max_steps"),
        "exploration": setting("halt_exploration_prob"),
        "train/steps, first": f"{first[0][1]:.2f}" if first else "not logged",
        "train/steps, last tenth": late("train/steps", is_share=False),
        "train/q_halt_accuracy, last tenth": late("train/q_halt_accuracy", is_share=True),
        "all.q_halt_accuracy": "not logged" if agreement is None else f"{100 * agreement:.1f} % ({where})",
    }
    for name in halting_names()[2:]:
        cells[f"{name}, last tenth"] = late(name, is_share=REGISTRY[name].unit == "share")
    if not halting_names()[2:]:
        cells["forced halts"] = "not logged"
    return HaltingRow(run.label, color_of(index), cells)
