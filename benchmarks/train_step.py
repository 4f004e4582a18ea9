"""Training queries per second on real tasks: every row on the 30-canvas, or each task on its own canvas, in one run.

    python -m benchmarks.train_step                          # width 512, fp32, CPU: some minutes
    python -m benchmarks.train_step --device cuda --precision bf16 --tokens 345600 --compile

For TRM (puzzle table) and ETRM (encoder=standard) a full training step (forward, backward, clipping, AdamATan2, averages) is timed on
each canvas with about --tokens canvas cells; seconds a row, weighted by how many of the training rows that canvas has, give the bucketed
figure. The references: full is dataset.canvas with demonstrations packed; padded is full with every one of the max_demos slots encoded
on the whole canvas, as the first ETRM did. flops counts matrix products (torch's counter) of a step on the full canvas;
the share of the measured matmul rate stands beside it. Prints a table and one JSON line; --save writes
benchmarks/results/train_step.json. It does not ask what is learned: benchmarks/bucketing.py does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from arclab.config.compose import compose
from arclab.config.schema import ExperimentConfig
from arclab.data.buckets import bucketed
from arclab.data.sampler import Batch, Cursor, Part, TrainingData, build_training_data, start_cursors, whole
from arclab.data.splits import load_tasks
from arclab.models.ema import Ema
from arclab.models.encoders.demo_tokens import DemoTokens
from arclab.models.recursive import build_model
from arclab.ranks import Ranks
from arclab.rundir import provenance
from arclab.training.checkpoint import Progress
from arclab.training.loop import StepSums, train_step
from arclab.training.state import Training, build_optimizer

SYSTEMS = {"TRM": ["encoder=puzzle_table", "dataset.regime=puzzle_id"], "ETRM": ["encoder=standard"]}
_BATCH_SIZE = 768  # whose shares of canvases are taken
_AUGMENTATIONS = 20  # views do not change the time of a step; few keep the puzzle table small


@dataclass(frozen=True, slots=True)
class Timing:
    seconds: float
    rows: int
    flops: float

    @property
    def per_row(self) -> float:
        return self.seconds / self.rows


def build(system: str, given: argparse.Namespace) -> tuple[ExperimentConfig, TrainingData]:
    config = compose(
        "pretrain_encoder",
        [f"dataset={given.dataset}", f"dataset.num_augmentations={_AUGMENTATIONS}", "halting=paper", "name=benchmark", "wandb.mode=disabled",
         f"decoder.width={given.width}", f"trainer.precision={given.precision}", f"trainer.device={given.device}", *SYSTEMS[system]],
    )  # fmt: skip
    return config, build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)


def stepper(
    config: ExperimentConfig, part: Part, ranks: Ranks, given: argparse.Namespace, *, padded: bool
) -> Callable[[], Any]:
    """One training step on always the same rows. padded: every demonstration slot, on the whole canvas."""
    torch.manual_seed(0)
    model = build_model(config, part.data.space.num_puzzles).to(ranks.device)
    if given.compile:
        model.decoder.compile(dynamic=False)
    batch = part.data.batch(Cursor.first(0), part.num_rows, 0, part.num_rows).to(ranks.device)
    if padded:
        batch = fill_slots(batch)
        for module in model.modules():
            if isinstance(module, DemoTokens):
                module.canvases = (part.data.canvas,)
    parts = [part]
    progress = Progress(0, start_cursors(parts, 0), 0, 0.0, "benchmark", "", [], None, None)
    ema = Ema(model, config.trainer.ema_decay, warmup=config.trainer.ema_warmup)
    training = Training(parts, model, build_optimizer(config, model), ema, None, progress)
    config.trainer.batch_size = part.num_rows
    sums = StepSums(ranks.device)
    return lambda: train_step(config, training, [batch], ranks, sums, [])


def fill_slots(batch: Batch) -> Batch:
    """Every slot holds a demonstration (copies of the first): what encoding all slots costs."""
    slots = batch.demo_inputs_BKS.shape[1]
    return replace(
        batch,
        demo_inputs_BKS=batch.demo_inputs_BKS[:, :1].repeat(1, slots, 1),
        demo_outputs_BKS=batch.demo_outputs_BKS[:, :1].repeat(1, slots, 1),
        num_demos_B=torch.full_like(batch.num_demos_B, slots),
    )


def timed(step: Callable[[], Any], rows: int, given: argparse.Namespace) -> Timing:
    """Median of --repeats steps after one that warms up, during which matrix products are counted."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    seconds = []
    for _ in range(given.repeats):
        synchronize(given)
        start = time.perf_counter()
        step()
        synchronize(given)
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), rows, counter.get_total_flops())


