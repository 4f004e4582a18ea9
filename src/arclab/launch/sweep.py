"""A Hydra sweep: every combination becomes a run folder, then Hydra's launcher starts them all and waits for their end.

    sweep("pretrain_encoder.py", ["encoder=standard,lpn", "hydra/launcher=submitit_slurm", "launch=slurm_cpu"])
    sweep("evaluate.py", ["checkpoint=runs/a/b", "split=train,evaluation"])

A run's name is what was swept ("encoder-lpn_halting-short8", after the name if one is given), unless name itself is swept. All
combinations are composed, typed and frozen before anything starts: a job runs what was checked, even if conf/ has changed
since. Resources come from launch.* (arclab.launch.cluster), so hydra.launcher.* has only what launch.* does not know.
Launchers: basic (one after the other, the default), submitit_local, submitit_slurm. It waits; see jobs.txt for what should not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from submitit.core.utils import UncompletedJobError

from arclab.config.compose import CONF_DIR, ConfigError, compose_run, entry_for, quoted
from arclab.config.launch_schema import LaunchConfig
from arclab.config.run import RunConfig
from arclab.files import as_record, read_json, write_atomically
from arclab.launch.cluster import ALWAYS_REQUEUED, JobTask, shared_parameters, slurm_parameters, submission_errors
from arclab.launch.combinations import require_countable
from arclab.launch.job import check_run, prepare_run, run_job
from arclab.launch.names import run_name
from arclab.launch.needs import require_needs
from arclab.runs import slurm
from arclab.runs.console import setup_logging
from arclab.runs.folder import RunDir, State, has_finished
from arclab.runs.lock import queue_lock
from arclab.runs.process_id import boot_id, is_running, pid_namespace, start_ticks

log = logging.getLogger(__name__)
_JOB_NAME = "arclab"
_POLL_S = 5.0
_RECORD = "runs.json"  # in the folder of a sweep
KINDS = {"basic": None, "submitit_local": "local", "submitit_slurm": "slurm"}


@dataclass(frozen=True, slots=True)
class SweepTask:
    """What Hydra calls for each job: run=n is the run folder run_dirs[n]. kind: None in this process.

    gpus: CUDA_VISIBLE_DEVICES of each local job; submitit sets its own, the same for all of them, and hides all GPUs from a job
    that names none.
    """

    run_dirs: tuple[Path, ...]
    kind: str | None
    gpus: tuple[str | None, ...]

    def __call__(self, config: Mapping[str, Any]) -> int:
        number = config["run"]
        run_dir = self.run_dirs[number]
        if self.kind == "slurm":
            JobTask(run_dir)()  # leaves the process itself unless all went well: Hydra would turn a failure into success
            return 0
        if self.kind == "local":
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ |= {} if self.gpus[number] is None else {"CUDA_VISIBLE_DEVICES": str(self.gpus[number])}
        try:
            status = run_job(run_dir)
        except ValueError as error:  # the run's own fault: the others go on
            sys.stderr.write(f"error: {error}\n")
            return 2
        if status >= 128 and self.kind is None:
            raise SystemExit(status)
        return status


def sweep(script: str, overrides: Sequence[str]) -> int:
    """Run every combination; 0 if all of them are DONE, else 1. ConfigError before anything starts."""
    setup_logging()
    launcher, engine_overrides = _launcher_of(overrides)
    configs = compose_combinations(script, [o for o in overrides if not _is_hydra(o)])
    kind, launch = KINDS[launcher], configs[0].launch
    _check_rules(configs, kind)
    require_needs(script, overrides, configs, on_slurm=kind == "slurm")
    settings = [] if kind is None else list(_launcher_settings(launch, kind, engine_overrides))
    gpus = _local_gpus(launch, len(configs)) if kind == "local" else (None,) * len(configs)
    folder = Path(configs[0].runs_dir) / ".sweeps" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
    before, runs = _prepared(configs, kind, folder)
    engine = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.output_subdir=null", "hydra/job_logging=disabled",
              f"hydra.job.name={_JOB_NAME}", *engine_overrides, *settings]  # fmt: skip
    task = SweepTask(tuple(run.path.resolve() for run in runs), kind, gpus)
    log.info("%d runs with hydra/launcher=%s, job logs in %s", len(runs), launcher, folder)
    size = slurm.max_array_size() if kind == "slurm" else len(runs)
    for first in range(0, len(runs), size):
        # Numbers, not settings: Hydra would compose them again where the job runs, from a conf/ that may have changed.
        numbers = range(first, min(first + size, len(runs)))
        if len(runs) > size:
            log.info(
                "runs %d to %d of %d: SLURM takes arrays of %d jobs (MaxArraySize)", first + 1, numbers.stop, len(runs), size
            )
        try:
            with submission_errors(launch) if kind == "slurm" else nullcontext():
                _multirun(["+run=" + ",".join(map(str, numbers)), *engine], task)
        except UncompletedJobError as error:
            log.info("a job did not end well: %s", str(error).split("\n")[0])
            _wait_for_others(folder, kind)  # Hydra looks no further than the first one of these
        except ConfigError:
            for run in runs[first:]:  # nothing waits anywhere
                run.restore_status(before[run.path])
            raise
    return _summary(runs)


def _is_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith("hydra")


def _launcher_of(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """(the launcher's name, all overrides for Hydra itself)"""
    own = [o for o in overrides if _is_hydra(o)]
    named = [o.partition("=")[2] for o in own if o.startswith("hydra/launcher=")]
    launcher = named[-1] if named else "basic"
    if launcher not in KINDS:
        raise ConfigError(f"hydra/launcher={launcher} cannot run these jobs; choose {', '.join(KINDS)}.")
    if launcher == "submitit_slurm":
        slurm.require_installed()
    return launcher, own


def compose_combinations(script: str, overrides: Sequence[str]) -> list[Any]:
    """A typed configuration (a RunConfig), with its own name, for each combination of the swept values, in Hydra's order."""
    entry = entry_for(script, overrides)
    parsed, combinations = _combinations(overrides)
    swept = [o.get_key_element() for o in parsed if o.is_sweep_override()]
    if shared := [key for key in swept if key.split(".")[0].lstrip("+") == "launch"]:
        raise ConfigError(
            f"{shared[0]} cannot be swept: all jobs of a sweep ask for the same resources; start one sweep for each value."
        )
    has_name = any(o.get_key_element() == "name" for o in parsed)
    configs = []
    for combination in combinations:
        config = compose_run(entry, combination)
        if "name" not in swept:
            values = {key: value for key, _, value in (o.partition("=") for o in combination) if key in swept}
            config.name = run_name(config.name if has_name else "", values) or config.name
        configs.append(config)
    return configs


def _combinations(overrides: Sequence[str]) -> tuple[list[Override], list[list[str]]]:
    """(the overrides as Hydra reads them, one list of overrides for each run)"""
    with hydra.initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3", job_name=_JOB_NAME):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        try:
            parsed = OverridesParser.create(config_loader=engine.config_loader).parse_overrides(list(overrides))
            require_countable(parsed)
            return parsed, BasicSweeper.split_arguments(parsed, None)[0]
        except HydraException as error:
            raise ConfigError(f"{' '.join(str(error).split())} (settings are written key=value, a sweep key=a,b).") from error


Before = dict[Path, dict[str, Any] | None]


def _prepared(configs: list[RunConfig], kind: str | None, folder: Path) -> tuple[Before, list[RunDir]]:
    """(what the status files said, the prepared run folders), of which no other command can take one from now on."""
    with ExitStack() as stack:
        for runs_dir in sorted({Path(config.runs_dir).resolve() for config in configs}):
            stack.enter_context(queue_lock(runs_dir))
        for config in configs:
            check_run(config)
        _require_unclaimed(configs, kind)
        before = {config.folder: RunDir(config.folder).read_status() for config in configs}
        runs = [prepare_run(config) for config in configs]
        for run, config in zip(runs, configs, strict=True):
            if not (has_finished(run, config) or (run.state is State.stopped and config.stops_when_unhealthy)):
                run.write_status(State.submitted, run.step)
        _record(folder, runs)
    return before, runs


def _check_rules(configs: list[RunConfig], kind: str | None) -> None:
    """Rules of the sweep as a whole."""
    folders = Counter(config.folder for config in configs)
    path, count = folders.most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{count} jobs of the sweep would use the run folder {path}; sweep name too, or drop the equal values."
        )
    if any(config.launch != configs[0].launch for config in configs):
        raise ConfigError(
            "the jobs of the sweep differ in launch.*; they share one request for resources, so start them as separate sweeps."
        )
    if configs[0].launch.is_divided:
        raise ConfigError(
            f"launch.shards={configs[0].launch.shards} divides one evaluation, not a sweep; write the combinations as lines of "
            "a jobs.txt."
        )
    if configs[0].launch.nodes > 1 and kind != "slurm":
        raise ConfigError(
            f"launch.nodes={configs[0].launch.nodes} needs SLURM; use hydra/launcher=submitit_slurm, or launch.nodes=1."
        )


