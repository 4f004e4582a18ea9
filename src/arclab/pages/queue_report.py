"""One HTML page for a whole job file: a heading for each hypothesis, its criterion, its runs with what they reached, curves.

    python -m arclab.launch report jobs.txt        # calls this module in a process of its own, with the request on stdin
    pages = write_queue_report(request, Path("runs/report"))      # index.html, and a comparison page for each section

The request has the sections and the state of every run as the launcher knows them (see arclab.launch.queue.commands);
everything measured is read from the run folders. A number is shown with n/N, a 95 % interval, where it was taken, and the
stamps that belong to it. PASS and FAIL are those of the runs (criterion.json); whether a hypothesis holds is for the reader to
say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from arclab.config.compose import run_main
from arclab.files import write_atomically
from arclab.pages.analyse import analyse
from arclab.pages.compare_pictures import color_of, overlay_svgs
from arclab.pages.report import MAX_POINTS, interval_svg
from arclab.pages.templating import page
from arclab.results.reading import Run, own_exact, read_runs
from arclab.results.scoring import Share
from arclab.runs.statewords import DAMAGED, ENDED_BADLY

_CURVES = ("all.exact_accuracy", "train/exact_accuracy", "train/lm_loss", "grad/encoder_norm", "train/encoder_cross_sample_var")
_FINAL_SPLITS = ("evaluation", "validation", "train")


@dataclass(frozen=True, slots=True)
class Score:
    """A share as the page shows it; source: where and when it was measured."""

    metric: str
    percent: str
    fraction: str
    interval: str
    bar: Markup
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """One run. color: of its curves, "" if it has no folder. links: (text, address relative to the page)."""

    name: str
    color: str
    state: str
    result: str
    steps: str
    verdict: str
    parameters: str
    scores: tuple[Score, ...]
    stamps: tuple[str, ...]
    message: str
    command: str
    links: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SectionView:
    """One hypothesis. comparison: the address of its page with paired tests and grids, "" if nothing has run."""

    key: str
    title: str
    text: str
    criterion: str
    rows: tuple[Row, ...]
    curves: tuple[Markup, ...]
    comparison: str

    @property
    def tally(self) -> str:
        """2 PASS, 1 FAIL, 3 NEW: results where there are some, else states."""
        words = [row.result or row.state for row in self.rows]
        return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def write_queue_report(request: Mapping[str, Any], folder: Path) -> list[Path]:
    """index.html first. A run of which a file is damaged is a row that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    pages: list[Path] = []
    sections = [_section(number, entry, folder, pages) for number, entry in enumerate(request["sections"], start=1)]
    html = page(
        "queue.html.j2", file=request["file"], made=time.strftime("%Y-%m-%d %H:%M:%S"), sections=sections,
        max_points=MAX_POINTS, num_runs=sum(len(section.rows) for section in sections),
    )  # fmt: skip
    write_atomically(folder / "index.html", html)
    return [folder / "index.html", *pages]


def _section(number: int, entry: Mapping[str, Any], folder: Path, pages: list[Path]) -> SectionView:
    key = f"{number:02d}-{re.sub(r'[^a-z0-9]+', '-', entry['title'].split(':')[0].lower()).strip('-') or 'runs'}"
    damage = {Path(run["path"]): _damage(run) for run in entry["runs"] if (Path(run["path"]) / "config.yaml").is_file()}
    started = [path for path, sentence in damage.items() if not sentence]
    runs = read_runs(started)
    by_path = dict(zip(started, runs, strict=True))
    comparison = ""
    if any(run.rows or run.splits for run in runs):
        pages += analyse(started, folder / key)
        comparison = f"{key}/compare.html"
    # Colours are numbered over the runs that have a folder, as in the section's comparison page.
    numbers = {path: i for i, path in enumerate(started)}
    rows = tuple(
        _row(_with_damage(run, damage), by_path.get(Path(run["path"])), numbers.get(Path(run["path"])), folder)
        for run in entry["runs"]
    )
    return SectionView(
        key,
        entry["title"] or "Runs without a hypothesis",
        entry["text"],
        entry["criterion"],
        rows,
        tuple(overlay_svgs(runs, _CURVES)),
        comparison,
    )


