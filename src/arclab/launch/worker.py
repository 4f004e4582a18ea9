"""One rank of a run: python -m arclab.launch.worker RUN_FOLDER, started by torchrun, which arclab.launch.job started.

It reads the frozen configuration of the folder and never imports Hydra; it dies with the torchrun that started it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import ConfigError, entry_of, run_main, thaw_run
from arclab.entries import ENTRIES, load
from arclab.launch.process import die_with_parent
from arclab.runs.folder import RunDir


def main(argv: Sequence[str]) -> int:
    die_with_parent()
    run = RunDir(Path(argv[0]))
    entry = entry_of(thaw_run(run.config))
    prepared = ENTRIES[entry].prepared
    if prepared is None:
        raise ConfigError(f"{entry}.py runs in one process; drop launch.gpus and launch.cpus.")
    return load(prepared)(run)  # takes seconds to import; the parent may die meanwhile


if __name__ == "__main__":
    run_main(main)
