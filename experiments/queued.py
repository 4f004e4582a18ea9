"""The runs of an experiment as a jobs file, which the launcher's own queue works off.

    file = JobsFile(Path("runs/control/jobs-1a2b3c4d.txt"), "Control table", "every encoder is done.")
    for ended in run_lines(file, {"a": ["experiment=toy_control", "name=a"]}, "local", places=2):
        print(ended.name, ended.folder, ended.fault)

The file is valid for python -m arclab.launch check | status | report | cancel. If this process is killed, its runs go on, and
the same call waits for them again. Runs that are DONE are not run again; failed and cancelled ones continue from their last
checkpoint. A line that the plan refuses (the folder holds another run, for example) stays in the file as a comment, and the
others run. It makes no table: control.py, phase1.py and toy_programs.py do.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arclab.config.compose import compose
from arclab.entries import ENTRIES
from arclab.files import write_atomically
from arclab.launch.queue.jobsfile import JobsError, job_line
from arclab.launch.queue.plan import PlannedRun, read_plan
from arclab.launch.queue.progress import RunProgress
from arclab.launch.queue.submit import is_living, retry, submit
from arclab.launch.queue.wait import wait_until_ended
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import Kind, read_job
from arclab.runs.signals import interrupted_status
from arclab.runs.statewords import LOST
from benchmarks.arguments import at_least_1

Lines = Mapping[str, Sequence[str]]
_FIRST_RUN_LINE = 3  # after the title and the criterion
_SAY_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class JobsFile:
    """Where it is written, the section that its lines stand in, and the script that all of them start."""

    path: Path
    title: str
    criterion: str
    script: str = ENTRIES["pretrain_encoder"].script


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that does not go on. folder: None if its line was refused. fault: why it is not DONE; "" if it is."""

    name: str
    folder: Path | None
    fault: str


def add_queue_arguments(parser: argparse.ArgumentParser, cores: str = "--set trainer.num_threads=N") -> None:
    """--cluster and --jobs, as python -m arclab.launch submit has --cluster and --places. cores: the option of the experiment
    that gives a run its share of the cores."""
    where = "where the runs go: processes here (the default), SLURM, or this process"
    parser.add_argument("--cluster", choices=("local", "slurm", "debug"), default="local", help=where)
    at_a_time = f"runs at a time with --cluster local; give each its share of the cores with {cores}"
    parser.add_argument("--jobs", type=at_least_1, default=1, help=at_a_time)


def jobs_path(folder: Path, names: Iterable[str]) -> Path:
    """The same file for the same runs; calls with other runs in the folder have another one."""
    return folder / f"jobs-{zlib.crc32(' '.join(sorted(names)).encode()):08x}.txt"


def run_lines(
    file: JobsFile, lines: Lines, cluster: Kind, *, places: int = 1, todo: Collection[str] | None = None
) -> Iterator[Ended]:
    """Write the jobs file, submit the runs of `todo` (all of them if None), and hand each over when it has ended.

    lines: name -> overrides; of two overrides of a key the last one counts. places: runs at a time with cluster="local".
    """
    if not lines:
        return
    runs, refused = plan_lines(file, lines)
    wanted = {name: run for name, run in runs.items() if todo is None or name in todo}
    yield from (Ended(name, None, fault) for name, fault in refused.items() if todo is None or name in todo)
    if not wanted:
        return
    print(f"{file.path} has the runs. They go on if this command is killed; the same command then waits for them. Beside it:\n"
          f"    python -m arclab.launch status {file.path}\n"
          f"    python -m arclab.launch cancel {file.path} '*'", flush=True)  # fmt: skip
    planned = list(wanted.values())
    retry(planned, cluster, places=places)
    submit(planned, cluster, places=places)
    names = {run.folder.path: name for name, run in wanted.items()}
    try:
        for run, progress in wait_until_ended(planned, progress_printer()):
            yield Ended(names[run.folder.path], run.folder.path, fault_of(progress))
    except KeyboardInterrupt:
        print("interrupted; the runs go on, and the same command waits for them", flush=True)
        raise SystemExit(interrupted_status(signal.SIGINT)) from None


