"""From a plan to jobs: submit what is not there yet, cancel, try failed runs again.

    actions = submit(plan.runs, "slurm", dry_run=False)        # returns at once; one Action for each run
    actions = cancel(plan.runs)
    actions = retry(plan.runs, cluster=None)

A run that needs others of the file (a checkpoint, results) waits for them: as a SLURM dependency, or as a process that looks at
their folders. Idempotent: a run that is DONE, queued or running is left alone, so the same command can be given again after
adding lines, or twice at once. What failed or was cancelled starts again only by retry. Before a job exists its folder has the
frozen configuration and the status SUBMITTED; job.json names the job. On this machine (cluster local) jobs are processes that
wait for a place, one after another unless more are allowed; debug runs them in this process and blocks. Every run continues
from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from submitit.core.utils import DelayedSubmission

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile, naming, read_object, write_atomically
from arclab.launch.cluster import JobTask, build_executor, submission_errors
from arclab.launch.job import prepare_run, run_job
from arclab.launch.queue.plan import PlannedRun
from arclab.launch.queue.progress import damage_of, living_jobs
from arclab.runs import slurm
from arclab.runs.folder import RunDir, State, has_finished
from arclab.runs.jobrecord import JobRecord, Kind, read_job, write_job
from arclab.runs.killed import was_killed
from arclab.runs.lock import queue_lock
from arclab.runs.signals import StopSignals, interrupted_status
from arclab.runs.slurm import require_installed
from arclab.runs.statewords import CANCELLED, DAMAGED, LOST, NEW, QUEUED, read_state

# A year: jobs of this machine wait for each other, and no time limit is meant.
_LOCAL_LIMIT_MIN = 365 * 24 * 60
_SLOT_POLL_S = 0.5
_STARTABLE = (NEW, LOST, State.preempted.value)
_RETRIED = (State.failed.value, CANCELLED, LOST)


@dataclass(frozen=True, slots=True)
class Action:
    """What was done for a run. job "": none was submitted or cancelled. is_error: it could not be done, and what says why."""

    run: str
    job: str
    what: str
    is_error: bool = False


def submit(runs: Sequence[PlannedRun], cluster: Kind, *, dry_run: bool = False, places: int = 1) -> list[Action]:
    """Submit every run that is new, lost, killed or preempted. places: runs at a time on this machine."""
    if cluster == "slurm" and not dry_run:
        require_installed()
    with _alone(runs, dry_run=dry_run):
        begun: set[Path] = set()

        def act(run: PlannedRun, state: str, _: str | None) -> Action:
            lacking = _without_job(run, cluster, begun)
            action = _submit_or_say(run, state, cluster, dry_run, places, lacking)
            begun.update([run.folder.path] if action.what.startswith(("submitted", "would be")) else [])
            return action

        actions = _for_each(runs, act)
    return _with_ends(runs, actions)


def _makers_first(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """In the file's order, but a run after those that it needs. The plan has no circles."""
    placed: dict[Path, PlannedRun] = {}

    def place(run: PlannedRun) -> None:
        for maker in (other for other in runs if other.folder.path in run.makers):
            if maker.folder.path not in placed:
                place(maker)
        placed.setdefault(run.folder.path, run)

    for run in runs:
        place(run)
    return list(placed.values())


@contextmanager
def _alone(runs: Sequence[PlannedRun], *, dry_run: bool = False) -> Iterator[None]:
    """One command at a time looks at the runs of a runs_dir and changes their jobs: two at once would submit each run twice."""
    with ExitStack() as stack:
        if not dry_run:
            for folder in sorted({Path(run.config.runs_dir).resolve() for run in runs}):
                stack.enter_context(queue_lock(folder))
        yield


