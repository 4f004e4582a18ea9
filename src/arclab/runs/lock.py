"""One process at a time works in a run folder: the kernel keeps a lock for it, and lock.json names it.

    with locked(run): ...            # ConfigError that names the holder (host, pid, SLURM job, since when) if there is one
    holder = living_holder(run)      # who works there now, or None
    require_held = keeper(run)       # before each write: LostLock if somebody else has taken the folder over since

The lock is a POSIX record lock on the file .holder. The kernel drops it when the process dies, however it dies, and a forked
child does not inherit it (as it would flock: a loader that outlives a killed trainer would keep the folder closed). The other
side of it: a process that closes .holder anywhere loses the lock, so nobody opens that file in a process that holds it.

Where the kernel's lock says nothing (another host, a file system without locks) the record decides: on this machine by pid,
start and boot, on another one by its SLURM job. A holder on another host without a SLURM job, or in another PID namespace
without a lock, cannot be looked up and counts as alive. The lock is advice for arclab's own processes, not protection against
others.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile, read_record, write_atomically
from arclab.runs import slurm
from arclab.runs.folder import RunDir
from arclab.runs.process_id import boot_id, is_running, pid_namespace, start_ticks

log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_PATIENCE_S = 2
_TAKEN = (errno.EACCES, errno.EAGAIN)
_FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class LostLock(ConfigError):
    """Another process has taken the run folder over: nothing may be written there any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who works in a run folder. incarnation: SLURM's count of restarts of the job.

    start_ticks, boot_id, pid_namespace: see arclab.runs.process_id; None and "" in files of older versions, which have
    `started` alone (seconds since 1970). has_lock: does the kernel keep a lock for it?
    """

    host: str
    pid: int
    started: float
    slurm_job: str | None
    incarnation: str
    since: str
    start_ticks: int | None = None
    boot_id: str = ""
    pid_namespace: str = ""
    has_lock: bool = False

    @classmethod
    def me(cls) -> Holder:
        return cls(
            host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time(), slurm_job=slurm.job_id(),
            incarnation=os.environ.get("SLURM_RESTART_COUNT", "0"), since=time.strftime("%Y-%m-%d %H:%M:%S"),
            start_ticks=start_ticks(os.getpid()), boot_id=boot_id(), pid_namespace=pid_namespace(),
        )  # fmt: skip

    @property
    def is_me(self) -> bool:
        mine = (os.getpid(), start_ticks(os.getpid()), boot_id(), pid_namespace())
        return (self.pid, self.start_ticks, self.boot_id, self.pid_namespace) == mine

    @property
    def is_of_this_boot(self) -> bool:
        """Of this machine, and since it was started."""
        return self.boot_id != "" and self.boot_id == boot_id()

    def is_alive(self) -> bool:
        """As far as the record can say."""
        if self.is_of_this_boot and self.start_ticks is not None:
            return self.pid_namespace != pid_namespace() or is_running(self.pid, self.start_ticks)
        if self.host == socket.gethostname():  # before a reboot, or written by an older version
            return self.start_ticks is None and _runs(self.pid, self.started)
        if self.slurm_job is None:
            return True
        if self.slurm_job == slurm.job_id():  # an earlier life of this very job, before it was requeued
            return self.incarnation == os.environ.get("SLURM_RESTART_COUNT", "0")
        return slurm.is_queued(self.slurm_job)

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"pid {self.pid} on {self.host}{job}, since {self.since}"


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # no number of a process
        return False


def lock_path(run: RunDir) -> Path:
    return run.path / "lock.json"


def _held_path(run: RunDir) -> Path:
    return run.path / ".holder"


def read_holder(run: RunDir) -> Holder | None:
    """Who holds the run folder, dead or alive; None if nobody does. DamagedFile if lock.json is no such record."""
    path = lock_path(run)
    try:
        return read_record(path, Holder)
    except FileNotFoundError:
        return None


def living_holder(run: RunDir) -> Holder | None:
    """Who works in the folder now, as the kernel and the record say."""
    holder = read_holder(run)
    return holder if holder is not None and _is_living(run, holder) else None


def _is_living(run: RunDir, holder: Holder) -> bool:
    if holder.is_me:  # and must not open the file
        return True
    is_held = _is_held(run)
    if is_held:
        return True
    # The kernel would know of it in whatever namespace it runs.
    decides = is_held is False and holder.has_lock and holder.is_of_this_boot and holder.pid_namespace != pid_namespace()
    return not decides and holder.is_alive()


def _is_held(run: RunDir) -> bool | None:
    """Does another process have the kernel's lock? None: it cannot be asked. Never asks in a process that has the lock
    itself."""
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.open(_held_path(run), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    finally:
        os.close(descriptor)
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK


def require_free(run: RunDir) -> None:
    """ConfigError if a living process works in the folder."""
    holder = read_holder(run)
    if holder is None and _is_held(run):
        raise ConfigError(_in_use(run, "a process that has lost its lock.json"))
    if holder is not None and _is_living(run, holder):
        raise ConfigError(_in_use(run, str(holder)))


def _in_use(run: RunDir, holder: str) -> str:
    return (
        f"the run folder {run.path} is in use by {holder}; wait for it or stop it, or choose another folder (name=, "
        f"output_dir=) (if it is certainly gone, remove {lock_path(run)})."
    )


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run folder, which is created if need be. ConfigError if a living process holds it."""
    me, path = Holder.me(), lock_path(run)
    run.path.mkdir(parents=True, exist_ok=True)
    with folder_lock(run):  # makes looking and taking one action
        require_free(run)
        holder = read_holder(run)
        if holder is not None:
            log.info("taking over %s from %s, which is no longer there", run.path, holder)
        descriptor = os.open(_held_path(run), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            me = replace(me, has_lock=_take(descriptor, run))
            write_atomically(path, json.dumps(asdict(me)) + "\n")
        except (OSError, ConfigError):
            os.close(descriptor)
            raise
    has_ended_well = False
    try:
        yield
        has_ended_well = True
    finally:
        with nullcontext() if has_ended_well else suppress(OSError):  # of two errors the first one says what happened
            _release(run, me, descriptor)


def _release(run: RunDir, me: Holder, descriptor: int) -> None:
    """Of a folder that was moved away meanwhile nothing is made again where it was."""
    try:
        if run.path.is_dir():
            with folder_lock(run):
                if not _is_of_another(run, me):
                    lock_path(run).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: RunDir) -> bool:
    """Have the kernel's lock until the process ends. False, said aloud, on a file system that has none."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise ConfigError(_in_use(run, "another process")) from error
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "the file system of %s has no file locks (%s): lock.json alone keeps a second process out, by its host, process "
            "and SLURM job",
            run.path, error.strerror,
        )  # fmt: skip
        return False
    return True


@contextmanager
def queue_lock(runs_dir: Path) -> Iterator[None]:
    """One command at a time submits, cancels or sweeps runs of this folder, which is created if need be."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive(runs_dir / ".submit.lock", is_said=False):
        yield


