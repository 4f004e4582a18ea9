"""Many runs from one file: python -m arclab.launch COMMAND [FILE] [options]

    check   [FILE] [--only GLOB] [--all-keys]      compose and type every run, say what it is and what differs; start nothing
    submit  [FILE] [--only GLOB] [--cluster slurm|local|debug] [--dry-run]      send what is new to the queue; does not wait
    status  [FILE] [--only GLOB] [--watch [S]]     queue state, step, speed, time left, health, best score
    tail    NAME   [--file FILE] [-n N] [--follow] the last lines that a run wrote
    cancel  GLOB   [--file FILE]                   end queued and running jobs; a running one saves first
    retry   [FILE] --failed [--only GLOB]          submit failed, cancelled and lost runs again; each continues where it was
    report  [FILE] [--only GLOB] [--output DIR]    one HTML page for the whole file
    doctor  [FILE]                                 is this machine ready? one line each, with what to do; what FILE's runs take

FILE is jobs.txt unless given; --only takes runs whose name (or experiment/name) matches. The state of a run is in its folder,
so every command can be repeated, from any machine that sees the folder. An error is one sentence and exit status 2. Nothing
here imports torch; the page of report is written by arclab.pages.queue_report in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.runs.console import setup_logging

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    from arclab.launch.queue import commands  # after parsing: --help and a typo need no libraries

    setup_logging()
    command: Command = getattr(commands, f"{arguments.command}_command")
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    on_file, on_names = _on_file(), _on_names()
    check = commands.add_parser("check", parents=[on_file], help="compose and type every run; start nothing")
    check.add_argument("--all-keys", action="store_true", help="a column for every key that differs, decided ones too")
    _add_submit(commands, on_file)
    status = commands.add_parser("status", parents=[on_file], help="how far every run is")
    status.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="S", help="again every S seconds (10)")
    tail = commands.add_parser("tail", parents=[on_names], help="the last lines that a run wrote")
    tail.add_argument("-n", "--lines", type=int, default=30, metavar="N", help="how many (30)")
    tail.add_argument("--follow", action="store_true", help="go on as the run writes")
    commands.add_parser("cancel", parents=[on_names], help="end queued and running jobs")
    report = commands.add_parser("report", parents=[on_file], help="one HTML page for the whole file")
    report.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: <runs_dir>/report)")
    doctor = commands.add_parser("doctor", help="is this machine ready? With FILE: what will each line of it take?")
    doctor.add_argument("file", nargs="?", type=Path, metavar="FILE", help="job file")
    return parser


def _on_file() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("file", nargs="?", type=Path, default=Path("jobs.txt"), metavar="FILE", help="job file (jobs.txt)")
    parent.add_argument("--only", metavar="GLOB", help="only runs whose name, or experiment/name, matches")
    return parent


def _on_names() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("only", metavar="NAME", help="name or pattern of names, or experiment/name")
    parent.add_argument("--file", type=Path, default=Path("jobs.txt"), metavar="FILE", help="job file (jobs.txt)")
    return parent


def _add_submit(commands: Any, on_file: argparse.ArgumentParser) -> None:
    """submit and retry share where jobs go."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--cluster", choices=("slurm", "local", "debug"), help="where: SLURM, processes here, or in this process"
    )
    where.add_argument("--places", type=int, default=1, metavar="N", help="with --cluster local: runs at a time (1)")
    where.add_argument("--dry-run", action="store_true", help="say what would be done")
    commands.add_parser("submit", parents=[on_file, where], help="send what is new to the queue")
    retry = commands.add_parser("retry", parents=[on_file, where], help="submit failed, cancelled and lost runs again")
    retry.add_argument("--failed", action="store_true", required=True, help="says that failed runs are meant")


if __name__ == "__main__":
    run_main(main)
