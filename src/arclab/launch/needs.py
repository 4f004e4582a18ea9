"""What every job of a command would find missing, found before the first is submitted.

    require_needs("evaluate.py", argv, configs, on_slurm=True)      # ConfigError: lm.name=... is not a folder

Which method needs what is said by its row in arclab.entries. Lines of a job file are not looked at: another line may make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from arclab.config.compose import ConfigError, entry_for
from arclab.entries import ENTRIES, load
from arclab.runs.folder import RunDir, State


def require_needs(script: str, overrides: Sequence[str], configs: Iterable[Any], *, on_slurm: bool) -> None:
    """configs: of one command line. on_slurm: do their jobs run on other machines?"""
    if needs := ENTRIES[entry_for(script, overrides)].needs:
        for config in configs:
            if RunDir(config.folder).state is State.done:  # it is left alone, whatever has become of its model
                continue
            try:
                load(needs)(config, on_slurm=on_slurm)
            except ValueError as error:
                raise ConfigError(str(error)) from error
