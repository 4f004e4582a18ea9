"""The sandbox holds: every attack ends as it should, nothing is left behind, and honest programs are not disturbed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from arclab.config.llm_schema import SandboxConfig
from arclab.programs.sandbox import pool as sandbox_module
from arclab.programs.sandbox.execution import (
    Execution,
    Isolation,
    Limits,
    Result,
    Status,
    pack_error,
    pack_grid,
    unpack_records,
)
from arclab.programs.sandbox.lockdown import locked_down
from arclab.programs.sandbox.pool import Sandbox, SandboxError, open_sandbox
from arclab.programs.sandbox.wire import Header, unpack_header
from benchmarks.attacks import ATTACKS, POISONS, Attack

ROOT = Path(__file__).resolve().parents[3]
GRID = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
FLIP = "def solve(I): return I[::-1]"
LIMITS = Limits(cpu_s=1, wall_s=3.0, memory_mb=256)
has_seccomp = pytest.mark.skipif(locked_down()[0] is None, reason="no libseccomp here")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as held:
        yield held


@pytest.fixture(scope="module")
def patient() -> Iterator[Sandbox]:
    """For programs that compute until they are ended, however busy the machine is with others."""
    with Sandbox(num_workers=1, limits=replace(LIMITS, wall_s=30.0), min_isolation=Isolation.limits) as held:
        yield held


def run(sandbox: Sandbox, source: str, *grids: np.ndarray, **fields: object) -> list[tuple[Status, str]]:
    result = sandbox.run([Execution(source, grids or (GRID,), **fields)])[0]  # pyright: ignore[reportArgumentType]
    return [(grid.status, grid.message) for grid in result.grids]


@has_seccomp
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(sandbox: Sandbox, patient: Sandbox, attack: Attack) -> None:
    used, begun = patient if Status.timeout_cpu in attack.expected else sandbox, time.monotonic()
    result = used.run([Execution(attack.source, (GRID,))])[0]
    assert result.grids[0].status in attack.expected, result.grids[0]
    assert time.monotonic() - begun < used.limits.wall_s + 3
    assert len(result.stdout) <= LIMITS.stdout_bytes
    assert used.run([Execution(FLIP, (GRID,), seed=random.randrange(10**6))])[0].grids[0].status is Status.ok


@pytest.mark.parametrize("poison", POISONS)
def test_nothing_reaches_the_next_program(sandbox: Sandbox, poison: str) -> None:
    run(sandbox, poison, GRID, GRID)
    after = sandbox.run([Execution("import json, random\ndef solve(I): json.loads('1'); random.random(); return I", (GRID,), seed=hash(poison) % 10**6)])[0]  # fmt: skip
    assert after.grids[0].grid is not None and np.array_equal(after.grids[0].grid, GRID)


def test_every_input_is_a_fresh_copy_and_fails_alone(sandbox: Sandbox) -> None:
    source = "def solve(I):\n    I[0][0] += 1\n    if I[0][0] == 9: raise KeyError('nine')\n    return I"
    other = GRID.copy()
    other[0, 0] = 8
    assert [status for status, _ in run(sandbox, source, GRID, other, GRID)] == [Status.ok, Status.exception, Status.ok]
    assert run(sandbox, source, other)[0][1] == "KeyError: nine (line 3)"
    dies = "import os\ndef solve(I):\n    if I[0][0] == 8: os._exit(4)\n    return I"
    assert run(sandbox, dies, GRID, other, GRID) == [(Status.ok, ""), *[(Status.exited, "exit status 4")] * 2]


@pytest.mark.parametrize(
    "evil",
    [
        "class E(Exception):\n    args = property(lambda self: 1 / 0)\n",
        "class E(Exception):\n    __class__ = property(lambda self: 1 / 0)\n",
        "class M(type):\n    __name__ = property(lambda self: 1 / 0)\nclass E(Exception, metaclass=M): pass\n",
        "class E(SystemExit):\n    code = property(lambda self: 1 / 0)\n",
        "class S(str):\n    __getitem__ = __format__ = __str__ = lambda self, *_: 1 / 0\nE = lambda: ValueError(S('x'))\n",
    ],
    ids=["args", "class", "name", "code", "text"],
)
def test_what_an_exception_defines_costs_no_other_input_its_answer(sandbox: Sandbox, evil: str) -> None:
    other = GRID.copy()
    other[0, 0] = 8
    statuses = [
        status
        for status, _ in run(sandbox, f"{evil}def solve(I):\n    if I[0][0] == 8: raise E()\n    return I", GRID, other, GRID)
    ]
    assert statuses[::2] == [Status.ok, Status.ok] and statuses[1] in (Status.exception, Status.exited)


def test_a_failed_batch_starts_no_further_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or a failure of one thread: the other does not work through the rest of the batch."""
    begun = []

    def ask(self: Sandbox, execution: Execution) -> Result:
        begun.append(execution)
        time.sleep(0.02)
        if len(begun) == 3:
            raise SandboxError("no more processes")
        return Result((), Isolation.limits, "", 0.0, 0.0)

    with Sandbox(num_workers=2, limits=LIMITS, min_isolation=Isolation.limits) as held:
        monkeypatch.setattr(Sandbox, "_run_one", ask)
        with pytest.raises(SandboxError, match="no more"):
            held.run([Execution(FLIP, (GRID,), seed=seed) for seed in range(200)])
    assert len(begun) < 20


