"""What the fast rules of the evaluation save and what they change: the same weights and tasks, scored with each set of rules.

    python -m benchmarks.evaluate --tasks 5 --augmentations 10          # trains a small model first, on real tasks
    python -m benchmarks.evaluate --checkpoint runs/etrm_arc1/full --split evaluation --augmentations 1000 --save

Prints a table and one JSON line; --save writes both to benchmarks/results/evaluate.{md,json}. published: full canvas, all
steps, all votes; fast and fast_first: bucketed canvas, early halting, adaptive votes (until two places are settled, or one). early,
bucketed and adaptive change one rule each; early_first is fast_first on the full canvas, for a model that was trained on it. Without --checkpoint the quickstart's ETRM is trained on its twelve real tasks (minutes), in
runs/benchmark_evaluate, where a finished one is used again; in that case it says nothing about unseen tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arclab import app
from arclab.config.compose import compose, thaw
from arclab.config.schema import CanvasRule, DeviceChoice, EvalHalting, ExperimentConfig, SplitName, VotesRule, WeightsKind
from arclab.data.tasks import ArcTask
from arclab.evaluation.scoring import Share, score
from arclab.models.decoder_init import newest_checkpoint
from arclab.models.recursive import RecursiveModel, build_model
from arclab.ranks import Ranks, start_ranks
from arclab.rundir import RunDir, provenance, run_path, write_atomically
from arclab.solvers.base import Attempts, Budget
from arclab.training.checkpoint import load_weights

Rules = tuple[CanvasRule, EvalHalting, VotesRule]
_FULL, _BUCKETED = CanvasRule.full, CanvasRule.bucketed
_ALL_STEPS, _EARLY = EvalHalting.all_steps, EvalHalting.early
PATHS: dict[str, Rules] = {
    "published": (_FULL, _ALL_STEPS, VotesRule.all),
    "early": (_FULL, _EARLY, VotesRule.all),
    "bucketed": (_BUCKETED, _ALL_STEPS, VotesRule.all),
    "adaptive": (_FULL, _ALL_STEPS, VotesRule.adaptive),
    "adaptive_first": (_FULL, _ALL_STEPS, VotesRule.adaptive_first),
    "early_first": (_FULL, _EARLY, VotesRule.adaptive_first),
    "fast": (_BUCKETED, _EARLY, VotesRule.adaptive),
    "fast_first": (_BUCKETED, _EARLY, VotesRule.adaptive_first),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One set of rules: what it took and what it answered."""

    name: str
    seconds: float
    attempts: Attempts


def trained_run(canvas: int, steps: int, augmentations: int, seed: int) -> Path:
    """The run folder of a small ETRM on real tasks; trained now unless it is there."""
    name = f"canvas{canvas}_steps{steps}_augmentations{augmentations}_seed{seed}"
    overrides = ["experiment=quickstart", "experiment_name=benchmark_evaluate", f"name={name}", f"dataset.canvas={canvas}",
                 f"dataset.num_augmentations={augmentations}", f"trainer.steps={steps}", f"trainer.eval_every={steps}", f"seed={seed}",
                 "wandb.mode=disabled"]  # fmt: skip
    config = compose("pretrain_encoder", overrides)
    app.pretrain(config)
    return run_path(config)


def load(folder: Path, ranks: Ranks) -> tuple[ExperimentConfig, app.Setting, RecursiveModel]:
    checkpoint = newest_checkpoint(folder)
    config = thaw(RunDir(checkpoint.parent.parent).config)
    setting = app.build_setting(config)
    model = build_model(config, setting.data.space.num_puzzles)
    load_weights(model, checkpoint, WeightsKind.ema)
    return config, setting, model.to(ranks.device)


def measure(
    name: str, config: ExperimentConfig, setting: app.Setting, model: RecursiveModel, ranks: Ranks, tasks: list[ArcTask]
) -> Measured:
    config.evaluation.canvas, config.evaluation.halting, config.evaluation.votes = PATHS[name]
    solver = app.build_solver(config, setting, model, ranks, config.evaluation.batch_size)
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    attempts = solver.solve(tasks, Budget(config.evaluation.num_augmentations))
    return Measured(name, time.perf_counter() - start, attempts)


