"""Gradients summed over two ranks during the backward pass against after it: seconds a training step, in one run, by turns.

    python -m benchmarks.reduction                # ETRM at width 512 on two CPU ranks of one thread each, about two minutes
    python -m benchmarks.reduction --width 128 --rows 8

Both ways train the same model on the same rows; "plain / overlapped" above 1 means that overlapping pays. Two ranks on one CPU
share its memory and exchange messages with gloo, whose threads take time from the cores: this says nothing about NCCL. Prints
one JSON line; benchmarks/scaling.py records it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from arclab.config.compose import compose, run_main
from arclab.config.run import DeviceChoice
from arclab.data.sampler import Cursor, build_training_data, start_cursors, whole
from arclab.data.tasks import ArcTask, Pair
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.training.checkpoint import TrainingProgress
from arclab.methods.recursive.training.state import Training, build_optimizer
from arclab.methods.recursive.training.step import train_step
from arclab.methods.recursive.training.sums import StepSums
from arclab.runs.ranks import Ranks, start_ranks, stop_ranks
from arclab.runs.reduction import GradientReduction, start_reduction
from benchmarks.arguments import at_least_1

_CANVAS, _DEMOS, _REPEATS = 10, 3, 15


def compared(width: int, rows: int, repeats: int = _REPEATS) -> dict[str, Any]:
    """Start two ranks of this module; what rank 0 measured."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.reduction"]
    command = [sys.executable, *launcher, "--width", str(width), "--rows", str(rows), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


def _build(width: int, rows: int, ranks: Ranks) -> Any:
    """step(reduction): one training step of ETRM on always the same rows of a made task, and its optimiser."""
    rng = np.random.default_rng(0)
    pairs = [Pair(*rng.integers(0, 10, (2, _CANVAS, _CANVAS), dtype=np.uint8)) for _ in range(_DEMOS + 1)]
    task = ArcTask("made", tuple(pairs[:-1]), (pairs[-1],), "made")
    config = compose(
        "pretrain_encoder",
        [
            "dataset=arc1",
            "name=b",
            f"decoder.width={width}",
            f"dataset.canvas={_CANVAS}",
            "trainer.precision=fp32",
            "dataset.query_rule=test_pairs",
            "dataset.num_augmentations=0",
            f"trainer.batch_size={rows}",
        ],
    )
    data = build_training_data([task], (), config.dataset, 0)
    parts = whole(data, rows)
    torch.manual_seed(0)
    model = build_model(config, data.space.num_puzzles)
    progress = TrainingProgress(0, start_cursors(parts, 0), 0, 0.0, "b", None, [], None, None)
    training = Training(parts, model, build_optimizer(config, model), Ema(model, 0.999, warmup=True), None, progress)
    batch = data.batch(Cursor.first(0), rows, *ranks.rows(rows))

    def step(reduction: GradientReduction | None) -> None:
        training.reduction = reduction
        votes = [torch.zeros(1)]  # as in a run on CPUs, at every step: a message of its own beside overlapped sums
        train_step(config, training, [batch], ranks, StepSums(ranks.device), votes)

    return step, training.optimizer


def _rank_main(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks(DeviceChoice.cpu)
    step, optimizer = _build(given.width, given.rows, ranks)
    overlapped = start_reduction([group["params"] for group in optimizer.param_groups], ranks)
    seconds: dict[str, list[float]] = {"plain": [], "overlapped": []}
    for repeat in range(given.repeats + 1):
        for name, reduction in (("plain", None), ("overlapped", overlapped)):
            ranks.barrier()
            start = time.perf_counter()
            step(reduction)
            if repeat > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    if ranks.is_main:
        medians = {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
        ratios = [a / b for a, b in zip(seconds["plain"], seconds["overlapped"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        mib = sum(p.nbytes for group in optimizer.param_groups for p in group["params"]) / 2**20
        print(json.dumps({"width": given.width, "rows": given.rows, "repeats": given.repeats, "gradients_mib": mib, **medians,
                          "plain_vs_overlapped": medians["plain_s"] / medians["overlapped_s"],
                          "quartiles_of_ratio": [quartiles[0], quartiles[2]]}))  # fmt: skip
    stop_ranks()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=at_least_1, default=512)
    parser.add_argument("--rows", type=at_least_1, default=2)
    parser.add_argument("--repeats", type=at_least_1, default=_REPEATS)
    given = parser.parse_args(argv)
    if "RANK" in os.environ:
        _rank_main(given)
    else:
        print(json.dumps(compared(given.width, given.rows, given.repeats)))


if __name__ == "__main__":
    run_main(main)
