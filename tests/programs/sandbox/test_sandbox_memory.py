"""What a program finds in its memory is the same in every worker, and nothing of another program's."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from arclab.data.tasks import ArcTask, Pair
from arclab.programs.outcomes import ProgramRun, run_jobs
from arclab.programs.sandbox.execution import Execution, Isolation, Limits, Result, Status
from arclab.programs.sandbox.pool import Sandbox
from benchmarks.attacks import ATTACKS

GRID = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
LIMITS = Limits(cpu_s=2, wall_s=4.0, memory_mb=512)
FLIP = "def solve(I): return I[::-1]"
_QUICK = ("10 GB at once", "1 GB to the answer's pipe", "forged rubbish", "os._exit", "endless recursion", "array", "generator")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits, cache_size=0) as held:
        yield held


def ran(sandbox: Sandbox, source: str, seed: int = 0, grid: np.ndarray = GRID) -> Result:
    result = sandbox.run([Execution(source, (grid,), seed=seed)])[0]
    assert result.grids[0].status is Status.ok, result.grids[0]
    return result


def used(sandbox: Sandbox) -> Sandbox:
    """The same, after programs that ended in many ways."""
    sandbox.run([Execution(attack.source, (GRID, GRID)) for attack in ATTACKS if attack.name in _QUICK])
    ran(sandbox, "def solve(I):\n    kept = [set(range(n)) for n in range(500)]\n    return I * 3", seed=5)
    return sandbox


_ADDRESSES = """
class C: pass
class D(C): pass
def f(): pass
def solve(I):
    things = {None, C, D, f, len, int, print, ...} | {object() for _ in range(9)} | {C() for _ in range(9)} | {(lambda: n) for n in I[0]}
    print([repr(thing) for thing in things], sorted({id([]), id({}), id("x" * 600), hash(object())}))
    return I
"""
_RANDOM = """
import os, random, secrets, uuid
import numpy as np
def solve(I):
    random.seed(); np.random.seed()
    print(random.random(), np.random.random())
    print(random.Random().random(), random.SystemRandom().random(), secrets.token_hex(70), uuid.uuid4(), os.urandom(9), os.getrandom(3))
    print(np.random.RandomState().random(), np.random.default_rng().random(), np.random.Generator(np.random.PCG64()).random())
    print(np.random.SeedSequence().entropy, np.random.MT19937().random_raw(), np.random.Philox().random_raw(), random.Random(3).random())
    return I
