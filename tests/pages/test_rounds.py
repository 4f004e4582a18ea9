"""The page of rounds: bars count every value once, and nothing is written unescaped."""

from __future__ import annotations

import re

from arclab.pages.rounds import Histogram, RoundsPage, histogram_svg, render_rounds
from arclab.results.writing import ResultTable


def test_bars_count_every_value_once() -> None:
    for values in ([5], [1, 1, 2, 9], list(range(100)), [3] * 7 + [400]):
        svg = str(histogram_svg(Histogram("t", "tokens", "steps", values)))
        counts = [int(count) for count in re.findall(r": (\d+) steps</title>", svg)]
        assert sum(counts) == len(values) and len(counts) <= 24
        is_one = min(values) == max(values)  # then there is one label, below one narrow bar
        assert (f">{min(values):,}</text>" in svg) != is_one and f"{max(values):,} tokens</text>" in svg


def test_a_page_says_everything_and_escapes_it() -> None:
    table = ResultTable("A <table>", ("round",), (("<0>",),), "A note & more.")
    page = RoundsPage(
        ("e", "<n>"), {"search": "mcts"}, "PASS <1>", ["a stamp"], [table], [Histogram("none", "t", "x", [])], {"k": "<v>"}
    )
    html = render_rounds(page)
    assert all(
        text in html
        for text in ("A &lt;table&gt;", "&lt;0&gt;", "A note &amp; more.", "PASS &lt;1&gt;", "a stamp", "&lt;v&gt;")
    )
    assert "<svg" not in html and "<n>" not in html
