"""Many runs from one file: python -m arclab.launch COMMAND [FILE] [options]

    check   [FILE] [--only GLOB] [--all-keys]      compose and type every run, say what it is and what differs; start nothing
    doctor                                         is this machine ready? one line each, with what to do

FILE is jobs.txt unless given; --only takes runs whose name (or experiment/name) matches. The state of a run is in its folder,
so every command can be repeated. Nothing here imports torch. An error is one sentence and exit status 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import run_main
from arclab.launch.doctor import FAIL, examine
from arclab.launch.plan import ablation_columns, read_plan
from arclab.launch.tables import say, show, show_matrix, show_plan


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    return arguments.command(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m arclab.launch", description="Check, start, follow and report the runs of a file.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = _command(commands, "check", check_command, "compose and type every run; start nothing")
    check.add_argument("--all-keys", action="store_true", help="a column for every key that differs, also for those that others decide")
    doctor = commands.add_parser("doctor", help="is this machine ready?")
    doctor.set_defaults(command=doctor_command)
    return parser


def _command(commands, name: str, function, help: str) -> argparse.ArgumentParser:  # noqa: ANN001
    """A subcommand on a job file."""
    command = commands.add_parser(name, help=help, description=help)
    command.add_argument("file", nargs="?", type=Path, default=Path("jobs.txt"), metavar="FILE", help="job file (default: jobs.txt)")
    command.add_argument("--only", metavar="GLOB", help="only runs whose name, or experiment/name, matches")
    command.set_defaults(command=function)
    return command


def check_command(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    plan = read_plan(arguments.file, arguments.only)
    seconds = time.perf_counter() - start
    show_plan(plan)
    columns = ablation_columns(plan.runs, fold=not arguments.all_keys)
    if columns:
        show_matrix(plan.runs, columns)
    say(f"\n{len(plan.runs)} of the {plan.num_runs} runs of {plan.path} composed and typed in {seconds:.2f} s; nothing was started.")


def doctor_command(arguments: argparse.Namespace) -> int:
    """1 if something is broken."""
    findings = examine(Path("runs"))
    show(("", "what", "found", "what to do"), [(f.level, f.subject, f.text, f.fix) for f in findings])
    return int(any(f.level == FAIL for f in findings))


if __name__ == "__main__":
    run_main(main)
