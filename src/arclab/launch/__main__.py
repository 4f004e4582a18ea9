"""Many runs from one file: python -m arclab.launch COMMAND [FILE] [NAME ...] [options]

    check   [FILE] [NAME ...] [--all-keys]         compose and type every run, say what it is and what differs; start nothing
    submit  [FILE] [NAME ...] [--cluster slurm|local|debug] [--dry-run]         send what is new to the queue; does not wait
    status  [FILE] [NAME ...] [--watch [S]]        queue state, step, speed, time left, health, best score
    tail    [FILE] NAME [-n N] [--follow]          the last lines that a run wrote
    cancel  [FILE] NAME ...                        end queued and running jobs; a running one saves first ('*': all)
    retry   [FILE] [NAME ...] --failed             submit failed, cancelled and lost runs again; each continues where it was
    report  [FILE] [NAME ...] [--output DIR]       one HTML page for the whole file
    scoreboard [FILE] [NAME ...] [--output DIR]    one page of all its evaluations that are DONE: arclab.pages.scoreboard
    plan    [FILE] [NAME ...] --nodes N --rates RUN      how long divided evaluations would take on N nodes, by a measured one
    doctor  [FILE]                                 is this machine ready? one line each, with what to do; what FILE's runs take

FILE is jobs.txt unless the first word is a file or ends in .txt. NAME is a run, as name or experiment/name, or a pattern
('toy*' in quotes); without one all runs are meant. --only NAME is another way to give it. The state of a run is in its folder,
so every command can be repeated, from any machine that sees the folder. An error is one sentence and exit status 2. Nothing
here imports torch; the page of report is written by arclab.pages.queue_report in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, run_main
from arclab.config.names import closest
from arclab.runs.console import setup_logging

Command = Callable[[argparse.Namespace], int]
DEFAULT_FILE = "jobs.txt"


def main(argv: Sequence[str]) -> int:
    parser, of_commands = parsers()
    if argv and not argv[0].startswith("-") and argv[0] not in of_commands:
        raise ConfigError(f"{argv[0]} is no command of the queue; {closest(argv[0], list(of_commands))}")
    arguments, later = parser.parse_known_args(argv)  # later: words behind an option
    if later and ("words" not in arguments or any(word.startswith("-") for word in later)):
        parser.error(f"unrecognized arguments: {' '.join(later)}")
    if "words" in arguments:
        words = [*arguments.words, *later]
        arguments.file, names = file_and_names(arguments.command, words)
        arguments.names = [*names, *arguments.only]
    from arclab.launch.queue import commands  # after parsing: --help and a typo need no libraries

    setup_logging()
    command: Command = getattr(commands, f"{arguments.command}_command")
    return command(arguments)


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command line, and that of each command."""
    parser = argparse.ArgumentParser(
        prog="python -m arclab.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    on_file = _on_file()
    check = commands.add_parser("check", parents=[on_file], help="compose and type every run; start nothing")
    check.add_argument("--all-keys", action="store_true", help="a column for every key that differs, decided ones too")
    _add_submit(commands, on_file)
    status = commands.add_parser("status", parents=[on_file], help="how far every run is")
    status.add_argument("--watch", nargs="?", type=_seconds, const=10.0, metavar="S", help="again every S seconds (10)")
    tail = commands.add_parser("tail", parents=[on_file], help="the last lines that a run wrote")
    tail.add_argument("-n", "--lines", type=_at_least_one, default=30, metavar="N", help="how many (30)")
    tail.add_argument("--follow", action="store_true", help="go on as the run writes")
    commands.add_parser("cancel", parents=[on_file], help="end queued and running jobs")
    report = commands.add_parser("report", parents=[on_file], help="one HTML page for the whole file")
    report.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: <runs_dir>/report)")
    board = commands.add_parser("scoreboard", parents=[on_file], help="one page of all evaluations that are DONE")
    board.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: <runs_dir>/scoreboard)")
    plan = commands.add_parser("plan", parents=[on_file], help="how long divided evaluations would take on more nodes")
    plan.add_argument("--nodes", type=_at_least_one, required=True, metavar="N", help="as many jobs at a time")
    plan.add_argument(
        "--rates", type=Path, required=True, metavar="RUN", help="folder of a finished evaluation with launch.shards=N"
    )
    doctor = commands.add_parser("doctor", help="is this machine ready? With FILE: what will each line of it take?")
    doctor.add_argument("file", nargs="?", type=Path, metavar="FILE", help="job file")
    return parser, dict(commands.choices)


def _on_file() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "words", nargs="*", metavar="[FILE] NAME",
        help=f"job file ({DEFAULT_FILE}), then runs: name, experiment/name or a pattern; without names all runs are meant",
    )  # fmt: skip
    parent.add_argument("--only", action="append", default=[], metavar="NAME", help="the same as NAME")
    return parent


def file_and_names(command: str, words: Sequence[str]) -> tuple[Path, list[str]]:
    """What the words behind a command mean, of every command: the first one is FILE if it is a file or looks like one.

    ConfigError: FILE stands behind a name.
    """
    is_file = [word.endswith(".txt") or Path(word).is_file() for word in words]
    if any(is_file[1:]):
        late = words[is_file.index(True, 1)]
        rest = " ".join(word for word in words if word != late)
        raise ConfigError(f"{late} is a file, and one job file comes before the names; give: {command} {late} {rest}")
    return (Path(words[0]), list(words[1:])) if any(is_file) else (Path(DEFAULT_FILE), list(words))


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0 (FILE and names come before it)")
    return value


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