def test_answers_seeds_and_arrays(sandbox: Sandbox) -> None:
    result = sandbox.run([Execution(FLIP, (GRID,))])[0]
    assert result.grids[0].grid is not None and np.array_equal(result.grids[0].grid, GRID[::-1])
    draw = "import random, numpy as np\ndef solve(I): return [[random.randrange(10) for _ in range(20)], list(np.random.randint(0, 10, 20)), [hash(str(n)) % 10 for n in range(20)]]"

    def drawn(seed: int) -> np.ndarray:
        with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as fresh:
            grid = fresh.run([Execution(draw, (GRID,), seed=seed)])[0].grids[0].grid
        assert grid is not None
        return grid

    assert np.array_equal(drawn(1), drawn(1)) and not np.array_equal(drawn(1), drawn(2))
    assert run(sandbox, "def solve(I): return I.T.copy()", as_arrays=True)[0][0] is Status.ok
    assert run(sandbox, "def solve(I): return I.T.copy()")[0] == (
        Status.exception,
        "AttributeError: 'list' object has no attribute 'T' (line 1)",
    )
    assert (
        run(sandbox, "def solve(I): return '\ud800'")[0][0] is Status.syntax_error
    )  # half a pair: no valid text, but a valid str
    assert run(sandbox, FLIP, entry="transform")[0] == (Status.no_entry_point, "no function transform")


NUMPY = (
    "np.unique(a)", "np.unique(a, axis=0)", "np.percentile(a, 50)", "np.intersect1d(a, a)", "np.setdiff1d(a, a)", "np.nanmedian(a * 1.0)",
    "np.ma.masked_equal(a, 1)", "np.fft.fft2(a)", "np.polyfit([1, 2, 3], [1, 2, 3], 1)", "np.char.add('a', 'b')", "np.rec.array(a)",
    "np.linalg.inv(np.eye(2))", "np.random.default_rng(0).permutation(3)", "np.pad(a, 1, mode='wrap')", "np.einsum('ij->ji', a)", "str(a)",
)  # fmt: skip


def test_numpy_is_whole(sandbox: Sandbox) -> None:
    """A child cannot open a file, so that what numpy loads only at first use must be there before."""
    sources = [f"import numpy as np\ndef solve(I):\n    a = np.array(I)\n    {call}\n    return I" for call in NUMPY]
    results = sandbox.run([Execution(source, (GRID,)) for source in sources])
    assert [r.grids[0].message for r in results] == [""] * len(NUMPY)


