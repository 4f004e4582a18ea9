"""What the entry scripts do with their command lines.

    start("pretrain_encoder", sys.argv[1:]) -> exit status      # run in place, start torchrun, or sweep
    evaluate(sys.argv[1:])                                      # score a checkpoint, or a solver that has none

In place: one rank, or RANK is set because torchrun was started by hand. Otherwise arclab.launch.job is the parent. With -m (or
--multirun) every combination is composed, typed and frozen in its run folder before the first job is started.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from arclab.config.compose import ConfigError, compose_evaluate, compose_run
from arclab.config.llm_schema import EvaluateProgramsConfig
from arclab.entries import ENTRIES, load
from arclab.launch.job import prepare_run, run_job


def start(name: str, argv: Sequence[str]) -> int:
    if {"-m", "--multirun"} & set(argv):
        from arclab.launch.sweep import sweep  # needs Hydra's launchers

        return sweep([a for a in argv if a not in ("-m", "--multirun")])
    if hydra := [a for a in argv if a.lstrip("+~").startswith("hydra")]:
        raise ConfigError(f"{hydra[0]} has an effect in sweeps only; add -m, or drop it.")
    entry = ENTRIES[name]
    config = compose_run(name, argv)
    if "RANK" in os.environ or config.launch.num_ranks == 1:
        return load(entry.run)(config)
    return run_job(prepare_run(config).path)


def evaluate(argv: Sequence[str]) -> None:
    """The method is chosen by solver=; without one it is that of the checkpoint."""
    wanted = compose_evaluate(argv)
    name = "evaluate_programs" if isinstance(wanted, EvaluateProgramsConfig) else "evaluate"
    load(ENTRIES[name].run)(wanted)
