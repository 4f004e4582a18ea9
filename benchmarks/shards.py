"""An evaluation in shards on a real SLURM of two nodes on this machine: faults, wall times, and the plan against them.

    python -m benchmarks.shards                   # as root, with slurm-wlm and munge installed; a quarter of an hour

A program-sampling evaluation of toy tasks in which every process has a model server of its own: the stand-in of the tests,
which takes --delay seconds for a task, so that the waiting is real and the tokens are not. First six shards of which one is
preempted, one killed (kill -9) and one loses its server; the merged files are compared with those of one process, byte for
byte. Then 1, 2 and 4 shards without faults are timed --repeats times, one after the other in turn, and the forecasts of
`python -m arclab.launch plan` set beside their medians.
Results go to results/shards.json and shards.md. Two busy cores say little about speed: read ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from arclab.config.compose import run_main
from arclab.launch.queue.simulate import Work, read_rates, simulate
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.jobrecord import read_job
from arclab.runs.lock import read_holder
from benchmarks.arguments import above_0, at_least_1

ROOT, RESULTS = Path(__file__).parents[1], Path(__file__).parent / "results"
STAND_IN = ROOT / "tests/lm/stand_in_server.py"
TOY = "toy:color_map?tasks={}&side=4&colors=3&palette=5&demos=3&split={}"
FILES = ("predictions.jsonl", "submission.json")
FAULTY_SHARDS, TIMED_SHARDS = 6, (2, 4)


def command(out: Path, faults: Path, tasks: int, delay_s: float, *more: str) -> list[str]:
    """evaluate.py, with a server for each process."""
    sources = [
        f'dataset.{key}=["{TOY.format(tasks, split)}"]'
        for key, split in (("train_sources", "train"), ("eval_sources", "test"), ("validation_sources", "validation"))
    ]
    return [
        sys.executable, "evaluate.py", "solver=program_sampling", "lm=endpoint", "lm.name=m", "lm.num_parallel=1",
        "lm.backoff_s=0.1", "dataset=toy", *sources, "solver.num_samples=2", "sandbox.num_workers=1",
        "sandbox.min_isolation=limits", "num_threads=1", f"output_dir={out}", "launch.server=command",
        f"launch.server_command='{sys.executable} {STAND_IN} {faults} {{port}} {delay_s}'", *more,
    ]  # fmt: skip


def on_slurm(shards: int) -> list[str]:
    return ["launch=slurm_cpu", "launch.cpus=1", "launch.mem_gib=1", f"launch.shards={shards}"]


def run(words: Sequence[str]) -> tuple[float, str]:
    """Seconds, and what it said. AssertionError unless it ended well."""
    start = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - start, done.stderr


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


def num_drawn(shard: Path) -> int:
    """Tasks whose replies it keeps."""
    kept = shard / "samples.jsonl"
    return max(0, len(kept.read_text().splitlines()) - 1) if kept.exists() else 0


def with_faults(folder: Path, tasks: int, delay_s: float, ask: Callable[..., str]) -> dict[str, Any]:
    """Shard 0 is preempted, the parent of shard 1 killed, one server dies; then the same command once more."""
    (faults := folder / "faults").mkdir()
    whole = folder / "faulty"
    words = command(whole, faults, tasks, delay_s, *on_slurm(FAULTY_SHARDS))
    first = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    shards = [RunDir(whole / "shards" / f"{number}_of_{FAULTY_SHARDS}") for number in range(FAULTY_SHARDS)]
    wait_until(lambda: all(read_job(shard) is not None for shard in shards), "the jobs")
    jobs = [job.id for shard in shards if (job := read_job(shard)) is not None]
    wait_until(lambda: num_drawn(shards[0].path) > 0, "a task of shard 0")
    ask("scancel", "--signal=USR2", jobs[0])
    wait_until(lambda: num_drawn(shards[1].path) > 0, "a task of shard 1")
    holder = read_holder(shards[1])
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    (faults / "dies").touch()
    said = first.communicate(timeout=600)[1]
    lost = next((line for line in said.splitlines() if line.startswith("error:")), "")
    restarts = [ask("scontrol", "show", "job", job).partition("Restarts=")[2][:1] for job in jobs]
    states = ["DONE" if shard.state is State.done else "lost" for shard in shards]
    seconds, _ = run(words)
    servers = [int(line.split()[0]) for line in (faults / "starts").read_text().splitlines()]
    return {
        "jobs": jobs, "first_exit_status": first.returncode, "said": lost.replace(str(folder), "."), "restarts": restarts,
        "states_after_first": states, "second_command_s": seconds, "servers_started": len(servers),
        "servers_left": sum(map(psutil.pid_exists, servers)), "requests": len((faults / "requests").read_text().splitlines()),
    }  # fmt: skip


def measure(folder: Path, tasks: int, delay_s: float, repeats: int, ask: Callable[..., str]) -> dict[str, Any]:
    (calm := folder / "calm").mkdir()
    found: dict[str, Any] = {"faults": with_faults(folder, tasks, delay_s, ask)}
    print(json.dumps(found), flush=True)
    seconds: dict[int, list[float]] = {count: [] for count in (1, *TIMED_SHARDS)}
    for number in range(repeats):
        for count, measured in seconds.items():
            where = ["launch=local"] if count == 1 else on_slurm(count)
            measured.append(run(command(folder / f"of_{count}_{number}", calm, tasks, delay_s, *where))[0])
    folders = [folder / "faulty", *(folder / f"of_{count}_{number}" for number in range(repeats) for count in seconds)]
    found["same_as_one_process"] = {
        each.name: all((each / file).read_bytes() == (folder / "of_1_0" / file).read_bytes() for file in FILES)
        for each in folders
    }
    found["seconds"] = seconds
    found["forecasts"] = {count: forecasts(folder / f"of_{count}_0") for count in TIMED_SHARDS}
    return found


def forecasts(measured: Path) -> dict[int, float]:
    """Median seconds on 1, 2 and 4 nodes, by the rates of one of the runs."""
    rates = read_rates(measured)
    costs = [json.loads(path.read_text()) for path in sorted(measured.glob("shards/*_of_*/shard.json"))]
    tasks, cost = (sum(record[key] for record in costs) for key in ("tasks", "cost"))
    return {nodes: simulate(Work((cost / tasks,) * tasks), rates, nodes).median_s for nodes in (1, *TIMED_SHARDS)}


def markdown(result: dict[str, Any]) -> str:
    seconds, faults = result["seconds"], result["faults"]
    alone_s = median(seconds[1])
    rows = [
        f"| {count} | {median(walls):.0f} s | {min(walls):.0f} to {max(walls):.0f} s | {alone_s / median(walls):.2f} "
        f"| {100 * alone_s / median(walls) / count:.0f} % | "
        + " | ".join(f"{result['forecasts'][by][count]:.0f} s" for by in TIMED_SHARDS)
        + " |"
        for count, walls in seconds.items()
    ]
    differ = [name for name, same in result["same_as_one_process"].items() if not same]
    return "\n".join([
        f"# {result['tasks']} toy tasks in shards on two SLURM nodes, {result['delay_s']:g} s a task", "",
        f"Medians of {result['repeats']} runs of each; load average at the start {result['load_average']:.1f}.", "",
        "| shards | measured | from, to | speed-up | efficiency | "
        + " | ".join(f"forecast from {by}" for by in TIMED_SHARDS) + " |",
        "|---" * (5 + len(TIMED_SHARDS)) + "|", *rows, "",
        f"With faults, {FAULTY_SHARDS} shards: jobs {faults['jobs'][0]} to {faults['jobs'][-1]}; the first command said "
        f"`{faults['said']}` (exit status {faults['first_exit_status']}); restarts {', '.join(faults['restarts'])}; the second "
        f"one took {faults['second_command_s']:.0f} s; {faults['requests']} requests for {result['tasks']} tasks, "
        f"{faults['servers_started']} servers started, {faults['servers_left']} left.", "",
        f"Files that differ from those of the first run in one process: {', '.join(differ) or 'none'} of "
        f"{len(result['same_as_one_process'])} runs.", "",
    ])  # fmt: skip


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=at_least_1, default=60)
    parser.add_argument("--delay", type=above_0, default=2.0, help="seconds that a server takes for a task")
    parser.add_argument("--repeats", type=at_least_1, default=3)
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    sys.path.insert(0, str(ROOT))
    from tests.slurm.cluster import Cluster  # not installed with arclab

    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name) / "cluster", nodes=2) as cluster:
        os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
        found = measure(Path(name), arguments.tasks, arguments.delay, arguments.repeats, cluster.run)
    result = {
        "tasks": arguments.tasks, "delay_s": arguments.delay, "repeats": arguments.repeats, "load_average": load, **found,
        "provenance": {**provenance(), "command": " ".join(["python -m benchmarks.shards", *sys.argv[1:]])},
    }  # fmt: skip
    (RESULTS / "shards.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "shards.md").write_text(markdown(result))
    print(markdown(result))
    return 0 if all(result["same_as_one_process"].values()) else 1


if __name__ == "__main__":
    run_main(main)
