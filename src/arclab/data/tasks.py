"""ARC tasks: the records, and parsing them. Where they are read from: sources.py.

    task = ArcTask.from_json("my/tasks/0a1b2c3d.json")
    task = parse_task({"train": [...], "test": [...]}, "0a1b2c3d", "my/tasks/0a1b2c3d.json")
    grid = parse_grid([[0, 1], [2, 3]], "my/tasks/0a1b2c3d.json: task 0a1b2c3d, train pair 0, input")

Every grid is checked; a bad one is a ValueError that names file, task and pair. It does not split, augment or tokenise: see
splits.py, augment.py and codec.py.
"""

from __future__ import annotations

import hashlib
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from arclab.files import is_encodable, read_json, short

Grid = npt.NDArray[np.uint8]

MAX_SIDE = 30
MAX_ID_LENGTH = 200
NUM_COLORS = 10
# The colours of the official ARC testing interface, by cell value.
COLORS = ("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25")


@dataclass(frozen=True, slots=True)
class Pair:
    """One input grid and its output; output is None where the answer is hidden."""

    input: Grid
    output: Grid | None


class PairStream(Protocol):
    """Pairs of one task without end, by number; the same number is always the same pair. No side is longer than max_side."""

    @property
    def max_side(self) -> int: ...

    def pair(self, number: int) -> Pair: ...


@dataclass(frozen=True, slots=True)
class ArcTask:
    """demos are shown with their answers; tests are the queries. source is the string it was loaded from.

    rule: what a toy task was generated from, equal for tasks with the same rule; None for every other task. stream: where
    training takes further pairs of a RE-ARC task from (rearc.py). visits: how often an epoch of training comes to it.
    """

    id: str
    demos: tuple[Pair, ...]
    tests: tuple[Pair, ...]
    source: str
    rule: str | None = None
    stream: PairStream | None = None
    visits: int = 1

    @classmethod
    def from_json(cls, source: Path | str | Mapping[str, Any], task_id: str | None = None) -> ArcTask:
        """One official task: a file, or what such a file holds, {"train": [...], "test": [...]}. task_id: the name of the file
        without .json unless given; "task" for an object. ValueError: it is none; OSError: the file cannot be read."""
        if isinstance(source, Mapping):
            return parse_task(dict(source), task_id or "task", "json")
        path = Path(source)
        return parse_task(read_json(path), task_id or path.stem, f"file:{path}")

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Demonstrations first, then tests: the order that pair indices refer to everywhere."""
        return self.demos + self.tests

    @property
    def max_side(self) -> int:
        """Longest side of any grid of the task, hidden outputs left out."""
        return max(side for pair in self.pairs for grid in (pair.input, pair.output) if grid is not None for side in grid.shape)


def parse_grid(rows: Any, where: str) -> Grid:
    """A checked (H, W) uint8 grid, 1..30 a side, values 0..9. `where` opens the error message."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(f"{where}: a grid must be a non-empty list of non-empty lists of colours, got {reprlib.repr(rows)}.")
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"{where}: all rows of a grid must have the same length, got lengths {reprlib.repr(sorted(widths))}.")
    if any(type(value) is not int for row in rows for value in row):
        bad = next(value for row in rows for value in row if type(value) is not int)
        raise ValueError(f"{where}: colours must be whole numbers 0 to 9, got {short(bad)}.")
    height, width = len(rows), len(rows[0])
    if height > MAX_SIDE or width > MAX_SIDE:
        raise ValueError(f"{where}: a grid may be at most {MAX_SIDE}x{MAX_SIDE}, got {height}x{width}.")
    low, high = min(map(min, rows)), max(map(max, rows))
    if low < 0 or high >= NUM_COLORS:
        raise ValueError(f"{where}: colours must be 0 to 9, got {short(low if low < 0 else high)}.")
    return np.array(rows, dtype=np.uint8)


def require_usable_id(task_id: str, source: str) -> None:
    """An id stands in lists of ids (one a line, # starts a comment), in results and on pages: what cannot stand there would be
    found out only after all tasks have been solved."""
    if not task_id or len(task_id) > MAX_ID_LENGTH:
        fault = "is empty" if not task_id else f"has {len(task_id)} characters, more than {MAX_ID_LENGTH}"
    elif not is_encodable(task_id) or any(unicodedata.category(character) == "Cc" for character in task_id):
        fault = "has characters that cannot be written"
    elif task_id != task_id.strip() or "#" in task_id:
        fault = "has a # in it, or spaces around it, which a list of ids cannot hold"
    else:
        return
    raise ValueError(f"{source}: the task id {short(task_id)} {fault}; rename the task.")


def parse_task(obj: Any, task_id: str, source: str, solutions: Any = None, solutions_source: str = "") -> ArcTask:
    """One official task object {"train": [...], "test": [...]}; `solutions` are the test outputs of a Kaggle file, whose name
    is solutions_source."""
    where = f"{source}: task {task_id}"
    if not isinstance(obj, dict) or not isinstance(obj.get("train"), list) or not isinstance(obj.get("test"), list):
        raise ValueError(f'{where}: not ARC JSON; a task is an object with the lists "train" and "test".')
    if not obj["train"] or not obj["test"]:
        empty = "train" if not obj["train"] else "test"
        raise ValueError(f"{where}: the task is empty ({empty!r} has no pair); remove the task or add a pair.")
    where_solutions = f"{solutions_source}: task {task_id}"
    if solutions is not None and not isinstance(solutions, list):
        raise ValueError(
            f"{where_solutions}: the solution is {short(solutions)}; it must be a list with an output for each test input."
        )
    if solutions is not None and len(solutions) != len(obj["test"]):
        raise ValueError(
            f"{where}: {len(obj['test'])} test inputs but {len(solutions)} solutions in {solutions_source}; the two files do "
            "not belong together."
        )
    demos = [_parse_pair(pair, f"{where}, train pair {i}", need_output=True) for i, pair in enumerate(obj["train"])]
    tests = [_parse_pair(pair, f"{where}, test pair {i}", need_output=False) for i, pair in enumerate(obj["test"])]
    if solutions is not None:
        tests = [
            Pair(test.input, parse_grid(rows, f"{where_solutions}, solution {i}"))
            for i, (test, rows) in enumerate(zip(tests, solutions, strict=True))
        ]
    return ArcTask(task_id, tuple(demos), tuple(tests), source)


def _parse_pair(pair: Any, where: str, *, need_output: bool) -> Pair:
    if not isinstance(pair, dict) or "input" not in pair:
        raise ValueError(f'{where}: not ARC JSON; a pair is an object with "input" and "output".')
    if need_output and pair.get("output") is None:
        raise ValueError(f'{where}: a demonstration needs an "output".')
    output = pair.get("output")
    return Pair(
        parse_grid(pair["input"], f"{where}, input"),
        None if output is None else parse_grid(output, f"{where}, output"),
    )


def tasks_digest(tasks: Sequence[ArcTask]) -> str:
    """Names the scored tasks by their ids and all of their grids."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(task.id.encode())
        for grid in (grid for pair in task.pairs for grid in (pair.input, pair.output) if grid is not None):
            digest.update(str(grid.shape).encode() + grid.tobytes())
    return digest.hexdigest()[:16]
