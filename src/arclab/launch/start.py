"""What pretrain_encoder.py does with its command line: run in place, start torchrun, or hand a sweep to Hydra's launcher.

    start(sys.argv[1:], in_place=...) -> exit status

In place: one rank, or RANK is set because torchrun was started by hand. Otherwise arclab.launch.job is the parent. With -m (or
--multirun) every combination is composed, typed and frozen in its run folder before the first job is started.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from arclab.config.compose import ConfigError, compose
from arclab.config.schema import ExperimentConfig
from arclab.launch.job import prepare_run, run_job

CONFIG_NAME = "pretrain_encoder"


def start(argv: Sequence[str], in_place: Callable[[ExperimentConfig], int]) -> int:
    if {"-m", "--multirun"} & set(argv):
        from arclab.launch.sweep import sweep  # needs Hydra's launchers

        return sweep([a for a in argv if a not in ("-m", "--multirun")])
    if hydra := [a for a in argv if a.lstrip("+~").startswith("hydra")]:
        raise ConfigError(f"{hydra[0]} has an effect in sweeps only; add -m, or drop it.")
    config = compose(CONFIG_NAME, argv)
    if "RANK" in os.environ or config.launch.num_ranks == 1:
        return in_place(config)
    return run_job(prepare_run(config).path)