"""


def test_a_program_prints_the_same_in_every_worker(sandbox: Sandbox) -> None:
    """Whatever the worker ran before, and with which seed. So do sets that Python orders by the addresses of their elements."""
    for source in (_ADDRESSES, _RANDOM):
        first = ran(sandbox, source, seed=3).stdout
        assert {ran(sandbox, source, seed=3).stdout for _ in range(3)} == {first}  # not only every second one
        assert ran(used(sandbox), source, seed=3).stdout == first and len(first) > 300
        with Sandbox(num_workers=2, limits=LIMITS, min_isolation=Isolation.limits, cache_size=0) as others:
            found = others.run([Execution(source, (GRID,), seed=3)] * 8)
            assert {result.stdout for result in found} == {first}
        assert not any(result.nondeterministic for result in found)
    other = ran(sandbox, _RANDOM, seed=4).stdout
    numbers = [set(re.findall(r"[0-9a-f.]{8,}", text)) for text in (first, other)]
    assert len(numbers[0]) > 9 and len(numbers[0] & numbers[1]) <= 1  # random.Random(3) has a seed of its own


def test_a_program_has_no_number_of_its_own(sandbox: Sandbox) -> None:
    if sandbox.isolation is Isolation.seccomp:
        assert ran(sandbox, "import os\ndef solve(I): print(os.getpid()); return I").stdout == "-1\n"


@pytest.mark.parametrize(
    "read",
    [
        "time.time()", "time.perf_counter_ns()", "time.strftime('%S')", "datetime.datetime.now()", "datetime.date.today()", "np.datetime64('now')",
        "os.times()", "timeit.default_timer()", "time.monotonic() and os._exit(1)", "uuid.uuid1()", "__import__('posix').times()",
        "time.time.__wrapped__()", "__import__('_random').Random()",
    ],
)  # fmt: skip
def test_who_reads_a_clock_is_marked_and_runs_again(read: str) -> None:
    source = f"import datetime, os, time, timeit, uuid\nimport numpy as np\ndef solve(I):\n    {read}\n    return I"
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        results = [pool.run([Execution(source, (GRID,))])[0] for _ in range(2)]
        assert [(result.nondeterministic, result.cached) for result in results] == [(True, False)] * 2
        quiet = source.replace(read, "time.sleep(0); datetime.date(2020, 1, 1)")
        assert not pool.run([Execution(quiet, (GRID,))])[0].nondeterministic


def test_without_fixed_addresses_what_is_right_runs_twice(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    """A program whose test answer depends on addresses is told from one whose answer does not."""
    task = ArcTask("t", (Pair(GRID, GRID[::-1]),), (Pair(GRID.T.copy(), None),), "made up")
    by_address = (
        "class C: pass\ndef solve(I):\n    if len(I) == 2: return I[::-1]\n    cells = [C() for _ in range(20)]\n"
        "    return [[cells.index(cell) % 10 for cell in set(cells)]]"
    )
    wrong = "def solve(I): return [[id(object()) // 16 % 10]]"
    jobs = [ProgramRun(task, source, "solve", with_tests=True) for source in (by_address, FLIP, wrong, None)]
    asked: list[Execution] = []
    run = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda self, executions: (asked.extend(executions), run(self, executions))[1])
    if sandbox.has_fixed_addresses:
        assert not any(outcome.nondeterministic for outcome in run_jobs(sandbox, jobs)) and len(asked) == 3
    monkeypatch.setattr(sandbox, "has_fixed_addresses", False)
    asked.clear()
    assert [outcome.nondeterministic for outcome in run_jobs(sandbox, jobs)] == [True, False, False, False]
    assert [execution.source for execution in asked[3:]] == [by_address, FLIP]


def test_workers_with_other_addresses_are_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("arclab.programs.sandbox.pool._PROBE", "import os\ndef solve(I): print(os.urandom(4), end='')\n")
    with Sandbox(num_workers=2, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        fixed = pool.has_fixed_addresses
    monkeypatch.setattr("arclab.programs.sandbox.pool._PROBE", "import time\ndef solve(I): print(time.time())\n")
    with Sandbox(num_workers=2, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        assert not pool.has_fixed_addresses
    assert "the same addresses" in caplog.text and (fixed or caplog.text.count("run twice") == 2)


# Reads the memory around objects of several kinds, page by page; a page that is not there is told by a system call that only looks at it.
_SCAN = """
import ctypes, re
libc = ctypes.CDLL(None)
libc.syscall.argtypes = [ctypes.c_long] * 5
def solve(I):
    wanted = re.compile(b"MARK[0-9a-f]{16}|" + bytes(range(1, 10)) + b"[\\x01-\\x09]{21}|" + bytes(range(9, 0, -1)) + b"[\\x01-\\x09]{21}")
    pages, found = set(), set()
    for thing in (object(), bytes(700), bytes(100000), bytes(10**6), print, I, solve.__code__):
        start = id(thing) // 4096 * 4096
        pages.update(range(max(4096, start - 2**24), start + 2**24, 4096))
    for page in sorted(pages):
        if libc.syscall(%d, 0, page, 0, 8) == 0:
            found.update(wanted.findall(ctypes.string_at(page, 4096)))
    for text in sorted(found):
        print(text.decode() if text[:1] == b"M" else [*text])
    return I
# MARK0123456789abcdef
"""


def test_a_program_finds_nothing_of_another_in_its_memory() -> None:
    """Neither source nor input nor answer, nor what was printed; the control: it finds its own."""
    scan = _SCAN % {"x86_64": 14, "aarch64": 135}[platform.machine()]
    rng = np.random.default_rng(0)
    own, other = (np.array([[*range(1, 10), *rng.integers(1, 10, 21)]], np.uint8) for _ in range(2))
    secret = "MARK" + "fedcba9876543210"
    earlier = f"def solve(I):\n    print('{secret}')\n    return [[*range(9, 0, -1), *I[0][9:]]]\n# {secret}"
    with Sandbox(num_workers=1, limits=Limits(cpu_s=20, wall_s=30.0), min_isolation=Isolation.limits, cache_size=0) as pool:
        for number in range(30):
            ran(pool, f"{earlier}{number}", grid=other)
        pool.run([Execution(f"{earlier}\nimport os; os._exit(1)", (other,)), Execution(f"{secret}((", (other,))])
        lines = ran(pool, scan, grid=own).stdout.splitlines()
    assert "MARK0123456789abcdef" in lines and str(own[0].tolist()) in lines
    assert set(lines) == {"MARK0123456789abcdef", str(own[0].tolist())}


def test_programs_leave_each_other_no_message(sandbox: Sandbox) -> None:
    """The page in which a program notes that it read a clock is the only memory that it shares."""
    page = "from arclab.programs.sandbox.fixed_sources import clock\ndef solve(I):\n    "
    ran(sandbox, page + "clock._page[8:12] = b'left'; return I")
    assert ran(sandbox, page + "print(bytes(clock._page).strip(bytes(1))); return I").stdout == "b''\n"


def test_fields_of_an_execution_are_told_apart_by_the_cache() -> None:
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        first = Execution(_ADDRESSES, (GRID,))
        results = [pool.run([execution])[0] for execution in (first, replace(first, other_addresses=True), first)]
    assert [result.cached for result in results] == [False, False, True]
    assert results[0].stdout == results[2].stdout != results[1].stdout
