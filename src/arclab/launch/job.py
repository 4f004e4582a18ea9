"""The parent of a run: holds the run folder, starts torchrun in a process of its own, tells it to end, and says how it ended.

    run_job(Path("runs/quickstart/a")) -> exit status

The folder must be prepared (prepare_run). Everything that starts ranks goes through here: launch.gpus=N, sweeps, SLURM jobs.
  0    DONE                               1    crashed: FAILED, with the traceback's last lines in status.json
  2    the user can mend it               128 + signal    told to end: PREEMPTED and saved; the same command continues
It does not requeue (see arclab.launch.cluster) and never imports torch.
"""

from __future__ import annotations

import logging
import re
import signal
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from arclab.config.compose import hint_for, thaw_run
from arclab.config.launch_schema import LaunchConfig
from arclab.config.run import RunConfig
from arclab.launch.torchrun import Node, Torchrun
from arclab.runs.console import setup_logging
from arclab.runs.folder import RunDir, State, is_done, open_run, require_same
from arclab.runs.killed import say_if_killed
from arclab.runs.lock import keeper, locked, require_free
from arclab.runs.signals import StopSignals, interrupted_status

log = logging.getLogger(__name__)
_POLL_S = 0.25
_LAST_LINES = 12


def check_run(config: RunConfig) -> None:
    """ConfigError if the run's folder is in use or belongs to another configuration."""
    run = RunDir(config.folder)
    require_free(run)
    require_same(run, config)


def prepare_run(config: RunConfig) -> RunDir:
    """Freeze the configuration in its run folder, after check_run."""
    check_run(config)
    return open_run(config)


def run_job(run_dir: Path) -> int:
    """Run a prepared folder to its end, from wherever it stands. ConfigError if another process holds it."""
    setup_logging()
    run = RunDir(run_dir)
    config = thaw_run(run.config)
    node = Node.here(config.launch)
    if node.number == 0:
        say_if_killed(run)
    held: AbstractContextManager[None] = locked(run) if node.number == 0 else nullcontext()
    with held, StopSignals() as signals:
        if is_done(run, config):
            log.info("%s is DONE%s", run.path, hint_for(config, run.path))
            return 0
        if node.number == 0:
            run.preempt.unlink(missing_ok=True)
            run.write_status(State.running, run.step)
        return _supervise(run, config.launch, node, signals)


def _supervise(run: RunDir, launch: LaunchConfig, node: Node, signals: StopSignals) -> int:
    require_held = keeper(run)
    torchrun = Torchrun(run, launch, node)
    try:
        while (code := torchrun.wait(_POLL_S)) is None:
            if signals.number is not None and not run.preempt.exists():
                log.info("%s: told to end by %s; saving", run.path, signal.Signals(signals.number).name)
                run.preempt.touch()
    finally:
        torchrun.close()
    if node.number != 0:  # only the first node reports
        return _status_of_other_node(code, signals)
    require_held()
    run.preempt.unlink(missing_ok=True)
    return _outcome(run, code, torchrun.log_start, signals)


def _status_of_other_node(code: int, signals: StopSignals) -> int:
    if code:
        return 1
    return 0 if signals.number is None else interrupted_status(signals.number)


def _outcome(run: RunDir, code: int, log_start: int, signals: StopSignals) -> int:
    """The exit status, from what the workers wrote into status.json, or could not write."""
    status = run.read_status()
    assert status is not None
    state = State(status["state"])
    if state is State.done:
        return 0
    if state is State.preempted:
        return interrupted_status(signals.number)
    output = run.console.read_bytes()[log_start:].decode(errors="replace")
    # Whoever lost a killed peer says FAILED too, but not why.
    message = describe_kill(code, output)
    if message is None and state in (State.failed, State.stopped):
        log.info("error: %s", status["message"])
        return status["exit_status"]
    message = message or last_words(code, output)
    log.info("error: %s: %s", run.path, message)
    run.write_status(State.failed, run.step, message, 1)
    return 1


def describe_kill(code: int, output: str) -> str | None:
    """Which process was killed from outside, if one was. SIGTERM is how torchrun ends the other ranks."""
    remedy = "the same command continues from the last checkpoint"
    if code < 0:
        return f"torchrun was killed by {signal.Signals(-code).name}; {remedy}"
    killed = re.search(r"Signal \d+ \((SIG(?!TERM)\w+)\) received by PID (\d+)", output)
    if killed is None:
        return None
    name, pid = killed.groups()
    hint = "; if nobody did it, it was the kernel out of memory: raise launch.mem_gib" if name == "SIGKILL" else ""
    return f"a worker (pid {pid}) was killed by {name}{hint}; {remedy}"


def last_words(code: int, output: str) -> str:
    """The end of the first traceback in what a torchrun printed that came to no training."""
    start = output.find("Traceback (most recent call last)")
    end = output.find("torch.distributed.elastic", start)
    lines = output[max(start, 0) : end if end > start else None].strip().splitlines()
    return "\n".join(lines[-_LAST_LINES:]) or f"torchrun ended with exit status {code} and wrote nothing"
