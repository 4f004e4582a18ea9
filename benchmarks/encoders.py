"""What each encoder costs: parameters, and the time of a training step beside that of the standard encoder, in turn.

    python -m benchmarks.encoders                     # every encoder in conf/encoder: minutes on a CPU
    python -m benchmarks.encoders --repeats 15 --save  # benchmarks/results/encoders.json

A step is a whole one (forward, backward, clipping, AdamATan2, averages) of quickstart's decoder, canvas and rows; encoders
have the sizes of the positive control (width 64, one layer; two with a CLS token; LPN those of its paper). Steps are timed in
turns: in each turn every encoder takes one, so that other work on the machine meets all alike. The figure is the median over
turns of an encoder's time over standard's in the same turn, with the middle half of these ratios. Parameters are those of
encoder and adapter at this size and at the published one (experiment=etrm_arc1, width 512). It does not ask what is learned:
experiments/control.py does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arclab.config.compose import compose, group_options
from arclab.config.run import DeviceChoice
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import build_training_data, whole
from arclab.data.splits import load_tasks
from arclab.files import write_atomically
from arclab.methods.recursive.sizes import count_parameters
from arclab.runs.folder import provenance
from arclab.runs.ranks import start_ranks
from benchmarks.arguments import at_least_1
from benchmarks.train_step import stepper
from experiments.control import toy_sizes

STANDARD = "standard"
RESULTS = Path(__file__).parent / "results" / "encoders.json"
QUICKSTART = ["experiment=quickstart", "name=benchmark", "wandb.mode=disabled"]
PUBLISHED = ["experiment=etrm_arc1", "name=benchmark", "wandb.mode=disabled"]


def names() -> list[str]:
    """The encoders of demonstrations, the standard one first."""
    rest = [name for name in group_options("encoder") if name not in (STANDARD, "standard_tiny", "puzzle_table")]
    return [STANDARD, *rest]


def config_of(size: str, name: str) -> ExperimentConfig:
    """size: quickstart (with the control's sizes of encoders for small tasks) or published."""
    base = [*QUICKSTART, f"encoder={name}", *toy_sizes(name)] if size == "quickstart" else [*PUBLISHED, f"encoder={name}"]
    return compose("pretrain_encoder", base)


def parameters(name: str) -> dict[str, int]:
    """Of the encoder and the adapter behind it."""
    return {size: count_parameters(config_of(size, name), {})["encoder"] for size in ("quickstart", "published")}


def step_of(name: str, given: argparse.Namespace) -> Callable[[], Any]:
    config = config_of("quickstart", name)
    data = build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)
    return stepper(config, whole(data, given.rows)[0], start_ranks(DeviceChoice("cpu")), given, padded=False)


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each encoder: median seconds, and its time over standard's, turn by turn: median and quartiles."""
    found = {}
    for name, times in seconds.items():
        turns = [own / standard for own, standard in zip(times, seconds[STANDARD], strict=True)]
        low, middle, high = statistics.quantiles(turns, n=4) if len(turns) > 1 else turns * 3
        found[name] = {"seconds": statistics.median(times), "times_standard": middle, "low": low, "high": high}
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    steps = {name: step_of(name, given) for name in names()}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.repeats):
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - before)
        print(f"turn {turn + 1} of {given.repeats}", flush=True)
    figures = ratios(seconds)
    return {name: {"parameters": parameters(name), **figures[name]} for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", type=at_least_1, default=32)
    parser.add_argument("--repeats", type=at_least_1, default=15)
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    command = f"python -m benchmarks.encoders --rows {given.rows} --repeats {given.repeats} --threads {given.threads}"
    made = {**provenance(), "command": command + (" --compile" if given.compile else ""), "seed": 0}
    record = {"rows": given.rows, "repeats": given.repeats, "threads": given.threads, "encoders": measure(given), **made}
    for name, figures in record["encoders"].items():
        print(
            f"{name:20} {figures['parameters']['quickstart']:>10,} {figures['seconds']:.3f} s {figures['times_standard']:.2f}"
        )
    if given.save:
        write_atomically(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
