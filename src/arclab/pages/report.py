"""One HTML page per evaluation: scores with intervals, training curves, the predicted grids, and how it was made.

    html = render_report(result)                                     # write_results() saves it as report.html
    python -m arclab.pages RUN [RUN ...] [--output DIR]    # other pages: see analyse.py

The page is a single file: style, grids and curves are inline, nothing is fetched, so that it can be mailed or archived.
Stamps stay on screen while the page is scrolled, because they belong to every number on it. Text is escaped by jinja2; only
the SVG that this module draws from numbers is inserted as it is. It computes no score (scoring.py) and writes no file.

At most SHOWN_TASKS tasks a section and MAX_POINTS points a curve are drawn; the page says what was left out.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from arclab.data.tasks import COLORS, ArcTask, Grid, Pair
from arclab.metrics.logger import read_rows
from arclab.metrics.names import REGISTRY, Metric
from arclab.pages.templating import page
from arclab.results.attempts import Candidate, WrittenProgram
from arclab.results.scoring import Share, idle_scores, rank_of_truth
from arclab.results.writing import Evaluation

Mask = npt.NDArray[np.bool_]

SHOWN_TASKS = 40
MAX_POINTS = 500
_ATTEMPTS = 2
HEADLINES = ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
FEW_ROWS = 10  # below this the page says that the curves show little

# (longest grid side on the page in px, smallest cell, largest cell): 30x30 must fit four abreast beside the demonstrations.
DEMO_SIZE = (96, 4, 13)
TEST_SIZE = (150, 5, 16)


# Metrics that share one pair of axes. Axes of these units are logarithmic if the values span a decade.
PANELS = (
    ("train/exact_accuracy", "train/new_colors_exact", "train/accuracy", "all.exact_accuracy"),
    ("train/lm_loss", "train/q_halt_loss"),
    ("train/steps",),
    ("grad/encoder_norm", "grad/total_norm"),
    ("train/encoder_cross_sample_var",),
)
_LOG_UNITS = ("nats", "L2", "variance")
CURVE_COLORS: tuple[str, ...] = ("#2f6fdb", "#e2711d", "#2a9d5c", "#8a4fbf")
# Stands for the page's own text colour while matplotlib draws; becomes currentColor, so that curves follow the theme.
INK = "#010203"
CURVE_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and set in the page's font
    "svg.hashsalt": "arclab",  # equal figures give equal files
    "font.size": 8,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def render_report(result: Evaluation) -> str:
    """The whole page as one HTML string without any reference to another file."""
    training = result.subject.training
    rows = read_rows(training.metrics) if training else []
    idle, statistics = idle_shares(result), statistic_rows(result.attempts.statistics)
    scores = [row for row in score_rows(result.shares) if row.name not in idle]
    return page(
        "report.html.j2",
        result=result,
        subject=result.subject,
        training=training,
        facts=header_facts(result),
        headlines=[row for row in scores if row.name in HEADLINES],
        scores=scores,
        idle=idle,
        statistics=statistics,
        num_unhealthy=sum(row.is_unhealthy for row in statistics),
        num_rows=len(rows),
        few_rows=FEW_ROWS,
        max_points=MAX_POINTS,
        curves=curve_svgs(rows, training.step) if training else [],
        sections=gallery(result),
        origin={key: str(value) for key, value in result.provenance.items()} | result.subject.origin,
    )


def idle_shares(result: Evaluation) -> dict[str, str]:
    """Scores that must be equal to others of this evaluation: score -> the one that it equals."""
    keys = [(task.id, number) for task in result.tasks for number in range(len(task.tests))]
    most_candidates = max((len(result.attempts.candidates[key]) for key in keys), default=0)
    most_tests = max((len(task.tests) for task in result.tasks), default=0)
    return idle_scores(list(result.shares), most_candidates, most_tests)


def header_facts(result: Evaluation) -> dict[str, str]:
    """What was scored and how, label -> value, in reading order."""
    date = str(result.provenance.get("started", "not recorded"))
    return {**result.subject.facts, "tasks": str(len(result.tasks)), "date": date}


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One share as the page shows it. percent is "hidden" and there is no interval if no task has a known answer; sort: what a
    click on a table sorts by."""

    name: str
    meaning: str
    fraction: str
    percent: str
    interval: str
    bar: Markup
    sort: float | str