MODULES = (
    "abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "codecs", "collections", "collections.abc", "colorsys", "contextlib",
    "contextvars", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "encodings.idna", "enum", "errno", "fractions", "functools", "gc",
    "graphlib", "hashlib", "heapq", "hmac", "html", "importlib.util", "inspect", "io", "itertools", "json", "json.decoder", "keyword", "locale", "logging",
    "math", "numbers", "operator", "os.path", "pathlib", "pickle", "pprint", "queue", "random", "re", "reprlib", "sched", "secrets", "shlex", "signal",
    "statistics", "string", "struct", "sys", "sysconfig", "tempfile", "textwrap", "threading", "time", "timeit", "token", "tokenize", "traceback", "types",
    "typing", "unicodedata", "unittest", "uuid", "warnings", "weakref", "zlib", "numpy.lib.stride_tricks", "numpy.typing", "numpy.fft", "numpy.ma",
)  # fmt: skip
# What some of them only load when it is used.
_USES = """
    größe = unicodedata.name('\\N{GREEK SMALL LETTER ALPHA}')
    assert größe == 'GREEK SMALL LETTER ALPHA' and 'é'.encode('idna') and 'abc'.encode('utf-16') and codecs.encode('abc', 'rot13') == 'nop'
    logging.warning('%s', 1); warnings.warn('x'); pprint.pprint(I); traceback.print_exc()
    assert decimal.Decimal(1) / 3 and statistics.NormalDist().cdf(0) and zlib.crc32(b'1') and hashlib.sha256(b'1').hexdigest() and hashlib.md5(b'')
    assert pickle.loads(pickle.dumps(I)) == I and [*csv.reader(['1,2'])] and json.loads('[1]') and struct.pack('<I', 1) and array.array('i', [1])
    assert difflib.SequenceMatcher(None, 'ab', 'bc').ratio() and textwrap.fill('a b') and calendar.month(2020, 1) and difflib.unified_diff([], [])
    assert datetime.datetime.strptime('2020', '%Y') and time.strptime('2020', '%Y') and f'{datetime.date(2020, 1, 1):%Y}' and string.Template('$a').substitute(a=1)
    assert inspect.signature(solve) and ast.literal_eval('[1]') and [*graphlib.TopologicalSorter({1: [2]}).static_order()] and uuid.uuid4()
    assert re.compile(r'(?i)\\w+', re.U).sub('', 'é') == '' and fractions.Fraction('1/3') and importlib.util.find_spec('math') and queue.PriorityQueue().empty()
    assert cmath.sqrt(-1) == 1j and locale.getlocale() and typing.get_type_hints(solve) == {} and contextlib.nullcontext() and format(1234.5, ',.2f')
    assert sys.getrecursionlimit() and io.StringIO('a').read() and base64.b64encode(b'a') and os.path.join('a', 'b') and pathlib.PurePath('a').suffix == ''
    return I
"""


def test_the_standard_library_is_there(sandbox: Sandbox) -> None:
    """All in one program, so that each finds what it loads late, too."""
    imports = "\n".join(f"import {name}" for name in MODULES)
    assert run(sandbox, f"import os\n{imports}\ndef solve(I):{_USES}") == [(Status.ok, "")]


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_a_program_is_compiled_as_its_own_file(sandbox: Sandbox, future: str) -> None:
    """Its annotations are objects unless it says otherwise, and dataclasses find its names."""
    source = f"{future}from dataclasses import dataclass\n@dataclass\nclass Cell:\n    color: int\n    is_black: bool = False\n"
    source += (
        "def solve(I):\n    cell = Cell(3)\n    return [[cell.color, int(isinstance(Cell.__annotations__['color'], str))]]"
    )
    result = sandbox.run([Execution(source, (GRID,))])[0].grids[0]
    assert result.grid is not None and result.grid.tolist() == [[3, int(bool(future))]]


def test_equal_requests_run_once(sandbox: Sandbox) -> None:
    request = Execution(FLIP + "  # cached", (GRID,))
    assert [sandbox.run([request])[0].cached for _ in range(2)] == [False, True]
    assert not sandbox.run([Execution(FLIP + "  # cached", (GRID.T.copy(),))])[0].cached
    sleeper = Execution("import time\ndef solve(I): time.sleep(9)", (GRID,))
    quick = Limits(cpu_s=1, wall_s=0.1)
    with Sandbox(num_workers=1, limits=quick, min_isolation=Isolation.limits) as impatient:
        results = [impatient.run([sleeper])[0] for _ in range(2)]
    assert [r.grids[0].status for r in results] == [Status.timeout_wall] * 2 and not results[1].cached


@has_seccomp
def test_many_programs_some_hostile_equal_a_serial_oracle() -> None:
    rng, quick = (
        random.Random(0),
        [a for a in ATTACKS if a.name in ("os._exit", "fork bomb", "write a file", "10 GB at once", "ragged", "sys.exit")],
    )
    requests, oracle = [], []
    for number in range(300):
        if rng.random() < 0.05:
            attack = rng.choice(quick)
            requests.append(Execution(attack.source, (GRID,), seed=number))
            oracle.append((attack.expected, None))
        else:
            requests.append(Execution(f"def solve(I): return [[(c + {number}) % 10 for c in row] for row in I]", (GRID,)))
            oracle.append(({Status.ok}, (GRID + number % 10) % 10))
    own = psutil.Process()
    before = own.num_fds(), len(own.children(recursive=True))
    with Sandbox(num_workers=2, limits=LIMITS) as pool:
        results = pool.run(requests)
        assert (
            pool.isolation is Isolation.seccomp and len(own.children(recursive=True)) == before[1] + 2 * 2
        )  # supervisor and zygote
    for result, (expected, grid) in zip(results, oracle, strict=True):
        assert result.grids[0].status in expected and result.isolation is Isolation.seccomp
        assert grid is None or (result.grids[0].grid is not None and np.array_equal(result.grids[0].grid, grid))
    assert (own.num_fds(), len(own.children(recursive=True))) == before


