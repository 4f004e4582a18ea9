"""The sandbox holds: every attack ends as it should, nothing is left behind, and honest programs are not disturbed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from benchmarks.attacks import ATTACKS, POISONS, Attack

from arclab.llm import sandbox as sandbox_module
from arclab.llm.child import locked_down
from arclab.llm.execution import Execution, Isolation, Limits, Status, pack_error, pack_grid, unpack_records
from arclab.llm.sandbox import Sandbox, SandboxError

ROOT = Path(__file__).resolve().parents[2]
GRID = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
FLIP = "def solve(I): return I[::-1]"
LIMITS = Limits(cpu_s=1, wall_s=3.0, memory_mb=256)
has_seccomp = pytest.mark.skipif(locked_down()[0] is None, reason="no libseccomp here")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as held:
        yield held


def run(sandbox: Sandbox, source: str, *grids: np.ndarray, **fields: object) -> list[tuple[Status, str]]:
    result = sandbox.run([Execution(source, grids or (GRID,), **fields)])[0]  # pyright: ignore[reportArgumentType]
    return [(grid.status, grid.message) for grid in result.grids]


@has_seccomp
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(sandbox: Sandbox, attack: Attack) -> None:
    begun = time.monotonic()
    result = sandbox.run([Execution(attack.source, (GRID,))])[0]
    assert result.grids[0].status in attack.expected, result.grids[0]
    assert time.monotonic() - begun < LIMITS.wall_s + 3
    assert len(result.stdout) <= LIMITS.stdout_bytes
    assert sandbox.run([Execution(FLIP, (GRID,), seed=random.randrange(10**6))])[0].grids[0].status is Status.ok


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


def test_answers_seeds_and_arrays(sandbox: Sandbox) -> None:
    result = sandbox.run([Execution(FLIP, (GRID,))])[0]
    assert result.grids[0].grid is not None and np.array_equal(result.grids[0].grid, GRID[::-1])
    draw = "import random, numpy as np\ndef solve(I): return [[random.randrange(10) for _ in range(20)], list(np.random.randint(0, 10, 20))]"

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
    assert run(sandbox, FLIP, entry="transform")[0] == (Status.no_entry_point, "no function transform")


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
        assert pool.isolation is Isolation.seccomp and len(own.children(recursive=True)) == before[1] + 2
    for result, (expected, grid) in zip(results, oracle, strict=True):
        assert result.grids[0].status in expected and result.isolation is Isolation.seccomp
        assert grid is None or (result.grids[0].grid is not None and np.array_equal(result.grids[0].grid, grid))
    assert (own.num_fds(), len(own.children(recursive=True))) == before


def test_without_seccomp_what_a_program_starts_still_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A session of its own, two forks away: the zygote is the subreaper and kills it. Forks are refused to ordinary users."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    script = (
        "import json, os, sys, time, psutil\nfrom arclab.llm.zygote import serve_one, _libc\n_libc.prctl(36, 1)\n"
        "source = 'import os, time\\ndef solve(I):\\n  if os.fork() == 0:\\n    os.setsid()\\n    os.fork()\\n    time.sleep(60)\\n  return I'\n"
        "request = dict(source=source, entry='solve', inputs=[[[1]]], seed=0, as_arrays=False, cpu_s=1, wall_s=2.0, memory_mb=256, stdout_bytes=9)\n"
        "header, answer = serve_one(request, None)\nprint(json.dumps([header, answer[0], len(psutil.Process().children(recursive=True))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    header, first, left = re.findall(r"\{.*\}|\d+", done.stdout)[0], *done.stdout.strip(" ]\n").split(", ")[-2:]
    assert left == "0" and first in ("0", "3") and '"wall_s"' in header  # answered (root) or refused the fork


def test_the_level_asked_for_is_the_level_had(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import sys; sys.path.append({!r})\nimport arclab.llm.child as child\nchild.locked_down = lambda: (None, 'no filter here')\n"
    zygote = Path(sandbox_module.__file__).with_name("zygote.py").read_text()

    def weak(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        path = folder / "zygote.py"
        path.write_text(broken.format(str(ROOT / "src")) + zygote.replace("from __future__ import annotations\n", ""))
        monkeypatch.setattr(sandbox_module, "_ZYGOTE", path)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        weak(monkeypatch, Path(folder))
        with pytest.raises(
            SandboxError, match=r"sandbox.min_isolation=seccomp cannot be had: no filter here; .*sandbox.min_isolation=limits"
        ):
            Sandbox(num_workers=1)
        with Sandbox(num_workers=1, min_isolation=Isolation.limits) as accepted:
            assert accepted.run([Execution(FLIP, (GRID,))])[0].isolation is Isolation.limits


def test_a_lost_worker_is_replaced(sandbox: Sandbox) -> None:
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as pool:
        (zygote,) = [
            c
            for c in psutil.Process().children()
            if c.cmdline()[-1].endswith("zygote.py") and c.create_time() > time.time() - 30
        ][-1:]
        zygote.kill()
        zygote.wait()
        lost, after = pool.run([Execution(FLIP, (GRID,))])[0], pool.run([Execution(FLIP, (GRID,))])[0]
    assert lost.grids[0].status is Status.sandbox_error and after.grids[0].status is Status.ok and not after.cached


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


def test_a_program_sees_no_secret(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCLAB_SECRET", "x")
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as fresh:
        counted = run(fresh, "import os, sys\ndef solve(I): return [[len(os.environ), len(sys.argv)]]")
        assert counted[0][0] is Status.ok
        grid = (
            fresh.run([Execution("import os, sys\ndef solve(I): return [[len(os.environ), len(sys.argv)]]", (GRID,))])[0]
            .grids[0]
            .grid
        )
    assert grid is not None and grid.tolist() == [[0, 1]] and os.environ["ARCLAB_SECRET"] == "x"


def test_nothing_outlives_the_one_who_asked() -> None:
    """A trainer that is killed leaves no interpreter behind, even with a program that sleeps."""
    script = (
        "import numpy as np\nfrom arclab.llm.sandbox import Sandbox\nfrom arclab.llm.execution import Execution, Isolation, Limits\n"
        "pool = Sandbox(num_workers=1, limits=Limits(cpu_s=1, wall_s=1.5), min_isolation=Isolation.limits)\nprint('up', flush=True)\n"
        "pool.run([Execution('import time\\ndef solve(I): time.sleep(60)', (np.ones((1, 1), np.uint8),))])"
    )
    asker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None and asker.stdout.readline() == "up\n"
    time.sleep(0.3)
    started = psutil.Process(asker.pid).children(recursive=True)
    assert started
    asker.kill()
    asker.wait()
    asker.stdout.close()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
