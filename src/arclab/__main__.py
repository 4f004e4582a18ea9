"""The command arclab, also as python -m arclab: see arclab.cli.commands."""

import sys

from arclab.cli.commands import run_command
from arclab.config.compose import run_main


def main() -> None:
    """The console script. It calls itself by its name, so that what a run records as its command can be typed."""
    sys.argv[0] = "arclab"
    run_main(run_command)


if __name__ == "__main__":
    main()
