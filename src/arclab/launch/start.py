"""What the entry scripts do with their command lines.

    start("pretrain_encoder.py", sys.argv[1:]) -> exit status      # run in place, start torchrun, or sweep
    start("evaluate.py", sys.argv[1:])                             # the method is chosen by solver=

-h, --help [GROUP|KEY ...] and --cfg run nothing. In place: one rank, or RANK is set because torchrun was started by hand.
Otherwise arclab.launch.job is the parent; with launch.shards=N arclab.launch.shards submits a job for each shard. With -m (or
--multirun) every combination is composed, typed and frozen in its run folder before the first job is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from arclab.config.compose import ConfigError, compose_run, entry_for, freeze
from arclab.config.help import help_text
from arclab.entries import ENTRIES, load
from arclab.launch.job import prepare_run, run_job

_HELP = ("-h", "--help", "-?")


def start(script: str, argv: Sequence[str]) -> int:
    """Help without arguments, or where it is asked for; --cfg: the configuration, and nothing is run."""
    if not argv or set(_HELP) & set(argv) or set(argv) <= {"-m", "--multirun"}:
        return _say_help(script, argv)
    if "--cfg" in argv:
        words = [word for word in argv if word not in ("--cfg", "job")]
        sys.stdout.write(freeze(compose_run(entry_for(script, words), words)))
        return 0
    if {"-m", "--multirun"} & set(argv):
        from arclab.launch.sweep import sweep  # needs Hydra's launchers

        return sweep(script, [a for a in argv if a not in ("-m", "--multirun")])
    if hydra := [a for a in argv if a.lstrip("+~").startswith("hydra")]:
        raise ConfigError(f"{hydra[0]} has an effect in sweeps only; add -m, or drop it.")
    name = entry_for(script, argv)
    config = compose_run(name, argv)
    if config.launch.is_divided:
        from arclab.launch.shards import run_shards  # needs the queue

        return run_shards(script, argv, config)
    if "RANK" in os.environ or config.launch.num_ranks == 1:
        return load(ENTRIES[name].run)(config, None)
    return run_job(prepare_run(config).path)


def _say_help(script: str, argv: Sequence[str]) -> int:
    """0 if it was asked for, else 2: nothing was run."""
    topics = [word for word in argv if word not in _HELP and not word.startswith("-") and "=" not in word]
    sys.stdout.write(help_text(entry_for(script, [word for word in argv if "=" in word]), topics))
    return 0 if set(_HELP) & set(argv) else 2
