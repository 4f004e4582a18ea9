"""Does the whole path work: a tiny language model learns to write programs, and solves toy tasks with rules that it never saw?

    python -m experiments.toy_programs                        # minutes a twin on two cores; goes on where it was stopped
    python -m experiments.toy_programs --steps 300 --families color_map --twins trained --folder models/quick

Builds a tiny model, trains it in this process on the solutions of toy tasks (prompt: the demonstrations, reply: the program),
and scores it on tasks of the test split: other rules, other grids. The evaluations are lines of a jobs file in --folder
(evaluate.py solver=program_sampling), and --cluster says where they go (experiments/queued.py). Beside it two controls:
`shuffled` was trained on the same prompts and the same programs in random order, and knows what programs look like but nothing
about tasks; `untrained` is the model before training. A plumbing check with a positive control, not a result about ARC.

--save writes experiments/results/toy_programs.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arclab.config.compose import run_main
from arclab.config.llm_schema import Dtype, GridFormat, HfModelConfig, LmAttention, PromptConfig
from arclab.config.run import DeviceChoice
from arclab.data.sources import load_source
from arclab.entries import ENTRIES
from arclab.files import read_object, write_atomically
from arclab.lm.hf import load_hf
from arclab.lm.tiny import build_tiny
from arclab.lm.training.finetune import FinetuneSettings, finetune
from arclab.programs.prompts import render_prompt
from arclab.programs.toy import solution
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_0, at_least_1
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines

ROOT = Path(__file__).resolve().parents[1]
TITLE = "A tiny language model that writes programs"
CRITERION = "trained solves tasks with unseen rules, shuffled and untrained do not."
TWINS = ("trained", "shuffled", "untrained")
PROMPT = PromptConfig(grid_format=GridFormat.digits, instructions=False, show_tests=False, show_shapes=False, entry="solve")
SCORES = ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
STATISTICS = (
    "reward/code",
    "reward/solved",
    "programs/pass@1",
    "programs/tasks_with_right",
    "timing/replies_per_s",
)


def source(arguments: argparse.Namespace, families: str, split: str, tasks: int) -> str:
    sizes = f"side={arguments.side}&colors={arguments.colors}&palette={arguments.palette}&demos=3"
    return f"toy:{families}?tasks={tasks}&{sizes}&split={split}"


def training_rows(arguments: argparse.Namespace, twin: str) -> list[Any]:
    """Prompts with programs; `shuffled`: the same programs in random order."""
    tasks = load_source(source(arguments, "+".join(arguments.families), "train", arguments.tasks))
    prompts, programs = [render_prompt(task, PROMPT) for task in tasks], [solution(task) for task in tasks]
    if twin == "shuffled":
        random.Random(0).shuffle(programs)
    return list(zip(prompts, programs, strict=True))


def model_config(folder: Path) -> HfModelConfig:
    return HfModelConfig(
        kind="hf",
        name=str(folder),
        max_context=None,
        thinking=None,
        adapter=None,
        dtype=Dtype.float32,
        attention=LmAttention.sdpa,
        device=DeviceChoice.cpu,
        batch_size=64,
    )


def train_twin(arguments: argparse.Namespace, twin: str) -> tuple[Path, float]:
    """The model folder of a twin, made if it is not there, and the seconds that took now."""
    begun, base, folder = time.monotonic(), arguments.folder / "untrained", arguments.folder / twin
    rows = training_rows(arguments, twin)
    if not (base / "config.json").is_file():
        shutil.rmtree(base, ignore_errors=True)
        texts = [prompt[0].content + "\n" + program for prompt, program in rows[:2000]]
        build_tiny(base, texts=texts, seed=arguments.seed, num_layers=3, width=64, num_heads=4, context=512, vocab_size=320)
    if twin != "untrained":
        settings = FinetuneSettings(
            steps=arguments.steps,
            batch_size=32,
            lr=2e-3,
            warmup_steps=50,
            weight_decay=0.01,
            save_every=500,
            log_every=100,
            seed=arguments.seed,
        )
        finetune(load_hf(model_config(base)), folder, rows, settings)
    return folder, time.monotonic() - begun


def evaluation(arguments: argparse.Namespace, folder: Path, family: str) -> list[str]:
    """The overrides of evaluate.py that score a model folder on the unseen tasks of a family."""
    train, test = (
        source(arguments, family, split, tasks) for split, tasks in (("train", arguments.tasks), ("test", arguments.test_tasks))
    )
    return [
        "solver=program_sampling",
        "lm=tiny",
        f"lm.name={folder}",
        "dataset=toy",
        f'dataset.train_sources=["{train}"]',
        f'dataset.eval_sources=["{test}"]',
        "dataset.validation_sources=[]",
        f"runs_dir={arguments.folder}",
        f"output_dir={folder / f'evaluation_{family}'}",
        f"solver.num_samples={arguments.samples}",
        "solver.sampling.temperature=1.0",
        "solver.sampling.top_p=1.0",
        "solver.sampling.max_new_tokens=100",
        "solver.prompt.grid_format=digits",
        "solver.prompt.instructions=false",
        "solver.prompt.show_tests=false",
        "solver.prompt.show_shapes=false",
        f"seed={arguments.seed}",
        f"num_threads={arguments.threads}",
    ]


def evaluate_twins(arguments: argparse.Namespace, folders: Mapping[str, Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """(twin, family) -> its scores, for every evaluation that ended well. The others are named."""
    pairs = {f"{twin}/{family}": (twin, family) for twin in folders for family in arguments.families}
    lines = {name: evaluation(arguments, folders[twin], family) for name, (twin, family) in pairs.items()}
    file = JobsFile(jobs_path(arguments.folder, lines), TITLE, CRITERION, ENTRIES["evaluate_programs"].script)
    scored: dict[tuple[str, str], dict[str, Any]] = {}
    for ended in run_lines(file, lines, arguments.cluster, places=arguments.jobs):
        if ended.folder is None or ended.fault:
            print(f"{ended.name} FAILED: {ended.fault}", flush=True)
        else:
            scored[pairs[ended.name]] = scores_of(ended.folder)
    return {pair: scored[pair] for pair in pairs.values() if pair in scored}


def scores_of(evaluated: Path) -> dict[str, Any]:
    record = read_object(evaluated / "metrics.json", {"scores": dict, "statistics": dict, "isolation": str})
    scores = {name: record["scores"][name] for name in SCORES}
    return {"scores": scores, **{name: record["statistics"].get(name) for name in STATISTICS}, "isolation": record["isolation"]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | unseen tasks | pass@1 (voted) | pass@2 (voted) | 95 % of pass@2 | one program right | replies that are "
        f"programs | right on demonstrations |\n|{'---|' * 8}"
    ]
    for row in rows:
        one, two = row["scores"]["ARC/pass@1"], row["scores"]["ARC/pass@2"]
        low, high = two["interval95"]
        lines.append(
            f"| {row['twin']} | {row['family']} | {one['n']:g}/{one['N']} | {two['n']:g}/{two['N']} | {low:.3f} to {high:.3f} "
            f"| {row['programs/pass@1']:.3f} | {row['reward/code']:.3f} | {row['reward/solved']:.3f} |"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=at_least_1, default=4000)
    parser.add_argument("--families", nargs="+", default=["color_map", "dihedral", "dihedral_color"])
    parser.add_argument("--twins", nargs="+", choices=TWINS, default=list(TWINS))
    for name, default in (
        ("side", 3),
        ("colors", 3),
        ("palette", 6),
        ("tasks", 20000),
        ("test-tasks", 100),
        ("samples", 8),
        ("seed", 0),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=at_least_0 if name == "seed" else at_least_1, default=default)
    add_queue_arguments(parser, cores="--threads N")
    parser.add_argument("--folder", type=Path, default=ROOT / "models/toy_programs")
    parser.add_argument("--save", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    setup_logging()
    torch.set_num_threads(arguments.threads)
    trained = {twin: train_twin(arguments, twin) for twin in arguments.twins}
    scored = evaluate_twins(arguments, {twin: folder for twin, (folder, _) in trained.items()})
    rows = [
        {"twin": twin, "family": family, "train_s": round(trained[twin][1]), **scores}
        for (twin, family), scores in scored.items()
    ]
    print(table(rows), flush=True)
    if arguments.save and rows:
        save(arguments, rows)
    return int(len(rows) < len(arguments.twins) * len(arguments.families))


def save(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    made = provenance()
    settings = {key: value for key, value in vars(arguments).items() if key not in ("folder", "cluster", "jobs")}
    trained_s = {row["twin"]: row["train_s"] for row in rows}
    head = (
        f"# {TITLE}\n\n`{made['command']}`, commit {made['commit']}, {made['machine']}, "
        f"Python {made['python']}, torch {made['torch']}, seed {arguments.seed}.\n{arguments.steps} steps of 32 tasks, "
        f"{arguments.samples} programs for each test task at temperature 1, isolation {rows[0]['isolation']}. Seconds of "
        f"training in this call: {', '.join(f'{twin} {seconds}' for twin, seconds in trained_s.items())}.\n\n"
    )
    results = ROOT / "experiments/results"
    write_atomically(results / "toy_programs.md", head + table(rows) + "\n")
    write_atomically(
        results / "toy_programs.json", json.dumps({"settings": settings, "rows": rows, "provenance": made}, indent=1) + "\n"
    )


if __name__ == "__main__":
    run_main(main)