def _record(folder: Path, runs: Sequence[RunDir]) -> None:
    """Which runs the jobs in this sweep's folder are for, and which process waits for them."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = Claim([str(run.path.resolve()) for run in runs], os.getpid(), start_ticks(os.getpid()), boot_id(), pid_namespace())
    write_atomically(folder / _RECORD, json.dumps(asdict(claim)) + "\n")


@dataclass(frozen=True, slots=True)
class Claim:
    """runs.json of a sweep's folder. The process: see arclab.runs.process_id; an older version wrote the runs alone."""

    runs: list[str]
    pid: int = 0
    start_ticks: int | None = None
    boot_id: str = ""
    pid_namespace: str = ""

    @property
    def is_of_another(self) -> bool:
        """Does another command of this machine still wait for its runs?"""
        is_here = (self.boot_id, self.pid_namespace) == (boot_id(), pid_namespace()) and self.pid != os.getpid()
        return is_here and self.start_ticks is not None and is_running(self.pid, self.start_ticks)


def _read_claim(path: Path) -> Claim:
    """DamagedFile if it is none."""
    remedy = "remove it, if no job of that sweep is left"
    found = read_json(path, remedy=remedy)
    if not isinstance(found, dict):
        found = {"runs": found}
    return as_record(found, Claim, path, remedy=remedy)