def _for_each(runs: Sequence[PlannedRun], act: Callable[[PlannedRun, str, str | None], Action]) -> list[Action]:
    """act(run, its state, what living_jobs knows of it) for every run. A damaged file of one run does not stop the others."""
    living = living_jobs(runs)
    actions: list[Action] = []
    ordered = _makers_first(runs)
    for run in ordered:
        damage, known = damage_of(run), living.get(run.folder.path)
        try:
            if not damage:
                with _naming_what_was_started(actions):
                    actions.append(act(run, read_state(run.folder, known), known))
        except DamagedFile as error:
            damage = str(error)
        if damage:
            actions.append(Action(run.name, "", f"{DAMAGED}: {damage}", is_error=True))
    by_folder = {run.folder.path: action for run, action in zip(ordered, actions, strict=True)}
    return [by_folder[run.folder.path] for run in runs]


@contextmanager
def _naming_what_was_started(actions: Sequence[Action]) -> Iterator[None]:
    """A refusal in the middle of a list also says what waits in the queue by then."""
    try:
        yield
    except (ConfigError, OSError) as error:
        started = [action.run for action in actions if action.what.startswith("submitted")]
        if started and isinstance(error, OSError):
            error.add_note(f"note: submitted before it: {', '.join(started)}; the same command leaves these alone")
        if not started or isinstance(error, OSError):
            raise
        raise ConfigError(f"{error} Submitted before it: {', '.join(started)}; the same command leaves these alone.") from error


def _submit_or_say(run: PlannedRun, state: str, cluster: Kind, dry_run: bool, places: int, lacking: Path | None) -> Action:
    """lacking: a run that it needs and that has no job to wait for."""
    is_longer = state == State.done.value and not run.config.is_done_again and not has_finished(run.folder, run.config)
    is_startable = state in _STARTABLE or is_longer or (state == State.failed.value and was_killed(run.folder))
    if is_startable and lacking is not None:
        return _waits(run, lacking)
    if not is_startable:
        hint = "; retry --failed starts it again" if state in _RETRIED else ""
        return Action(run.name, _job_id(run), f"skipped: {state}{hint}")
    how = [f"after {', '.join(map(str, run.makers))}" if run.makers else "", "" if state == NEW else f"continues: {state}"]
    words = f" ({', '.join(filter(None, how))})" if any(how) else ""
    if dry_run:
        return Action(run.name, "", f"would be submitted to {cluster}{words}")
    return Action(run.name, _start(run, cluster, places), f"submitted{words}")


def _without_job(run: PlannedRun, cluster: Kind, begun: Set[Path]) -> Path | None:
    """The first of the runs that this one needs which has no job of the same queue, and gets none now (begun)."""

    def has_job(maker: Path) -> bool:
        job = read_job(RunDir(maker))
        return job is not None and job.cluster == cluster and is_living(job)

    return next((maker for maker in run.makers if maker not in begun and not has_job(maker)), None)


def _waits(run: PlannedRun, maker: Path) -> Action:
    state = read_state(RunDir(maker), None)
    return Action(run.name, "", f"needs {maker}, which is {state}; give this command again when it is DONE, or with it")


def is_living(job: JobRecord) -> bool:
    """Waits or runs; a process of another machine cannot be waited for."""
    return slurm.is_queued(job.id) if job.cluster == "slurm" else job.is_running_here()


def _with_ends(runs: Sequence[PlannedRun], actions: Sequence[Action]) -> list[Action]:
    """Run what was submitted to this process, now that nobody has to wait for it, and say how it ended."""
    ended = {run.folder.path: action for run, action in zip(runs, actions, strict=True)}
    for run in _makers_first(runs):
        action = ended[run.folder.path]
        job = read_job(run.folder) if action.what.startswith("submitted") else None
        if job is None or job.cluster != "debug":
            continue
        failed = next((RunDir(maker) for maker in run.makers if RunDir(maker).state is not State.done), None)
        if failed is not None:
            run.folder.write_status(State.failed, 0, _maker_failed(failed), 2)
        else:
            run_job(run.folder.path)
        what = action.what.replace("submitted", f"ended: {read_state(run.folder, None)}", 1)
        ended[run.folder.path] = replace(action, what=what)
    return [ended[run.folder.path] for run in runs]