def plan_lines(file: JobsFile, lines: Lines) -> tuple[dict[str, PlannedRun], dict[str, str]]:
    """Write the file and read it: (name -> run, name -> why its line was refused)."""
    names = dict(enumerate(lines, start=_FIRST_RUN_LINE))
    refused: dict[str, str] = {}
    file.path.parent.mkdir(parents=True, exist_ok=True)
    while len(refused) < len(lines):
        write_atomically(file.path, jobs_text(file, lines, refused))
        try:
            plan = read_plan(file.path)
        except JobsError as error:
            for line in {problem.line: None for problem in error.problems}:
                refused[names[line]] = " ".join(problem.message for problem in error.problems if problem.line == line)
            continue
        return {names[run.job.line]: run for run in plan.runs}, refused
    write_atomically(file.path, jobs_text(file, lines, refused))
    return {}, refused


def jobs_text(file: JobsFile, lines: Lines, refused: Mapping[str, str]) -> str:
    """A line for each run, in their order; a refused one says why instead."""
    runs = [
        f"# {name} is left out: {' '.join(refused[name].split())}" if name in refused else job_line(file.script, overrides)
        for name, overrides in lines.items()
    ]
    return "\n".join([f"## {file.title}", f"## Criterion: {file.criterion}", *runs, ""])


def fault_of(progress: RunProgress) -> str:
    """Why a run that has ended is not DONE. The message of a lost one is about something earlier."""
    if progress.state == State.done.value:
        return ""
    if progress.state == LOST:
        return f"{LOST}: its job was killed and could not say why; the same command continues it"
    return f"{progress.state}: {progress.message}" if progress.message else progress.state


def progress_printer() -> Callable[[Sequence[tuple[PlannedRun, RunProgress]]], None]:
    """A function that prints a line when the state of a run changes, and once a minute while only steps do."""
    last_states: list[str] = []
    last_s = 0.0

    def show(runs: Sequence[tuple[PlannedRun, RunProgress]]) -> None:
        nonlocal last_states, last_s
        states = [progress.state for _, progress in runs]
        if states != last_states or time.monotonic() - last_s >= _SAY_EVERY_S:
            last_states, last_s = states, time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} {progress_text([progress for _, progress in runs])}", flush=True)

    return show


def progress_text(runs: Sequence[RunProgress]) -> str:
    """Runs by state, with the steps of those that train: 1 DONE, 3 QUEUED, 2 RUNNING (step 20/600, 30/600)."""
    parts = []
    for state in sorted({run.state for run in runs}):
        members = [run for run in runs if run.state == state]
        steps = ", ".join(f"{run.step}/{'?' if run.total_steps is None else run.total_steps}" for run in members)
        parts.append(f"{len(members)} {state}" + (f" (step {steps})" if state == State.running.value else ""))
    return ", ".join(parts)


def measure_speeds(file: JobsFile, lines: Lines, cluster: Kind, places: int) -> Iterator[tuple[str, float | str]]:
    """(name, optimiser steps per second) of each run, or (name, why it has none), from short runs that are then removed.

    They run beside each other as the experiment's own runs will. The last logged row counts, so set trainer.log_every to a
    part of trainer.steps: the first steps also compile.
    """
    for ended in run_lines(file, lines, cluster, places=places):
        if ended.folder is None or ended.fault:
            yield ended.name, ended.fault
        else:
            num_rows = compose("pretrain_encoder", lines[ended.name]).trainer.num_rows
            yield ended.name, last_samples_per_s(ended.folder) / num_rows
        if ended.folder is not None:
            remove_run(ended.folder)


def remove_run(folder: Path) -> None:
    """Remove a run that has ended. Its job writes into the folder for a moment longer."""
    job = read_job(RunDir(folder))
    while job is not None and job.cluster != "debug" and is_living(job):
        time.sleep(1.0)
    shutil.rmtree(folder)


def last_samples_per_s(folder: Path) -> float:
    """Training speed of a run, by its last row that has one."""
    rows = read_rows(RunDir(folder).metrics)
    return [row["timing/train_samples_per_s"] for row in rows if "timing/train_samples_per_s" in row][-1]
