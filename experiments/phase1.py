"""Phase 1 of the experiment guide, encoder by encoder: does each fit 32 tasks in a few minutes of one GPU?

    python -m experiments.phase1 --minutes 8 --jobs 3 --save                                   # on a GPU
    python -m experiments.phase1 --minutes 8 --jobs 3 --layout symmetry+colors --save phase1_colors
    python -m experiments.phase1 --steps 20 --encoders standard --set trainer.device=cpu decoder.width=64 trainer.batch_size=8

Every encoder is one run of experiment=phase1_small in <runs-dir>/phase1/<encoder>: PASS or FAIL by its last evaluation.
--minutes measures how fast the encoders train beside each other, in short runs that are thrown away, and turns that into steps:
the learning rate's schedule then ends with the time. The same command continues what was stopped (with the steps of the first
call). Prints a table; --save [NAME] writes it to experiments/results/NAME.{json,md} (phase1). The runs are lines of a jobs
file that lies beside them, and --cluster says where they go (experiments/queued.py). It compares encoders under one budget; it
does not tune any of them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import compose, run_main
from arclab.config.encoder_schema import EncoderConfig, Pooling, StandardEncoderConfig, TaskEncoderConfig
from arclab.files import read_json, write_atomically
from arclab.metrics.logger import read_rows
from arclab.results.criterion import judge_criterion
from arclab.runs.folder import RunDir, provenance, short_commit
from benchmarks.arguments import above_0, at_least_0, at_least_1
from experiments.control import LAYOUTS, NO_LAYOUT, layout_overrides, pools_by_color
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, measure_speeds, run_lines

EXPERIMENT = "phase1"  # the folder of its runs
TITLE = "Phase 1: 32 small tasks"
ENCODERS = ("standard", "hybrid_variational", "recurrent_trm")
_SPEED_STEPS = 90
# Of the minutes; the rest is for starting, compiling and evaluations, and runs beside each other train more slowly than they
# begin.
_TRAINING_SHARE = 0.7
_EVALUATIONS = 4
_CURVE_POINTS = 8


def overrides(encoder: str, given: argparse.Namespace, steps: int, runs_dir: str) -> list[str]:
    """The command line of one run. The criterion is measured four times, so that a run that is stopped says something too.

    A layout with +colors is for encoders that pool; the others take its grids alone.
    """
    name = encoder if given.layout is None else f"{encoder}-{given.layout}"
    common = [
        "experiment=phase1_small",
        f"encoder={encoder}",
        f"experiment_name={EXPERIMENT}",
        f"name={name}",
        f"runs_dir={runs_dir}",
        f"seed={given.seed}",
        f"trainer.steps={steps}",
        f"trainer.eval_every={math.ceil(steps / _EVALUATIONS)}",
        "wandb.mode=disabled",
        *given.set,
    ]
    config = compose("pretrain_encoder", [c for c in common if not c.startswith("encoder")])
    if "variational" in encoder:  # its default is that of width 512
        common.append(f"encoder.latent_dim={config.decoder.width // 2}")
    if given.layout is None:
        return common
    encoder_config = compose("pretrain_encoder", common).encoder
    layout = given.layout if pools_by_color(encoder_config) else given.layout.partition("+")[0]
    return [*common, *layout_overrides(layout)]


def planned_steps(given: argparse.Namespace) -> dict[str, int]:
    """Encoder -> optimiser steps: as given, as first measured in this folder, or measured now with all encoders beside each
    other. An encoder whose measurement failed is named and has none."""
    if given.steps is not None:
        return {encoder: int(given.steps) for encoder in given.encoders}
    note = folder_of(given) / "steps.json"
    if not note.is_file():
        seconds = 60 * given.minutes * _TRAINING_SHARE
        steps = {encoder: max(1, round(seconds * speed)) for encoder, speed in steps_per_second(given).items()}
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps(steps) + "\n")
    return read_json(note)


def steps_per_second(given: argparse.Namespace) -> dict[str, float]:
    """Of runs that are thrown away, their first steps (which compile) left out."""
    folder = folder_of(given) / "speeds"
    lines = {
        encoder: [*overrides(encoder, given, _SPEED_STEPS, str(folder)), "trainer.eval_every=0", "criterion=null",
                  f"trainer.log_every={_SPEED_STEPS // 3}"]
        for encoder in given.encoders
    }  # fmt: skip
    file = JobsFile(jobs_path(folder, lines), f"Speeds for {TITLE}", "none, the runs are thrown away.")
    speeds: dict[str, float] = {}
    for encoder, speed in measure_speeds(file, lines, given.cluster, given.jobs):
        if isinstance(speed, str):
            print(f"encoder={encoder}: its speed was not measured: {speed}", flush=True)
        else:
            speeds[encoder] = speed
    return speeds


def folder_of(given: argparse.Namespace) -> Path:
    """Where the run folders are."""
    return Path(given.runs_dir) / EXPERIMENT


def run_encoders(steps: Mapping[str, int], given: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of the encoders, in their order. A run that is not DONE is named; it has a record if the criterion was
    measured."""
    lines = {encoder: overrides(encoder, given, number, given.runs_dir) for encoder, number in steps.items()}
    names = (compose("pretrain_encoder", arguments).name for arguments in lines.values())
    file = JobsFile(jobs_path(folder_of(given), names), TITLE, "the criterion of experiment=phase1_small (phase 1).")
    records: dict[str, dict[str, Any]] = {}
    for ended in run_lines(file, lines, given.cluster, places=given.jobs):
        if ended.folder is None or ended.fault:
            print(f"{ended.name} FAILED: {ended.fault}", flush=True)
        rows = read_rows(RunDir(ended.folder).metrics) if ended.folder else []
        found = record(ended.name, lines[ended.name], rows, is_done=not ended.fault)
        if found is not None:
            records[ended.name] = found
    return [records[encoder] for encoder in lines if encoder in records]


