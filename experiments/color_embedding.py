"""Do colours that share their weights (decoder.color_embedding) make learning cheaper? Steps to an accuracy at equal budgets.

    python -m experiments.color_embedding --save                       # everything; goes on where it was stopped
    python -m experiments.color_embedding --tasks colour_maps --arms free shared --seeds 0

Tasks, each with the standard encoder and one small block as decoder, so that a run takes a minute of one core:
    colour_maps    the positive control's unseen colour maps (experiment=toy_control); all inputs have the same three colours
    views          the twelve real tasks of experiment=quickstart, each in 200 views: flips, rotations and colours
Embeddings see the same rows in the same order. A row of the table is one of them on one task, over all seeds: the first logged
step with a cross-entropy in training of at most that of LOSSES, where it ended, and exact answers over the views that an
evaluation shows, n/N with a 95 % Wilson interval (too narrow: views of a task are not independent). Of colour_maps these are
unseen tasks, and in four of five views the input has colours that training never showed there. Runs are lines of a jobs file
(experiments/queued.py); the table has those that are DONE. --save [NAME] writes experiments/results/NAME.{json,md}
(color_embedding). It says nothing about large canvases or models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.config.encoder_schema import NUM_COLORS
from arclab.config.schema import ColorEmbedding
from arclab.files import read_object, write_atomically
from arclab.metrics.logger import read_rows
from arclab.results.scoring import Share
from arclab.runs.folder import RunDir, State, short_commit
from benchmarks.arguments import at_least_0
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines

EXPERIMENT = "color_embedding"  # the folder of its runs
TITLE = "Colours that share their weights"
CRITERION = "shared or shared_nonzero reaches the loss in fewer steps than free on every task."
ARMS = tuple(kind.value for kind in ColorEmbedding)
_SMALL = (
    "encoder=standard", "encoder.num_layers=1", "encoder.num_heads=2", "encoder.context.gain=0.1", "encoder.width=null",
    "encoder.demo_layout=aligned", "decoder.width=32", "decoder.num_heads=2", "decoder.num_layers=1",
    "decoder.h_cycles=1", "decoder.l_cycles=1",
    "halting=single", "trainer.log_every=10", "trainer.lr_min_ratio=0.1", "trainer.checkpoint_every=100",
    "trainer.num_threads=1", "evaluation.health_tasks=0",
)  # fmt: skip
_TOY = "toy:color_map?tasks={}&side=3&colors=3&palette=10&demos=3&split={}&seed=0"
TASKS: Mapping[str, tuple[str, ...]] = {
    "colour_maps": (
        "experiment=toy_control", *_SMALL, "encoder.pooling=colors", f"encoder.tokens_per_demo={NUM_COLORS}",
        "dataset.name=toy", "dataset.canvas=4", f'dataset.train_sources=["{_TOY.format(20000, "train")}"]',
        f'dataset.eval_sources=["{_TOY.format(200, "test")}"]', "dataset.validation_sources=[]", "evaluation.split=evaluation",
        "evaluation.num_augmentations=4", "trainer.steps=400", "trainer.eval_every=400", "trainer.batch_size=64",
    ),
    "views": (
        "experiment=quickstart", *_SMALL, "dataset.num_augmentations=200", "evaluation.num_augmentations=20",
        "trainer.steps=300", "trainer.eval_every=300", "trainer.batch_size=32",
    ),
}  # fmt: skip


# The cross-entropy that is waited for.
LOSSES: Mapping[str, float] = {"colour_maps": 0.5, "views": 1.0}


def run_name(task: str, arm: str, seed: int) -> str:
    return f"{task}-{arm}-seed{seed}"


def overrides(given: argparse.Namespace, task: str, arm: str, seed: int) -> list[str]:
    return [
        *TASKS[task], f"decoder.color_embedding={arm}", f"experiment_name={EXPERIMENT}", f"name={run_name(task, arm, seed)}",
        f"runs_dir={given.runs_dir}", f"seed={seed}", "wandb.mode=disabled", *given.set,
    ]  # fmt: skip


def record(rows: Sequence[dict[str, Any]], loss: float) -> dict[str, Any]:
    """Of one run that is DONE, from the rows of its metrics.jsonl."""
    trained = [row for row in rows if "train/lm_loss" in row]
    scored = next(row for row in reversed(rows) if "all.exact_accuracy" in row)
    return {
        "steps": trained[-1]["_step"],
        "first_step": next((row["_step"] for row in trained if row["train/lm_loss"] <= loss), None),
        "loss": trained[-1]["train/lm_loss"],
        "exact": trained[-1]["train/exact_accuracy"],
        "n": round(scored["all.exact_accuracy"] * scored["all.count"]),
        "N": round(scored["all.count"]),
        "pass@1": [round(scored["ARC/pass@1"] * scored["ARC/tasks"], 2), round(scored["ARC/tasks"])],
        "losses": {row["_step"]: round(row["train/lm_loss"], 4) for row in trained if row["_step"] % 50 == 0},
        "seconds": rows[-1]["_runtime"],
    }


def summary(given: argparse.Namespace, task: str, arm: str) -> dict[str, Any] | None:
    """A row of the table; None if no run of it is DONE."""
    folders = {seed: RunDir(Path(given.runs_dir) / EXPERIMENT / run_name(task, arm, seed)) for seed in given.seeds}
    done = {seed: folder for seed, folder in folders.items() if folder.state is State.done}
    if not done:
        return None
    seeds = {seed: record(read_rows(folder.metrics), LOSSES[task]) for seed, folder in done.items()}
    share = Share(sum(r["n"] for r in seeds.values()), sum(r["N"] for r in seeds.values()))
    made = read_object(next(iter(done.values())).provenance)
    return {
        "task": task, "arm": arm, "n": share.n, "N": share.total, "interval95": list(share.interval), "seeds": seeds,
        "overrides": [o for o in overrides(given, task, arm, 0) if not o.startswith(("name=", "seed=", "runs_dir="))],
        "provenance": {key: made[key] for key in ("commit", "machine", "started")},
    }  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    commits, machines = (
        ", ".join(sorted({text(row["provenance"]) for row in rows})) for text in (short_commit, lambda made: made["machine"])
    )
    lines = [
        f"# {TITLE}",
        "",
        f"`python -m experiments.color_embedding`, commit {commits}; {machines}.",
        "",
        "First step with that loss, loss and exact rows at the end: of each seed, in training.",
        "Exact answers: over the views of an evaluation at the end, all seeds together. pass@1: of each seed, views voting.",
        "",
        "| task | embedding | first step with loss | loss | exact in training | exact answers | pass@1 | steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seeds = list(row["seeds"].values())
        firsts = ", ".join(str(r["first_step"] or "none") for r in seeds)
        losses, exact = (", ".join(f"{r[key]:.3f}" for r in seeds) for key in ("loss", "exact"))
        steps, first = " ".join(sorted({str(r["steps"]) for r in seeds})), f"{LOSSES[row['task']]:g}: {firsts}"
        share, solved = Share(row["n"], row["N"]), ", ".join("{:g}/{}".format(*r["pass@1"]) for r in seeds)
        lines.append(f"| {row['task']} | {row['arm']} | {first} | {losses} | {exact} | {share} | {solved} | {steps} |")
    return "\n".join([*lines, ""])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.color_embedding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=at_least_0, default=[0, 1, 2])
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument(
        "--save", nargs="?", const=EXPERIMENT, metavar="NAME", help=f"experiments/results/NAME, else {EXPERIMENT}"
    )
    parser.add_argument("--table", action="store_true", help="no runs, only the table of those that are DONE")
    add_queue_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    given = parse(argv)
    cells = [] if given.table else [(t, arm, seed) for t in given.tasks for seed in given.seeds for arm in given.arms]
    lines = {run_name(*cell): overrides(given, *cell) for cell in cells}
    file = JobsFile(jobs_path(Path(given.runs_dir) / EXPERIMENT, lines), TITLE, CRITERION)
    num_failed = 0
    for ended in run_lines(file, lines, given.cluster, places=given.jobs):
        num_failed += bool(ended.fault)
        print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
    found = [summary(given, task, arm) for task in TASKS for arm in ARMS]
    rows = [row for row in found if row is not None]
    text = markdown(rows)
    print(text)
    if given.save:
        results = Path(__file__).parent / "results"
        write_atomically(results / f"{given.save}.json", json.dumps({"rows": rows, "first_loss": LOSSES}, indent=1) + "\n")
        write_atomically(results / f"{given.save}.md", text)
    return int(num_failed > 0)


if __name__ == "__main__":
    run_main(main)
