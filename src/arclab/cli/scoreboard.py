"""arclab scoreboard: every evaluated run in one table, the best first.

    arclab scoreboard                               all runs below runs/
    arclab scoreboard runs/control runs/a/b         those of these folders
    arclab scoreboard --markdown > board.md         the same as Markdown

A line is one evaluation: metrics.json of a run's evaluation/<split>/, or of a solver without a checkpoint. Scores of other
tasks cannot be compared, so lines are grouped by data and split, and sorted within a group by solved@2, then by pass@1.
Intervals are 95 % Wilson intervals over tasks. control is encoder/swap_drop: the share of exact answers that is lost with the
demonstrations of another task; near 0 the encoder is not read. Runs that were not evaluated are counted and left out. A file
that is damaged is named on standard error, its run left out, and the exit status is then 2. A page with paired tests, costs and
a matrix of tasks: python -m arclab.pages scoreboard RESULT...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.files import sentence_for
from arclab.launch.queue.tables import say, show
from arclab.results.finished import method_of
from arclab.results.reading import FIT_STAMP, Run, ScoredSplit, read_runs
from arclab.runs.folder import short_commit

COLUMNS = ("run", "method", "parameters", "pass@1", "pass@2", "solved@2", "control", "commit", "remarks")
_NUMBERS = ("parameters", "pass@1", "pass@2", "solved@2", "control")
_SPLIT_ORDER = ("evaluation", "validation", "train")
_NOT_RECORDED = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """One evaluation. score: what lines of a group are sorted by, the highest first. cells: by COLUMNS."""

    data: str
    split: str
    score: tuple[float, float]
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """lines: the best first within data and split. num_waiting: runs without an evaluation. faults: a sentence for each run
    that cannot be read."""

    lines: tuple[Line, ...]
    num_waiting: int
    faults: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="arclab scoreboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER", help="where runs lie (runs)")
    parser.add_argument("--markdown", action="store_true", help="as Markdown, with a heading for each data set and split")
    arguments = parser.parse_args(argv)
    board = read_board(arguments.folders)
    if arguments.markdown:
        sys.stdout.write(markdown(board))
    else:
        _show(board)
    for fault in board.faults:
        sys.stderr.write(f"error: left out: {fault}\n")
    return 2 if board.faults else 0


def read_board(folders: Sequence[Path]) -> Board:
    """ConfigError: a folder does not exist, or no run lies below any of them."""
    named: dict[Path, tuple[str, Path]] = {}
    for folder in folders:
        for path in run_folders(folder):
            is_short = len(folders) == 1 and path != folder
            named.setdefault(path.resolve(), (str(path.relative_to(folder) if is_short else path), path))
    if not named:
        raise ConfigError(f"no run lies below {', '.join(map(str, folders))}; give a folder that has runs in it, such as runs.")
    lines: list[Line] = []
    faults: list[str] = []
    num_waiting = 0
    for name, path in named.values():
        try:
            (run,) = read_runs([path])
        except (ValueError, OSError) as error:
            if (sentence := sentence_for(error)) is None:
                raise
            faults.append(sentence)
            continue
        lines += [_line(name, run, split) for split in run.splits]
        num_waiting += not run.splits
    return Board(tuple(sorted(lines, key=_place)), num_waiting, tuple(faults))


def run_folders(folder: Path) -> Iterator[Path]:
    """The folder if it is a run, else all runs below it, in the order of their names. What lies inside a run is a part of it;
    hidden folders and links to folders are passed over."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give one that has runs in it, such as runs.")
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if "config.yaml" in files or "metrics.json" in files:
            below.clear()
            yield Path(place)


def _place(line: Line) -> tuple[str, int, str, float, float, str]:
    split = _SPLIT_ORDER.index(line.split) if line.split in _SPLIT_ORDER else len(_SPLIT_ORDER)
    return line.data, split, line.split, -line.score[0], -line.score[1], line.cells[0]


def _line(name: str, run: Run, split: ScoredSplit) -> Line:
    shares = split.shares
    parameters = split.statistics.get("num_params", run.last("num_params"))
    control = split.statistics.get("encoder/swap_drop")
    score = tuple(shares[name].value if shares[name].total else -1.0 for name in ("ARC/solved@2", "ARC/pass@1"))
    scores = [
        str(shares[name]) if shares[name].total else "answers hidden" for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
    ]
    cells = (
        name if run.is_evaluation or split.name == split.split else f"{name} ({split.name})",
        method_of(run, split),
        _NOT_RECORDED if parameters is None else f"{int(parameters):,}",
        *scores,
        _NOT_RECORDED if control is None else f"{control:.2f}",
        short_commit(split.record.get("provenance") or run.provenance),
        ", ".join(_remarks(run, split)),
    )
    return Line(_data(run, split), split.split, (score[0], score[1]), cells)


def _data(run: Run, split: ScoredSplit) -> str:
    """The name of the data set, and which of its tasks where those were chosen."""
    name = str(split.record.get("dataset") or run.settings.get("dataset.name", "data not recorded"))
    return f"{name}, {split.record.get('num_tasks', split.shares['ARC/solved@2'].total)} tasks"


def _remarks(run: Run, split: ScoredSplit) -> Iterator[str]:
    """What must stand beside the numbers, in few words; the whole sentences are on the run's own page."""
    stamps = split.record.get("stamps", ())
    if any(stamp.startswith("transductive") for stamp in (*stamps, *run.weight_stamps)):
        yield "TRANSDUCTIVE"
    if FIT_STAMP in stamps:
        yield "fit, not generalisation"
    if any("were trained on" in stamp for stamp in stamps):
        yield "trained on scored tasks"
    if any(stamp.startswith("not the published evaluation") for stamp in stamps):
        yield "not the published rules"
    if run.is_partial and not run.is_evaluation:
        yield "PARTIAL"


def _groups(lines: Sequence[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(f"{line.data}, split {line.split}", []).append(line)
    return groups


def _show(board: Board) -> None:
    for title, lines in _groups(board.lines).items():
        say(title)
        show(COLUMNS, [line.cells for line in lines], right=_NUMBERS)
        say("")
    say(_end(board))


def _end(board: Board) -> str:
    return f"evaluations: {len(board.lines)}; runs that have none and are left out: {board.num_waiting}"


def markdown(board: Board) -> str:
    """The same as Markdown."""
    parts = []
    for title, lines in _groups(board.lines).items():
        rule = " | ".join("---:" if name in _NUMBERS else "---" for name in COLUMNS)
        rows = [" | ".join(cell.replace("|", "\\|") or " " for cell in line.cells) for line in lines]
        parts.append("\n".join([f"## {title}", "", *(f"| {row} |" for row in (" | ".join(COLUMNS), rule, *rows)), ""]))
    return "\n".join([*parts, _end(board), ""])
