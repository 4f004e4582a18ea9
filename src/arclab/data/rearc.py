"""RE-ARC: fresh pairs of the ARC-AGI-1 training tasks, from the generators of the package reasoning-gym or from files.

    tasks = load_rearc("rearc:", PairRule(max_side=10), originals)             # make rearc installs the generators
    tasks = load_rearc("rearc:re_arc", PairRule(), originals)                  # the released files: re_arc/tasks/TASKID.json
    pair = tasks[0].stream.pair(1234)                                          # pair number 1234, the same one everywhere

A task here stands for an original one, whose id it bears (rearc_007bbfb7, see origin_of). It has as many demonstrations and
tests as the original, taken from its own first pairs, and a stream of further pairs that training draws from (sampler.py).

Pair `number` of a task follows from (task, number) and the rule alone, never from a seed of the run, a worker or the speed of a
machine. Generators draw sizes by difficulty, so few of their grids are small: a pair that is too large, or that the generator
fails at, is drawn again, each time at a lower highest difficulty. One that shows nothing (output = input) is drawn again at the
same difficulty first: below it a generator makes more of these. A call that draws more than _MAX_DRAWS random numbers is cut
off, which is the same on every machine. One that hangs without drawing is cut off by the clock (dataset.rearc.timeout_s, in the
main thread of a process alone): a warning says so, since from there on two machines may differ. No generator of 0.1.25 was seen
to need either. A number without a usable pair shows one of the first pairs again; how many there are is said when tasks are
loaded (repeat_note).

Pairs are used as they come: the verifiers in the package do not filter them, since they disagree with a few original pairs.
"""

from __future__ import annotations

import importlib.metadata
import logging
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from arclab.data.rearc_package import INSTALL, PACKAGE, import_part, package_folder
from arclab.data.tasks import MAX_SIDE, ArcTask, Pair, PairStream, parse_grid
from arclab.files import DamagedFile, read_json

log = logging.getLogger(__name__)

PREFIX = "rearc_"
Generator = Callable[[Random, float, float], Mapping[str, Any]]
# Part of what a pair number means: other values give other pairs.
_TRIES = 16
_DRAWS_AT_ONE_DIFFICULTY = 5  # of a pair whose output is its input
_EASIER = 0.7  # the highest difficulty of a try, as a share of that of the try before
_MAX_DRAWS = 200_000  # the most seen in 15,000 calls is 6,000
# What the generators' own code may fail with on an unlucky draw; anything else is a fault of the installation.
_UNLUCKY = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class PairRule:
    """Which pairs are drawn: difficulties (0 to 1) between low and high, sides up to max_side, timeout_s seconds a call."""

    low: float = 0.0
    high: float = 1.0
    max_side: int = MAX_SIDE
    timeout_s: float = 10.0


class _Endless(RuntimeError):
    """A generator drew more random numbers than it may, or took too long."""


class _CountedRandom(Random):
    """Random numbers that end: _Endless after _MAX_DRAWS."""

    draws = 0

    def random(self) -> float:
        self._count()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._count()
        return super().getrandbits(k)

    def _count(self) -> None:
        self.draws += 1
        if self.draws > _MAX_DRAWS:
            raise _Endless(f"it drew more than {_MAX_DRAWS} random numbers")


@dataclass(frozen=True, slots=True)
class GeneratedPairs:
    """The pairs of one task's generator. easier: at which of the falling difficulties its tries start; first: its first
    pairs, for numbers that have none; num_looked_at: of how many numbers they are."""

    task_id: str
    rule: PairRule
    easier: int
    first: tuple[Pair, ...]
    num_looked_at: int

    @property
    def max_side(self) -> int:
        return self.rule.max_side

    def pair(self, number: int) -> Pair:
        """Pair `number` (0 upwards)."""
        drawn = draw_pair(self.task_id, number, self.rule, self.easier)
        return self.first[number % len(self.first)] if drawn is None else drawn[0]


@dataclass(frozen=True, slots=True)
class FilePairs:
    """The pairs of one task's file that fit, again and again in their order."""

    pairs: tuple[Pair, ...]
    max_side: int

    def pair(self, number: int) -> Pair:
        """Pair `number` (0 upwards)."""
        return self.pairs[number % len(self.pairs)]


def repeat_note(tasks: Sequence[ArcTask]) -> str:
    """How often a number of these tasks has no usable pair, by the numbers that were looked at when they were loaded; "" if
    each had one."""
    streams = [task.stream for task in tasks if isinstance(task.stream, GeneratedPairs)]
    missing = [stream.num_looked_at - len(stream.first) for stream in streams]
    if not any(missing):
        return ""
    looked_at = sum(stream.num_looked_at for stream in streams)
    return (
        f"{sum(missing)} of the first {looked_at} pair numbers have none ({sum(n > 0 for n in missing)} tasks): such a number "
        "shows one of its task's first pairs again"
    )


def is_rearc(source: str) -> bool:
    return source.startswith("rearc:")


def origin_of(task: ArcTask) -> str | None:
    """The id of the ARC task whose rule a RE-ARC task shows; None for every other task."""
    return task.id.removeprefix(PREFIX) if task.stream is not None else None


