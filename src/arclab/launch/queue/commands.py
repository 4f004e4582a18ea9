"""What the subcommands of python -m arclab.launch do: read the plan, act, write a table. See __main__.py for their options."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from arclab.config.compose import ConfigError
from arclab.entries import ENTRIES, load
from arclab.launch import doctor
from arclab.launch.queue import simulate
from arclab.launch.queue.estimates import estimates, problems_of
from arclab.launch.queue.plan import JobsPlan, PlannedRun, ablation_columns, by_entry, by_section, read_plan
from arclab.launch.queue.progress import OPEN_STATES, RunProgress, living_jobs, read_progress
from arclab.launch.queue.simulate import Work, read_rates
from arclab.launch.queue.starting import job_logs
from arclab.launch.queue.submit import Action, cancel, retry, submit
from arclab.launch.queue.tables import (
    clear,
    duration,
    labels,
    parameters_text,
    say,
    section_heading,
    show,
    show_matrix,
    show_plan,
    show_progress,
)
from arclab.launch.sizes import sizes_of
from arclab.runs.folder import State
from arclab.runs.statewords import NEW

_FOLLOW_S = 0.5


def check_command(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    plan = read_plan(arguments.file, *arguments.names)
    seconds = time.perf_counter() - start
    sizes = sizes_of([run.config for run in plan.runs])
    counted_s = time.perf_counter() - start - seconds
    found = estimates(plan.runs, sizes.counts)
    show_plan(plan, sizes.counts, [estimate.text for estimate in found])
    for runs in by_entry(plan.runs):
        columns = ablation_columns(runs, fold=not arguments.all_keys)
        if columns:
            show_matrix(runs, columns)
    for note in plan.notes:
        say(f"note: {note.at(plan.path)}")
    for note in sizes.notes:
        say(f"note: {note}")
    for sentence in problems_of(plan.runs, found):
        say(f"note: {sentence}")
    damaged = [f"{run.name}: {run.damage}" for run in plan.runs if run.damage]
    for sentence in damaged:
        say(f"damaged: {sentence}")
    say(
        f"\n{len(plan.runs)} of the {plan.num_runs} runs of {plan.path} composed and typed in {seconds:.2f} s, their models "
        f"counted in {counted_s:.2f} s; nothing was started."
    )
    return 2 if damaged else 0


def plan_command(arguments: argparse.Namespace) -> int:
    """For each line that can be divided: time, GPU hours, speed-up and bottleneck on 1, 2, 4, ... nodes."""
    rates = read_rates(arguments.rates)
    plan = read_plan(arguments.file, *arguments.names)
    say(
        f"Rates of {rates.source}: {len(rates.starts_s)} shards, {rates.programs_per_s:.3g} programs/s and "
        f"{rates.tokens_per_s:.3g} tokens/s each, {fmean(rates.starts_s):.3g} s to start, {rates.merge_s:.3g} s to merge, "
        f"{rates.around_s:.3g} s around the jobs."
    )
    for run in plan.runs:
        work = ENTRIES[run.job.entry].work
        if run.config.launch.shard is not None:
            continue
        if work is None:
            say(f"\n{run.full_name}: no solver that asks a language model for tasks; see check for what it takes")
            continue
        found = simulate.table(Work(**load(work)(run.config)), rates, arguments.nodes)
        gpus = run.config.launch.gpus
        say(f"\n{run.full_name}")
        show(
            ("nodes", "median", "1 in 10 over", f"{'GPU' if gpus else 'job'} hours", "speed-up", "efficiency", "bottleneck"),
            [
                (str(each.nodes), duration(each.median_s), duration(each.worst_s), f"{each.job_s / 3600 * max(gpus, 1):.3g}",
                 f"{speed_up:.2f}", f"{100 * speed_up / each.nodes:.0f} %", each.bottleneck)
                for each, speed_up in zip(found, simulate.speed_up(found), strict=True)
            ],
        )  # fmt: skip
    return 0


def submit_command(arguments: argparse.Namespace) -> int:
    plan = read_plan(arguments.file, *arguments.names)
    cluster = arguments.cluster or "slurm"
    return _show_actions(submit(plan.runs, cluster, dry_run=arguments.dry_run, places=_places(arguments)))


def retry_command(arguments: argparse.Namespace) -> int:
    plan = read_plan(arguments.file, *arguments.names)
    return _show_actions(retry(plan.runs, arguments.cluster, dry_run=arguments.dry_run, places=_places(arguments)))


def _places(arguments: argparse.Namespace) -> int:
    if arguments.places < 1:
        raise ConfigError(
            f"--places {arguments.places} must be at least 1; it is the number of runs at a time on this machine."
        )
    return arguments.places


def cancel_command(arguments: argparse.Namespace) -> int:
    if not arguments.names:
        raise ConfigError(
            f"cancel needs a name; give a run of {arguments.file}, a pattern, or '*' (in quotes) for all of them."
        )
    return _show_actions(cancel(read_plan(arguments.file, *arguments.names).runs))


def _show_actions(actions: Sequence[Action]) -> int:
    """The exit status: 2 if something could not be done for a run; the others were taken care of all the same."""
    show(("run", "job", ""), [(a.run, a.job, a.what) for a in actions])
    return 2 if any(action.is_error for action in actions) else 0


def status_command(arguments: argparse.Namespace) -> int:
    """Once, or with --watch until everything has ended or Ctrl-C."""
    plan = read_plan(arguments.file, *arguments.names)
    while True:
        progress = _progress(plan.runs)
        if arguments.watch is not None:
            clear()
        _show_status(plan, progress)
        if arguments.watch is None or not any(p.state in OPEN_STATES for p in progress.values()):
            return 0
        try:
            time.sleep(arguments.watch)
        except KeyboardInterrupt:
            return 0


def _progress(runs: Sequence[PlannedRun]) -> dict[Path, RunProgress]:
    living = living_jobs(runs, must_know=False)
    return {run.folder.path: read_progress(run, living.get(run.folder.path)) for run in runs}


def _show_status(plan: JobsPlan, progress: dict[Path, RunProgress]) -> None:
    for section, runs in by_section(plan.runs):
        section_heading(section)
        show_progress([(label, progress[run.folder.path]) for label, run in zip(labels(runs), runs, strict=True)])
    states = [p.state for p in progress.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    say(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}  {counts}")


def tail_command(arguments: argparse.Namespace) -> int:
    runs = read_plan(arguments.file, *arguments.names).runs
    if len(runs) != 1:
        given = f"{' '.join(arguments.names)} matches" if arguments.names else f"{arguments.file} has"
        names = ", ".join([*labels(runs)[:8], *(["..."] if len(runs) > 8 else [])])
        raise ConfigError(f"{given} {len(runs)} runs ({names}) and tail shows one; give its name.")
    log = _log_of(runs[0])
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
        say("\n".join([f"==> {log} <==", *lines[-arguments.lines :]]))
        if arguments.follow:
            _follow(file)
    return 0


def _log_of(run: PlannedRun) -> Path:
    """console.log; before a run has one, the newest log of its job that says anything."""
    folder = run.folder
    if folder.console.is_file() and folder.console.stat().st_size:
        return folder.console
    logs = [path for path in job_logs(run) if path.stat().st_size]
    if not logs:
        raise ConfigError(f"{run.name} has written nothing yet (no {folder.console}); see python -m arclab.launch status.")
    return max(logs, key=lambda path: path.stat().st_mtime)


def _follow(file: TextIO) -> None:
    """What is written from here on, until Ctrl-C."""
    try:
        while True:
            sys.stdout.write(file.read())
            sys.stdout.flush()
            time.sleep(_FOLLOW_S)
    except KeyboardInterrupt:
        return


def report_command(arguments: argparse.Namespace) -> int:
    """The page is made where torch and matplotlib may be imported: in a process of its own."""
    plan = read_plan(arguments.file, *arguments.names)
    output = arguments.output or Path(plan.runs[0].config.runs_dir) / "report"
    command = [sys.executable, "-m", "arclab.pages.queue_report", "--output", str(output)]
    done = subprocess.run(command, input=json.dumps(_report_request(plan)), text=True)
    if done.returncode == 0:
        say(f"report: {output / 'index.html'}")
    return done.returncode


def scoreboard_command(arguments: argparse.Namespace) -> int:
    """The page of all evaluations of the file that are DONE; what is left out, and why, is said."""
    plan = read_plan(arguments.file, *arguments.names)
    scored = [run for run in plan.runs if run.config.is_done_again and run.config.launch.shard is None]
    done = [run for run in scored if run.folder.state is State.done]
    for run in scored:
        if run not in done:
            state = run.folder.state
            say(f"left out: {run.full_name}, which is {NEW if state is None else state.value}")
    if not done:
        raise ConfigError(
            f"none of the {len(scored)} evaluations of {plan.path} is DONE; submit them, or give results by name."
        )
    output = arguments.output or Path(plan.runs[0].config.runs_dir) / "scoreboard"
    folders = [str(run.folder.path) for run in done]
    return subprocess.run([sys.executable, "-m", "arclab.pages", "scoreboard", *folders, "--output", str(output)]).returncode


def _report_request(plan: JobsPlan) -> dict[str, Any]:
    """What only the launcher knows: hypotheses, and the state of runs that have no folder yet."""
    progress = _progress(plan.runs)
    sizes = sizes_of([run.config for run in plan.runs])
    for note in sizes.notes:
        say(f"note: {note}")
    parameters = dict(zip((run.folder.path for run in plan.runs), map(parameters_text, sizes.counts), strict=True))
    return {
        "file": str(plan.path),
        "sections": [
            {
                "title": section.title, "text": section.text, "criterion": section.criterion,
                "runs": [_reported(run, progress[run.folder.path], parameters[run.folder.path]) for run in runs],
            }
            for section, runs in by_section(plan.runs)
        ],
    }  # fmt: skip


def _reported(run: PlannedRun, progress: RunProgress, parameters: str) -> dict[str, Any]:
    return {
        "name": run.name, "experiment": run.config.title[0], "path": str(run.folder.path), "state": progress.state,
        "job": progress.job, "step": progress.step, "total_steps": progress.total_steps, "verdict": progress.verdict,
        "message": progress.message, "parameters": parameters, "line": run.job.line,
        "command": run.job.command,
    }  # fmt: skip


def doctor_command(arguments: argparse.Namespace) -> int:
    """1 if something is broken. With a job file, also what every line of it will take."""
    findings = doctor.examine(Path("runs"))
    show(("", "what", "found", "what to do"), [(f.level, f.subject, f.text, f.fix) for f in findings])
    if arguments.file is not None:
        plan = read_plan(arguments.file)
        sizes = sizes_of([run.config for run in plan.runs])
        found = estimates(plan.runs, sizes.counts)
        say("")
        show(("", "run", "takes", "what to do"), [
            (doctor.WARN if e.problem else doctor.OK, label, e.text or "not known", e.problem)
            for label, e in zip(labels(plan.runs), found, strict=True)
        ])  # fmt: skip
        for note in sizes.notes:
            say(f"note: {note}")
    return int(any(f.level == doctor.FAIL for f in findings))
