"""What is to be done with the runs of a plan: submit what is not there yet, cancel, try failed runs again.

    actions = submit(plan.runs, "slurm", dry_run=False)        # returns at once; one Action for each run
    actions = cancel(plan.runs)
    actions = retry(plan.runs, cluster=None)

A run that needs others of the file (a checkpoint, results) waits for them: as a SLURM dependency, or as a process that looks at
their folders. Idempotent: a run that is DONE, queued or running is left alone, so the same command can be given again after
adding lines, or twice at once. What failed or was cancelled starts again only by retry. Before a job exists its folder has the
frozen configuration and the status SUBMITTED; job.json names the job. On this machine (cluster local) jobs are processes that
wait for a place, one after another unless more are allowed; debug runs them in this process and blocks. Every run continues
from its last checkpoint. How a job is made: arclab.launch.queue.starting.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile
from arclab.launch.job import run_job
from arclab.launch.queue.plan import PlannedRun
from arclab.launch.queue.progress import damage_of, living_jobs
from arclab.launch.queue.starting import Prepared, array_of, maker_failed, prepare, start
from arclab.runs import slurm
from arclab.runs.folder import RunDir, State, has_finished
from arclab.runs.jobrecord import JobRecord, Kind, read_job, write_job
from arclab.runs.killed import was_killed
from arclab.runs.lock import queue_lock
from arclab.runs.slurm import require_installed
from arclab.runs.statewords import CANCELLED, DAMAGED, LOST, NEW, QUEUED, read_state

_STARTABLE = (NEW, LOST, State.preempted.value)
_RETRIED = (State.failed.value, CANCELLED, LOST)


@dataclass(frozen=True, slots=True)
class Action:
    """What was done for a run. job "": none was submitted or cancelled. is_error: it could not be done, and what says why."""

    run: str
    job: str
    what: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """A run that is to be started, and what is said once it is."""

    run: PlannedRun
    cluster: Kind
    what: str


# (run, its state, what living_jobs knows of it, the folders of runs that were submitted before it) -> what to do, or what was.
Act = Callable[[PlannedRun, str, str | None, Set[Path]], Action | Start]


def submit(runs: Sequence[PlannedRun], cluster: Kind, *, dry_run: bool = False, places: int = 1) -> list[Action]:
    """Submit every run that is new, lost, killed or preempted. places: runs at a time on this machine."""
    if cluster == "slurm" and not dry_run:
        require_installed()
    queued = functools.cache(slurm.all_queued)

    def act(run: PlannedRun, state: str, _: str | None, begun: Set[Path]) -> Action | Start:
        return _submit_or_say(run, state, cluster, dry_run, _without_job(run, cluster, begun, queued))

    with _alone(runs, dry_run=dry_run):
        actions = _for_each(runs, act, places)
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


def _for_each(runs: Sequence[PlannedRun], act: Act, places: int = 1) -> list[Action]:
    """act for every run, and the start of those that it wants started. A damaged file of one run does not stop the others."""
    living = living_jobs(runs)
    actions: dict[Path, Action] = {}
    begun: set[Path] = set()
    for _, together in itertools.groupby(_makers_first(runs), key=array_of):
        starts: dict[Path, tuple[Prepared, str]] = {}
        with _naming_what_was_started(actions.values()):
            try:
                for run in together:
                    found = _decide(run, act, living.get(run.folder.path), begun)
                    if isinstance(found, Action):
                        actions[run.folder.path] = found
                        begun |= {run.folder.path} if found.what.startswith("would be") else set()
                    else:
                        starts[run.folder.path] = found
            except (ConfigError, OSError):
                for waiting, _ in starts.values():
                    waiting.give_up()
                raise
            for run, job in start([waiting for waiting, _ in starts.values()], places):
                actions[run.folder.path] = Action(run.name, job, starts[run.folder.path][1])
                begun.add(run.folder.path)
    return [actions[run.folder.path] for run in runs]


def _decide(run: PlannedRun, act: Act, known: str | None, begun: Set[Path]) -> Action | tuple[Prepared, str]:
    """What was done; or the run, prepared to be started, and what is said once it is."""
    damage = damage_of(run)
    try:
        if not damage:
            found = act(run, read_state(run.folder, known), known, begun)
            return found if isinstance(found, Action) else (prepare(run, found.cluster), found.what)
    except DamagedFile as error:
        damage = str(error)
    return Action(run.name, "", f"{DAMAGED}: {damage}", is_error=True)


@contextmanager
def _naming_what_was_started(actions: Iterable[Action]) -> Iterator[None]:
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


def _submit_or_say(run: PlannedRun, state: str, cluster: Kind, dry_run: bool, lacking: Path | None) -> Action | Start:
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
    return Start(run, cluster, f"submitted{words}")


def _without_job(run: PlannedRun, cluster: Kind, begun: Set[Path], queued: Callable[[], Set[str]]) -> Path | None:
    """The first of the runs that this one needs which has no job of the same queue, and gets none now (begun). queued: the
    jobs of SLURM, asked once for a command."""

    def has_job(maker: Path) -> bool:
        job = read_job(RunDir(maker))
        return job is not None and job.cluster == cluster and is_living(job, queued)

    return next((maker for maker in run.makers if maker not in begun and not has_job(maker)), None)


def _waits(run: PlannedRun, maker: Path) -> Action:
    state = read_state(RunDir(maker), None)
    return Action(run.name, "", f"needs {maker}, which is {state}; give this command again when it is DONE, or with it")


def is_living(job: JobRecord, queued: Callable[[], Set[str]] = slurm.all_queued) -> bool:
    """Waits or runs; a process of another machine cannot be waited for. queued: the jobs of SLURM."""
    return job.id in queued() if job.cluster == "slurm" else job.is_running_here()


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
            run.folder.write_status(State.failed, 0, maker_failed(failed), 2)
        else:
            run_job(run.folder.path)
        what = action.what.replace("submitted", f"ended: {read_state(run.folder, None)}", 1)
        ended[run.folder.path] = replace(action, what=what)
    return [ended[run.folder.path] for run in runs]


def _job_id(run: PlannedRun) -> str:
    job = read_job(run.folder)
    return job.id if job else ""


def cancel(runs: Sequence[PlannedRun]) -> list[Action]:
    """End the jobs of queued and running runs; a running one saves first. Others are left as they are."""
    there = [run for run in runs if Path(run.config.runs_dir).is_dir()]
    with _alone(there):
        return _for_each(runs, _cancel)


def _cancel(run: PlannedRun, state: str, living: str | None, _: Set[Path]) -> Action:
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
    queued = functools.cache(slurm.all_queued)

    def act(run: PlannedRun, state: str, _: str | None, begun: Set[Path]) -> Action | Start:
        job = read_job(run.folder)
        if state not in _RETRIED:
            return Action(run.name, "", f"skipped: {state}")
        kind: Kind = cluster or (job.cluster if job else "slurm")
        if (lacking := _without_job(run, kind, begun, queued)) is not None:
            return _waits(run, lacking)
        if dry_run:
            return Action(run.name, "", f"would be submitted to {kind} again ({state})")
        return Start(run, kind, f"submitted again ({state})")

    with _alone(runs, dry_run=dry_run):
        actions = _for_each(runs, act, places)
    return _with_ends(runs, actions)