@pytest.fixture
def without_filter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers of a system that cannot filter system calls."""
    path = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
    broken = "import arclab.programs.sandbox.lockdown as lockdown\nlockdown.locked_down = lambda: (None, 'no filter here')\n"
    for name, before in (("supervisor.py", path), ("zygote.py", path + broken)):
        text = Path(sandbox_module.__file__).with_name(name).read_text()
        (tmp_path / name).write_text(before + text.replace("from __future__ import annotations\n", ""))
    monkeypatch.setattr(sandbox_module, "_SUPERVISOR", tmp_path / "supervisor.py")


@pytest.mark.usefixtures("without_filter")
def test_without_seccomp_what_a_program_starts_still_dies() -> None:
    """A session of its own, two forks away: the supervisor is the subreaper and kills it. Forks are refused to ordinary users."""
    source = (
        "import os, time\ndef solve(I):\n  if os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(60)\n  return I"
    )
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        before = len(psutil.Process().children(recursive=True))
        assert run(pool, source)[0][0] in (Status.ok, Status.exception)  # answered (root), or the fork was refused
        assert len(psutil.Process().children(recursive=True)) == before
        assert run(pool, FLIP)[0][0] is Status.ok


@pytest.mark.usefixtures("without_filter")
def test_the_level_asked_for_is_the_level_had(tmp_path: Path) -> None:
    """And limits hold without a filter: no byte in a file, few descriptors."""
    sentence = r"sandbox.min_isolation=seccomp cannot be had: no filter here; .*sandbox.min_isolation=limits"
    with pytest.raises(SandboxError, match=sentence):
        Sandbox(num_workers=1)
    target = tmp_path / "written"
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as accepted:
        assert accepted.run([Execution(FLIP, (GRID,))])[0].isolation is Isolation.limits
        assert run(accepted, f"def solve(I):\n    with open({str(target)!r}, 'wb') as f: f.write(b'x')")[0][1].startswith(
            "OSError"
        )
        assert run(accepted, "def solve(I): kept = [open('/dev/null') for _ in range(20)]")[0][1].startswith("OSError")
    assert not target.exists() or target.stat().st_size == 0
    status = "def solve(I):\n    for line in open('/proc/self/status'):\n        if line[:3] in ('Cap', 'NoN'): print(line, end='')\n    return I"
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as accepted:
        held = dict(line.split(":\t") for line in accepted.run([Execution(status, (GRID,))])[0].stdout.splitlines())
    assert held.pop("NoNewPrivs") == "1" and len(held) == 5
    assert {int(mask, 16) for name, mask in held.items() if os.geteuid() == 0 or name != "CapBnd"} == {0}


def test_limits_are_those_asked_for() -> None:
    big = "def solve(I): kept = bytearray(100 * 2**20); return I"
    loud = "def solve(I): print('abcdef'); return I"
    for memory_mb, stdout_bytes, status, printed in ((64, 3, Status.oom, "abc"), (256, 100, Status.ok, "abcdef\n")):
        limits = Limits(cpu_s=1, wall_s=3.0, memory_mb=memory_mb, stdout_bytes=stdout_bytes)
        with Sandbox(num_workers=1, limits=limits, min_isolation=Isolation.limits) as pool:
            assert run(pool, big)[0][0] is status and pool.run([Execution(loud, (GRID,))])[0].stdout == printed


@pytest.mark.usefixtures("without_filter")
def test_every_key_of_the_configuration_reaches_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each limit does is tested above."""
    asked: list[Header] = []
    ask = sandbox_module._Worker.ask
    monkeypatch.setattr(
        sandbox_module._Worker,
        "ask",
        lambda self, request, within_s: (asked.append(unpack_header(request)), ask(self, request, within_s))[1],
    )
    values = {"num_workers": (1, 2), "cpu_s": (2, 3), "wall_s": (5.0, 4.0), "memory_mb": (512, 256), "stdout_bytes": (100, 3)}
    assert {*values, "min_isolation"} == {field.name for field in fields(SandboxConfig)}
    before = len(psutil.Process().children())
    for turn in range(2):
        config = SandboxConfig(**{key: pair[turn] for key, pair in values.items()}, min_isolation=Isolation.limits)
        with open_sandbox(config) as pool:
            assert pool.run([Execution(FLIP, (GRID,))])[0].grids[0].status is Status.ok
            assert len(psutil.Process().children()) - before == config.num_workers
        assert {key: getattr(asked[-1], key) for key in values if key != "num_workers"}.items() <= {
            k: v[turn] for k, v in values.items()
        }.items()
    with pytest.raises(SandboxError, match=r"sandbox\.min_isolation=seccomp cannot be had"):
        open_sandbox(replace(config, min_isolation=Isolation.seccomp))


