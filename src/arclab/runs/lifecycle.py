"""The life of a run in one process, for any method: ranks, signals, the folder and its status, and how it ended.

    def work(ranks, signals): return State.done                     # the method's: build everything, then train
    exit_status = in_ranks(work, DeviceChoice.auto, num_threads=None, is_parent_watching=False)

    with folder.building():                                         # OwnFolder or GivenFolder
        ...                                                         # load tasks, make the model
        with folder.held(config, notes) as is_finished: ...         # the folder is this run's from here on

Who looks after the folder differs: a process that a user started does it itself (OwnFolder), a rank that arclab.launch.job
started finds it prepared and held (GivenFolder). Nothing here knows what is trained, or starts processes.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

import torch

from arclab.config.compose import evaluate_command
from arclab.config.run import DeviceChoice, RunConfig
from arclab.files import sentence_for
from arclab.runs.console import setup_logging
from arclab.runs.folder import RunDir, State, add_notes, is_done, open_run
from arclab.runs.lock import LostLock, keeper, locked
from arclab.runs.monitor import UnhealthyRun
from arclab.runs.ranks import Ranks, start_ranks, stop_ranks
from arclab.runs.signals import StopSignals, interrupted_status

log = logging.getLogger(__name__)
_TRACEBACK_LINES = 12


def in_ranks(
    work: Callable[[Ranks, StopSignals], State], device: DeviceChoice, num_threads: int | None, *, is_parent_watching: bool
) -> int:
    """Do the work as one rank, alone or of a torchrun job. Returns the exit status: 0, or 128 + the signal that ended the run
    early; 0 for the latter too under torchrun, which would take anything else for a crash."""
    setup_logging()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    with StopSignals() as signals:
        ranks = start_ranks(device)
        try:
            state = work(ranks, signals)
        finally:
            stop_ranks()
    is_alone = ranks.world_size == 1 and not is_parent_watching
    return interrupted_status(signals.number) if state is State.preempted and is_alone else 0


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
        with locked(self.run) if self._ranks.is_main else nullcontext():
            is_finished = self._ranks.gather_objects(self._open(config, notes) if self._ranks.is_main else None)[0]
            assert is_finished is not None
            yield is_finished
            if self._ranks.is_main and not is_finished:
                self.run.preempt.unlink(missing_ok=True)

    def _open(self, config: RunConfig, notes: tuple[str, ...]) -> bool:
        open_run(config, notes)
        if is_done(self.run, config):
            log.info("%s is DONE; evaluate it with: %s", self.run.path, evaluate_command(self.run.path))
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


def finish(run: RunDir, ranks: Ranks, step: int, num_steps: int, conclude: Callable[[], str]) -> State:
    """DONE, or PREEMPTED if the run was told to end early; the status says so. conclude: makes DONE's message, on rank 0."""
    is_complete = step == num_steps
    if ranks.is_main:
        keeper(run)()
        if is_complete:
            run.write_status(State.done, step, conclude())
            log.info("done: %s; evaluate it with: %s", run.path, evaluate_command(run.path))
        else:
            run.write_status(State.preempted, step, f"saved at step {step} of {num_steps}; the same command continues")
            log.info("told to end: %s is saved at step %d; the same command continues", run.path, step)
    return State.done if is_complete else State.preempted
