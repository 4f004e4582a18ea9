"""The life of a run in one process, for any method: ranks, signals, the folder and its status, and how it ended.

    def work(ranks, signals, folder): return State.done             # the method's: build everything, then train
    exit_status = in_ranks(work, config, None, DeviceChoice.auto, num_threads=None)

    with folder.building():                                         # OwnFolder or GivenFolder
        ...                                                         # load tasks, make the model
        with folder.held(config, notes) as is_finished: ...         # the folder is this run's from here on

Who looks after the folder differs: a process that a user started does it itself (OwnFolder), a rank that arclab.launch.job
started finds it prepared and held (GivenFolder). Nothing here knows what is trained, or starts processes.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

import torch

from arclab.config.compose import hint_for
from arclab.config.run import DeviceChoice, RunConfig
from arclab.files import sentence_for
from arclab.runs.console import setup_logging
from arclab.runs.folder import RunDir, State, add_notes, is_done, open_run
from arclab.runs.killed import say_if_killed
from arclab.runs.lock import LostLock, keeper, locked
from arclab.runs.monitor import UnhealthyRun
from arclab.runs.preempt import StopRequest, ToldToEnd
from arclab.runs.ranks import Ranks, start_ranks, stop_ranks
from arclab.runs.signals import StopSignals, interrupted_status

log = logging.getLogger(__name__)
_TRACEBACK_LINES = 12
_REPORT_EVERY_S = 5


def in_ranks(
    work: Callable[[Ranks, StopSignals, RunFolder], State],
    config: RunConfig,
    given: RunDir | None,
    device: DeviceChoice,
    num_threads: int | None,
) -> int:
    """Do the work as one rank, alone or of a torchrun job. given: the folder that a parent has prepared, holds and watches;
    None: this process, or rank 0, looks after it. Returns the exit status: 0, or 128 + the signal that ended the run early; 0
    for the latter too under torchrun, which would take anything else for a crash."""
    setup_logging()
    use_threads(num_threads)
    with StopSignals() as signals:
        ranks = start_ranks(device)
        try:
            folder = OwnFolder(RunDir(config.folder), ranks) if given is None else GivenFolder(given, ranks)
            state = work(ranks, signals, folder)
        finally:
            stop_ranks()
    is_alone = ranks.world_size == 1 and given is None
    return interrupted_status(signals.number) if state is State.preempted and is_alone else 0


def use_threads(num_threads: int | None) -> None:
    """On this many threads torch computes on the CPU from here on. None: as many as it is set to."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