def record(encoder: str, arguments: Sequence[str], rows: list[dict[str, Any]], *, is_done: bool) -> dict[str, Any] | None:
    """Of one run, from the rows of its metrics.jsonl; None if they end before the criterion was first measured."""
    config = compose("pretrain_encoder", arguments)
    assert config.criterion is not None
    if not any(config.criterion.metric in row for row in rows):
        return None
    trained = [r for r in rows if "train/exact_accuracy" in r]
    every = max(1, len(trained) // _CURVE_POINTS)
    scored = next(r for r in reversed(rows) if "all.exact_accuracy" in r)
    return {
        "encoder": encoder,
        "layout": layout_of(config.encoder),
        "steps": config.trainer.steps,
        "last_step": rows[-1]["_step"],
        "seconds": rows[-1]["_runtime"],
        "is_done": is_done,
        "criterion": str(judge_criterion(config.criterion, rows)),
        "pass@1": {"n": round(scored["ARC/pass@1"] * scored["ARC/tasks"], 2), "N": int(scored["ARC/tasks"])},
        "mean_steps": scored["all.steps"],
        "curve": {r["_step"]: round(r["train/exact_accuracy"], 4) for r in trained[every - 1 :: every]},
        "overrides": list(arguments),
        **provenance(),
    }


def layout_of(encoder: EncoderConfig) -> str:
    """As in experiments.control: symmetry+colors, or only the layout of the grids."""
    if not isinstance(encoder, TaskEncoderConfig):
        return NO_LAYOUT
    is_by_color = isinstance(encoder, StandardEncoderConfig) and encoder.pooling is Pooling.colors
    return encoder.demo_layout.value + ("+colors" if is_by_color else "")


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# {TITLE}",
        "",
        f"`{result['command']}`, commit {short_commit(result)}, {result['machine']}, seed {result['seed']}",
        "",
        "| encoder | layout | criterion | ARC/pass@1 | steps | s | exact in training at step |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["runs"]:
        curve = ", ".join(f"{step}: {value:.2f}" for step, value in r["curve"].items())
        passed = f"{r['pass@1']['n']:g}/{r['pass@1']['N']}"
        steps = f"{r['steps']}" if r["is_done"] else f"{r['last_step']} of {r['steps']}, stopped"
        lines.append(
            f"| {r['encoder']} | {r['layout']} | {r['criterion']} | {passed} | {steps} | {r['seconds']:.0f} | {curve} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=above_0, help="of all encoders together if --jobs is their number")
    budget.add_argument("--steps", type=at_least_1)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--layout", choices=LAYOUTS, help="of all encoders; else that of experiment=phase1_small")
    parser.add_argument("--seed", type=at_least_0, default=0)
    parser.add_argument("--runs-dir", default="runs")
    add_queue_arguments(parser)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--save", nargs="?", const="phase1", metavar="NAME", help="experiments/results/NAME, else phase1")
    given = parser.parse_args(argv)
    steps = planned_steps(given)
    for encoder in (e for e in given.encoders if e not in steps):
        note = folder_of(given) / "steps.json"
        print(
            f"encoder={encoder} is left out: {note} has no steps for it (it failed, or others were measured); remove that "
            "file to measure again."
        )
    records = run_encoders({encoder: steps[encoder] for encoder in given.encoders if encoder in steps}, given)
    command = "python -m experiments.phase1 " + " ".join(argv)
    result = {**provenance(), "command": command, "seed": given.seed, "runs": records}
    print(markdown(result))
    if given.save:
        results = Path(__file__).parent / "results"
        write_atomically(results / f"{given.save}.json", json.dumps(result, indent=1) + "\n")
        write_atomically(results / f"{given.save}.md", markdown(result))
    return int(len(result["runs"]) < len(given.encoders) or not all(r["is_done"] for r in result["runs"]))


if __name__ == "__main__":
    run_main(main)