def version() -> str:
    """The installed version of the package. ValueError if there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed() from None


def _not_installed() -> ValueError:
    return ValueError(f"dataset source 'rearc:': the package {PACKAGE} is not installed; run {INSTALL}, or give rearc:FOLDER.")


@cache
def generators() -> dict[str, Generator]:
    """Task id -> generator."""
    folder = package_folder()
    if folder is None:
        raise _not_installed()
    if not (folder / "generators").is_dir():
        raise ValueError(f"dataset source 'rearc:': {folder} has no generators; run {INSTALL}.")
    module = import_part("generators")
    return {key.removeprefix("generate_"): make for key, make in vars(module).items() if key.startswith("generate_")}


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """_Endless after so many seconds. Signals reach the main thread alone: without a limit in any other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cut(*_: object) -> None:
        raise _Endless(f"it took more than dataset.rearc.timeout_s={seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, cut)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, handler)


def draw_pair(task_id: str, number: int, rule: PairRule, easier: int = 0) -> tuple[Pair, int] | None:
    """Pair `number` of a task and at which of the falling difficulties it was found, counted from `easier`; None if there is no
    usable one at any."""
    for attempt in range(easier, easier + _TRIES):
        for again in range(_DRAWS_AT_ONE_DIFFICULTY):
            pair = _draw(task_id, number, attempt, again, rule)
            if pair is None or not _fits(pair, rule):
                break
            if _changes(pair):
                return pair, attempt
    return None


def _draw(task_id: str, number: int, attempt: int, again: int, rule: PairRule) -> Pair | None:
    """What the generator makes of these numbers; None if it fails."""
    high = rule.low + (rule.high - rule.low) * _EASIER**attempt
    random = _CountedRandom(f"{task_id}/{number}/{attempt}" + (f"/{again}" if again else ""))
    try:
        with _time_limit(rule.timeout_s):
            grids = generators()[task_id](random, rule.low, high)
        return Pair(*(parse_grid([[*row] for row in grids[part]], task_id) for part in ("input", "output")))
    except _Endless as error:
        log.warning("RE-ARC: the generator of task %s was cut off at pair %d, try %d: %s", task_id, number, attempt, error)
    except _UNLUCKY:
        pass
    return None


def _fits(pair: Pair, rule: PairRule) -> bool:
    assert pair.output is not None
    return max(*pair.input.shape, *pair.output.shape) <= rule.max_side


def _changes(pair: Pair) -> bool:
    """Is its output something else than its input?"""
    assert pair.output is not None
    return pair.input.shape != pair.output.shape or bool((pair.input != pair.output).any())


def load_rearc(source: str, rule: PairRule, originals: Sequence[ArcTask], ids: Collection[str] | None = None) -> list[ArcTask]:
    """A RE-ARC task for each original that has usable pairs, sorted by id. originals: all of ARC-AGI-1 training. ids: of those
    that are wanted (None: all); pairs of other tasks are never made or read.

    ValueError: the package is missing; a file is damaged or of a task that is none of the originals."""
    folder = source.partition(":")[2]
    files = _files(source, Path(folder).expanduser(), {task.id for task in originals}) if folder else None
    found: list[ArcTask] = []
    for task in sorted(originals, key=lambda task: task.id):
        if ids is not None and task.id not in ids:
            continue
        first = _first_generated(task, rule) if files is None else _read_pairs(task, rule, files)
        if first is not None:
            pairs, stream = first
            count = len(task.demos)
            found.append(ArcTask(PREFIX + task.id, pairs[:count], pairs[count:], source, stream=stream))
    return found


_First = tuple[tuple[Pair, ...], PairStream]


def _first_generated(original: ArcTask, rule: PairRule) -> _First | None:
    """As many pairs as the original has, and where the next ones come from; None if the generator has too few."""
    wanted, found, easier = len(original.pairs), [], 0
    for number in range(4 * wanted if original.id in generators() else 0):
        drawn = draw_pair(original.id, number, rule, easier)
        if drawn is None and not found:
            return None
        if drawn is not None:
            easier = easier if found else max(drawn[1] - 1, 0)  # most pairs of higher difficulties would only be thrown away
            found.append(drawn[0])
        if len(found) == wanted:
            return tuple(found), GeneratedPairs(original.id, rule, easier, tuple(found), number + 1)
    return None


def _files(source: str, folder: Path, known: Collection[str]) -> dict[str, Path]:
    """The files of a folder of the released form, by task id."""
    if not folder.is_dir():
        raise ValueError(f"dataset source {source!r}: the folder {folder} does not exist; check the path.")
    tasks = folder / "tasks" if (folder / "tasks").is_dir() else folder
    files = {path.stem: path for path in sorted(tasks.glob("*.json")) if not path.name.startswith(".")}
    if not files:
        raise ValueError(
            f"dataset source {source!r}: {tasks} has no .json files; give the folder of RE-ARC's TASKID.json files."
        )
    unknown = [task_id for task_id in files if task_id not in known]
    if unknown:
        raise ValueError(
            f"dataset source {source!r}: {files[unknown[0]]} is of no ARC-AGI-1 training task ({len(unknown)} such files); "
            "remove it."
        )
    return files


def _read_pairs(original: ArcTask, rule: PairRule, files: Mapping[str, Path]) -> _First | None:
    """As _first_generated, from the task's file. All that fit are kept, as they are: a few hundred bytes a pair."""
    path = files.get(original.id)
    if path is None:
        return None
    examples = read_json(path)
    if not isinstance(examples, list) or not all(isinstance(e, dict) and {"input", "output"} <= e.keys() for e in examples):
        raise DamagedFile(path, "it is no list of objects with input and output")
    pairs = tuple(
        Pair(*(parse_grid(example[part], f"{path}: pair {number}, {part}") for part in ("input", "output")))
        for number, example in enumerate(examples)
    )
    usable = tuple(pair for pair in pairs if _fits(pair, rule) and _changes(pair))
    wanted = len(original.pairs)
    return (usable[:wanted], FilePairs(usable, rule.max_side)) if len(usable) >= wanted else None