@dataclass(frozen=True, slots=True)
class StatisticRow:
    """One statistic with its registry entry. is_unhealthy: outside the range in which nothing needs a look."""

    metric: Metric
    value: str
    healthy: str
    is_unhealthy: bool


def score_rows(shares: dict[str, Share]) -> list[ScoreRow]:
    return [_score_row(name, share) for name, share in shares.items()]


def _score_row(name: str, share: Share) -> ScoreRow:
    low, high = share.interval
    return ScoreRow(
        name=name,
        meaning=REGISTRY[name].meaning,
        fraction=f"{round(share.n, 2):g}/{share.total}",
        percent=f"{100 * share.value:.1f} %" if share.total else "hidden",
        interval=f"[{100 * low:.1f}, {100 * high:.1f}] %" if share.total else "answers are not known",
        bar=interval_svg(share),
        sort=share.value if share.total else "",
    )


def interval_svg(share: Share) -> Markup:
    """0 to 100 % as a track, the 95 % interval as a bar on it, the value as a tick (none if nothing was scored)."""
    low, high = share.interval
    tick = f'<rect class="tick" x="{100 * share.value - 0.6:.2f}" width="1.2" height="12"/>' if share.total else ""
    return Markup(
        '<svg class="interval" viewBox="-1 0 102 12" preserveAspectRatio="none" role="img" aria-label="95 % interval">'
        '<rect class="track" y="5" width="100" height="2"/>'
        f'<rect class="span" x="{100 * low:.2f}" y="3" width="{100 * (high - low):.2f}" height="6"/>{tick}</svg>'
    )


def statistic_rows(statistics: dict[str, float]) -> list[StatisticRow]:
    """The solver's statistics in the order of the registry, all.* first."""
    order = list(REGISTRY)
    names = sorted(statistics, key=lambda name: (not name.startswith("all."), order.index(name)))
    return [_statistic_row(REGISTRY[name], statistics[name]) for name in names]


def _statistic_row(metric: Metric, value: float) -> StatisticRow:
    low, high = metric.healthy or (-math.inf, math.inf)
    healthy = "" if metric.healthy is None else f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}" if math.isfinite(value) else "not finite"
    return StatisticRow(metric, text, healthy, is_unhealthy=not low <= value <= high)


def curve_svgs(rows: Sequence[dict[str, Any]], step: int) -> list[Markup]:
    """One SVG for each panel that has data; `step` is marked as the scored checkpoint."""
    curves = []
    for names in PANELS:
        series = {name: points for name in names if len(points := curve_points(rows, name))}
        if series:
            colors = dict(zip(series, CURVE_COLORS, strict=False))
            curves.append(inline_svg(_draw_panel(series, colors, step)))
    return curves


def curve_points(rows: Sequence[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    """(n, 2) steps and values where the metric was logged, thinned evenly to MAX_POINTS; first and last stay."""
    points = np.array([(row["_step"], row[name]) for row in rows if row.get(name) is not None], dtype=np.float64)
    if len(points) > MAX_POINTS:
        points = points[np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int)]
    return points


def _draw_panel(series: dict[str, npt.NDArray[np.float64]], colors: dict[str, str], step: int) -> Figure:
    with matplotlib.rc_context(CURVE_STYLE):
        figure = Figure(figsize=(3.7, 2.5))
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0.125, 0.165, 0.83, 0.815 - 0.068 * len(series)))
        for name, points in series.items():
            marker = "o" if len(points) <= 30 else ""
            axes.plot(*points.T, color=colors[name], label=name, linewidth=1.3, marker=marker, markersize=3)
        style_axes(axes)
        scale_y(axes, {REGISTRY[name].unit for name in series}, np.concatenate(list(series.values()))[:, 1])
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), alpha=0.5)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), frameon=False, borderpad=0, handlelength=1.2,
                    labelspacing=0.25, prop={"weight": "bold", "size": 8.5})  # fmt: skip
    return figure