def _maker_failed(maker: RunDir) -> str:
    state = maker.state
    return f"needs {maker.path}, which is {'NEW' if state is None else state.value}; see to that run, and retry this one"


def _job_id(run: PlannedRun) -> str:
    job = read_job(run.folder)
    return job.id if job else ""


def _start(run: PlannedRun, cluster: Kind, places: int) -> str:
    """Prepare the folder and submit its job; returns the job's id."""
    before, job_before = run.folder.read_status(), read_job(run.folder)
    folder = prepare_run(run.config)
    _record_command(folder, run)
    folder.write_status(State.submitted, folder.step)
    (folder.path / "job.json").unlink(missing_ok=True)
    if cluster == "debug":
        write_job(folder, JobRecord.of_process(os.getpid(), cluster))  # run by _with_ends
        return str(os.getpid())
    try:
        with naming(folder.path / "jobs"):
            job = _submit_to_slurm(run) if cluster == "slurm" else _submit_here(run, places)
    except (ConfigError, OSError):
        with suppress(OSError):  # of two errors the first one says what happened
            folder.restore_status(before)  # nothing waits anywhere
            if job_before is not None:
                write_job(folder, job_before)  # it may say that the run was cancelled
        raise
    try:
        write_job(folder, JobRecord.of_slurm(job) if cluster == "slurm" else JobRecord.of_process(int(job), cluster))
    except OSError as error:
        end = f"scancel {job}" if cluster == "slurm" else f"kill {job}"
        error.add_note(f"note: {run.name} was submitted as job {job}, which nothing names now; end it with: {end}")
        raise
    return job


def _submit_to_slurm(run: PlannedRun) -> str:
    jobs = [job for maker in run.makers if (job := read_job(RunDir(maker))) is not None]
    executor = build_executor(
        run.config.launch, "slurm", run.folder.path / "jobs", name=run.name, after=[job.id for job in jobs]
    )
    with submission_errors(run.config.launch):
        return executor.submit(JobTask(run.folder.path.resolve())).job_id


def _submit_here(run: PlannedRun, places: int) -> str:
    """As a process that outlives the terminal."""
    executor = build_executor(run.config.launch, "local", run.folder.path / "jobs", name=run.name)
    executor.update_parameters(timeout_min=_LOCAL_LIMIT_MIN)
    folder = Path(run.config.runs_dir).resolve() / ".places"
    after = tuple(maker.resolve() for maker in run.makers)
    task = LocalTask(run.folder.path.resolve(), folder, places, os.environ.get("CUDA_VISIBLE_DEVICES"), after)
    with _detached():
        return executor.submit(task).job_id


@contextmanager
def _detached() -> Iterator[None]:
    """Processes started here outlive the terminal and do not keep a pipe open: no SIGHUP, no Ctrl-C, no standard input and
    output."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        for number, old in enumerate(kept):
            os.dup2(old, number)
            os.close(old)
        os.close(nothing)
        for number, handler in before.items():
            signal.signal(number, handler)


def _record_command(folder: RunDir, run: PlannedRun) -> None:
    """provenance.json names the line that makes the run, not the command that submitted it."""
    record = read_object(folder.provenance)
    record["command"] = run.job.command
    write_atomically(folder.provenance, json.dumps(record, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A run on this machine that waits until one of `places` is free. folder: where the places are. after: the folders of runs
    that must be DONE before.

    visible_gpus: CUDA_VISIBLE_DEVICES of who submitted. submitit sets its own, and hides all GPUs from a job that names none.
    """

    run_dir: Path
    folder: Path
    places: int
    visible_gpus: str | None
    after: tuple[Path, ...] = ()

    def __call__(self) -> None:
        if self.visible_gpus is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        os.setpgid(0, 0)  # a run handles SIGINT, so the Ctrl-C of who submitted it must not reach its processes
        self.folder.mkdir(parents=True, exist_ok=True)
        for maker in self.after:
            self._wait_for(RunDir(maker))
        place = self._take()
        try:
            JobTask(self.run_dir)()
        finally:
            place.release()

    def _wait_for(self, maker: RunDir) -> None:
        """Until it is DONE. If it ends in another way, this run is FAILED."""
        with StopSignals() as signals:
            while (state := maker.state) is not State.done:
                if signals.number is not None:
                    raise SystemExit(interrupted_status(signals.number))
                job = read_job(maker)
                has_ended = state not in (State.submitted, State.running) or job is None or not job.is_running_here()
                if has_ended and maker.state is not State.done:  # looked at again: it may have ended just now
                    RunDir(self.run_dir).write_status(State.failed, 0, _maker_failed(maker), 2)
                    raise SystemExit(2)
                time.sleep(_SLOT_POLL_S)

    def _take(self) -> FileLock:
        with StopSignals() as signals:
            while True:
                for number in range(self.places):
                    lock = FileLock(self.folder / f"{number}.lock")
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                    return lock
                if signals.number is not None:
                    raise SystemExit(interrupted_status(signals.number))
                time.sleep(_SLOT_POLL_S)

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)


