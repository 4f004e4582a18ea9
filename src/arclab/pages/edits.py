"""Pages of edits of programs: what changed, why, and what the new program answers.

    html = render_review(title, facts, "review.json", [ReviewedEdit(...), ...])        # to read them through
    html = render_chains(title, facts, [Chain(...), ...], Exhibits())                  # edits of edits, one below the other

Self-contained. On the first page each edit has buttons to accept and to reject it. The browser keeps what was chosen, and saves
it as a file of the given name, {"decisions": {id: "accept" or "reject"}}; it has to be put beside the page. Nothing is decided
here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import ndiff
from hashlib import sha256

from markupsafe import Markup

from arclab.data.tasks import Grid
from arclab.pages.report import cell_px, grid_svg
from arclab.pages.templating import page
from arclab.results.writing import Exhibits

_CELLS = (100, 4, 12)  # px: of a whole grid at most, of a cell at least and at most


@dataclass(frozen=True, slots=True)
class ShownPair:
    """answer None: the program gave none."""

    input: Grid
    wanted: Grid
    answer: Grid | None


@dataclass(frozen=True, slots=True)
class ReviewedEdit:
    """worth: of the program before and after, in words."""

    id: str
    worth: str
    before: str
    after: str
    thinking: str
    pairs: Sequence[ShownPair]


@dataclass(frozen=True, slots=True)
class Chain:
    """Edits each of which has the program of the one before for its parent."""

    id: str
    edits: Sequence[ReviewedEdit]


def render_chains(
    title: tuple[str, str], facts: Mapping[str, str], chains: Sequence[Chain], exhibits: Exhibits
) -> str:  # fmt: skip
    """exhibits: tables and pictures above the chains."""
    return page(
        "chains.html.j2", title=title, facts=facts, exhibits=exhibits,
        chains=[(chain, [_views(edit) for edit in chain.edits]) for chain in chains],
    )  # fmt: skip


def render_review(title: tuple[str, str], facts: Mapping[str, str], file: str, edits: Sequence[ReviewedEdit]) -> str:
    # Two pages of one place that show other edits do not share what was chosen.
    key = sha256(json.dumps([title, [edit.id for edit in edits]]).encode()).hexdigest()[:16]
    return page(
        "review.html.j2", title=title, facts=facts, file=file, key=key,
        edits=[_views(edit) for edit in edits],
    )  # fmt: skip


def _views(edit: ReviewedEdit) -> tuple[ReviewedEdit, list[tuple[str, str]], list[tuple[Markup, Markup, Markup | None]]]:
    return edit, program_diff(edit.before, edit.after), [_pictures(pair) for pair in edit.pairs]


def program_diff(before: str, after: str) -> list[tuple[str, str]]:
    """(kind, line): kind is gone, new or same."""
    kinds = {"- ": "gone", "+ ": "new", "  ": "same"}
    lines = ndiff(before.strip().splitlines(), after.strip().splitlines())
    return [(kinds[line[:2]], line[2:]) for line in lines if line[:2] in kinds]


def _pictures(pair: ShownPair) -> tuple[Markup, Markup, Markup | None]:
    def picture(grid: Grid) -> Markup:
        wrong = grid != pair.wanted if grid is pair.answer and grid.shape == pair.wanted.shape else None
        return grid_svg(grid, cell_px(max(grid.shape), _CELLS), wrong)

    return picture(pair.input), picture(pair.wanted), None if pair.answer is None else picture(pair.answer)
