"""One HTML page for several runs: who is ahead and how surely, a row for every run, paired tests, settings, curves, tasks.

    html = render_comparison(read_runs([Path("runs/quickstart/a"), Path("runs/quickstart/b")]))

Like the page of one evaluation it is a single file that loads nothing; it uses the same drawing functions. Links lead to the
pages of the tasks beside it (compare_tasks.task_pages), which analyse.py writes. Sorting, filtering and enlarging are done by a
script on the page; without it everything can still be read. The first run is the baseline. A run that has not finished is shown
with what there is, and says so. The sections are made in compare_scores, paired_views, compare_pictures and compare_tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arclab.metrics.names import REGISTRY
from arclab.pages.compare_pictures import color_of, overlay_svgs
from arclab.pages.compare_scores import gap_row, run_rows, score_groups
from arclab.pages.compare_tasks import OUTCOMES, task_galleries
from arclab.pages.paired_views import LEVEL, p_text, paired_matrices, standings
from arclab.pages.report import MAX_POINTS
from arclab.pages.sheet import sheet_html
from arclab.pages.templating import page
from arclab.pages.tracking import changes_from, tracking_sheet
from arclab.results.reading import Run, settings_difference

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
_FEW_RUNS = 3  # up to here settings are read down a column; beyond, a run is a row here as everywhere


def render_comparison(runs: Sequence[Run]) -> str:
    """The whole page as one HTML string that loads no other file."""
    trained = [(i, run) for i, run in enumerate(runs) if not run.is_evaluation]
    return page(
        "compare.html.j2",
        runs=run_rows(runs),
        warnings=_warnings(runs),
        standings=standings(runs),
        groups=score_groups(runs),
        matrices=paired_matrices(runs),
        level=LEVEL,
        gaps=[gap_row(i, run) for i, run in trained],
        difference=_difference(runs),
        curves=overlay_svgs(runs, _CURVES),
        halting=[_halting_row(i, run) for i, run in trained if "halting.halt_max_steps" in run.settings],
        halting_curves=overlay_svgs(runs, halting_names()),
        galleries=task_galleries(runs),
        outcomes=OUTCOMES,
        sheets=[(run.label, sheet_html(tracking_sheet(run, baseline_of(run, runs)))) for _, run in trained],
        max_points=MAX_POINTS,
        p_text=p_text,
    )


def _warnings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(badge, runs it belongs to): unfinished runs, then the stamps of the evaluations."""
    found = [(run.state, run.label) for run in runs if run.is_partial]
    stamps = dict.fromkeys(stamp for run in runs for stamp in run.stamps)
    return found + [(stamp, _named([run.label for run in runs if stamp in run.stamps], len(runs))) for stamp in stamps]


def _named(labels: Sequence[str], num_runs: int) -> str:
    """The runs by name, or how many they are."""
    return ", ".join(labels) if len(labels) <= _FEW_RUNS else f"{len(labels)} of {num_runs} runs"


def baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """What a tracking sheet is written against: the first run that trained; None for that one itself."""
    first = next((other for other in runs if not other.is_evaluation), None)
    return None if run is first else first


def _difference(runs: Sequence[Run]) -> dict[str, Any]:
    """Keys that differ between the runs; for a single run those that differ from its experiment's defaults. is_by_key: a key is
    a row and a run a column, which is easier to read for few runs."""
    if len(runs) > 1:
        labels, against = [run.label for run in runs], "between the runs"
        rows = settings_difference(*(run.settings for run in runs))
    else:
        source, changes = changes_from(runs[0], None)
        labels, against, rows = ["default", runs[0].label], f"from {source}", changes or {}
    return {"title": against, "labels": labels, "rows": rows, "is_by_key": len(runs) <= _FEW_RUNS}


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
