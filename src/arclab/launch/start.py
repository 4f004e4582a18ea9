"""What the entry scripts do with their command lines.

    start("pretrain_encoder.py", sys.argv[1:]) -> exit status      # run in place, start torchrun, or sweep
    start("evaluate.py", sys.argv[1:])                             # the method is chosen by solver=

In place: one rank, or RANK is set because torchrun was started by hand. Otherwise arclab.launch.job is the parent. With -m (or
--multirun) every combination is composed, typed and frozen in its run folder before the first job is started.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from arclab.config.compose import ConfigError, compose_run, entry_for
from arclab.entries import ENTRIES, load
from arclab.launch.job import prepare_run, run_job


def start(script: str, argv: Sequence[str]) -> int:
    if {"-m", "--multirun"} & set(argv):
        from arclab.launch.sweep import sweep  # needs Hydra's launchers

        return sweep(script, [a for a in argv if a not in ("-m", "--multirun")])
    if hydra := [a for a in argv if a.lstrip("+~").startswith("hydra")]:
        raise ConfigError(f"{hydra[0]} has an effect in sweeps only; add -m, or drop it.")
    name = entry_for(script, argv)
    config = compose_run(name, argv)
    if "RANK" in os.environ or config.launch.num_ranks == 1:
        return load(ENTRIES[name].run)(config, None)
    return run_job(prepare_run(config).path)
