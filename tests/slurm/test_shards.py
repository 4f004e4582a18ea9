"""One evaluation in shards on a real SLURM, with a model server each: preempted, killed, with a server that dies, and merged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import read_job

from ..conftest import ROOT, script_env
from .cluster import Cluster
from .conftest import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STAND_IN = ROOT / "tests/lm/stand_in_server.py"
TOY = "toy:color_map?tasks={}&side=4&colors=3&palette=5&demos=3&split={}"
SLURM = ["launch=slurm_cpu", "launch.cpus=1", "launch.mem_gib=1"]


def command(out: Path, faults: Path, num_tasks: int, delay_s: float, *more: str) -> list[str]:
    """evaluate.py with a server that takes delay_s for each task."""
    sources = [
        f'dataset.{key}=["{TOY.format(num_tasks, split)}"]'
        for key, split in (("train_sources", "train"), ("eval_sources", "test"), ("validation_sources", "validation"))
    ]
    return [
        sys.executable, "evaluate.py", "solver=program_sampling", "lm=endpoint", "lm.name=m", "lm.num_parallel=1", "lm.backoff_s=0.1",
        "dataset=toy", *sources, "solver.num_samples=2", "sandbox.num_workers=1", "sandbox.min_isolation=limits", "num_threads=1",
        f"output_dir={out}", "launch.server=command",
        f"launch.server_command='{sys.executable} {STAND_IN} {faults} {{port}} {delay_s}'", *more,
    ]  # fmt: skip


def run(words: Sequence[str], timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=timeout_s)


def num_drawn(shard: Path) -> int:
    """Tasks whose replies it keeps."""
    kept = shard / "samples.jsonl"
    return max(0, len(kept.read_text().splitlines()) - 1) if kept.exists() else 0


def test_shards_with_servers_of_their_own_are_what_one_process_makes(slurm: Cluster, tmp_path: Path) -> None:
    (faults := tmp_path / "faults").mkdir()
    whole = tmp_path / "whole"
    words = command(whole, faults, 12, 2.0, *SLURM, "launch.shards=3")
    first = subprocess.Popen(words, cwd=ROOT, env=script_env(), stderr=subprocess.PIPE, text=True)
    shards = [whole / "shards" / f"{number}_of_3" for number in range(3)]
    wait_until(lambda: all((job := read_job(RunDir(shard))) is not None and job.id for shard in shards), "the jobs", 240)
    jobs = [job.id for shard in shards if (job := read_job(RunDir(shard))) is not None]
    assert jobs == [f"{jobs[0].partition('_')[0]}_{number}" for number in range(3)], "elements of one array"
    signals = {0: "USR2", 1: "KILL"}  # each as soon as its shard has a task, whichever began first

    def all_were_sent() -> bool:
        for number in [number for number in signals if num_drawn(shards[number]) > 0]:
            slurm.run("scancel", f"--signal={signals.pop(number)}", jobs[number])
        return not signals

    wait_until(all_were_sent, "tasks of shards 0 and 1", 240)
    (faults / "dies").touch()
    _, said = first.communicate(timeout=400)
    assert first.returncode == 2 and "shard 1 is " in said and "The same command runs only what is missing." in said, said
    restarts = [slurm.run("scontrol", "show", "job", job).partition("Restarts=")[2][:1] for job in jobs]
    assert restarts == ["1", "0", "0"] and not (faults / "dies").exists()
    assert [RunDir(shard).state is State.done for shard in shards] == [True, False, True]
    again = run(words)
    assert again.returncode == 0, again.stderr
    servers = [line.split()[0] for line in (faults / "starts").read_text().splitlines()]
    assert len(servers) in (5, 6)  # of the shards; one was preempted, one killed, one lost its server; the whole has none
    assert not any(psutil.pid_exists(int(pid)) for pid in servers)

    (calm := tmp_path / "calm").mkdir()
    alone = run(command(tmp_path / "one", calm, 12, 0.0, "launch=local"))
    assert alone.returncode == 0, alone.stderr
    for name in ("predictions.jsonl", "submission.json"):
        assert (tmp_path / "one" / name).read_bytes() == (whole / name).read_bytes(), name
    asked = [len((folder / "requests").read_text().splitlines()) for folder in (faults, calm)]
    assert asked[1] == 12 and asked[0] <= 12 + 4, "only what was under way was asked for again"
