"""What edits one after the other come to: the matrix of accuracies, forgetting, and the page.

    record = continual_record(matrices)              # for results.json
    html = continual_page(config, matrices, stamps)

A matrix has a row for the model as it is and one after each edit; row r has the grades of the first r items, the first row
those of all. Shares over sequences are over their questions together; a question is asked once in each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from arclab.config.compose import flat
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.pages.heat_map import HeatMap, heat_map
from arclab.pages.rounds import RoundsPage, render_rounds
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.results.writing import ResultPicture, ResultTable

Cell = list[bool | None]  # the grades of an item's questions; None: ungraded
Matrix = list[list[Cell]]


def _share(cells: Sequence[Cell]) -> Share:
    graded = [grade for cell in cells for grade in cell if grade is not None]
    return Share(sum(graded), len(graded))


def _accuracy(cell: Cell) -> float | None:
    share = _share([cell])
    return share.value if share.total else None


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 0.0


def _as_it_is(matrix: Matrix) -> list[Cell]:
    return matrix[0]


def _just_learned(matrix: Matrix) -> list[Cell]:
    """Of each item, right after its own edit."""
    return [row[-1] for row in matrix[1:]]


def _after_all(matrix: Matrix) -> list[Cell]:
    return matrix[-1]


def _forgotten(matrix: Matrix) -> list[float | None]:
    """Of each item but the last: its share right after its edit, less its share after all edits."""
    pairs = zip(_just_learned(matrix)[:-1], _after_all(matrix)[:-1], strict=True)
    both = [(_accuracy(learned), _accuracy(final)) for learned, final in pairs]
    return [None if a is None or b is None else a - b for a, b in both]


def continual_record(matrices: Sequence[Matrix]) -> dict[str, Any]:
    """matrix: the mean over sequences of each cell, null where no item is asked about; std: over sequences, null of one.
    forgetting: the mean over items but the last of what was lost since their edit; 0 of one edit."""

    def of_cells(combined: Any) -> list[list[float | None]]:
        size = len(matrices[0][0])
        return [
            [combined([_accuracy(m[row][column]) for m in matrices]) if column < len(matrices[0][row]) else None
             for column in range(size)]
            for row in range(size + 1)
        ]  # fmt: skip

    def spread(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return stdev(known) if len(known) > 1 else None

    def overall(part: Any) -> float:
        return _mean([_accuracy(cell) for matrix in matrices for cell in part(matrix)])

    return {
        "base": overall(_as_it_is), "learned": overall(_just_learned), "final": overall(_after_all),
        "forgetting": _mean([lost for matrix in matrices for lost in _forgotten(matrix)]),
        "matrix": of_cells(_mean), "std": of_cells(spread),
        "sequences": [[[_accuracy(cell) for cell in row] for row in matrix] for matrix in matrices],
    }  # fmt: skip


def continual_page(config: SealKnowledgeConfig, matrices: Sequence[Matrix], stamps: Sequence[str]) -> str:
    page = RoundsPage(
        title=(config.experiment_name, f"{config.name}, edits one after the other"),
        facts={
            "data": config.data.source, "sequences": str(len(matrices)), "edits of each": str(len(matrices[0][0])),
            "kind": config.generate.kind.value, "grader": config.query.grader.kind.value, "seed": str(config.seed),
        },
        criterion="",
        stamps=stamps,
        tables=[_table(matrices)],
        histograms=[],
        settings=flat(config),
        pictures=[_picture(matrices)],
    )  # fmt: skip
    return render_rounds(page)


def _table(matrices: Sequence[Matrix]) -> ResultTable:
    parts = {"as it is": _as_it_is, "right after the item's edit": _just_learned, "after all edits": _after_all}
    cells = {name: [cell for matrix in matrices for cell in part(matrix)] for name, part in parts.items()}
    learned = [grade for cell in cells["right after the item's edit"] for grade in cell]
    rows = []
    for name, found in cells.items():
        grades = [grade for cell in found for grade in cell]
        both = [(a, b) for a, b in zip(grades, learned, strict=True) if a is not None and b is not None]
        test = PairedTest.count("questions", both)
        told = f"{test.only_first} against {test.only_second}, p = {test.p_value:.2g}" if test.discordant else ""
        rows.append((name, str(_share(found)), f"{100 * _mean([_accuracy(cell) for cell in found]):.1f} %", told))
    forgetting = _mean([lost for matrix in matrices for lost in _forgotten(matrix)])
    return ResultTable(
        "Closed-book accuracy",
        ("the model", "questions right", "mean over items", "only it right, against only the model right after the edit"),
        tuple(rows),
        f"Forgotten since its own edit, mean over items but the last: {100 * forgetting:.1f} points.",
    )


def _picture(matrices: Sequence[Matrix]) -> ResultPicture:
    record, size = continual_record(matrices), len(matrices[0][0])
    hints = [
        [str(_share([matrix[row][column] for matrix in matrices])) if column < len(matrices[0][row]) else ""
         for column in range(size)]
        for row in range(size + 1)
    ]  # fmt: skip
    svg = heat_map(
        HeatMap(
            "accuracy of each item after each edit", "item", ["as it is", *(f"edit {n}" for n in range(1, size + 1))],
            [str(n) for n in range(1, size + 1)], record["matrix"], hints,
        )
    )  # fmt: skip
    note = (
        "Questions right in percent, by item and after each edit; mean over sequences. The last cell of a row is the item that "
        "was just learned; further down in its column is what is left of it."
    )
    return ResultPicture("What is still known", svg, note)
