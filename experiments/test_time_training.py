"""Does training on a task's demonstrations help to answer it, and which answers are best? Controls on toy rules never seen.

    python -m experiments.test_time_training --save test_time_training      # three seeds; goes on where it was stopped
    python -m experiments.test_time_training --seeds 0 --steps 500 --test-tasks 10        # a quick look

For each seed a tiny model is made and trained on the grids of toy tasks (arclab.methods.seal.transduction), and then answers
tasks with other rules: without training on them (none), after training an adapter on each (lora) or all weights (full), and
after training an adapter on the demonstrations of another task (other). Answers are the likeliest tokens (greedy), draws
(sample) or all that are likely enough (dfs); of each the same candidates are ranked by votes and by the product of their
probabilities under all views. Evaluations are lines of a jobs file (experiments/queued.py). The table has two-attempt scores
with 95 % intervals, and McNemar's tests over the tasks of all seeds: against none in the same way of answering, and of product
against votes. It says nothing about ARC.

--save NAME writes experiments/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arclab.config.compose import run_main
from arclab.config.llm_schema import GridFormat
from arclab.config.seal_schema import GridTextConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.entries import ENTRIES
from arclab.methods.seal.solver import TASK_ITEMS, TASKS, TaskRecord, parse_record
from arclab.methods.seal.transduction import TransductionSizes, train_transduction
from arclab.results.attempts import Candidate
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share, rank_of_truth
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from arclab.runs.worklist import read_items
from benchmarks.arguments import at_least_0, at_least_1
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines
from experiments.saved import heading, save

TITLE = "Test-time training of a tiny model on toy rules that it has not seen"
CRITERION = "its own demonstrations lift a model over none, another task's do not."
TEXT = GridTextConfig(grid_format=GridFormat.digits, instructions=False)
DECODES, RANKINGS = ("greedy", "sample", "dfs"), ("votes", "product")
ADAPTATIONS: Mapping[str, tuple[str, ...]] = {
    "none": ("solver.adaptation.kind=none",),
    "lora": ("solver.adaptation.kind=lora", "solver.adaptation.lr=2e-3"),
    "other": ("solver.adaptation.kind=lora", "solver.adaptation.lr=2e-3", "solver.demonstrations=other_task"),
    "full": ("solver.adaptation.kind=full", "solver.adaptation.lr=1e-3"),
}
# Toy tasks are not closed under larger grids: other orders of the demonstrations alone.
BASE = (
    "solver=test_time_training", "lm=tiny", "lm.device=cpu", "dataset=toy", "dataset.validation_sources=[]",
    "solver.text.grid_format=digits", "solver.text.instructions=false", "solver.max_new_tokens=20", "solver.loss=last_output",
    "solver.pseudo_tasks.basic=false", "solver.pseudo_tasks.size=false", "solver.pseudo_tasks.chain=false",
    "solver.pseudo_tasks.repeat=false", "solver.pseudo_tasks.permutations=6", "solver.pseudo_tasks.permute_colors=false",
    "solver.adaptation.epochs=15", "solver.adaptation.batch_size=16", "solver.adaptation.warmup_steps=2",
    "solver.views.count=8", "solver.views.colors=false", "solver.threshold=0.03", "solver.rescore=product",
)  # fmt: skip
Solved = dict[tuple[int, str], bool]  # of (seed, task)
Cell = tuple[str, str, str]  # adaptation, decode, ranking


def source(arguments: argparse.Namespace, split: str, tasks: int) -> str:
    return f"toy:color_map?tasks={tasks}&side=3&colors=3&palette=6&demos=3&split={split}"


def model_of(arguments: argparse.Namespace, seed: int) -> Path:
    """The trained model of a seed, made if it is not there; or the one that is given."""
    if arguments.model is not None:
        return arguments.model
    tasks = load_source(source(arguments, "train", arguments.tasks))
    sizes = TransductionSizes(num_layers=2, steps=arguments.steps, batch_size=16)
    return train_transduction(arguments.folder / f"model_s{seed}_{arguments.steps}", tasks, TEXT, seed, sizes)


def lines(arguments: argparse.Namespace, seed: int, model: Path) -> dict[str, list[str]]:
    """name -> overrides of evaluate.py."""
    return {
        f"{adaptation}_{decode}_s{seed}": [
            *BASE, *ADAPTATIONS[adaptation], f"solver.decode={decode}", f"lm.name={model}", f"seed={seed}",
            f'dataset.train_sources=["{source(arguments, "train", 10)}"]',
            f'dataset.eval_sources=["{source(arguments, "test", arguments.test_tasks)}"]',
            f"output_dir={folder_of(arguments, adaptation, decode, seed)}", f"num_threads={arguments.threads}",
        ]
        for adaptation in arguments.adaptations for decode in arguments.decodes
    }  # fmt: skip


def folder_of(arguments: argparse.Namespace, adaptation: str, decode: str, seed: int) -> Path:
    return arguments.folder / f"{adaptation}_{decode}_s{seed}"


def ranked(candidates: Sequence[Candidate], ranking: str) -> list[Candidate]:
    """The same candidates in another order. They are kept as the product ranks them."""
    if ranking == "product":
        return list(candidates)
    return sorted(candidates, key=lambda each: (-each.votes, -each.votes * each.confidence))


def is_solved(task: ArcTask, record: TaskRecord, ranking: str) -> bool:
    """Every test input within two attempts."""
    if not record.tests:
        return False
    return all(
        test.output is not None and rank_of_truth(ranked(candidates, ranking)[:2], test.output) is not None
        for test, candidates in zip(task.tests, record.tests, strict=True)
    )


def scores(arguments: argparse.Namespace) -> dict[Cell, Solved]:
    """What there is of every cell."""
    tasks = {task.id: task for task in load_source(source(arguments, "test", arguments.test_tasks))}
    found: dict[Cell, Solved] = {}
    for seed in arguments.seeds:
        for adaptation in arguments.adaptations:
            for decode in arguments.decodes:
                path = folder_of(arguments, adaptation, decode, seed) / TASKS
                if not path.is_file():
                    continue
                _, records = read_items(path, parse_record, TASK_ITEMS)
                for ranking in RANKINGS:
                    own = found.setdefault((adaptation, decode, ranking), {})
                    own |= {
                        (seed, id_): is_solved(tasks[id_], record, ranking) for id_, record in records.items() if id_ in tasks
                    }
    return found


def table(found: Mapping[Cell, Solved]) -> list[dict[str, Any]]:
    """A row for each cell; tested against none with the same answers, product also against votes."""
    rows = []
    for (adaptation, decode, ranking), own in found.items():
        share = Share(float(sum(own.values())), len(own))
        row = {
            "adaptation": adaptation, "decode": decode, "ranking": ranking, "n": share.n, "N": share.total,
            "interval95": list(share.interval), "seeds": _by_seed(own),
        }  # fmt: skip
        against = {"none": ("none", decode, ranking), "votes": (adaptation, decode, "votes")}
        for name, other in against.items():
            if other in found and other != (adaptation, decode, ranking):
                row[f"against_{name}"] = _paired(own, found[other])
        rows.append(row)
    return rows


def _by_seed(own: Solved) -> dict[str, list[int]]:
    seeds = sorted({seed for seed, _ in own})
    return {str(s): [sum(v for (seed, _), v in own.items() if seed == s), sum(seed == s for seed, _ in own)] for s in seeds}


def _paired(own: Solved, other: Solved) -> dict[str, float]:
    test = PairedTest.count("tasks", [(own[key], other[key]) for key in own if key in other])
    return {"alone": test.only_first, "other_alone": test.only_second, "p": test.p_value}


def markdown(rows: Sequence[dict[str, Any]], where: Mapping[str, Any]) -> str:
    text = [
        *heading(TITLE, where),
        "| trained | answers | ranked by | unseen tasks solved in two attempts | by seed | against none: it alone / none "
        "alone | against votes: it alone / votes alone |", "|---" * 7 + "|",
    ]  # fmt: skip
    for row in rows:
        share = Share(row["n"], row["N"])
        seeds = ", ".join(f"{n}/{total}" for n, total in row["seeds"].values())
        tests = [
            f"{t['alone']} / {t['other_alone']}, p = {t['p']:.2g}" if (t := row.get(f"against_{name}")) else ""
            for name in ("none", "votes")
        ]
        text.append(
            f"| {row['adaptation']} | {row['decode']} | {row['ranking']} | {share} | {seeds} | {tests[0]} | {tests[1]} |"
        )
    return "\n".join([*text, ""])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.test_time_training", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=at_least_0, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="adapt this model for all seeds, instead of making one")
    parser.add_argument(
        "--steps", type=at_least_1, default=8000, help="of training the model (8000); 3000 are too few for some seeds"
    )
    parser.add_argument("--tasks", type=at_least_1, default=20000, help="that it is trained on (20000)")
    parser.add_argument("--test-tasks", type=at_least_1, default=50, help="that are answered, for each seed (50)")
    parser.add_argument("--adaptations", nargs="+", choices=list(ADAPTATIONS), default=list(ADAPTATIONS))
    parser.add_argument("--decodes", nargs="+", choices=DECODES, default=list(DECODES))
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/test_time_training_control"))
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser, cores="--threads N")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    setup_logging()
    torch.set_num_threads(arguments.threads)
    num_failed = 0
    for seed in arguments.seeds:
        wanted = lines(arguments, seed, model_of(arguments, seed))
        script = ENTRIES["evaluate_test_time_training"].script
        file = JobsFile(jobs_path(arguments.folder, wanted), TITLE, CRITERION, script)
        for ended in run_lines(file, wanted, arguments.cluster, places=arguments.jobs):
            print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
            num_failed += bool(ended.fault)
    rows, where = table(scores(arguments)), provenance()
    text = markdown(rows, where)
    print(text)
    if arguments.save:
        record = {"rows": rows, "arguments": {k: str(v) for k, v in vars(arguments).items()}, "provenance": where}
        save(arguments.save, record, text)
    return int(num_failed > 0)


if __name__ == "__main__":
    run_main(main)
