"""What trainer.precision and trainer.compile do to the seconds of a training step on this CPU, by turns in one run.

    python -m benchmarks.precision                 # one thread, a few minutes (compiling takes half a minute a form)
    python -m benchmarks.precision --experiments toy_control --threads 2 --save

For the models of experiment=toy_control and quickstart each form takes the same rows; the ratio is to fp32, not compiled.
attention in bf16 is what torch does with a bf16 model if it is left to it, and what arclab does not do on a CPU. bf16 pays on
CPUs that multiply it (AMX or AVX-512 BF16: printed); others emulate it. Prints a table and one JSON line; --save writes
benchmarks/results/precision.{md,json}. It says nothing about GPUs (benchmarks/train_step.py does) nor about what is learned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arclab.config.compose import compose, run_main
from arclab.config.run import DeviceChoice
from arclab.data.sampler import build_training_data, whole
from arclab.data.splits import load_tasks
from arclab.files import write_atomically
from arclab.methods.recursive import layers
from arclab.runs.folder import provenance, short_commit
from arclab.runs.ranks import start_ranks
from benchmarks.arguments import at_least_1
from benchmarks.train_step import stepper

# experiment -> what it is measured with: rows as these models are trained with.
EXPERIMENTS = {
    "toy_control": [
        "encoder.demo_layout=symmetry",
        "encoder.pooling=colors",
        "encoder.tokens_per_demo=10",
        "trainer.batch_size=256",
        'dataset.train_sources=["toy:dihedral_color?tasks=2000&side=3&colors=3&palette=10&demos=3"]',
        "dataset.canvas=4",
    ],
    "quickstart": ["trainer.batch_size=128"],
}
# form -> precision, compiled, attention as torch would do it
FORMS = {
    "fp32": ("fp32", False, False),
    "fp32, compiled": ("fp32", True, False),
    "bf16, attention in bf16": ("bf16", False, True),
    "bf16": ("bf16", False, False),
    "bf16, compiled": ("bf16", True, False),
}
_WARM_UPS = 2


def attention_as_given(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def step_of(experiment: str, form: str) -> tuple[Callable[[], Any], int]:
    """One training step on always the same rows, and how many."""
    precision, is_compiled, as_given = FORMS[form]
    config = compose(
        "pretrain_encoder",
        [
            f"experiment={experiment}",
            *EXPERIMENTS[experiment],
            f"trainer.precision={precision}",
            "name=benchmark",
            "wandb.mode=disabled",
        ],
    )
    rows = config.trainer.num_rows
    data = build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)
    step = stepper(
        config, whole(data, rows)[0], start_ranks(DeviceChoice.cpu), argparse.Namespace(compile=is_compiled), padded=False
    )

    def in_its_form() -> None:
        kept = layers.dense_attention
        layers.dense_attention = attention_as_given if as_given else kept
        try:
            step()
        finally:
            layers.dense_attention = kept

    return in_its_form, rows


def measure(experiment: str, repeats: int) -> dict[str, Any]:
    """Median seconds of each form; the forms take turns, so that other load falls on all of them."""
    steps, rows = {}, 0
    for form in FORMS:
        steps[form], rows = step_of(experiment, form)
        for _ in range(_WARM_UPS):
            steps[form]()
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats):
        for form, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[form].append(time.perf_counter() - start)
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    return {
        "experiment": experiment, "rows": rows, "seconds": seconds,
        "forms": {f: {"rows_per_s": rows / s, "times_fp32": medians["fp32"] / s} for f, s in medians.items()},
    }  # fmt: skip


def bf16_units() -> str:
    """Which units for bf16 the processor reports (Linux)."""
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.is_file() else set()
    return ", ".join(sorted(flags & {"amx_bf16", "avx512_bf16"})) or "none reported"


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"`{result['command']}`, commit {short_commit(result)}, {result['machine']}, {result['threads']} thread(s), units for "
        f"bf16: {result['bf16_units']}, torch {result['torch']}, median of {result['repeats']} steps by turns.",
        "", "| experiment | rows a step | form | rows/s | times fp32 |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for run in result["runs"]:
        for form, figures in run["forms"].items():
            lines.append(
                f"| {run['experiment']} | {run['rows']} | {form} | {figures['rows_per_s']:.3g} | {figures['times_fp32']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--repeats", type=at_least_1, default=7)
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    runs = [measure(experiment, given.repeats) for experiment in given.experiments]
    result = {"runs": runs, "threads": given.threads, "repeats": given.repeats, "bf16_units": bf16_units(), **provenance()}
    print(markdown(result))
    print(json.dumps(result))
    if given.save:
        results = Path(__file__).parent / "results"
        write_atomically(results / "precision.json", json.dumps(result, indent=1) + "\n")
        write_atomically(results / "precision.md", markdown(result))


if __name__ == "__main__":
    run_main(main)