def test_the_cache_forgets_the_oldest_and_workers_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_PROGRAMS_PER_ZYGOTE", 2)
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits, cache_size=1) as pool:
        before = psutil.Process().children()
        first, second = (Execution(f"{FLIP} # {n}", (GRID,)) for n in range(2))
        assert [pool.run([e])[0].cached for e in (first, second, second, first)] == [False, False, True, False]
        after = psutil.Process().children()
    assert len(before) == len(after) and {p.pid for p in before} != {p.pid for p in after}


def test_a_lost_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that it held runs again; where that fails too it is the sandbox's error, which is not kept."""
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        (zygote,) = [
            c
            for c in psutil.Process().children()
            if c.cmdline()[-1].endswith("supervisor.py") and c.create_time() > time.time() - 30
        ][-1:]
        zygote.kill()
        zygote.wait()
        assert pool.run([Execution(FLIP, (GRID,))])[0].grids[0].status is Status.ok
        with monkeypatch.context() as patch:
            patch.setattr(sandbox_module._Worker, "ask", lambda self, request, within_s: self.close())
            lost = pool.run([Execution(FLIP, (GRID,), seed=1)])[0]
        after = pool.run([Execution(FLIP, (GRID,), seed=1)])[0]
    assert lost.grids[0].status is Status.sandbox_error and after.grids[0].status is Status.ok and not after.cached


def test_unseeded_generators_of_numpy_are_seeded(sandbox: Sandbox) -> None:
    source = "import numpy as np\ndef solve(I): return np.random.default_rng().integers(0, 10, (9, 9))"
    first, other = (sandbox.run([Execution(source, (GRID,), seed=seed)])[0].grids[0].grid for seed in (1, 2))
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as fresh:
        again = fresh.run([Execution(source, (GRID,), seed=1)])[0].grids[0].grid
    assert first is not None and other is not None and again is not None
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_records_are_not_believed() -> None:
    good = pack_grid([[1, 2], [3, 4]]) + pack_error(Status.oom, "x" * 1000)
    assert [r.status for r in unpack_records(good, 5)] == [Status.ok, Status.oom] and len(unpack_records(good, 1)) == 1
    for bad in (
        good[:7],
        bytes([0, 0, 0, 1, 0]),
        bytes([0, 31, 0, 1, 0]) + bytes(31),
        bytes([0, 1, 0, 1, 0, 10]),
        bytes([5, 0, 0, 0, 0]),
        b"\xff" * 9,
    ):
        assert unpack_records(bad, 3) == []


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="cpu_s=0 must be at least 1"):
        Limits(cpu_s=0)
    with pytest.raises(ValueError, match="num_workers=0 must be at least 1"):
        Sandbox(num_workers=0)


def test_a_program_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCLAB_SECRET", "x")
    source = "import os, sys\ndef solve(I): return [[len(os.environ), len(sys.argv)]]"
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as fresh:
        grid = fresh.run([Execution(source, (GRID,))])[0].grids[0].grid
    assert grid is not None and grid.tolist() == [[0, 1]]


@pytest.mark.parametrize("victim", ["asker", "supervisor"])
def test_nothing_outlives_the_one_who_asked(victim: str) -> None:
    """A trainer or a worker that is killed leaves no interpreter behind, even with a program that sleeps."""
    wall_s = 1.5 if victim == "asker" else 60.0  # a worker looks at its input between programs; its child is told by the kernel
    script = (
        "import numpy as np\nfrom arclab.programs.sandbox.pool import Sandbox\nfrom arclab.programs.sandbox.execution import Execution, Isolation, Limits\n"
        f"pool = Sandbox(num_workers=1, limits=Limits(cpu_s=1, wall_s={wall_s}), min_isolation=Isolation.limits)\nprint('up', flush=True)\n"
        "pool.run([Execution('import time\\ndef solve(I): time.sleep(60)', (np.ones((1, 1), np.uint8),))])"
    )
    asker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None and asker.stdout.readline() == "up\n"
    (supervisor,) = psutil.Process(asker.pid).children()
    deadline = time.monotonic() + 10
    while len(supervisor.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(supervisor.children()) == 2
    started = [*supervisor.children(), supervisor]
    (asker if victim == "asker" else supervisor).kill()
    _, alive = psutil.wait_procs(started if victim == "asker" else started[:-1], timeout=10)
    assert not alive
    asker.kill()
    asker.wait()
    asker.stdout.close()
    assert not psutil.wait_procs([supervisor], timeout=10)[1]
