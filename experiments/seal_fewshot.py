"""Does a model learn to say how it is to be trained on a task? The table with all baselines, at several seeds.

    python -m experiments.seal_fewshot --jobs 2 --set num_threads=1 --save seal_fewshot     # goes on where it was stopped
    python -m experiments.seal_fewshot --seeds 0 --set scratch.steps=100 evaluate.max_tasks=4      # a quick look

Runs of self_improve.py experiment=seal_fewshot_quickstart, one for each seed: a tiny model proposes self-edits for toy tasks at
random, learns those that solved their task, and proposes for tasks of unseen rules, where each proposal is tried. Beside it the
model before learning, its twin that learned from shuffled rewards, and what is to be had without a model: the hand-made
self-edit, any of the grid, the one that is best on the training tasks, and the best one of each task. They are lines of jobs
files (experiments/queued.py). Shares are over all proposals, their 95 % intervals by bootstrap over tasks (a task counts once
for each seed), tests are sign tests over tasks against the trained model. It says nothing about ARC.

--save NAME writes experiments/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.entries import ENTRIES
from arclab.methods.seal.fewshot.baselines import rows_of, signs
from arclab.methods.seal.fewshot.evaluate import NAMES, SCORES, read_scores
from arclab.methods.seal.fewshot.models import MODEL
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_0
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines
from experiments.saved import heading, save

TITLE = "Self-edits of a tiny model on toy rules that it has not seen, and their baselines"
CRITERION = (
    "the trained model's proposals succeed more often than before, its twin's do not; against the constant best: or not."
)
EXPERIMENT = "seal_fewshot_control"
Found = dict[str, dict[str, list[float]]]  # row -> {seed/task: successes}


def lines(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """name -> overrides of self_improve.py."""
    return {
        f"s{seed}": [
            "experiment=seal_fewshot_quickstart", f"experiment_name={EXPERIMENT}", f"name=s{seed}", f"seed={seed}",
            f"runs_dir={arguments.folder}", *arguments.set,
        ]
        for seed in arguments.seeds
    }  # fmt: skip


def scores(arguments: argparse.Namespace) -> dict[int, Found]:
    """Of each seed that is done."""
    found = {}
    for seed in arguments.seeds:
        path = arguments.folder / EXPERIMENT / f"s{seed}" / "round_0" / "evaluate" / SCORES
        if path.is_file():
            rows = read_scores(path)
            found[seed] = {name: {f"{seed}/{id_}": each for id_, each in own.items()} for name, own in rows.items()}
    return found


def table(by_seed: Mapping[int, Found]) -> list[dict[str, Any]]:
    """A row for each kind of self-edit, over all seeds, tested against the trained model."""
    together: Found = {}
    for found in by_seed.values():
        for name, own in found.items():
            together.setdefault(name, {}).update(own)
    rows = []
    for row in rows_of(together, seed=0):
        against = signs(together[MODEL], together[row.name])
        each = {str(seed): next(iter(rows_of({row.name: found[row.name]}, seed))) for seed, found in by_seed.items()}
        rows.append(
            {
                **asdict(row), "seeds": {seed: [own.num_successes, own.num_trials] for seed, own in each.items()},
                "trained_more": against.more, "trained_fewer": against.fewer,
                "p_value": None if row.name == MODEL else against.p_value,
            }
        )  # fmt: skip
    return rows


def tested(row: Mapping[str, Any]) -> str:
    if row["p_value"] is None:
        return ""
    return f"{row['trained_more']} / {row['trained_fewer']}, p = {row['p_value']:.2g}"


def markdown(rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> str:
    text = [
        *heading(TITLE, where),
        "| self-edits of | successful | 95 % over tasks | by seed | tasks with a success | tasks in which the trained model "
        "succeeds more / less often |", "|---" * 6 + "|",
    ]  # fmt: skip
    for row in rows:
        share = f"{row['num_successes']:g}/{row['num_trials']} = {100 * row['num_successes'] / row['num_trials']:.1f} %"
        interval = "" if row["interval"] is None else f"{100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f}"
        seeds = ", ".join(f"{n:g}/{total}" for n, total in row["seeds"].values())
        tasks = f"{row['num_any']}/{row['num_tasks']}"
        text.append(f"| {NAMES[row['name']]} | {share} | {interval} | {seeds} | {tasks} | {tested(row)} |")
    return "\n".join([*text, ""])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.seal_fewshot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=at_least_0, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all runs")
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser, cores="--set num_threads=N")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """1 if a run has failed."""
    setup_logging()
    arguments = parse(argv)
    wanted, num_failed = lines(arguments), 0
    file = JobsFile(
        jobs_path(arguments.folder / EXPERIMENT, wanted), TITLE, CRITERION, ENTRIES["self_improve_seal_fewshot"].script
    )
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