def cancel(runs: Sequence[PlannedRun]) -> list[Action]:
    """End the jobs of queued and running runs; a running one saves first. Others are left as they are."""
    there = [run for run in runs if Path(run.config.runs_dir).is_dir()]
    with _alone(there):
        return _for_each(runs, _cancel)


def _cancel(run: PlannedRun, state: str, living: str | None) -> Action:
    job = read_job(run.folder)
    if job is None or living is None or state == State.done.value:
        note = " (not started by submit: stop it where it runs)" if state == State.running.value else ""
        return Action(run.name, "", f"nothing to cancel: {state}{note}")
    if job.is_elsewhere:
        return Action(run.name, job.id, f"not cancelled: it is a process of {job.host}; give the command there")
    if job.cluster != "slurm" and not job.is_certain:
        why = f"job.json does not say which process {job.id} it means; look at it, and end it with: kill {job.id}"
        return Action(run.name, job.id, f"not cancelled: {why}", is_error=True)
    if job.cluster == "slurm":
        require_installed()
    write_job(run.folder, replace(job, is_cancelled=True))
    try:
        _end(job, is_running=living != QUEUED)
    except ConfigError as error:
        write_job(run.folder, job)
        return Action(run.name, job.id, f"not cancelled: {error}", is_error=True)
    return Action(run.name, job.id, "cancelled" if living == QUEUED else "told to save and end")


def _end(job: JobRecord, *, is_running: bool) -> None:
    """A running job of SLURM gets the signal alone: scancel by itself would kill it KillWait seconds later, saved or not."""
    if job.cluster == "slurm":
        slurm.end_job(job.id, may_save=is_running)
    elif job.is_running_here():
        try:
            os.kill(int(job.id), signal.SIGTERM)
        except ProcessLookupError:
            return  # ended by itself in this moment


def retry(runs: Sequence[PlannedRun], cluster: Kind | None, *, dry_run: bool = False, places: int = 1) -> list[Action]:
    """Submit failed, cancelled and lost runs again, each to where it was unless `cluster` says otherwise."""

    begun: set[Path] = set()

    def act(run: PlannedRun, state: str, _: str | None) -> Action:
        job = read_job(run.folder)
        if state not in _RETRIED:
            return Action(run.name, "", f"skipped: {state}")
        kind: Kind = cluster or (job.cluster if job else "slurm")
        if (lacking := _without_job(run, kind, begun)) is not None:
            return _waits(run, lacking)
        begun.add(run.folder.path)
        if dry_run:
            return Action(run.name, "", f"would be submitted to {kind} again ({state})")
        return Action(run.name, _start(run, kind, places), f"submitted again ({state})")

    with _alone(runs, dry_run=dry_run):
        actions = _for_each(runs, act)
    return _with_ends(runs, actions)