def style_axes(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#808080", alpha=0.22, linewidth=0.6)
    axes.set_xlabel("step", labelpad=2)
    axes.locator_params(axis="x", nbins=6)
    axes.margins(x=0.02)
    axes.tick_params(length=2.5, width=0.6)


def scale_y(axes: Axes, units: set[str], values: npt.NDArray[np.float64]) -> None:
    """Shares from 0 to 1; losses, norms and variances logarithmic if they are positive and span a decade."""
    if units == {"share"}:
        axes.set_ylim(-0.03, 1.03)
    elif units <= set(_LOG_UNITS) and 0 < 10 * values.min() <= values.max():
        axes.set_yscale("log")
        # Plain numbers: powers of ten overlap where values span about a decade.
        subs = (1.0, 2.0, 5.0) if values.max() < 300 * values.min() else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def inline_svg(figure: Figure) -> Markup:
    """The figure as an <svg> element for a page: no prologue, no namespaces, no ids that two panels would share."""
    buffer = io.StringIO()
    with matplotlib.rc_context(CURVE_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=<g) id="(run-\d+)"', r' class="\1"', text)  # what a legend can point at
    text = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"', "", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    return Markup(re.sub(r">\s+<", "><", text).replace(INK, "currentColor").strip())


def cell_px(side: int, size: tuple[int, int, int]) -> int:
    """Cell size for a grid of that side; `size` is (longest side in px, smallest cell, largest cell)."""
    longest, smallest, largest = size
    return max(smallest, min(largest, longest // side))


def grid_svg(grid: Grid, cell: int, wrong: Mask | None = None) -> Markup:
    """A (H, W) grid, `cell` px a cell."""
    return grid_frame(grid, cell, grid_shapes(grid, wrong))


def grid_frame(grid: Grid, cell: int, shapes: Markup) -> Markup:
    """The <svg> of a grid, in cells; shapes: what is drawn in it, or a reference to it."""
    height, width = grid.shape
    return Markup(
        f'<svg class="g{" fine" if cell < 9 else ""}" viewBox="0 0 {width} {height}" '
        f'width="{width * cell}" height="{height * cell}" role="img" '
        f'aria-label="grid {height}x{width}">{shapes}</svg>'
    )


def grid_shapes(grid: Grid, wrong: Mask | None = None) -> Markup:
    """The commonest colour below, runs of the others on it, thin lines, wrong cells outlined; one unit a cell."""
    height, width = grid.shape
    background = int(np.bincount(grid.ravel()).argmax())
    parts = [f'<rect width="{width}" height="{height}" fill="{COLORS[background]}"/>']
    parts += [f'<path fill="{COLORS[c]}" d="{_runs_path(grid == c)}"/>' for c in np.unique(grid) if c != background]
    lines = "".join(f"M0 {y}h{width}" for y in range(1, height)) + "".join(f"M{x} 0v{height}" for x in range(1, width))
    parts.append(f'<path class="l" d="{lines}"/>')
    if wrong is not None and wrong.any():
        outline = "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(wrong))
        parts += [f'<path class="halo" d="{outline}"/>', f'<path class="wrong" d="{outline}"/>']
    return Markup("".join(parts))


def _runs_path(mask: Mask) -> str:
    """Path data of the marked cells: one rectangle per run of neighbours in a row."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(padded, axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return "".join(f"M{x} {y}h{end - x}v1h{x - end}z" for (y, x), (_, end) in zip(starts, ends, strict=True))


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt. picture None: no grid. is_right None: the truth is hidden. remark: how it differs from the truth."""

    picture: Markup | None
    is_right: bool | None
    support: tuple[str, ...]
    remark: str


@dataclass(frozen=True, slots=True)
class TestView:
    """One test input; truth None: hidden. place: where the right grid stands among all candidates."""

    input: Markup
    truth: Markup | None
    attempts: tuple[AttemptView, ...]
    place: str


@dataclass(frozen=True, slots=True)
class ProgramView:
    """A program beside its task. caption: how many answer as it does and what it is right about."""

    caption: str
    source: str


@dataclass(frozen=True, slots=True)
class TaskCard:
    id: str
    source: str
    demos: tuple[tuple[Markup, Markup], ...]
    tests: tuple[TestView, ...]
    programs: tuple[ProgramView, ...]
    skipped: str


@dataclass(frozen=True, slots=True)
class Section:
    """Tasks of one outcome: key is solved, failed or unknown. num_tasks counts those that are not shown, too."""

    key: str
    rule: str
    num_tasks: int
    cards: tuple[TaskCard, ...]

    @property
    def num_left_out(self) -> int:
        return self.num_tasks - len(self.cards)


_RULES = {
    "solved": f"every test input right within {_ATTEMPTS} attempts",
    "failed": f"a test input not right within {_ATTEMPTS} attempts",
    "unknown": "a test output is hidden, so the task is not scored",
}


def gallery(result: Evaluation) -> list[Section]:
    """Solved, failed and unknown tasks, in the order of result.tasks. Unknown is left out if there are none."""
    tasks: dict[str, list[ArcTask]] = {key: [] for key in _RULES}
    for task in result.tasks:
        tasks[outcome(result, task)].append(task)
    return [
        Section(key, rule, len(tasks[key]), tuple(_card(task, result) for task in tasks[key][:SHOWN_TASKS]))
        for key, rule in _RULES.items()
        if tasks[key] or key != "unknown"
    ]


def outcome(result: Evaluation, task: ArcTask) -> str:
    """solved, failed or unknown; the rule of ARC/solved@2."""
    places = result.truth_ranks.get(task.id)
    if places is None:
        return "unknown"
    return "solved" if all(place is not None and place < _ATTEMPTS for place in places) else "failed"


def _card(task: ArcTask, result: Evaluation) -> TaskCard:
    candidates = [result.attempts.candidates[task.id, number] for number in range(len(task.tests))]
    shown = [c.grid for ranked in candidates for c in ranked[:_ATTEMPTS] if c.grid is not None]
    known = [grid for test in task.tests for grid in _grids(test)]
    test_cell = cell_px(max(max(grid.shape) for grid in known + shown), TEST_SIZE)
    tests = tuple(_test_view(test, ranked, test_cell) for test, ranked in zip(task.tests, candidates, strict=True))
    programs = tuple(_program_view(program) for program in result.attempts.programs.get(task.id, [])[:_ATTEMPTS])
    skipped = result.attempts.skipped.get(task.id, "")
    return TaskCard(task.id, task.source, demo_pictures(task), tests, programs, skipped)


def _program_view(program: WrittenProgram) -> ProgramView:
    plural = "" if program.votes == 1 else "s"
    caption = (
        f"{program.votes} program{plural} answer{'' if plural else 's'} so; {100 * program.demo_share:.0f} "
        "% of the demonstrations right"
    )
    return ProgramView(caption, program.source)


def demo_pictures(task: ArcTask) -> tuple[tuple[Markup, Markup], ...]:
    """(input, output) of every demonstration, all with one cell size."""
    cell = cell_px(max(max(g.shape) for demo in task.demos for g in _grids(demo)), DEMO_SIZE)
    return tuple((grid_svg(i, cell), grid_svg(o, cell)) for i, o in map(_grids, task.demos))


def _grids(pair: Pair) -> list[Grid]:
    return [grid for grid in (pair.input, pair.output) if grid is not None]


def _test_view(test: Pair, ranked: Sequence[Candidate], cell: int) -> TestView:
    num_votes = sum(candidate.votes for candidate in ranked)
    attempts = tuple(attempt_view(candidate, test.output, num_votes, cell) for candidate in ranked[:_ATTEMPTS])
    truth = None if test.output is None else grid_svg(test.output, cell)
    return TestView(grid_svg(test.input, cell), truth, attempts, _place(test.output, ranked))


def _place(truth: Grid | None, ranked: Sequence[Candidate]) -> str:
    if truth is None:
        return ""
    place = rank_of_truth(ranked, truth)
    return f"matches none of {len(ranked)}" if place is None else f"ranked {place + 1} of {len(ranked)}"


def attempt_view(candidate: Candidate, truth: Grid | None, num_votes: int, cell: int) -> AttemptView:
    """One candidate beside the truth: its picture with wrong cells outlined, and how it differs."""
    support = f"{candidate.votes} of {num_votes} votes"
    confidence = f"confidence {candidate.confidence:.2f}"
    grid = candidate.grid
    if grid is None or truth is None:
        picture = None if grid is None else grid_svg(grid, cell)
        return AttemptView(picture, None if truth is None else False, (support, confidence), "")
    if grid.shape != truth.shape:
        remark = f"{grid.shape[0]}x{grid.shape[1]} instead of {truth.shape[0]}x{truth.shape[1]}"
        return AttemptView(grid_svg(grid, cell), False, (support, confidence), remark)
    wrong = grid != truth
    remark = f"{wrong.sum()} of {wrong.size} cells wrong" if wrong.any() else ""
    return AttemptView(grid_svg(grid, cell, wrong), not wrong.any(), (support, confidence), remark)
