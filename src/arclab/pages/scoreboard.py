"""One page for all methods on the same tasks: scores, paired tests against the best, cost, stamps, and who solved which task.

    python -m arclab.pages scoreboard RESULT [RESULT ...] [--output FOLDER]
    python -m arclab.pages scoreboard --jobs jobs.txt            # every evaluation of the file that is DONE

RESULT is a folder that evaluate.py wrote, or a run with such folders in its evaluation/. Results that share tasks stand in one
table, over the tasks that all of them have. Writes FOLDER/scoreboard.html and the pages of the tasks (FOLDER/tasks), which are
those of the comparison page; FOLDER is runs/scoreboard unless given. Answers in words are a section of their own. It scores
nothing again but what is cut down to common tasks (arclab.results.common_tasks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.files import Kind, read_object, write_atomically
from arclab.pages.compare_pictures import color_of
from arclab.pages.compare_scores import Value, share_value
from arclab.pages.compare_tasks import task_addresses, task_pages
from arclab.pages.paired_views import Standing, difference, is_sure, p_text, standings
from arclab.pages.templating import page
from arclab.results.common_tasks import OUTCOMES, TaskGroup, task_groups
from arclab.results.finished import method_of, open_results, require_result
from arclab.results.paired import compare_splits
from arclab.results.reading import Run
from arclab.results.scoring import Share

NAME = "scoreboard.html"
_SCORES = {"ARC/solved@1": "solved@1", "ARC/pass@2": "pass@2", "ARC/solved@2": "solved@2"}
_COSTS = {"timing/solve_s": "seconds", "programs/tokens": "tokens", "programs/run": "programs"}
_PARAMETERS = {"num_params": "parameters", "num_puzzle_params": "puzzle table"}
_BLOCK = 50  # tasks beside each other in the matrix
_UNKNOWN = Value("none")
_TEXT: dict[str, Kind] = {
    "n": int, "N": int, "tokens_per_s": float, "memory": str, "split": str, "step": int, "solver": str, "checkpoint": str,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One method of a group. values: column -> number. p: against the best, with what it rests on; stamps: its own."""

    label: str
    color: str
    method: str
    values: dict[str, Value]
    p: Value
    is_sure: bool
    stamps: tuple[str, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class MatrixCell:
    outcome: str
    says: str
    address: str


@dataclass(frozen=True, slots=True)
class Block:
    """Up to _BLOCK tasks, the most solved first. rows: of each method, in the order of the table."""

    first: int
    last: int
    rows: tuple[tuple[Row, tuple[MatrixCell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A group of results on the same tasks, the best first."""

    group: TaskGroup
    rows: tuple[Row, ...]
    standing: Standing | None
    blocks: tuple[Block, ...]
    num_pairs: int

    @property
    def stamps(self) -> list[str]:
        """Those of every result, which are said once."""
        return [stamp for stamp in self.rows[0].stamps if all(stamp in row.stamps for row in self.rows)]

    @property
    def scores(self) -> list[str]:
        """solved@2 equals pass@2 where every task has one test input."""
        most_tests = max(run.splits[0].most_tests for run in self.group.runs)
        return [name for name in _SCORES.values() if name != "solved@2" or most_tests > 1]

    @property
    def costs(self) -> list[str]:
        """Those that any row fills."""
        names = [*_COSTS.values(), *_PARAMETERS.values()]
        return [name for name in names if any(row.values[name] is not _UNKNOWN for row in self.rows)]

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> cells of the matrix, for its legend."""
        found = [cell.outcome for block in self.blocks for _, cells in block.rows for cell in cells]
        return {outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found}


@dataclass(frozen=True, slots=True)
class TextRow:
    """An evaluation of answers in words."""

    label: str
    solver: str
    memory: str
    split: str
    accuracy: Value
    tokens_per_s: str
    step: str


def write_scoreboard(paths: Sequence[Path], folder: Path) -> Path:
    """The path of the page. ConfigError: a path is no finished result, or no result was given."""
    grids, texts = _split_by_kind(paths)
    runs = open_results(grids, "RESULT") if grids else []
    groups = task_groups(runs)
    cut = {run.path: run for group in groups for run in group.runs}
    ordered = [cut[run.path] for run in runs]
    for place, text in task_pages(ordered, NAME).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / place, text)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NAME, render_scoreboard(groups, ordered, [_text_row(path) for path in texts]))
    return folder / NAME


def _split_by_kind(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Folders of results with grids, and those with answers in words; a run stands for what lies in its evaluation/."""
    grids, texts = dict[Path, Path](), dict[Path, Path]()
    for path in paths:
        inside = [each.parent for each in sorted(path.glob("evaluation/*/*metrics.json"))]
        for each in [path] if (path / "metrics.json").is_file() or not inside else inside:
            if (each / "text_metrics.json").is_file():
                texts.setdefault(each.resolve(), each)
                continue
            require_result(each, "RESULT")
            grids.setdefault(each.resolve(), each)
    if not grids and not texts:
        raise ConfigError("no result was given; give folders with metrics.json, or --jobs FILE.")
    return list(grids.values()), list(texts.values())


def render_scoreboard(groups: Sequence[TaskGroup], runs: Sequence[Run], texts: Sequence[TextRow]) -> str:
    """runs: those of all groups, in the order given, which decides their colours."""
    addresses = task_addresses(runs)
    boards = [_board(group, runs, addresses) for group in groups]
    return page("scoreboard.html.j2", boards=boards, texts=texts, outcomes=OUTCOMES, num_results=len(runs) + len(texts))


def _board(group: TaskGroup, runs: Sequence[Run], addresses: dict[tuple[str, str], str]) -> Board:
    ranked = sorted(
        group.runs, key=lambda run: [-_value(run.splits[0].shares[name]) for name in ("ARC/solved@2", "ARC/pass@2")]
    )
    num_pairs = len(ranked) * (len(ranked) - 1) // 2
    rows = tuple(_row(run, ranked[0], num_pairs, color_of(runs.index(run))) for run in ranked)
    standing = next(iter(standings(group.runs)), None)
    if standing is not None:
        standing = replace(standing, sentence=standing.sentence.replace(f" ({group.name} split)", ""))
    return Board(group, rows, standing, _blocks(group, ranked, rows, addresses), num_pairs)


def _value(share: Share) -> float:
    return share.value if share.total else -1.0


def _row(run: Run, best: Run, num_pairs: int, color: str) -> Row:
    (split,) = run.splits
    values = {text: share_value(split.shares[name]) if name in split.shares else _UNKNOWN for name, text in _SCORES.items()}
    for name, text in (_COSTS | _PARAMETERS).items():
        number = split.statistics.get(name, run.last(name))
        values[text] = _UNKNOWN if number is None else Value(_short(number, text), number)
    p, sure = Value("best"), False
    if run is not best:
        pair = compare_splits(best.label, best.splits[0], run.label, split)
        if pair.problem:
            p = Value("n/a", note=pair.problem.removeprefix("not comparable: "))
        else:
            test = pair.tests[0]
            adjusted, sure = min(1.0, test.p_value * num_pairs), is_sure(test, num_pairs)
            p = Value(
                p_text(adjusted), adjusted, f"{-difference(test):+d} tasks ({test.only_second} / {test.only_first} alone)"
            )
    return Row(
        run.label, color, method_of(run, split), values, p, sure, tuple(split.record.get("stamps", ())), str(run.path)
    )  # fmt: skip


def _short(number: float, unit: str) -> str:
    """Seconds below ten with a digit behind the point; large numbers in thousands or millions."""
    if unit == "seconds":
        return f"{number:.1f} s" if number < 10 else f"{number:,.0f} s"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{number:,.0f}"


def _blocks(
    group: TaskGroup, ranked: Sequence[Run], rows: Sequence[Row], addresses: dict[tuple[str, str], str]
) -> tuple[Block, ...]:
    outcomes = {(run.path, id_): group.outcome(run.splits[0], id_) for run in ranked for id_ in group.ids}

    def solved_by(id_: str) -> int:
        return sum(outcomes[run.path, id_] in ("first", "second") for run in ranked)

    ids = sorted(group.ids, key=lambda id_: -solved_by(id_))

    def cells(run: Run, part: Sequence[str]) -> tuple[MatrixCell, ...]:
        says = {id_: f"{run.label}, {id_}: {OUTCOMES[outcomes[run.path, id_]]}" for id_ in part}
        return tuple(MatrixCell(outcomes[run.path, id_], says[id_], addresses[group.name, id_]) for id_ in part)

    blocks = []
    for start in range(0, len(ids), _BLOCK):
        part = ids[start : start + _BLOCK]
        lines = tuple((row, cells(run, part)) for row, run in zip(rows, ranked, strict=True))
        blocks.append(Block(start + 1, start + len(part), lines))
    return tuple(blocks)


def _text_row(path: Path) -> TextRow:
    record = read_object(path / "text_metrics.json", _TEXT, remedy="run evaluate.py again")
    share = Share(record["n"], record["N"])
    return TextRow(
        label=f"{path.parent.parent.name if path.parent.name == 'evaluation' else path.parent.name}-{path.name}",
        solver=record["solver"],
        memory=record["memory"],
        split=record["split"],
        accuracy=share_value(share),
        tokens_per_s=f"{record['tokens_per_s']:,.0f}",
        step=f"{record['step']:,}",
    )
