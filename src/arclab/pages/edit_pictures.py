"""Pictures of program edits: lines of shares over what was spent, shares with intervals, layers that fill 0 to 100 %.

    svg = share_lines({"tree": [(0, 0.0), (1200, 0.5)]}, "tokens of a task")        # steps: from a point on it stays
    svg = share_points({"a": [(85.0, Share(3, 20))]}, "tokens of thinking")         # with 95 % intervals
    svg = share_layers([10, 20], {"hard": [0.2, 0.1], "learning": [0.8, 0.9]}, ["red", "blue"], "step")

SVG elements for a page, in its colours. Nothing is counted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arclab.pages.compare_pictures import color_of
from arclab.pages.report import CURVE_STYLE, inline_svg, style_axes
from arclab.results.scoring import Share


def share_lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> Markup:
    """A line for each name, which stays where it is until its next point."""
    with matplotlib.rc_context(CURVE_STYLE):
        figure, axes = _figure(len(series))
        for number, (name, points) in enumerate(series.items()):
            axes.step(*zip(*points, strict=True), where="post", color=color_of(number), label=name, linewidth=1.4)
        return _finished(figure, axes, x_label, len(series))


def share_points(series: Mapping[str, Sequence[tuple[float, Share]]], x_label: str) -> Markup:
    """A point for each share, with its 95 % interval."""
    with matplotlib.rc_context(CURVE_STYLE):
        figure, axes = _figure(len(series))
        for number, (name, points) in enumerate(series.items()):
            xs, values = [x for x, _ in points], [share.value for _, share in points]
            below = [max(0.0, share.value - share.interval[0]) for _, share in points]  # rounding can cross the value
            above = [max(0.0, share.interval[1] - share.value) for _, share in points]
            axes.errorbar(
                xs, values, yerr=[below, above], color=color_of(number), label=name, linewidth=1.2, elinewidth=0.8, marker="o",
                markersize=3.5, capsize=2,
            )  # fmt: skip
        return _finished(figure, axes, x_label, len(series))


def share_layers(
    xs: Sequence[float], layers: Mapping[str, Sequence[float]], colors: Sequence[str], x_label: str
) -> Markup:  # fmt: skip
    """Layers on one another, from the bottom up; together they are 1 at every x. A single x is drawn as a bar."""
    with matplotlib.rc_context(CURVE_STYLE):
        figure, axes = _figure(len(layers))
        wide = [*xs] if len(xs) > 1 else [xs[0] - 0.5, xs[0] + 0.5]
        tall = [[*values] * (1 if len(xs) > 1 else 2) for values in layers.values()]
        axes.stackplot(
            wide, tall, labels=list(layers), colors=list(colors), alpha=0.75,
            step="mid" if len(xs) > 1 else None,
        )  # fmt: skip
        if len(xs) == 1:
            axes.set_xticks(xs)
        return _finished(figure, axes, x_label, len(layers))


def _figure(num_names: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.7, 2.5 + 0.17 * max(0, num_names - 2)))
    figure.patch.set_alpha(0)
    height = figure.get_size_inches()[1]
    below, above = 0.42 / height, (0.1 + 0.17 * num_names * (num_names > 1)) / height
    return figure, figure.add_axes((0.125, below, 0.83, 1 - below - above))


def _finished(figure: Figure, axes: Axes, x_label: str, num_names: int) -> Markup:
    style_axes(axes)
    axes.set_xlabel(x_label, labelpad=2)
    axes.set_ylim(-0.03, 1.03)
    if num_names > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), frameon=False, borderpad=0, handlelength=1.2,
                    labelspacing=0.25, prop={"weight": "bold", "size": 8})  # fmt: skip
    return inline_svg(figure)
