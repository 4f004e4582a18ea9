"""One evaluation, or one stage of self_improve.py, as several jobs: launch.shards=N divides its tasks, each shard is a job, and
one more merges and scores.

    python evaluate.py solver=tree_search lm=tiny dataset=toy launch.shards=4     # processes of this machine
    python evaluate.py solver=tree_search lm=qwen3_0_6b dataset=arc1 launch=slurm_gpu launch.gpus=1 launch.shards=16
    exit_status = run_shards("evaluate.py", argv, config)

They are runs of the queue, from FOLDER/shards/jobs.txt, which has this one command: python -m arclab.launch knows them by that
file. So they are preempted, requeued and continued as any run is. If this process is killed they go on; the same command waits
for them again, and starts what has failed or is missing. Ctrl-C tells the processes of this machine to save and end; jobs of
SLURM go on. It does not divide what a task needs, and no training.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from arclab.config.compose import ConfigError
from arclab.config.launch_schema import SHARDS, ShardsOn
from arclab.config.run import RunConfig
from arclab.files import write_atomically
from arclab.launch.needs import require_needs
from arclab.launch.queue.jobsfile import job_line
from arclab.launch.queue.plan import JobsPlan, PlannedRun, read_plan
from arclab.launch.queue.progress import RunProgress
from arclab.launch.queue.simulate import COMMAND_RECORD, seconds_around
from arclab.launch.queue.submit import cancel, retry, submit
from arclab.launch.queue.wait import wait_until_ended
from arclab.runs.console import progress_bar, setup_logging
from arclab.runs.folder import State
from arclab.runs.signals import interrupted_status

log = logging.getLogger(__name__)
_REASONS_TOLD = 4
_TITLE = "## Shards of one run\n## Criterion: every shard is DONE, and the whole.\n"


def run_shards(script: str, argv: Sequence[str], config: RunConfig) -> int:
    """The exit status: 0 when the whole is DONE. ConfigError: shards of another number are there, or some have failed."""
    setup_logging()
    _require_same_number(config)
    require_needs(script, argv, [config], on_slurm=config.launch.shards_on is not ShardsOn.local)
    plan = _plan(script, argv, config)
    cluster, runs = config.launch.shards_on.value, plan.runs
    is_new = all(run.folder.state is None for run in runs)
    retry(runs, cluster, places=len(runs))
    actions = submit(runs, cluster, places=len(runs))
    # A whole that failed for want of a shard which is preempted or gone: that one has a job only now.
    actions += retry([run for run in runs if run.config.launch.shard is None], cluster, places=len(runs))
    for action in actions:
        if action.is_error:
            raise ConfigError(f"{action.run}: {action.what}")
    log.info("%s has the shards; beside it: python -m arclab.launch status %s", plan.path, plan.path)
    try:
        ended = _wait(plan)
    except KeyboardInterrupt:
        if config.launch.shards_on is ShardsOn.local:
            cancel(runs)
            log.info("interrupted: shards save and end; the same command continues them")
        else:
            log.info("interrupted; the jobs go on, and the same command waits for them. To end them: python -m arclab.launch "
                     "cancel %s '*'", plan.path)  # fmt: skip
        return interrupted_status(signal.SIGINT)
    status = _concluded(plan.path, ended)
    if is_new:
        _write_seconds_around(config.folder)
    return status


def _write_seconds_around(folder: Path) -> None:
    """What this command took besides its jobs, which it started all: for arclab.launch.queue.simulate."""
    seconds = seconds_around(folder, psutil.Process().create_time(), time.time())
    if seconds is not None:
        write_atomically(folder / SHARDS / COMMAND_RECORD, json.dumps({"seconds": seconds}) + "\n")


def _require_same_number(config: RunConfig) -> None:
    count, shards = config.launch.shards, config.folder / SHARDS
    found = sorted({path.name.partition("_of_")[2] for path in shards.glob("*_of_*")})
    if others := [each for each in found if each != str(count)]:
        raise ConfigError(
            f"launch.shards={count}: {shards} holds shards of {others[0]}; give launch.shards={others[0]} to continue them, or "
            "remove that folder."
        )


def _plan(script: str, argv: Sequence[str], config: RunConfig) -> JobsPlan:
    path = config.folder / SHARDS / "jobs.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{_TITLE}{job_line(script, argv)}\n")
    return read_plan(path)


def _wait(plan: JobsPlan) -> list[tuple[PlannedRun, RunProgress]]:
    """How all of them ended, with a bar over the shards' tasks."""
    with progress_bar(total=0, desc="shards", unit="task") as bar:

        def show(runs: Sequence[tuple[PlannedRun, RunProgress]]) -> None:
            shards = [progress for run, progress in runs if run.config.launch.shard is not None]
            bar.total = sum(progress.total_steps or 0 for progress in shards)
            bar.n = sum(progress.step for progress in shards)
            states = [progress.state for _, progress in runs]
            bar.set_postfix_str(", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))))

        return list(wait_until_ended(plan.runs, show))


def _concluded(path: Path, ended: Sequence[tuple[PlannedRun, RunProgress]]) -> int:
    """0. ConfigError names every shard that is not DONE, and why. path: the file of the shards."""
    lost = [(run, progress) for run, progress in ended if progress.state != State.done.value]
    shards = {run.config.launch.shard: progress for run, progress in lost if run.config.launch.shard is not None}
    if shards:
        raise ConfigError(f"{_told_once(shards, path)}. The same command runs only what is missing.")
    for run, progress in lost:
        raise ConfigError(
            f"all shards are DONE, and the whole is {progress.state} ({_last_line(progress)}): {run.folder.path}. The same "
            "command merges them."
        )
    whole = next(run for run, _ in ended if run.config.launch.shard is None)
    message = (whole.folder.read_status() or {}).get("message", "")
    log.info("done: %s: %s", Path(whole.folder.path), message)
    return 0


def _told_once(shards: Mapping[int, RunProgress], path: Path) -> str:
    """Shards that say the same together, and of many reasons the first ones."""
    together: dict[tuple[str, str], list[int]] = {}
    for number in sorted(shards):
        together.setdefault((shards[number].state, _last_line(shards[number])), []).append(number)
    told = [
        f"{'shard' if len(numbers) == 1 else 'shards'} {', '.join(map(str, numbers))} "
        f"{'is' if len(numbers) == 1 else 'are'} {state} ({reason})"
        for (state, reason), numbers in together.items()
    ]  # fmt: skip
    left = sum(map(len, list(together.values())[_REASONS_TOLD:]))
    more = [f"{left} more are not DONE: python -m arclab.launch status {path}"] if left else []
    return "; ".join([*told[:_REASONS_TOLD], *more])


def _last_line(progress: RunProgress) -> str:
    lines = progress.message.strip().splitlines()
    return lines[-1].rstrip(".") if lines else "its job ended without a word"
