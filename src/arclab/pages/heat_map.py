"""A table of shares as a picture: the darker a cell, the larger its share.

    svg = heat_map(HeatMap(rows=("as it is", "edit 1"), columns=("item 1", "item 2"), shares=[[0.1, 0.2], [0.5, None]], ...))

An inline SVG element without a style of its own: the page gives .cell, .none, .axis and text their colours. It counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_CELL_W, _CELL_H, _LEFT, _TOP = 58, 36, 84, 44
_FAINT, _STRONG = 0.04, 0.6  # opacity of 0 % and of 100 %; texts can be read on both


@dataclass(frozen=True, slots=True)
class HeatMap:
    """shares: in [0, 1], by row and column; None: no cell. hints: what a cell says on hover. label: of the whole."""

    label: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    shares: Sequence[Sequence[float | None]]
    hints: Sequence[Sequence[str]]


def heat_map(given: HeatMap) -> str:
    width, height = _LEFT + _CELL_W * len(given.columns), _TOP + _CELL_H * len(given.rows)
    escape = Markup.escape
    texts = [f'<text class="axis" x="0" y="{_TOP - 14}" font-size="13">{escape(given.corner)}</text>']
    for number, name in enumerate(given.columns):
        x = _LEFT + _CELL_W * (number + 0.5)
        texts.append(f'<text class="axis" x="{x:g}" y="{_TOP - 14}" font-size="13" text-anchor="middle">{escape(name)}</text>')
    for row, name in enumerate(given.rows):
        y = _TOP + _CELL_H * row
        texts.append(f'<text class="axis" x="0" y="{y + 23:g}" font-size="13">{escape(name)}</text>')
        for column, share in enumerate(given.shares[row]):
            texts.append(_cell(_LEFT + _CELL_W * column, y, share, given.hints[row][column]))
    return str(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(given.label)}">' + "".join(texts) + "</svg>"
    )


def _cell(x: float, y: float, share: float | None, hint: str) -> str:
    box = f'x="{x + 1:g}" y="{y + 1:g}" width="{_CELL_W - 2}" height="{_CELL_H - 2}" rx="4"'
    if share is None:
        return f'<rect class="none" {box}/>'
    opacity = _FAINT + (_STRONG - _FAINT) * share
    text = f'<text x="{x + _CELL_W / 2:g}" y="{y + 23:g}" font-size="14" text-anchor="middle">{100 * share:.0f}</text>'
    return f'<g><title>{Markup.escape(hint)}</title><rect class="cell" {box} fill-opacity="{opacity:.2f}"/>{text}</g>'
