"""Training queries per second on real tasks: every row on the 30-canvas, or each task on its own canvas, in one run.

    python -m benchmarks.train_step                          # width 512, fp32, CPU: some minutes
    python -m benchmarks.train_step --device cuda --precision bf16 --tokens 345600 --compile --forms full bucketed --save

For TRM (puzzle table) and ETRM (encoder=standard) a full training step (forward, backward, clipping, AdamATan2, averages) is
timed on each canvas with about --tokens canvas cells; seconds a row, weighted by how many of the training rows that canvas has,
give the bucketed figure. The references: full is dataset.canvas with demonstrations packed; padded is full with every one of
the max_demos slots encoded on the whole canvas, as the first ETRM did. Floating-point operations are those of matrix products
(torch's counter, over some of the rows in an uncompiled model); their share of the measured matmul rate stands beside each
form, and the hours that the published number of steps would take. predictions/s are those of the published evaluation (all
supervision steps, all votes, demonstrations read once, not compiled), and the hours what the 400 evaluation tasks would take
with 1000 views each; bucketed: by the canvases of the training tasks, of which evaluation tasks need larger ones. Prints a
table and one JSON line; --save writes benchmarks/results/train_step.json, on a GPU train_step_<its name>[_compiled].json. It
does not ask what is learned: benchmarks/bucketing.py does.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from arclab.config.compose import compose, run_main
from arclab.config.run import DeviceChoice
from arclab.config.schema import ExperimentConfig
from arclab.data.buckets import bucketed
from arclab.data.sampler import Batch, Cursor, Part, TrainingData, build_training_data, start_cursors, whole
from arclab.data.splits import load_tasks
from arclab.methods.recursive.compiled import compile_model
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.encoders.demo_tokens import DemoTokens
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.training.checkpoint import TrainingProgress
from arclab.methods.recursive.training.state import Training, build_optimizer
from arclab.methods.recursive.training.step import train_step
from arclab.methods.recursive.training.sums import StepSums
from arclab.runs.folder import provenance, short_commit
from arclab.runs.ranks import Ranks, start_ranks
from benchmarks.arguments import at_least_1

SYSTEMS = {"TRM": ["encoder=puzzle_table", "dataset.regime=puzzle_id"], "ETRM": ["encoder=standard"]}
FORMS = ("full", "padded", "bucketed")
_BATCH_SIZE = 768  # whose shares of canvases are taken
_PUBLISHED_STEPS = 518_071  # optimiser steps of the published TRM on ARC-AGI-1, each of 768 queries
_EVALUATION_ROWS = 419 * 1001  # the test inputs of the 400 ARC-AGI-1 evaluation tasks, each under the identity and 1000 views
_AUGMENTATIONS = 20  # views do not change the time of a step; few keep the puzzle table small
_COUNTED_CELLS = 16 * 900  # canvas cells whose operations are counted: enough for a mean over demonstrations, little memory


@dataclass(frozen=True, slots=True)
class Timing:
    seconds: float
    rows: int
    flops: float
    peak_bytes: int
    prediction_seconds: float

    def figures(self) -> dict[str, float]:
        return {
            "queries_per_s": self.rows / self.seconds,
            "seconds": self.seconds,
            "rows": self.rows,
            "flops_per_row": self.flops / self.rows,
            "flops_per_s": self.flops / self.seconds,
            "peak_gib": self.peak_bytes / 2**30,
            "predictions_per_s": self.rows / self.prediction_seconds,
        }


def build(system: str, given: argparse.Namespace) -> tuple[ExperimentConfig, TrainingData]:
    config = compose(
        "pretrain_encoder",
        [
            f"dataset={given.dataset}",
            f"dataset.num_augmentations={_AUGMENTATIONS}",
            "halting=paper",
            "name=benchmark",
            "wandb.mode=disabled",
            f"decoder.width={given.width}",
            f"trainer.precision={given.precision}",
            f"trainer.device={given.device}",
            *SYSTEMS[system],
            *([f"encoder.demo_attention={given.demo_attention}"] if system == "ETRM" else []),
        ],
    )
    return config, build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)


def model_and_batch(config: ExperimentConfig, part: Part, ranks: Ranks, *, padded: bool) -> tuple[RecursiveModel, Batch]:
    """padded: every demonstration slot, on the whole canvas."""
    torch.manual_seed(0)
    model = build_model(config, part.data.space.num_puzzles).to(ranks.device)
    batch = part.data.batch(Cursor.first(0), part.num_rows, 0, part.num_rows).to(ranks.device)
    if padded:
        batch = fill_slots(batch)
        for module in model.modules():
            if isinstance(module, DemoTokens):
                module.canvases = (part.data.canvas,)
    return model, batch


def stepper(
    config: ExperimentConfig, part: Part, ranks: Ranks, given: argparse.Namespace, *, padded: bool
) -> Callable[[], Any]:
    """One training step on always the same rows."""
    model, batch = model_and_batch(config, part, ranks, padded=padded)
    if given.compile:
        compile_model(model)
    parts = [part]
    progress = TrainingProgress(0, start_cursors(parts, 0), 0, 0.0, "benchmark", None, [], None, None)
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


def count_flops(config: ExperimentConfig, part: Part, ranks: Ranks, *, padded: bool) -> float:
    """Of forward and backward of a step, from some of its rows in an uncompiled model: the counter does not see into compiled
    graphs."""
    num_rows = min(part.num_rows, max(1, _COUNTED_CELLS // part.data.canvas**2))
    model, rows = model_and_batch(config, replace(part, num_rows=num_rows), ranks, padded=padded)
    counter = FlopCounterMode(display=False, custom_mapping=_varlen_formulas())
    with counter:
        _, output = model(model.initial_carry(rows), rows, torch.zeros_like(rows.num_demos_B))
        losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
        losses.total(config.halting.halt_loss_weight).backward()
    return counter.get_total_flops() * part.num_rows / num_rows


def _varlen_formulas() -> dict[Any, Callable[..., float]]:
    """What the kernel for sequences of different lengths computes: torch's counter does not know it."""
    import torch.nn.attention.varlen  # registers the operators

    def formula(products: int) -> Callable[..., float]:
        def count(first_THC: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> float:
            starts = next(a for a in args if isinstance(a, Tensor) and a.dtype is torch.int32)
            pairs = int(starts.diff().long().square().sum())
            return products * 2 * pairs * first_THC.shape[1] * first_THC.shape[2]

        # The counter's way to ask for tensors instead of shapes.
        count._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]
        return count

    operators = torch.ops.torch_attn
    return {operators._varlen_attn: formula(2), operators._varlen_attn_backward: formula(5)}


