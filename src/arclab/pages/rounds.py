"""The page of a method in rounds: what each round found, learned and scored, and how long its texts are.

    html = render_rounds(RoundsPage(title, facts, criterion, stamps, tables, histograms, settings, pictures))

Self-contained, like arclab.pages.report, whose style it has. It counts nothing but bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from arclab.pages.templating import page
from arclab.results.writing import ResultPicture, ResultTable

_BARS, _WIDTH, _HEIGHT, _FOOT = 24, 480, 150, 34
_WIDEST = 60  # of a bar, so that texts of one length are no wall


@dataclass(frozen=True, slots=True)
class Histogram:
    """values: one for each thing counted. unit: of a value; things: what is counted."""

    title: str
    unit: str
    things: str
    values: Sequence[int]


@dataclass(frozen=True, slots=True)
class RoundsPage:
    """title: two parts. criterion: its sentence, may be empty. stamps: what must stand beside every number."""

    title: tuple[str, str]
    facts: Mapping[str, str]
    criterion: str
    stamps: Sequence[str]
    tables: Sequence[ResultTable]
    histograms: Sequence[Histogram]
    settings: Mapping[str, Any]
    pictures: Sequence[ResultPicture] = ()


def render_rounds(result: RoundsPage) -> str:
    pictures = [(each, histogram_svg(each), _summary(each)) for each in result.histograms if each.values]
    return page("rounds.html.j2", result=result, pictures=pictures)


def _summary(histogram: Histogram) -> str:
    values = np.asarray(histogram.values)
    middle, most = np.median(values), np.quantile(values, 0.99)
    return (
        f"{len(values):,} {histogram.things}: median {middle:g}, 99 % at most {most:g}, longest {values.max():,} "
        f"{histogram.unit}"
    )


def histogram_svg(histogram: Histogram) -> Markup:
    """Bars of equal width from the least value to the largest; every bar says on hover what it counts."""
    values = np.asarray(histogram.values)
    low, high = int(values.min()), int(values.max()) + 1
    edges = np.unique(np.linspace(low, high, min(_BARS, high - low) + 1).round().astype(int))
    counts, _ = np.histogram(values, edges)
    width = min(_WIDTH / len(counts), _WIDEST)
    end, anchor = width * len(counts), "end" if len(counts) > 1 else "start"
    ends = (f"{low:,}", f"{high - 1:,} {histogram.unit}") if len(counts) > 1 else ("", f"{low:,} {histogram.unit}")
    bars = "".join(
        f'<rect class="tick" x="{number * width + 1:.1f}" y="{_HEIGHT - _HEIGHT * count / counts.max():.1f}" '
        f'width="{max(width - 2, 1):.1f}" height="{_HEIGHT * count / counts.max():.1f}">'
        f"<title>{edges[number]} to {edges[number + 1] - 1} {histogram.unit}: {count} {histogram.things}</title></rect>"
        for number, count in enumerate(counts.tolist())
    )
    label = Markup.escape(histogram.title)
    return Markup(
        f'<svg viewBox="0 -16 {_WIDTH} {_HEIGHT + 16 + _FOOT}" role="img" aria-label="{label}" class="histogram">'
        f'<text x="0" y="-4">{counts.max():,} {histogram.things}</text>{bars}'
        f'<rect class="track" y="{_HEIGHT}" width="{_WIDTH}" height="1"/>'
        f'<text x="0" y="{_HEIGHT + 18}">{ends[0]}</text>'
        f'<text x="{end if anchor == "end" else 0:g}" y="{_HEIGHT + 18}" text-anchor="{anchor}">{ends[1]}</text></svg>'
    )