def synchronize(given: argparse.Namespace) -> None:
    if given.device == "cuda":
        torch.cuda.synchronize()


def measure(system: str, ranks: Ranks, given: argparse.Namespace) -> dict[str, Any]:
    config, data = build(system, given)
    rows = max(1, given.tokens // data.canvas**2)
    full = timed(stepper(config, whole(data, rows)[0], ranks, given, padded=False), rows, given)
    padded = None
    if system == "ETRM":
        padded = timed(stepper(config, whole(data, rows)[0], ranks, given, padded=True), rows, given)
    canvases, per_row = {}, 0.0
    parts = bucketed(data, _BATCH_SIZE, 1)
    for part in parts:
        expected_rows = part.weight * part.num_rows  # of a batch on the full canvas
        rows = max(1, given.tokens // part.data.canvas**2)
        timing = timed(
            stepper(config, replace(part, start=0, num_rows=rows, weight=1.0), ranks, given, padded=False), rows, given
        )
        canvases[part.data.canvas] = {"rows": rows, "seconds": timing.seconds, "expected_rows": expected_rows}
        per_row += expected_rows * timing.per_row
    total = sum(c["expected_rows"] for c in canvases.values())
    bucketed_per_row = per_row / total
    reference = padded or full
    return {
        "queries_per_s": {"full": 1 / full.per_row, "bucketed": 1 / bucketed_per_row} | ({"padded": 1 / padded.per_row} if padded else {}),
        "bucketed_vs_full": full.per_row / bucketed_per_row,
        "bucketed_vs_reference": reference.per_row / bucketed_per_row,
        "full_flops_per_row": full.flops / full.rows,
        "full_flops_per_s": full.flops / full.seconds,
        "canvases": canvases,
    }  # fmt: skip


def matmul_rate(given: argparse.Namespace) -> float:
    """Floating-point operations per second of one large matrix product in this precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.precision]
    size = 8192 if given.device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=given.device).to(dtype) for _ in range(2))
    a @ b
    synchronize(given)
    start = time.perf_counter()
    for _ in range(3):
        a @ b
    synchronize(given)
    return 3 * 2 * size**3 / (time.perf_counter() - start)


def table(result: dict[str, Any]) -> str:
    lines = ["| system | form | queries/s | bucketed is faster by |", "|---|---|---|---|"]
    for system, figures in result["systems"].items():
        speeds = figures["queries_per_s"]
        for form, speed in speeds.items():
            lines.append(f"| {system} | {form} | {speed:.3g} | {speeds['bucketed'] / speed:.2f} |")
    rate = result["matmul_flops_per_s"]
    lines += ["", f"matmul rate here: {rate / 1e9:.0f} GFLOP/s ({result['precision']}); a step on the full canvas reaches " + ", ".join(
        f"{100 * f['full_flops_per_s'] / rate:.0f} % of it ({name}, {f['full_flops_per_row'] / 1e12:.2f} TFLOP a row)"
        for name, f in result["systems"].items())]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="arc1")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=900, help="canvas cells of a step, on every canvas")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    ranks = Ranks(0, 1, torch.device(given.device))
    result: dict[str, Any] = {
        **provenance(),
        "command": f"python -m benchmarks.train_step --dataset {given.dataset} --width {given.width} --tokens {given.tokens} --repeats {given.repeats} "
        f"--device {given.device} --precision {given.precision}{' --compile' if given.compile else ''}",
        "precision": given.precision, "threads": torch.get_num_threads(), "matmul_flops_per_s": matmul_rate(given),
        "systems": {system: measure(system, ranks, given) for system in SYSTEMS},
    }  # fmt: skip
    print(table(result))
    print(json.dumps(result))
    if given.save:
        results = Path(__file__).parent / "results"
        (results / "train_step.json").write_text(json.dumps(result, indent=1) + "\n")
        (results / "train_step.md").write_text(
            f"# Training step\n\n`{result['command']}`, commit {result['commit'][:8]}, {result['machine']}\n\n{table(result)}\n"
        )


if __name__ == "__main__":
    main()
