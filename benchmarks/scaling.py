"""How time and memory of a training step grow with batch size, canvas and demonstrations; and two ranks against one.

    python -m benchmarks.scaling                  # ETRM at width 128 on the CPU, a few minutes
    python -m benchmarks.scaling --width 512 --save

One quantity at a time is varied around --rows rows on a canvas of side 15 with 3 demonstrations, every grid as large as the
canvas allows (the worst case). Each point is a process of its own, because peak memory never goes down; memory is what the
steps added to it. Two ranks against one: the same rows a step with one thread each (the work is equal, the cores are two). Two
ranks with gradients summed after the backward pass against during it: benchmarks/reduction.py. Prints a table and one JSON
line; --save writes benchmarks/results/scaling.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.metrics.logger import read_rows
from arclab.runs.folder import provenance, short_commit
from benchmarks.arguments import at_least_1

from . import reduction

ROOT = Path(__file__).resolve().parents[1]
_CANVAS, _DEMOS = 15, 3
_VARIED = {"rows": (2, 4, 8, 16, 32), "canvas": (6, 10, 15, 20, 30), "demonstrations": (1, 2, 4, 8)}
_POINT = """
import json, resource, statistics, sys, time
import numpy as np, torch
from arclab.config.compose import compose
from arclab.data.sampler import Cursor, build_training_data, start_cursors, whole
from arclab.data.tasks import ArcTask, Pair
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.model import build_model
from arclab.runs.ranks import Ranks
from arclab.methods.recursive.training.checkpoint import TrainingProgress
from arclab.methods.recursive.training.step import train_step
from arclab.methods.recursive.training.sums import StepSums
from arclab.methods.recursive.training.state import Training, build_optimizer

point = json.loads(sys.argv[1])
torch.set_num_threads(point["threads"])
rng = np.random.default_rng(0)
pair = lambda: Pair(*rng.integers(0, 10, (2, point["canvas"], point["canvas"]), dtype=np.uint8))
task = ArcTask("made", tuple(pair() for _ in range(point["demonstrations"])), (pair(),), "made")
config = compose("pretrain_encoder", ["dataset=arc1", "name=b", f"decoder.width={point['width']}",
    f"dataset.canvas={point['canvas']}", "dataset.query_rule=test_pairs", "dataset.num_augmentations=0",
    "trainer.precision=fp32", f"trainer.batch_size={point['rows']}"])
data = build_training_data([task], (), config.dataset, 0)
parts = whole(data, point["rows"])
torch.manual_seed(0)
model = build_model(config, data.space.num_puzzles)
progress = TrainingProgress(0, start_cursors(parts, 0), 0, 0.0, "b", None, [], None, None)
ranks = Ranks(0, 1, torch.device("cpu"))
training = Training(parts, model, build_optimizer(config, model), Ema(model, 0.999, warmup=True), None, progress)
batch = data.batch(Cursor.first(0), point["rows"], 0, point["rows"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = []
for _ in range(3):
    start = time.perf_counter()
    train_step(config, training, [batch], ranks, StepSums(ranks.device), [])
    seconds.append(time.perf_counter() - start)
added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"seconds": statistics.median(seconds[1:]), "mib": round(added)}))
"""


def point(given: argparse.Namespace, **varied: int) -> dict[str, Any]:
    values = {"rows": given.rows, "canvas": _CANVAS, "demonstrations": _DEMOS, "width": given.width, "threads": given.threads}
    values |= varied
    done = subprocess.run([sys.executable, "-c", _POINT, json.dumps(values)], capture_output=True, text=True, check=True)
    return values | json.loads(done.stdout)


def ranks_compared(given: argparse.Namespace) -> dict[str, float]:
    """Training rows a second of quickstart with one rank and with two, one thread each, the same batch."""
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_ranks in (1, 2):
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
            overrides = [
                "experiment=quickstart",
                f"name=ranks{num_ranks}",
                f"runs_dir={folder}",
                "trainer.steps=60",
                "trainer.log_every=20",
                "trainer.eval_every=0",
                "trainer.num_threads=1",
                "wandb.mode=disabled",
            ]
            command = [sys.executable, *launcher, str(ROOT / "pretrain_encoder.py"), *overrides]
            subprocess.run(command, check=True, capture_output=True)
            rows = read_rows(Path(folder) / "quickstart" / f"ranks{num_ranks}" / "metrics.jsonl")
            speeds[f"rows_per_s_{num_ranks}"] = rows[-2]["timing/train_samples_per_s"]
    return speeds | {"two_vs_one": speeds["rows_per_s_2"] / speeds["rows_per_s_1"]}


def table(result: dict[str, Any]) -> str:
    lines = ["| varied | value | s a step | MiB added |", "|---|---|---|---|"]
    for name, points in result["points"].items():
        lines += [f"| {name} | {p[name]} | {p['seconds']:.3f} | {p['mib']} |" for p in points]
    ranks, sums = result["ranks"], result["reduction"]
    low, high = sums["quartiles_of_ratio"]
    overlap = (
        f"Gradients summed after the backward pass against during it, two ranks at width {sums['width']} "
        f"({sums['gradients_mib']:.0f} MiB of gradients): {sums['plain_s']:.3f} s and {sums['overlapped_s']:.3f} s a step, "
        f"plain / overlapped = {sums['plain_vs_overlapped']:.2f} (quartiles of pairs {low:.2f} to {high:.2f})."
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Two ranks against one (quickstart, one thread each, the same batch): {ranks['two_vs_one']:.2f} "
            "times the rows a "
            f"second ({ranks['rows_per_s_1']:.0f} and {ranks['rows_per_s_2']:.0f}).",
            "",
            overlap,
        ]
    )


def draw(result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(_VARIED), figsize=(10, 5), sharex="col", constrained_layout=True)
    for column, (name, points) in enumerate(result["points"].items()):
        values = [p[name] for p in points]
        for row, (key, label) in enumerate((("seconds", "seconds a step"), ("mib", "MiB added"))):
            axes[row, column].plot(values, [p[key] for p in points], marker="o")
            axes[row, column].set_ylim(bottom=0)
            axes[row, 0].set_ylabel(label)
        axes[1, column].set_xlabel("side of the canvas" if name == "canvas" else name)
    figure.suptitle(
        f"A training step of ETRM at width {result['width']}: {result['rows']} rows, canvas {_CANVAS}, {_DEMOS} "
        "demonstrations, one varied"
    )
    figure.savefig(file, dpi=120)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=at_least_1, default=128)
    parser.add_argument("--rows", type=at_least_1, default=4)
    parser.add_argument("--threads", type=at_least_1, default=2)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args(argv)
    command = f"python -m benchmarks.scaling --width {given.width} --rows {given.rows} --threads {given.threads}"
    points = {name: [point(given, **{name: value}) for value in values] for name, values in _VARIED.items()}
    result = {
        **provenance(),
        "command": command,
        "width": given.width,
        "rows": given.rows,
        "points": points,
        "ranks": ranks_compared(given),
        "reduction": reduction.compared(given.width, given.rows),
    }
    print(table(result))
    print(json.dumps(result))
    if given.save:
        results = Path(__file__).parent / "results"
        (results / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
        header = (
            f"# Time and memory of a training step\n\n`{command}`, commit {short_commit(result)}, "
            f"{result['machine']}\n\n![plot](scaling.png)"
        )
        (results / "scaling.md").write_text(f"{header}\n\n{table(result)}\n")
        draw(result, results / "scaling.png")


if __name__ == "__main__":
    run_main(main)