@contextmanager
def folder_lock(run: RunDir) -> Iterator[None]:
    """For a moment: nobody takes the run folder over meanwhile."""
    with _exclusive(run.path / ".lock", is_said=True):
        yield


@contextmanager
def _exclusive(path: Path, *, is_said: bool) -> Iterator[None]:
    """Wait for the file's lock and hold it; on a file system without locks go on without. is_said: somebody else says so."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            log.info("waiting for another command that holds %s", path)
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if not is_said:
            log.warning("the file system of %s has no file locks (%s): give one command at a time there", path, error.strerror)
    try:
        yield
    finally:
        lock.release()


def _is_of_another(run: RunDir, me: Holder | None) -> bool:
    """A damaged file is nobody else's: whoever takes over writes a whole one."""
    try:
        return read_holder(run) != me
    except DamagedFile:
        return False


def keeper(run: RunDir) -> Callable[[], None]:
    """A check to call before each write into the folder: LostLock unless it is held by whom it is held now. Of a folder that
    nobody holds it asks nothing."""
    try:
        holder = read_holder(run)
    except DamagedFile:
        holder = None

    def require_held() -> None:
        if holder is not None and _is_of_another(run, holder):
            raise LostLock(
                f"{lock_path(run)} no longer names {holder}: another process has taken the run over, or the file was removed; "
                "nothing more is written, and the same command continues from the last checkpoint."
            )

    return require_held