class RecordFailure:
    """Whatever ends the block goes into status.json before it goes on; the first rank that fails is the one that is heard. If
    it cannot be written there, it goes on all the same, with a note that says so."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._require_held = run, keeper(run)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, LostLock):  # the folder is another process's now
            return
        try:
            self._record(error)
        except (OSError, ValueError) as second:  # the disk is full, the folder has gone, status.json is damaged
            error.add_note(f"note: {self._run.path} could not keep this message: {sentence_for(second)}")

    def _record(self, error: BaseException) -> None:
        if self._run.state in (State.failed, State.stopped):
            return
        self._require_held()
        state, sentence = State.stopped if isinstance(error, UnhealthyRun) else State.failed, sentence_for(error)
        if sentence is not None:
            self._run.write_status(state, self._run.step, sentence, 2)
        else:
            lines = "".join(traceback.format_exception(error)).strip().splitlines()
            self._run.write_status(State.failed, self._run.step, "\n".join(lines[-_TRACEBACK_LINES:]), 1)


class OwnFolder:
    """The process, or rank 0 of the ranks that a user started, locks the folder and writes its status."""

    def __init__(self, run: RunDir, ranks: Ranks) -> None:
        self.run, self._ranks = run, ranks

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()  # nobody's failure yet: the folder may be another run's

    @contextmanager
    def held(self, config: RunConfig, notes: tuple[str, ...]) -> Iterator[bool]:
        if self._ranks.is_main:
            say_if_killed(self.run)
        with locked(self.run) if self._ranks.is_main else nullcontext():
            is_finished = self._ranks.gather_objects(self._open(config, notes) if self._ranks.is_main else None)[0]
            assert is_finished is not None
            yield is_finished
            if self._ranks.is_main and not is_finished:
                self.run.preempt.unlink(missing_ok=True)

    def _open(self, config: RunConfig, notes: tuple[str, ...]) -> bool:
        open_run(config, notes)
        if is_done(self.run, config):
            log.info("%s is DONE%s", self.run.path, hint_for(config, self.run.path))
            return True
        self.run.preempt.unlink(missing_ok=True)  # meant for an earlier process
        self.run.write_status(State.running, self.run.step)
        return False


class GivenFolder:
    """A parent (arclab.launch.job) has prepared the folder, holds it, and removes the file PREEMPT once all ranks are gone."""

    def __init__(self, run: RunDir, ranks: Ranks) -> None:
        self.run, self._ranks = run, ranks

    def building(self) -> AbstractContextManager[None]:
        return RecordFailure(self.run)

    @contextmanager
    def held(self, config: RunConfig, notes: tuple[str, ...]) -> Iterator[bool]:
        if self._ranks.is_main:
            add_notes(self.run, notes)
        self._ranks.barrier()
        yield False


# Who looks after a run's folder. Every rank has one; rank 0 acts, everybody hears. building(): a context while the run is
# built, before it holds its folder. held(config, notes): a context in which the folder is this run's and says what will run;
# its value: nothing is left to do.
RunFolder = OwnFolder | GivenFolder


class WorkProgress:
    """Of a run without steps of a trainer: how much of num_steps is done, for status.json, and whether it is told to end."""

    def __init__(self, run: RunDir, ranks: Ranks, signals: StopSignals | None, num_steps: int) -> None:
        self._run, self._ranks, self.num_steps = run, ranks, num_steps
        self._stop, self._reported_at = StopRequest(run, ranks, signals), -math.inf

    @property
    def is_told(self) -> bool:
        """If so: keep what is done, and raise ToldToEnd."""
        return self._stop.is_seen

    def require_not_told(self) -> None:
        """ToldToEnd at once, from within a piece of work that is begun again next time."""
        if self.is_told:
            raise ToldToEnd("nothing of what was being computed is kept")

    def report(self, num_done: int) -> None:
        """num_done of num_steps are done; written every few seconds, by rank 0."""
        if self._ranks.is_main and time.monotonic() - self._reported_at >= _REPORT_EVERY_S:
            self._run.write_status(State.running, num_done, num_steps=self.num_steps)
            self._reported_at = time.monotonic()


def until_told(run: RunDir, ranks: Ranks, progress: WorkProgress, work: Callable[[], str]) -> State:
    """A run without steps of a trainer, such as an evaluation. work: returns DONE's message, or raises ToldToEnd once the
    progress has said so and everything is kept. The status says how it ended."""
    progress.report(0)
    try:
        message, is_complete = work(), True
    except ToldToEnd as told:
        message, is_complete = f"{told}; the same command continues", False
    if ranks.is_main:
        keeper(run)()
        state = State.done if is_complete else State.preempted
        run.write_status(state, progress.num_steps if is_complete else run.step, message, num_steps=progress.num_steps)
        log.info("%s: %s: %s", "done" if is_complete else "told to end", run.path, message)
    return State.done if is_complete else State.preempted


def finish(
    config: RunConfig, run: RunDir, ranks: Ranks, step: int, conclude: Callable[[], str], *, is_complete: bool | None = None,
    num_steps: int | None = None,
) -> State:  # fmt: skip
    """DONE, or PREEMPTED if the run was told to end early; the status says so. conclude: makes DONE's message, on rank 0.
    is_complete, num_steps: of a run that may be complete before its last step, whose configuration says no number."""
    is_complete = step == config.num_steps if is_complete is None else is_complete
    num_steps = config.num_steps if num_steps is None else num_steps
    if ranks.is_main:
        keeper(run)()
        if is_complete:
            run.write_status(State.done, step, conclude())
            log.info("done: %s%s", run.path, hint_for(config, run.path))
        else:
            run.write_status(State.preempted, step, f"saved at step {step} of {num_steps}; the same command continues")
            log.info("told to end: %s is saved at step %d; the same command continues", run.path, step)
    return State.done if is_complete else State.preempted