def same_first(a: Attempts, b: Attempts) -> Share:
    """Test inputs whose first candidate is the same."""
    pairs = [(a.candidates[key][0].grid, b.candidates[key][0].grid) for key in a.candidates]
    same = sum(x is y is None or (x is not None and y is not None and np.array_equal(x, y)) for x, y in pairs)
    return Share(same, len(pairs))


def record(measured: Measured, baseline: Measured, tasks: list[ArcTask]) -> dict[str, Any]:
    statistics, shares = measured.attempts.statistics, score(tasks, measured.attempts)
    counted = statistics["all.count"]
    names = {"pass@1": shares["ARC/pass@1"], "pass@2": shares["ARC/pass@2"],
             "same_first": same_first(baseline.attempts, measured.attempts)}  # fmt: skip
    return {
        "path": measured.name, "rules": [rule.name for rule in PATHS[measured.name]], "seconds": round(measured.seconds, 2),
        "times_faster": round(baseline.seconds / measured.seconds, 2), "rows": int(counted),
        "reruns": round(counted * statistics["eval/rerun_share"]), "rows_share": round(statistics["eval/rows_share"], 4),
        "mean_steps": round(statistics["all.steps"], 3),
        **{name: {"n": s.n, "N": s.total, "interval95": list(s.interval), "text": str(s)} for name, s in names.items()},
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"Evaluation rules on {result['tasks']} tasks ({result['test_inputs']} test inputs), {result['augmentations']} augmentations, "
        f"canvas {result['canvas']}, at most {result['max_steps']} steps. {result['machine']}, commit {result['commit'][:10]}.",
        "",
        f"`python -m benchmarks.{result['command'].removesuffix(' --save').replace('evaluate.py', 'evaluate')}` on {result['checkpoint']}",
        "",
        "| rules | seconds | times faster | predictions | again on a larger canvas | mean steps | same first grid | pass@1 | pass@2 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["paths"]:
        lines.append(
            f"| {row['path']} | {row['seconds']} | {row['times_faster']} | {row['rows']} | {row['reruns']} | {row['mean_steps']} | "
            f"{row['same_first']['text']} | {row['pass@1']['text']} | {row['pass@2']['text']} |"
        )
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = (
        Path(arguments.checkpoint)
        if arguments.checkpoint
        else trained_run(arguments.canvas, arguments.train_steps, arguments.train_augmentations, arguments.seed)
    )
    ranks = start_ranks(DeviceChoice(arguments.device))
    config, setting, model = load(folder, ranks)
    evaluation = config.evaluation
    evaluation.num_augmentations, evaluation.batch_size = arguments.augmentations, arguments.batch_size
    evaluation.split = SplitName(arguments.split) if arguments.split else evaluation.split
    evaluation.max_tasks = arguments.tasks
    tasks = list(app.scored_tasks(setting.split, config))
    measure("published", config, setting, model, ranks, tasks[:1])  # compiles the renderer
    measured = [measure(name, config, setting, model, ranks, tasks) for name in ("published", *arguments.paths)]
    return {
        "tasks": len(tasks), "test_inputs": sum(len(t.tests) for t in tasks), "augmentations": arguments.augmentations,
        "split": evaluation.split.value, "canvas": config.dataset.canvas, "max_steps": config.halting.halt_max_steps,
        "batch_size": arguments.batch_size, "checkpoint": str(folder), "device": ranks.device.type,
        "paths": [record(m, measured[0], tasks) for m in measured], **provenance(),
    }  # fmt: skip


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a run folder or a checkpoint; default: train a small model")
    parser.add_argument("--train-steps", type=int, default=1800)
    parser.add_argument("--train-augmentations", type=int, default=1)
    parser.add_argument("--canvas", type=int, default=6, help="of the model that is trained here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=[split.value for split in SplitName], help="default: as the run was configured")
    parser.add_argument("--tasks", type=int, help="default: all of the split")
    parser.add_argument("--augmentations", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", choices=[d.value for d in DeviceChoice], default="auto")
    parser.add_argument("--paths", nargs="*", choices=[p for p in PATHS if p != "published"], default=["fast", "fast_first"])
    parser.add_argument("--save", action="store_true")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse(sys.argv[1:])
    result = run(arguments)
    print(markdown(result))
    print(json.dumps(result))
    if arguments.save:
        results = Path(__file__).parent / "results"
        write_atomically(results / "evaluate.json", json.dumps(result, indent=1) + "\n")
        write_atomically(results / "evaluate.md", markdown(result))


if __name__ == "__main__":
    main()
