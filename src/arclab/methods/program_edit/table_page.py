"""Searches with edits and their baselines in one table, and what each reached by tokens and by the length of thinking.

    python -m arclab.pages edits RESULT [RESULT ...] [--output FILE]

RESULT: folders of evaluate.py (solver=program_edit with any solver.search, prompt.report=false, and program_sampling), or
folders of stage=evaluate, all of the same tasks. Writes <first RESULT>/edits.html. Which of them is better, with a test of it,
is said by `python -m arclab.pages scoreboard`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.files import write_atomically
from arclab.methods.program_edit.editing import read_records
from arclab.methods.program_edit.measures import DRAWN, Drawn, drawn_edit, read_drawn, share_rows
from arclab.methods.program_edit.results import pictures_of
from arclab.methods.program_edit.sample import EDITS
from arclab.metrics.logger import read_rows
from arclab.pages.edit_pictures import share_points
from arclab.pages.templating import page
from arclab.results.finished import open_results
from arclab.results.reading import Run
from arclab.results.scoring import Share
from arclab.results.writing import Exhibits, ResultPicture, ResultTable
from arclab.runs.console import setup_logging
from arclab.runs.folder import RunDir
from arclab.runs.stages import MANIFEST

log = logging.getLogger(__name__)
PAGE = "edits.html"
_SEARCHES, _STAGES = "tasks right in two attempts", "start programs put right"


@dataclass(frozen=True, slots=True)
class Arm:
    """One result. of: what score counts. drawn: empty where the method did not keep it. statistics: registered metrics."""

    label: str
    of: str
    score: Share
    num_tasks: int
    drawn: list[Drawn]
    statistics: Mapping[str, Any]
    stamps: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m arclab.pages edits", description="Searches with edits in one table.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="folder of evaluate.py or of stage=evaluate")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"where to write (default: <first RESULT>/{PAGE})")
    arguments = parser.parse_args(argv)
    setup_logging()
    output = arguments.output or arguments.results[0] / PAGE
    write_atomically(output, render_table(read_arms(arguments.results)))
    log.info("wrote %s", output)
    return 0


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """ConfigError: a path is no finished result, results of both kinds, or of different tasks."""
    stages = [path for path in paths if (path / MANIFEST).is_file() and (path / EDITS).is_file()]
    others = [path for path in paths if path not in stages]
    if stages and others:
        raise ConfigError(
            f"{stages[0]} is of stage=evaluate and {others[0]} of evaluate.py, which do not score the same; give one kind."
        )
    if not stages:
        return _searches(others)
    arms = [_stage(path) for path in stages]
    for path, arm in zip(stages, arms, strict=True):
        if arm.score.total != arms[0].score.total or {e.task for e in arm.drawn} != {e.task for e in arms[0].drawn}:
            raise ConfigError(f"{stages[0]} and {path} edited different start programs; give results of the same ones.")
    return arms


def _searches(paths: Sequence[Path]) -> list[Arm]:
    runs = open_results(paths, "RESULT")
    first = runs[0]
    for run in runs[1:]:
        if run.splits[0].record["tasks_digest"] != first.splits[0].record["tasks_digest"]:
            raise ConfigError(f"{first.path} and {run.path} scored different tasks; give results of the same tasks.")
    return [
        Arm(
            _named(run, runs), _SEARCHES, run.splits[0].shares["ARC/pass@2"], len(run.splits[0].task_ids),
            read_drawn(run.path / DRAWN) if (run.path / DRAWN).is_file() else [], run.splits[0].statistics,
            tuple(run.splits[0].record.get("stamps", ())),
        )
        for run in runs
    ]  # fmt: skip


def _named(run: Run, runs: Sequence[Run]) -> str:
    """By its kind of search, and by its label where others are of the same kind."""
    kinds = [_kind(each.splits[0].record) for each in runs]
    kind = _kind(run.splits[0].record)
    return kind if kinds.count(kind) == 1 else f"{kind}, {run.label}"


def _kind(record: Mapping[str, Any]) -> str:
    kind = str(record.get("search", record.get("solver")))
    return kind if record.get("report", True) else f"{kind}, no report"


def _stage(path: Path) -> Arm:
    rows = read_rows(RunDir(path).metrics)
    if not rows:
        raise ConfigError(f"{path} has no metrics.jsonl, or an empty one; run stage=evaluate again.")
    drawn, statistics = [drawn_edit(record) for record in read_records(path / EDITS)], rows[-1]
    num_starts = int(statistics["edits/starts"])
    score = Share(round(statistics["edits/solved_share"] * num_starts), num_starts)
    num_tasks = int(statistics.get("edits/tasks", len({each.task for each in drawn})))
    return Arm(str(path.parent), _STAGES, score, num_tasks, drawn, statistics, ())


def render_table(arms: Sequence[Arm]) -> str:
    drawn = {arm.label: arm.drawn for arm in arms if arm.drawn}
    pictures = pictures_of(drawn, {arm.label: arm.num_tasks for arm in arms})
    points = {arm.label: [(_thinking(arm), arm.score)] for arm in arms if arm.drawn}
    if points:
        note = f"Each result is a point: {arms[0].of}, with 95 % intervals, by the mean length of thinking of its replies."
        pictures.append(ResultPicture("Score by thinking", share_points(points, "mean tokens of thinking"), note))
    stamps = list(dict.fromkeys(stamp for arm in arms for stamp in arm.stamps))
    facts = {"results": str(len(arms)), "tasks": str(arms[0].num_tasks)}
    exhibits = Exhibits((_table(arms),), tuple(pictures))
    return page(
        "edit_table.html.j2", title=("Program edits", arms[0].of.capitalize()), facts=facts, exhibits=exhibits, stamps=stamps
    )


def _thinking(arm: Arm) -> float:
    return sum(each.thinking_tokens for each in arm.drawn) / len(arm.drawn)


def _table(arms: Sequence[Arm]) -> ResultTable:
    columns = (
        "result", "right", "share", "95 % interval", "any program right", "programs a task", "tokens a task",
        "right per 1,000 tokens", "mean gain", "gain per 1,000 tokens", "cells^10 of best edits",
    )  # fmt: skip
    note = (
        f"Right: {arms[0].of}. Any program right: tasks with a program that answers every test input right, whatever was "
        "submitted. Gains are of edits. Compare results at equal tokens."
    )
    return ResultTable("Results", columns, tuple(_row(arm) for arm in arms), note)


def _row(arm: Arm) -> tuple[str, ...]:
    (shown,) = share_rows({arm.label: arm.score})
    found, count = arm.statistics, arm.statistics.get("programs/count", arm.statistics.get("edits/count"))
    tokens = found.get("programs/tokens")
    if tokens is None and arm.drawn and all(each.tokens is not None for each in arm.drawn):
        tokens = float(sum(each.tokens or 0 for each in arm.drawn))

    def text(name: str, form: str) -> str:
        return form.format(found[name]) if found.get(name) is not None else ""

    return (
        *shown, text("edits/coverage", "{:.1%}").replace("%", "\N{NO-BREAK SPACE}%"),
        "" if count is None else f"{count / arm.num_tasks:.1f}",
        "not told" if tokens is None else f"{tokens / arm.num_tasks:,.0f}",
        f"{1000 * arm.score.n / tokens:.4f}" if tokens else "", text("edits/mean_delta", "{:+.4f}"),
        text("edits/value_per_1000_tokens", "{:+.4f}"), text("edits/steep_cell_share", "{:.3f}"),
    )  # fmt: skip