def timed(config: ExperimentConfig, part: Part, ranks: Ranks, given: argparse.Namespace, *, padded: bool = False) -> Timing:
    """Median of --repeats steps after two that warm up (compile, allocate, settle); peak memory is that of all of them."""
    flops = count_flops(config, part, ranks, padded=padded)
    if given.compile:
        torch._dynamo.reset()  # what earlier forms compiled would only hold memory
    is_gpu = given.device == "cuda"
    prediction = prediction_seconds(config, part, ranks, given, padded=padded)
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = stepper(config, part, ranks, given, padded=padded)
    seconds = median_seconds(step, given, warm_ups=2 if is_gpu or given.compile else 1)
    peak_bytes = torch.cuda.max_memory_allocated() if is_gpu else 0
    return Timing(seconds, part.num_rows, flops, peak_bytes, prediction)


def prediction_seconds(config: ExperimentConfig, part: Part, ranks: Ranks, given: argparse.Namespace, *, padded: bool) -> float:
    """Of predictions by the published rules, as evaluate.py makes them (not compiled): demonstrations read once, then
    halt_max_steps supervision steps, of which one is timed."""
    model, batch = model_and_batch(config, part, ranks, padded=padded)
    reading = model.read(batch)
    latents = model.start(batch.inputs_BS, reading)
    read = median_seconds(lambda: model.read(batch), given, warm_ups=0)
    step = median_seconds(lambda: model.refine(latents, batch.inputs_BS, reading), given, warm_ups=1)
    return read + config.halting.halt_max_steps * step


def median_seconds(call: Callable[[], Any], given: argparse.Namespace, *, warm_ups: int) -> float:
    for _ in range(warm_ups):
        call()
    seconds = []
    for _ in range(given.repeats):
        synchronize(given)
        start = time.perf_counter()
        call()
        synchronize(given)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def synchronize(given: argparse.Namespace) -> None:
    if given.device == "cuda":
        torch.cuda.synchronize()


def measure(system: str, ranks: Ranks, given: argparse.Namespace) -> dict[str, Any]:
    """Figures of each form that was asked for; a puzzle table has no demonstrations to pad."""
    config, data = build(system, given)
    dense, _ = build(system, argparse.Namespace(**{**vars(given), "demo_attention": "dense"}))
    rows = max(1, given.tokens // data.canvas**2)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "full": lambda: timed(config, whole(data, rows)[0], ranks, given).figures(),
        "bucketed": lambda: measure_bucketed(config, data, ranks, given),
        "padded": lambda: timed(dense, whole(data, rows)[0], ranks, given, padded=True).figures(),
    }
    forms: dict[str, dict[str, Any]] = {}
    for form in (f for f in measures if f in given.forms and (f != "padded" or system == "ETRM")):
        try:
            figures = measures[form]()
        except torch.OutOfMemoryError as error:  # the other forms have their figures all the same
            print(
                f"{system} {form}: out of memory with --tokens {given.tokens}, left out ({str(error).splitlines()[0]})",
                flush=True,
            )
            continue
        figures["published_hours"] = _PUBLISHED_STEPS * _BATCH_SIZE / figures["queries_per_s"] / 3600
        figures["evaluation_hours"] = _EVALUATION_ROWS / figures["predictions_per_s"] / 3600
        print(f"{system} {form}: {json.dumps(figures)}", flush=True)  # what a killed benchmark has measured is not lost
        forms[form] = figures
    return forms


