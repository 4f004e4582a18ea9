"""What the fast rules of the evaluation save and what they change: the same weights and tasks, scored with each set of rules.

    python -m benchmarks.evaluate --tasks 5 --augmentations 10          # trains a small model first, on real tasks
    python -m benchmarks.evaluate --checkpoint runs/etrm_arc1/full --split evaluation --augmentations 1000 --save

Prints a table and one JSON line; --save writes both to benchmarks/results/evaluate.{md,json}, --save NAME to NAME.{md,json}.
--compile compiles the layers of every path's model; rows that are left over when tasks end are further sizes to compile, which
a short run pays for. published: full canvas, all steps, all votes; fast and fast_first: bucketed canvas, early halting,
adaptive votes (until two places are settled, or one). early, bucketed and adaptive change one rule each; early_first is
fast_first on the full canvas, for a model that was trained on it. first_etrm, for encoders, has the rules of published and
computes what the first ETRM did: every demonstration slot on the whole canvas, empty ones too, again at every step. Its answers
are those of published; if it is among --paths, it is what the others are compared with. Without --checkpoint the quickstart's
ETRM is trained on its twelve real tasks (minutes), in runs/benchmark_evaluate, where a finished one is used again; in that case
it says nothing about unseen tasks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from arclab.config.compose import broken_rules, compose, run_main
from arclab.config.dataset_schema import Regime
from arclab.config.encoder_schema import DemoAttention, TransformerEncoderConfig
from arclab.config.run import DeviceChoice
from arclab.config.schema import CanvasRule, EvalHalting, ExperimentConfig, SplitName, VotesRule, WeightsKind
from arclab.data.sampler import Batch
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.methods.recursive.compiled import compile_model
from arclab.methods.recursive.decoder import Latents
from arclab.methods.recursive.encoders import Demonstrations
from arclab.methods.recursive.encoders.demo_tokens import DemoTokens
from arclab.methods.recursive.evaluation import build_solver
from arclab.methods.recursive.model import Reading, RecursiveModel
from arclab.methods.recursive.run import pretrain
from arclab.methods.recursive.saved import TrainedRun
from arclab.methods.recursive.setting import Setting, as_trained, build_setting, scored_tasks, view_rule
from arclab.results.attempts import Attempts, Budget
from arclab.results.scoring import Share, score
from arclab.runs.folder import provenance, short_commit
from arclab.runs.ranks import Ranks, start_ranks
from benchmarks.arguments import at_least_0, at_least_1

Rules = tuple[CanvasRule, EvalHalting, VotesRule]
_FULL, _BUCKETED = CanvasRule.full, CanvasRule.bucketed
_ALL_STEPS, _EARLY = EvalHalting.all_steps, EvalHalting.early
FIRST_ETRM = "first_etrm"
PATHS: dict[str, Rules] = {
    FIRST_ETRM: (_FULL, _ALL_STEPS, VotesRule.all),
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


@dataclass(slots=True)
class _Unread(Reading):
    """Rows with their demonstrations, which are read at every step."""

    demos: Batch | None = None

    def rows(self, index_R: Tensor) -> _Unread:
        assert self.demos is not None
        return _Unread(self.num_demos, demos=self.demos.map(lambda x: x[index_R]))

    def join(self, other: Reading) -> _Unread:
        assert isinstance(other, _Unread) and self.demos is not None and other.demos is not None
        pairs = ((getattr(self.demos, f.name), getattr(other.demos, f.name)) for f in fields(Batch))
        return _Unread(self.num_demos, demos=Batch(*(torch.cat(pair) for pair in pairs)))


class FirstEtrm:
    """A model as the evaluation sees it, with what the first ETRM computed for the same answers: all max_demos slots are
    encoded on the whole canvas, in every row, at every step."""

    def __init__(self, model: RecursiveModel, max_demos: int) -> None:
        self.model, self.max_demos, self.halting, self.start = model, max_demos, model.halting, model.start
        for module in model.modules():
            if isinstance(module, DemoTokens):
                module.canvases = (module.canvas,)

    def read(self, data: Batch) -> Reading:
        return _Unread(self.model._shape(data)[2], demos=data)

    @torch.no_grad()
    def refine(self, latents: Latents, inputs_BS: Tensor, reading: Reading) -> tuple[Latents, Reading, Tensor, Tensor]:
        assert isinstance(reading, _Unread) and reading.demos is not None and self.model.encoder is not None
        data = reading.demos
        first = data.demo_inputs_BKS[:, :1], data.demo_outputs_BKS[:, :1]
        inputs_BKS, outputs_BKS = (x.repeat(1, self.max_demos, 1) for x in first)
        empty = replace(
            data, demo_inputs_BKS=inputs_BKS, demo_outputs_BKS=outputs_BKS, num_demos_B=self.max_demos - data.num_demos_B
        )
        self.model.encoder.read(Demonstrations.from_batch(empty), self.model.decoder.dtype)
        latents, _, logits_BSV, q_halt_B = self.model.refine(latents, inputs_BS, self.model.read(data))
        return latents, reading, logits_BSV, q_halt_B


def trained_run(canvas: int, steps: int, augmentations: int, seed: int) -> Path:
    """The run folder of a small ETRM on real tasks; trained now unless it is there."""
    name = f"canvas{canvas}_steps{steps}_augmentations{augmentations}_seed{seed}"
    overrides = [
        "experiment=quickstart",
        "experiment_name=benchmark_evaluate",
        f"name={name}",
        f"dataset.canvas={canvas}",
        f"dataset.num_augmentations={augmentations}",
        f"trainer.steps={steps}",
        f"trainer.eval_every={steps}",
        f"seed={seed}",
        "wandb.mode=disabled",
    ]
    config = compose("pretrain_encoder", overrides)
    pretrain(config)
    return config.folder


def load(
    folder: Path, ranks: Ranks, paths: Sequence[str], compiled: bool
) -> tuple[ExperimentConfig, Setting, dict[str, RecursiveModel]]:
    """The run with its averaged weights: path -> model. That of first_etrm, made only where it is asked for, knows no sequences
    of different lengths."""
    trained = TrainedRun.open(folder)
    config, record = trained.config, trained.record()
    setting = build_setting(config, view_rule(record))
    setting, _, _ = as_trained(config, setting, record, trained.checkpoint)

    def build(of: ExperimentConfig) -> RecursiveModel:
        model = replace(trained, config=of).model(WeightsKind.ema, setting.record.num_puzzles).to(ranks.device)
        if compiled:
            compile_model(model)
        return model

    models = dict.fromkeys((path for path in PATHS if path != FIRST_ETRM), build(config))
    if FIRST_ETRM in paths:
        if config.dataset.regime is not Regime.few_shot or config.encoder.kind.startswith("recurrent"):
            raise ValueError(
                f"--paths {FIRST_ETRM} is for encoders without a state of their own, and this run has {config.encoder.kind}; "
                "leave it out."
            )
        dense = deepcopy(config)
        if isinstance(dense.encoder, TransformerEncoderConfig):
            dense.encoder.demo_attention = DemoAttention.dense
        models[FIRST_ETRM] = cast(RecursiveModel, FirstEtrm(build(dense), config.dataset.max_demos))
    return config, setting, models


def measure(
    name: str, config: ExperimentConfig, setting: Setting, models: dict[str, RecursiveModel], ranks: Ranks,
    tasks: list[ArcTask],
) -> Measured:  # fmt: skip
    config.evaluation.canvas, config.evaluation.halting, config.evaluation.votes = PATHS[name]
    solver = build_solver(config, setting, models[name], ranks, config.evaluation.batch_size)
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
        f"Evaluation rules on {result['tasks']} tasks ({result['test_inputs']} test inputs), {result['augmentations']} "
        f"augmentations, {'compiled layers, ' if result['compiled'] else ''}canvas {result['canvas']}, at most "
        f"{result['max_steps']} steps. {result['machine']}, commit {short_commit(result)}.",
        "",
        f"`python -m benchmarks.{result['command'].partition(' --save')[0].replace('evaluate.py', 'evaluate')}` on "
        f"{result['checkpoint']}",
        "",
        "| rules | seconds | times faster | predictions | again on a larger canvas | mean steps | same first grid | pass@1 | "
        "pass@2 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["paths"]:
        lines.append(
            f"| {row['path']} | {row['seconds']} | {row['times_faster']} | {row['rows']} | {row['reruns']} | "
            f"{row['mean_steps']} | {row['same_first']['text']} | {row['pass@1']['text']} | {row['pass@2']['text']} |"
        )
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = (
        Path(arguments.checkpoint)
        if arguments.checkpoint
        else trained_run(arguments.canvas, arguments.train_steps, arguments.train_augmentations, arguments.seed)
    )
    ranks = start_ranks(DeviceChoice(arguments.device))
    config, setting, models = load(folder, ranks, arguments.paths, arguments.compile)
    evaluation = config.evaluation
    evaluation.num_augmentations, evaluation.batch_size = arguments.augmentations, arguments.batch_size
    evaluation.split = SplitName(arguments.split) if arguments.split else evaluation.split
    evaluation.max_tasks = arguments.tasks
    if problems := list(broken_rules(config)):  # a puzzle table has no vectors for other views
        raise ValueError(" ".join(problems))
    tasks = list(scored_tasks(setting.split, config))
    measure("published", config, setting, models, ranks, tasks[:1])  # compiles the renderer
    names = sorted({"published", *arguments.paths}, key=list(PATHS).index)
    measured = [measure(name, config, setting, models, ranks, tasks) for name in names]
    return {
        "tasks": len(tasks),
        "test_inputs": sum(len(t.tests) for t in tasks),
        "augmentations": arguments.augmentations,
        "split": evaluation.split.value,
        "canvas": config.dataset.canvas,
        "max_steps": config.halting.halt_max_steps,
        "batch_size": arguments.batch_size,
        "compiled": arguments.compile,
        "checkpoint": str(folder),
        "device": ranks.device.type,
        "paths": [record(m, measured[0], tasks) for m in measured],
        **provenance(),
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a run folder or a checkpoint; default: train a small model")
    parser.add_argument("--train-steps", type=at_least_1, default=1800)
    parser.add_argument("--train-augmentations", type=at_least_0, default=1)
    parser.add_argument("--canvas", type=at_least_1, default=6, help="of the model that is trained here")
    parser.add_argument("--seed", type=at_least_0, default=0)
    parser.add_argument("--split", choices=[split.value for split in SplitName], help="default: as the run was configured")
    parser.add_argument("--tasks", type=at_least_1, help="default: all of the split")
    parser.add_argument("--augmentations", type=at_least_0, default=100)
    parser.add_argument("--batch-size", type=at_least_1, default=64)
    parser.add_argument("--device", choices=[d.value for d in DeviceChoice], default="auto")
    parser.add_argument("--paths", nargs="*", choices=list(PATHS), default=["fast", "fast_first"])
    parser.add_argument("--compile", action="store_true", help="the layers of all models")
    parser.add_argument(
        "--save", nargs="?", const="evaluate", metavar="NAME", help="of the files in benchmarks/results (evaluate)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse(argv)
    result = run(arguments)
    print(markdown(result))
    print(json.dumps(result))
    if arguments.save:
        results = Path(__file__).parent / "results"
        write_atomically(results / f"{arguments.save}.json", json.dumps(result, indent=1) + "\n")
        write_atomically(results / f"{arguments.save}.md", markdown(result))


if __name__ == "__main__":
    run_main(main)
