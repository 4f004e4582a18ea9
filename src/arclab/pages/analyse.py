"""From run folders to a comparison page, and one tracking sheet for each run that trained.

    python -m arclab.pages RUN [RUN ...] [--output DIR]
    python -m arclab.pages scoreboard RESULT [RESULT ...] [--output DIR]        another page: see scoreboard.py
    python -m arclab.pages transcripts RUN                                      conversations of a run: see transcripts.py
    python -m arclab.pages tree FOLDER [--output DIR]                           a page of a method: see METHOD_PAGES

Writes DIR/compare.html, DIR/tasks/<split>/<task>.html (every candidate of every run) and DIR/<experiment>-<name>.md; DIR is
<first run>/analysis unless given (of a release runs/released/NAME/analysis). The first run is the
baseline of the others. A folder of results alone (of a solver without a checkpoint, say) is compared as well. Runs that have
not finished are reported with what there is; a folder that is no run is refused.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.evaluate_schema import results_folder
from arclab.files import write_atomically
from arclab.pages.compare import baseline_of, render_comparison
from arclab.pages.compare_tasks import task_pages
from arclab.pages.scoreboard import write_scoreboard
from arclab.pages.tracking import tracking_sheet
from arclab.pages.transcripts import write_transcript_page
from arclab.results.reading import Run, read_runs
from arclab.runs.console import setup_logging

log = logging.getLogger(__name__)
METHOD_PAGES = {  # word -> the module whose main() takes the other arguments
    "tree": "arclab.methods.tree_search.tree_page",
    "edits": "arclab.methods.program_edit.table_page",
    "curriculum": "arclab.methods.program_edit.curriculum_page",
    "test_time_training": "arclab.methods.seal.task_page",
}


def main(argv: Sequence[str]) -> int | None:
    if argv and argv[0] == "scoreboard":
        return scoreboard_command(argv[1:])
    if argv and argv[0] == "transcripts":
        return transcripts_command(argv[1:])
    if argv and argv[0] in METHOD_PAGES:
        return importlib.import_module(METHOD_PAGES[argv[0]]).main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m arclab.pages", description="Compare run folders.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; the first one is the baseline")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: <first RUN>/analysis)")
    arguments = parser.parse_args(argv)
    setup_logging()
    for path in analyse(arguments.runs, arguments.output or results_folder(arguments.runs[0], "runs") / "analysis"):
        log.info("wrote %s", path)
    return None


def scoreboard_command(argv: Sequence[str]) -> int:
    """The page of arclab.pages.scoreboard. The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m arclab.pages scoreboard", description="All methods on the same tasks in one page."
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="folder with metrics.json, or a run")
    parser.add_argument("--jobs", metavar="FILE", help="the evaluations of this job file that are DONE, instead of RESULT")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: runs/scoreboard)")
    arguments = parser.parse_args(argv)
    if bool(arguments.results) == (arguments.jobs is not None):
        raise ConfigError("a scoreboard is of results or of a job file; give RESULT ... or --jobs FILE.")
    output = arguments.output or Path("runs") / "scoreboard"
    if arguments.jobs is not None:  # the launcher reads job files, and calls this page again
        command = [sys.executable, "-m", "arclab.launch", "scoreboard", arguments.jobs, "--output", str(output)]
        return subprocess.run(command).returncode
    setup_logging()
    log.info("wrote %s", write_scoreboard(arguments.results, output))
    return 0


def transcripts_command(argv: Sequence[str]) -> None:
    """The page of arclab.pages.transcripts."""
    parser = argparse.ArgumentParser(
        prog="python -m arclab.pages transcripts", description="The conversations of a run in several turns as a page."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    given = parser.parse_args(argv)
    setup_logging()
    log.info("wrote %s", write_transcript_page(given.run))


def analyse(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write the pages and the sheets into `folder`; returns the paths of the page and of the sheets. ValueError: a path is no
    run."""
    runs = read_runs(paths)
    for place, text in task_pages(runs).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / place, text)
    pages = {folder / "compare.html": render_comparison(runs)}
    trained = [run for run in runs if not run.is_evaluation]
    pages |= {folder / name: tracking_sheet(run, baseline_of(run, runs)) for run, name in _sheet_names(trained)}
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        write_atomically(path, text)
    return list(pages)


def _sheet_names(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """<experiment>-<name>.md, with a number where two runs share that."""
    named: list[tuple[Run, str]] = []
    for run in runs:
        stem = re.sub(
            r"[^\w.-]", "_", f"{run.settings.get('experiment_name', 'run')}-{run.settings.get('name', run.path.name)}"
        )
        number = sum(re.fullmatch(rf"{re.escape(stem)}(-\d+)?\.md", name) is not None for _, name in named)
        named.append((run, f"{stem}-{number + 1}.md" if number else f"{stem}.md"))
    return named
