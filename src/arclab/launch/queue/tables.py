"""Tables on the console for python -m arclab.launch: what is planned, what differs, what was submitted, how far it is.

Everything here turns records into rich tables and writes them to sys.stdout; nothing is computed. A terminal narrower than a
table folds its cells; a pipe gets the full width and no colour.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from arclab.config.launch_schema import LaunchConfig
from arclab.launch.queue.jobsfile import Section
from arclab.launch.queue.plan import Column, JobsPlan, PlannedRun, by_section
from arclab.launch.queue.progress import RunProgress
from arclab.launch.sizes import Counts

_PIPE_WIDTH = 400
_COLORS = {
    "DONE": "green",
    "PASS": "green",
    "OK": "green",
    "HEALTHY": "green",
    "RUNNING": "cyan",
    "submitted": "cyan",
    "FAIL": "red",
    "FAILED": "red",
    "LOST": "red",
    "DAMAGED": "red",
    "DAMAGED:": "red",
    "STOPPED": "red",
    "PREEMPTED": "yellow",
    "REQUEUED": "yellow",
    "WARN": "yellow",
    "waits": "yellow",
}


def console() -> Console:
    """A console on today's sys.stdout."""
    is_terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if is_terminal else _PIPE_WIDTH, highlight=False, soft_wrap=not is_terminal)


def say(text: str) -> None:
    """One line of plain text."""
    console().print(Text(text))


def show(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table; the columns named in `right` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(text) for text in row))
    console().print(table)


def _cell(text: str) -> Text:
    return Text(text, style=_COLORS.get(text.split(" ")[0], ""))


def section_heading(section: Section) -> None:
    """Title in bold, then the criterion."""
    out = console()
    out.print()
    out.print(Text(section.title or "Runs without a hypothesis", style="bold"))
    if section.criterion:
        out.print(Text(f"criterion: {section.criterion}", style="dim"))


def show_plan(plan: JobsPlan, counts: Sequence[Counts | None], needs: Sequence[str]) -> None:
    """Every run below its section: resources, parameters, steps, what it will take, folder. counts, needs: of every
    run, see arclab.launch.sizes and arclab.launch.queue.estimates."""
    parameters = dict(zip((run.folder.path for run in plan.runs), map(parameters_text, counts), strict=True))
    takes = dict(zip((run.folder.path for run in plan.runs), needs, strict=True))
    for section, runs in by_section(plan.runs):
        section_heading(section)
        columns = ("run", "line", "resources", "parameters", "steps", "takes", "run folder")
        rows = [_plan_row(run, parameters[run.folder.path], takes[run.folder.path]) for run in runs]
        show(columns, rows, right=("line", "parameters", "steps"))


def parameters_text(counts: Counts | None) -> str:
    """Parameters of the model, and of the puzzle table beside them; ? if they are not known, nothing if there is no model."""
    if not counts:
        return "" if counts is None else "?"
    table = counts.get("puzzle_table", 0)
    return f"{counts['model']:,}" + (f" + {table:,} table" if table else "")


def _plan_row(run: PlannedRun, parameters: str, takes: str) -> tuple[str, ...]:
    num_steps = run.config.num_steps
    waits = f"  (after {', '.join(map(str, run.makers))})" if run.makers else ""
    return (
        run.name, str(run.job.line), resources(run.config.launch), parameters,
        "" if num_steps is None else f"{num_steps:,}", takes, f"{run.folder.path}{waits}",
    )  # fmt: skip


def resources(launch: LaunchConfig) -> str:
    """What launch.* asks for, in words: 2 nodes x 4 GPUs, 24 h, partition gpu."""
    ranks = f"{launch.gpus} GPU" if launch.gpus else f"{launch.cpus} CPU" if launch.cpus else "1 process"
    nodes = f"{launch.nodes} nodes x " if launch.nodes > 1 else ""
    limit = f"{launch.timeout_min / 60:g} h" if launch.timeout_min % 60 == 0 else f"{launch.timeout_min} min"
    partition = f", {launch.partition}" if launch.partition else ""
    return f"{nodes}{ranks}, {limit}{partition}"


def show_matrix(runs: Sequence[PlannedRun], columns: Sequence[Column]) -> None:
    """The ablation matrix: a row a run, a column a key; a dot where a run has the commonest value, which the head names."""
    out = console()
    out.print()
    out.print(Text("What differs", style="bold"))
    common = [max(dict.fromkeys(column.values), key=column.values.count) for column in columns]
    head = [".\n".join(c.key.rsplit(".", 1)) + f"\n= {usual or '-'}" for c, usual in zip(columns, common, strict=True)]
    rows = [
        [label, *(_difference(c.values[i], usual) for c, usual in zip(columns, common, strict=True))]
        for i, label in enumerate(labels(runs))
    ]
    show(("run", *head), rows)
    for column in columns:
        if column.decided:
            out.print(Text(f"with {column.key}: {', '.join(column.decided)}", style="dim"))


def _difference(value: str, usual: str) -> str:
    """- for a key that the run does not have."""
    return "." if value == usual else value or "-"


def labels(runs: Sequence[PlannedRun]) -> list[str]:
    """Names, with the experiment in front where two runs share one."""
    names = [run.name for run in runs]
    return [r.full_name if names.count(r.name) > 1 else r.name for r in runs]


def show_progress(progress: Sequence[tuple[str, RunProgress]]) -> None:
    """A row a run, and below the table the last words of runs that went wrong."""
    columns = ("run", "state", "job", "step", "steps/s", "ETA", "health", "best", "result")
    show(columns, [_progress_row(label, p) for label, p in progress], right=("step", "steps/s", "ETA"))
    for label, p in progress:
        if p.state in ("FAILED", "STOPPED", "DAMAGED") and p.message:
            say(f"\n{label}: {p.message}")


def _progress_row(label: str, p: RunProgress) -> tuple[str, ...]:
    total = "?" if p.total_steps is None else f"{p.total_steps:,}"
    step = f"{p.step:,}/{total}" if p.step or p.state != "NEW" else ""
    rate = f"{p.steps_per_s:.2f}" if p.steps_per_s and p.state == "RUNNING" else ""
    return label, p.state, p.job, step, rate, duration(p.eta_s), p.verdict, str(p.best or ""), p.result


def duration(seconds: float | None) -> str:
    """2 d 3 h, 3 h 12 min, 4 min 5 s; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    for unit, size, smaller, small_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {smaller}"
    return f"{whole} s"


def clear() -> None:
    """Empty a terminal's screen before the next table; nothing in a pipe."""
    console().clear()
