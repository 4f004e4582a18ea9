"""One rank of a run: python -m arclab.launch.worker RUN_FOLDER, started by torchrun, which arclab.launch.job started.

It reads the frozen configuration of the folder and never imports Hydra; it dies with the torchrun that started it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import entry_of, run_main, thaw_run
from arclab.entries import ENTRIES, load
from arclab.runs.folder import RunDir
from arclab.runs.tied import die_with_parent


def main(argv: Sequence[str]) -> int:
    die_with_parent()
    run = RunDir(Path(argv[0]))
    config = thaw_run(run.config)
    return load(ENTRIES[entry_of(config)].run)(config, run)  # takes seconds to import; the parent may die meanwhile


if __name__ == "__main__":
    run_main(main)
