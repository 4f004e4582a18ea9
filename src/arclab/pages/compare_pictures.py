"""Curves of several runs in one pair of axes, and the colour and dashes that a run has on the whole page.

    svgs = overlay_svgs(runs, ["train/exact_accuracy"])       # one SVG for each metric that any run logged
    sample = line_sample(9)                                   # a piece of the line of run number 9, for a legend

Axes are drawn by report.py. The line of run number i is an element of the class run-i, which page.js lights up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from arclab.metrics.names import REGISTRY
from arclab.pages.report import CURVE_STYLE, curve_points, inline_svg, scale_y, style_axes
from arclab.results.reading import Run

_COLORS = ("#2f6fdb", "#e2711d", "#2a9d5c", "#b0439e", "#9a7b00", "#00889a", "#d1332e", "#6b7078")
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)))  # offset, then points of line and gap


def color_of(index: int) -> str:
    """The colour of run number `index` everywhere on the page; from the ninth on colours repeat with other dashes."""
    return _COLORS[index % len(_COLORS)]


def line_sample(index: int) -> Markup:
    """A short piece of the run's line: a colour alone does not tell the ninth run from the first."""
    dashes = _dashes(index)
    pattern = "" if dashes == "-" else f' stroke-dasharray="{dashes[1][0] * 2} {dashes[1][1] * 2}"'
    return Markup(
        f'<svg class="sample" viewBox="0 0 26 8" width="26" height="8" aria-hidden="true">'
        f'<path d="M1 4h24" stroke="{color_of(index)}" stroke-width="3"{pattern}/></svg>'
    )


def _dashes(index: int) -> Any:
    """As matplotlib takes them."""
    return _DASHES[index // len(_COLORS) % len(_DASHES)]


def overlay_svgs(runs: Sequence[Run], names: Iterable[str]) -> list[Markup]:
    """One SVG for each metric that at least one run logged, in the order of `names`."""
    return [inline_svg(figure) for name in names if (figure := _overlay(runs, name)) is not None]


def _overlay(runs: Sequence[Run], name: str) -> Figure | None:
    series = {i: points for i, run in enumerate(runs) if len(points := curve_points(run.rows, name))}
    if not series:
        return None
    with matplotlib.rc_context(CURVE_STYLE):
        figure = Figure(figsize=(3.7, 2.5))
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0.125, 0.165, 0.83, 0.73))
        for i, points in series.items():
            marker = "o" if len(points) <= 30 else ""
            width = 1.2 if len(series) <= 10 else 1.0
            (line,) = axes.plot(
                *points.T, color=color_of(i), linewidth=width, alpha=0.9, marker=marker, markersize=3, linestyle=_dashes(i)
            )
            line.set_gid(f"run-{i}")
        axes.set_title(name, loc="left", fontsize=8.5, fontweight="bold", pad=5)
        style_axes(axes)
        scale_y(axes, {REGISTRY[name].unit}, np.concatenate(list(series.values()))[:, 1])
    return figure
