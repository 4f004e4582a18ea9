"""The page of an evaluation in words: questions, replies, and what was counted over them.

    html = render_text_report(TextResult(title, facts, share, metrics, answers, notes, origin, settings, "answer.json"))

Self-contained, like arclab.pages.report, whose style it has. Wrong answers stand first. It scores nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arclab.metrics.names import REGISTRY
from arclab.pages.report import interval_svg
from arclab.pages.templating import page
from arclab.results.scoring import Share

SHOWN = 200  # answers on the page; the file beside it has all


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """answer: what was extracted from the reply; None: nothing. detail: a line below the reply, may be empty. marks: numbers
    of characters of the reply before which memory was inserted."""

    id: str
    question: str
    reply: str
    answer: str | None
    gold: str
    is_right: bool
    detail: str
    marks: Sequence[int] = ()

    @property
    def pieces(self) -> list[str]:
        """The reply, cut at its marks: one piece more than marks."""
        ends = [0, *self.marks, len(self.reply)]
        return [self.reply[start:end] for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True, slots=True)
class TextResult:
    """title: two parts. facts: shown at the top. file: the name of the file beside the page that has all answers."""

    title: tuple[str, str]
    facts: Mapping[str, str]
    share: Share
    metrics: Mapping[str, float]
    answers: Sequence[TextAnswer]
    notes: Sequence[str]
    origin: Mapping[str, Any]
    settings: Mapping[str, Any]
    file: str


def render_text_report(result: TextResult) -> str:
    low, high = result.share.interval
    return page(
        "text_report.html.j2",
        result=result,
        percent=f"{100 * result.share.value:.1f} %",
        fraction=f"{result.share.n:g}/{result.share.total}",
        interval=f"[{100 * low:.1f}, {100 * high:.1f}] %",
        bar=interval_svg(result.share),
        rows=[(name, f"{value:.4g}", REGISTRY[name].unit, REGISTRY[name].meaning) for name, value in result.metrics.items()],
        answers=sorted(result.answers, key=lambda answer: answer.is_right)[:SHOWN],
        num_answers=len(result.answers),
    )