def _damage(entry: Mapping[str, Any]) -> str:
    """Why a file of the run cannot be read, which does not keep the others from the page; "" if all can."""
    if entry["state"] == DAMAGED:
        return str(entry["message"])
    try:
        read_runs([Path(entry["path"])])
    except ValueError as error:
        return str(error)
    return ""


def _with_damage(entry: Mapping[str, Any], damage: Mapping[Path, str]) -> Mapping[str, Any]:
    sentence = damage.get(Path(entry["path"]))
    return {**entry, "state": DAMAGED, "message": sentence} if sentence else entry


def _row(entry: Mapping[str, Any], run: Run | None, number: int | None, folder: Path) -> Row:
    total = entry["total_steps"]
    steps = f"{entry['step']:,} of {total:,}" if total is not None else f"{entry['step']:,}" if entry["step"] else "\N{EN DASH}"
    return Row(
        name=entry["name"], color=color_of(number) if number is not None else "", state=entry["state"],
        result=run.verdict if run is not None and run.criterion is not None else "", steps=steps, verdict=entry["verdict"],
        parameters=entry["parameters"], scores=tuple(_scores(run)) if run is not None else (),
        stamps=tuple(run.stamps) if run is not None else (), message=_message(entry), command=entry["command"],
        links=tuple(_links(run, folder)) if run is not None else (),
    )  # fmt: skip


def _message(entry: Mapping[str, Any]) -> str:
    """What went wrong, for a run that did not end well."""
    return str(entry["message"]) if entry["state"] in ENDED_BADLY else ""


def _scores(run: Run) -> list[Score]:
    """The criterion's number, else the newest evaluation during training; then what evaluate.py found."""
    scores = [score for score in (_criterion_score(run) or _training_score(run),) if score is not None]
    final = run.split(*_FINAL_SPLITS)
    if final is not None and final.shares["ARC/pass@2"].total:
        share = final.shares["ARC/pass@2"]
        step = final.record.get("step")
        source = f"{final.split} split by evaluate.py" + ("" if step is None else f", step {step:,}")
        scores.append(_score("ARC/pass@2", share, share, "tasks", source))
    return scores


def _criterion_score(run: Run) -> Score | None:
    found = run.criterion
    if found is None or not found["N"]:
        return None
    independent = Share(found["value"] * found["num_independent"], found["num_independent"])
    of_training = found["metric"].startswith("train/")
    where = "training rows that halted since the log before" if of_training else f"{run.settings.get('evaluation.split')} split"
    source = f"{where}, step {found['step']:,}; wanted at least {100 * found['threshold']:g} %"
    return _score(found["metric"], Share(found["n"], found["N"]), independent, found["counted"], source)


def _training_score(run: Run) -> Score | None:
    own, exact = run.own_scores, own_exact(run)
    if own is None or exact is None:
        return None
    independent = Share(exact.copies.value * exact.num_tasks, exact.num_tasks)
    return _score(
        "all.exact_accuracy",
        exact.copies,
        independent,
        "augmented test inputs",
        f"{own[1]} split, step {own[0]:,}, during training",
    )


def _score(metric: str, counted: Share, independent: Share, unit: str, source: str) -> Score:
    """The interval is that of `independent`: copies of one task are no independent trials."""
    low, high = independent.interval
    return Score(
        metric,
        f"{100 * counted.value:.1f} %",
        f"{round(counted.n, 2):g}/{counted.total} {unit}",
        f"[{100 * low:.1f}, {100 * high:.1f}] %",
        interval_svg(independent),
        source,
    )


def _links(run: Run, folder: Path) -> list[tuple[str, str]]:
    """Files of the run that exist, relative to the page."""
    wanted = [
        ("settings", run.path / "config.yaml"),
        ("metrics", run.path / "metrics.jsonl"),
        ("log", run.path / "console.log"),
    ]
    results = run.path.parent if run.is_evaluation else run.path / "evaluation"
    wanted += [(f"grids, {split.name}", results / split.name / "report.html") for split in run.splits]
    return [(text, quote(os.path.relpath(path, folder))) for text, path in wanted if path.is_file()]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.pages.queue_report", description="The page of a job file; request on stdin."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")
    arguments = parser.parse_args(argv)
    write_queue_report(json.load(sys.stdin), arguments.output)


if __name__ == "__main__":
    run_main(main)