def _require_unclaimed(configs: Sequence[RunConfig], kind: str | None) -> None:
    """ConfigError if an earlier sweep over some of these runs goes on, or its command is gone and its jobs are in SLURM's
    queue."""
    mine = {str(config.folder.resolve()) for config in configs}
    for record in sorted((Path(configs[0].runs_dir) / ".sweeps").glob(f"*/{_RECORD}")):
        claim = _read_claim(record)
        if not mine & set(claim.runs):
            continue
        if claim.is_of_another:
            raise ConfigError(
                f"an earlier sweep over these runs goes on (pid {claim.pid}, {record.parent}); wait for it, or end it first."
            )
        jobs = [path.name for path in (record.parent / ".submitit").glob("*")] if kind == "slurm" else []
        if jobs and (waiting := slurm.queued(jobs)):
            raise ConfigError(
                f"jobs of an earlier sweep over these runs are still in SLURM's queue ({', '.join(sorted(waiting))}, "
                f"{record.parent}); they go on without its command: wait for them, or scancel them first."
            )


def _launcher_settings(launch: LaunchConfig, kind: Any, given: Sequence[str]) -> Iterator[str]:
    """Overrides that give Hydra's launcher the resources of launch.*"""
    special = slurm_parameters(launch) if kind == "slurm" else {}
    for key, value in (shared_parameters(launch) | special).items():
        if any(o.lstrip("+").startswith(f"hydra.launcher.{key}=") for o in given):
            raise ConfigError(f"hydra.launcher.{key} is set from launch.*; set it there.")
        yield f"hydra.launcher.{key}={quoted(value)}"
    if kind == "slurm":
        yield from (f"+hydra.launcher.additional_parameters.{key}={quoted(value)}" for key, value in ALWAYS_REQUEUED.items())


def _local_gpus(launch: LaunchConfig, num_jobs: int) -> tuple[str | None, ...]:
    """CUDA_VISIBLE_DEVICES of jobs that start together: GPUs of their own if they ask for some, else whatever there is."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if launch.gpus == 0 or num_jobs == 1:
        return (visible,) * num_jobs
    named = [name for name in (visible or "").split(",") if name]
    if len(named) < launch.gpus * num_jobs:
        raise ConfigError(
            f"hydra/launcher=submitit_local starts {num_jobs} jobs together, and launch.gpus={launch.gpus} for each is more "
            f"than the {len(named)} GPUs of CUDA_VISIBLE_DEVICES={visible or ''}; name enough of them there, or run one after "
            "another without that launcher."
        )
    return tuple(",".join(named[n * launch.gpus : (n + 1) * launch.gpus]) for n in range(num_jobs))


def _wait_for_others(folder: Path, kind: str | None) -> None:
    """Until no job is left of those whose files are in this sweep's folder: in SLURM's queue, or as processes."""
    jobs = [path.name for path in (folder / ".submitit").iterdir()]
    started = {int(job): start_ticks(int(job)) for job in jobs} if kind != "slurm" else {}
    while (
        slurm.is_queued(*jobs) if kind == "slurm" else any(t is not None and is_running(pid, t) for pid, t in started.items())
    ):
        time.sleep(_POLL_S)


def _multirun(overrides: list[str], task: SweepTask) -> None:
    with hydra.initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3", job_name=_JOB_NAME):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        try:
            function: Any = task  # Hydra calls it with a configuration, and so may we
            engine.multirun(config_name=None, task_function=function, overrides=overrides, with_log_configuration=False)
        except HydraException as error:
            raise ConfigError(f"{' '.join(str(error).split())} (hydra.* settings of the sweep).") from error


def _summary(runs: list[RunDir]) -> int:
    for run in runs:
        status = run.read_status() or {"state": "not started", "step": 0, "message": ""}
        log.info("%-9s step %6d  %s  %s", status["state"], status["step"], run.path, status["message"].split("\n")[-1])
    return 0 if all(run.state is State.done for run in runs) else 1
