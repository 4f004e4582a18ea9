"""What would differ between two runs of one program is fixed, or its use is noticed.

    fix_sources()          # once, before the modules that programs may use are imported
    seed_all(7)            # random, numpy.random, and what os.urandom returns from now on
    may_differ(code)       # whether the program reads a clock in a way that was not, and cannot be, noticed
    clock.note()           # a clock was read

Random numbers: random.Random(), numpy.random.RandomState(), default_rng(), PCG64(), secrets, uuid4 and SystemRandom all start
from os.urandom, which is a function of the seed here. Clocks stay real, because a program that looks at one to end its search
in time would else never end: reading one is noticed instead, and the result is marked. Addresses are lockdown.py's matter.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import random
import resource
import secrets
import time
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

import numpy as np

_CLOCKS = {
    time: (
        "time",
        "time_ns",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "process_time",
        "process_time_ns",
        "thread_time",
        "thread_time_ns",
        "clock_gettime",
        "clock_gettime_ns",
        "localtime",
        "gmtime",
        "ctime",
        "asctime",
        "strftime",
    ),
    os: ("times",),
    resource: ("getrusage",),
}
# Of datetime, whose classes cannot be changed, and of numpy.datetime64("now"); C functions, of which nobody knows what they
# read; and what is made in C: the generator below random.Random, which takes the time for its seed, uuid1(), os.times() under
# its other name, and the clocks behind those that are noticed.
_UNNOTICED = frozenset(
    {"now", "utcnow", "today", "ctypes", "_ctypes", "_random", "uuid1", "_uuid", "_generate_time_safe", "posix", "__wrapped__"}
)
_BLOCK_BYTES = 64  # of blake2b
_SHIFTED_BYTES, _SHIFTED_EACH = 2048, 40
_kept: list[object] = []  # by shift_addresses(), to the end of the process


class Clock:
    """Whether a program read one: in memory that it shares with its supervisor, so that it is known however it ends."""

    def __init__(self) -> None:
        self._page: mmap.mmap | bytearray = bytearray(1)

    def use(self, page: mmap.mmap) -> None:
        self._page = page

    def note(self) -> None:
        self._page[0] = 1


clock = Clock()


class Entropy:
    """Bytes for those who ask the system for random ones: a function of the seed and of how many were asked for before."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, seed: int) -> None:
        self._seed, self._num_blocks = seed, 0

    def read(self, size: int, flags: int = 0, /) -> bytes:
        """As os.urandom and os.getrandom."""
        blocks = []
        for _ in range(-(-size // _BLOCK_BYTES)):
            self._num_blocks += 1
            blocks.append(hashlib.blake2b(b"%d %d" % (self._seed, self._num_blocks)).digest())
        return b"".join(blocks)[:size]


entropy = Entropy()


def fix_sources() -> None:
    """Replace the sources of this process. Modules that are imported later take what they find."""
    # _urandom is that of SystemRandom, on which secrets and numpy's SeedSequence build.
    for module, name in ((os, "urandom"), (os, "getrandom"), (random, "_urandom")):
        setattr(module, name, entropy.read)
    assert isinstance(vars(secrets)["_sysrand"], random.SystemRandom)
    random.Random.seed = _seeded(random.Random.seed)
    random.seed = vars(random)["_inst"].seed  # which the module took from the class before
    for module, names in _CLOCKS.items():
        _notice(module, names)


def _seeded(seed: Callable[..., None]) -> Callable[..., None]:
    """random.Random.seed, which would ask the system itself if it is not told a seed."""

    @functools.wraps(seed)
    def with_seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        seed(self, int.from_bytes(entropy.read(32)) if a is None else a, version)

    return with_seed


def _notice(module: ModuleType, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(module, name, _noticed(getattr(module, name)))


def _noticed(read: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read)
    def noticed(*arguments: Any) -> Any:
        clock.note()
        return read(*arguments)

    return noticed


def seed_all(seed: int) -> None:
    """The state that a program finds; 0 to 2**64 - 1."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    entropy.restart(seed)


def may_differ(code: CodeType) -> bool:
    """Whether the code names something that reads a clock without being noticed."""
    return any(not _UNNOTICED.isdisjoint(words) for words in _words(code))


def names_in(code: CodeType) -> Iterator[tuple[str, ...]]:
    """The global names, attributes and modules that the code names, those of its functions too."""
    yield code.co_names
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from names_in(constant)


def _words(code: CodeType) -> Iterator[tuple[str, ...]]:
    yield code.co_names
    for constant in code.co_consts:
        if type(constant) is str:
            yield (constant,)
        elif type(constant) is CodeType:
            yield from _words(constant)


def shift_addresses() -> None:
    """Leave the heap in another order than usual, so that what is made from now on is at other addresses, in another order."""
    order, kept = random.Random(1), []
    for size in range(0, _SHIFTED_BYTES, 16):
        kept += [bytearray(size) for _ in range(_SHIFTED_EACH)]
    order.shuffle(kept)
    _kept.extend(kept[::2])
    del kept
