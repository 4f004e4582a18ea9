"""The Markdown of a tracking sheet as HTML, for the comparison page. Only what tracking.md.j2 uses is understood.

    html = sheet_html(tracking_sheet(run, baseline=None))

One heading, quotes (warnings), list items and plain lines; **bold**, `code` and the line to fill in. Everything is escaped
first.
"""

from __future__ import annotations

import re
from itertools import groupby

from markupsafe import Markup, escape

from arclab.pages.tracking import TO_FILL_IN

_TAGS = {"### ": "h3", "> ": "blockquote", "- ": "li"}


def sheet_html(text: str) -> Markup:
    """The sheet as a run of HTML elements; list items that follow one another share a list."""
    lines = [_element(line) for line in text.splitlines() if line.strip()]
    parts = []
    for is_item, group in groupby(lines, key=lambda html: html.startswith("<li>")):
        inner = "".join(group)
        parts.append(f"<ul>{inner}</ul>" if is_item else inner)
    return Markup("".join(parts))


def _element(line: str) -> str:
    mark = next((mark for mark in _TAGS if line.startswith(mark)), "")
    tag = _TAGS.get(mark, "p")
    return f"<{tag}>{_inline(line.removeprefix(mark))}</{tag}>"


def _inline(text: str) -> str:
    safe = str(escape(text)).replace(TO_FILL_IN, f"<em>{TO_FILL_IN.strip('_')}</em>")
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", safe)
