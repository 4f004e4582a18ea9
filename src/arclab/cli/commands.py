"""The command arclab: one word for each thing that can be done, and the same code as behind the scripts.

    status = run_command(["train", "experiment=quickstart", "name=a"])      # what python pretrain_encoder.py does
    status = run_command(["queue", "status"])                               # what python -m arclab.launch status does

It works from any folder: conf/ is that of the clone, runs/ and jobs.txt are looked for where it is typed. Nothing here imports
torch; a command is imported when it is chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arclab import __version__
from arclab.config.compose import CONF_DIR, ConfigError
from arclab.config.names import closest
from arclab.entries import load

_HELP = ("-h", "--help")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """run: "module:name" of what takes the words after it and returns the exit status. given: words put before them. same_as:
    what does the same without the command. script: the entry script whose overrides it takes."""

    summary: str
    run: str
    same_as: str | None = None
    given: tuple[str, ...] = ()
    script: str | None = None


COMMANDS = {
    "train": Command(
        summary="train TRM or ETRM", run="arclab.launch.start:start",
        same_as="python pretrain_encoder.py", script="pretrain_encoder.py",
    ),
    "train-memgen": Command(
        summary="train MemGen's weaver", run="arclab.launch.start:start",
        same_as="python pretrain_memgen.py", script="pretrain_memgen.py",
    ),
    "self-improve": Command(
        summary="learn in rounds from what a model wrote: method=tree_search, program_edit", run="arclab.launch.start:start",
        same_as="python self_improve.py", script="self_improve.py",
    ),
    "evaluate": Command(
        summary="score a checkpoint, or a solver without one", run="arclab.launch.start:start",
        same_as="python evaluate.py", script="evaluate.py",
    ),
    "compare": Command(
        summary="one page for several runs; compare scoreboard RESULT...: for all methods", run="arclab.pages.analyse:main",
        same_as="python -m arclab.pages",
    ),
    "queue": Command(
        summary="many runs from jobs.txt: check, submit, status, ...", run="arclab.launch.__main__:main",
        same_as="python -m arclab.launch",
    ),
    "scoreboard": Command(summary="a table of all evaluated runs", run="arclab.cli.scoreboard:main"),
    "doctor": Command(
        summary="is this machine ready?", run="arclab.launch.__main__:main", given=("doctor",),
        same_as="python -m arclab.launch doctor",
    ),
    "wandb-workspace": Command(
        summary="the panels of a run at W&B", run="arclab.metrics.workspace:main",
        same_as="python -m arclab.metrics.workspace",
    ),
    "new-encoder": Command(summary="the files of an encoder of your own, registered", run="arclab.cli.scaffold:new_encoder"),
    "new-method": Command(summary="the files of a method of your own, registered", run="arclab.cli.scaffold:new_method"),
    "completion": Command(
        summary="completion for bash or zsh: eval \"$(arclab completion bash)\"", run="arclab.cli.completion:main",
    ),
}  # fmt: skip


def run_command(argv: Sequence[str]) -> int | None:
    """The exit status; None is 0. ConfigError: there is no such command, or no conf/."""
    if not argv or argv[0] in _HELP:
        sys.stdout.write(help_text())
        return 0 if argv else 2
    if argv[0] == "--version":
        sys.stdout.write(f"arclab {__version__}\n")
        return 0
    word, *rest = argv
    if word not in COMMANDS:
        raise ConfigError(f"{word} is no command of arclab; {closest(word, list(COMMANDS))}")
    if not CONF_DIR.is_dir():
        raise ConfigError(
            f"{CONF_DIR} does not exist: arclab reads conf/ beside its own source, so it must be installed from a clone; run "
            "make install there, or pip install --editable . in it."
        )
    command = COMMANDS[word]
    run: Callable[..., int | None] = load(command.run)
    if command.script is not None:
        return run(command.script, rest)
    return run([*command.given, *rest])


def help_text() -> str:
    """What arclab --help says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    same = [f"  arclab {name:<{width}}  {command.same_as}" for name, command in COMMANDS.items() if command.same_as]
    examples = [
        "  arclab train experiment=quickstart name=a      four minutes on a laptop",
        "  arclab evaluate checkpoint=runs/quickstart/a",
        "  arclab scoreboard runs",
    ]
    return "\n".join(
        [
            "usage: arclab COMMAND ...      arclab COMMAND --help: what it takes",
            "", *lines, "", "Examples:", *examples, "", "The same without the command:", *same, "",
        ]
    )  # fmt: skip