def measure_bucketed(config: ExperimentConfig, data: TrainingData, ranks: Ranks, given: argparse.Namespace) -> dict[str, Any]:
    """Every canvas by itself; a query's seconds and operations are the mean over canvases, weighted by their rows in a
    batch."""
    canvases, expected = {}, []
    for part in bucketed(data, _BATCH_SIZE, 1):
        rows = max(1, given.tokens // part.data.canvas**2)
        figures = timed(config, replace(part, start=0, num_rows=rows, weight=1.0), ranks, given).figures()
        expected.append(part.weight * part.num_rows)
        canvases[part.data.canvas] = {**figures, "expected_rows": expected[-1]}

    def mean(values: Iterable[float]) -> float:
        return sum(n * value for n, value in zip(expected, values, strict=True)) / sum(expected)

    seconds, prediction_seconds = (
        mean(1 / c[name] for c in canvases.values()) for name in ("queries_per_s", "predictions_per_s")
    )
    flops = mean(c["flops_per_row"] for c in canvases.values())
    peak = max(c["peak_gib"] for c in canvases.values())
    return {
        "queries_per_s": 1 / seconds,
        "flops_per_row": flops,
        "flops_per_s": flops / seconds,
        "peak_gib": peak,
        "canvases": canvases,
        "predictions_per_s": 1 / prediction_seconds,
    }


def matmul_rate(given: argparse.Namespace) -> float:
    """Floating-point operations per second of one large matrix product in this precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.precision]
    size = 8192 if given.device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=given.device).to(dtype) for _ in range(2))
    torch.matmul(a, b)
    synchronize(given)
    repeats = 30 if given.device == "cuda" else 3
    start = time.perf_counter()
    for _ in range(repeats):
        torch.matmul(a, b)
    synchronize(given)
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def table(result: dict[str, Any]) -> str:
    steps = f"{_PUBLISHED_STEPS:,} steps of {_BATCH_SIZE}"
    lines = [
        f"| system | form | queries/s | bucketed is faster by | peak memory | {steps} | predictions/s | 400 tasks x 1000 "
        "views |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system, forms in result["systems"].items():
        for form, f in forms.items():
            faster = f"{forms['bucketed']['queries_per_s'] / f['queries_per_s']:.2f}" if "bucketed" in forms else "-"
            memory = f"{f['peak_gib']:.1f} GiB" if f["peak_gib"] else "-"
            lines.append(
                f"| {system} | {form} | {f['queries_per_s']:.3g} | {faster} | {memory} | {f['published_hours']:.0f} h | "
                + (f"{f['predictions_per_s']:.3g} | {f['evaluation_hours']:.1f} h |" if "predictions_per_s" in f else "- | - |")
            )
    rate = result["matmul_flops_per_s"]
    shares = [
        f"{name} {form} {100 * f['flops_per_s'] / rate:.0f} % ({f['flops_per_row'] / 1e12:.3g} TFLOP a row)"
        for name, forms in result["systems"].items()
        for form, f in forms.items()
    ]
    lines += [
        "",
        f"matmul rate here: {rate / 1e9:.0f} GFLOP/s ({result['precision']}); of it a step reaches: {', '.join(shares)}",
    ]
    return "\n".join(lines)


def save(result: dict[str, Any], given: argparse.Namespace) -> None:
    name = "train_step"
    if given.device == "cuda":
        name += "_" + re.sub(r"[^a-z0-9]+", "_", result["device"].lower()).strip("_") + ("_compiled" if given.compile else "")
    results = Path(__file__).parent / "results"
    (results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    heading = f"`{result['command']}`, commit {short_commit(result)}, {result['machine']}, torch {result['torch']}"
    (results / f"{name}.md").write_text(f"# Training step\n\n{heading}\n\n{table(result)}\n")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="arc1")
    parser.add_argument("--width", type=at_least_1, default=512)
    parser.add_argument("--tokens", type=at_least_1, default=900, help="canvas cells of a step, on every canvas")
    parser.add_argument("--repeats", type=at_least_1, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--demo-attention", choices=("auto", "dense", "varlen"), default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=at_least_1, default=None)
    parser.add_argument("--save", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    given = arguments(argv)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    ranks = start_ranks(DeviceChoice(given.device))
    result: dict[str, Any] = {
        **provenance(),
        "command": f"python -m benchmarks.train_step --dataset {given.dataset} --width {given.width} --tokens "
            f"{given.tokens} --repeats {given.repeats} --device {given.device} --precision {given.precision} --systems "
            f"{' '.join(given.systems)} --forms {' '.join(given.forms)} --demo-attention "
            f"{given.demo_attention}{' --compile' if given.compile else ''}"
        + (f" --threads {given.threads}" if given.threads is not None else ""),
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu", "torch": torch.__version__,
        "precision": given.precision, "threads": torch.get_num_threads(), "matmul_flops_per_s": matmul_rate(given),
        "systems": {system: measure(system, ranks, given) for system in given.systems},
    }  # fmt: skip
    print(table(result))
    print(json.dumps(result))
    if given.save:
        save(result, given)


if __name__ == "__main__":
    run_main(main)
