"""Does tree search learn from itself? Rounds on toy rules at several seeds, against the start and a shuffled twin.

    python -m experiments.tree_learning                       # three seeds, two rounds; goes on where it was stopped
    python -m experiments.tree_learning --seeds 0 --rounds 1 --set scratch.steps=300

For each seed three runs of self_improve.py experiment=search_quickstart: `plain` (no reward model), `values` (the search of an
evaluation asks the round's reward model) and `drawn` (the same, trained on pairs whose labels are drawn at random). Seeds and
settings are equal otherwise, so that all three have one policy after the first round. They are lines of a jobs file
(experiments/queued.py). The table has two-attempt scores on unseen rules with 95 % intervals and McNemar's tests over the tasks
of all seeds: trained against the start, the twin against the start, with the reward model against without one.

--save NAME writes experiments/results/NAME.{md,json}. It says nothing about ARC.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.entries import ENTRIES
from arclab.files import write_atomically
from arclab.methods.tree_search.learning.evaluate import SCORES, START, read_scores
from arclab.methods.tree_search.learning.policy import MODEL, TWIN
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from arclab.runs.stages import read_counts
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines

ROOT = Path(__file__).resolve().parents[1]
TITLE = "Tree search that learns from itself"
CRITERION = "trained is above the start on unseen rules, the twin is not; a reward model of drawn labels is right by chance."
EXPERIMENT = "tree_learning"
VALUE_STEPS = 80
RUNS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "values": (f"reward_model.steps={VALUE_STEPS}", "reward_model.lr=1e-3"),
    "drawn": (f"reward_model.steps={VALUE_STEPS}", "reward_model.lr=1e-3", "reward_model.shuffle_labels=true"),
}
Solved = Mapping[str, bool]


def lines(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """name -> overrides of self_improve.py."""
    found: dict[str, list[str]] = {}
    for seed in arguments.seeds:
        for run in arguments.runs:
            rounds = arguments.rounds if run == "plain" else 1
            found[f"{run}_s{seed}"] = [
                "experiment=search_quickstart", f"experiment_name={EXPERIMENT}", f"name={run}_s{seed}", f"seed={seed}",
                f"rounds={rounds}", f"runs_dir={arguments.folder}", "criterion=null", *RUNS[run], *arguments.set,
            ]  # fmt: skip
    return found


def scores(arguments: argparse.Namespace) -> dict[tuple[str, int], dict[str, Solved]]:
    """(run, seed) -> {which policy: {task: solved}}, as far as there are any. Of rounds after the first: model 1, ..."""
    found: dict[tuple[str, int], dict[str, Solved]] = {}
    for seed in arguments.seeds:
        for run in arguments.runs:
            for number in range(arguments.rounds):
                path = stage(arguments, run, seed, number, "evaluate") / SCORES
                if path.is_file():
                    each = read_scores(path)
                    own = found.setdefault((run, seed), {})
                    own |= {START: each[START], f"{MODEL} {number}": each[MODEL]}
                    own |= {f"{TWIN} {number}": each[TWIN]} if TWIN in each else {}
    return found


def stage(arguments: argparse.Namespace, run: str, seed: int, number: int, name: str) -> Path:
    return arguments.folder / EXPERIMENT / f"{run}_s{seed}" / f"round_{number}" / name


def table(found: Mapping[tuple[str, int], Mapping[str, Solved]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each run's policies over all seeds, tested against the start of the same seeds; the reward models' runs are
    tested against `plain` after the same round."""
    names = list(dict.fromkeys((run, which) for (run, _), each in found.items() for which in each))
    rows = []
    for run, which in names:
        against = ("plain", which) if run != "plain" and which.startswith(MODEL) else (run, START)
        each = {seed: found[run, seed][which] for seed in seeds if which in found.get((run, seed), {})}
        other = {seed: found.get((against[0], seed), {}).get(against[1], {}) for seed in each}
        outcomes = [
            (solved, other[seed][id_]) for seed, own in each.items() for id_, solved in own.items() if id_ in other[seed]
        ]
        paired = PairedTest.count("tasks", outcomes)
        total = Share(sum(sum(own.values()) for own in each.values()), sum(map(len, each.values())))
        rows.append(
            {
                "run": run, "policy": which, "n": total.n, "N": total.total, "interval95": list(total.interval),
                "seeds": {str(seed): [sum(own.values()), len(own)] for seed, own in each.items()}, "against": " ".join(against),
                "it_alone": paired.only_first, "other_alone": paired.only_second,
                "p_value": None if against == (run, which) else paired.p_value,
            }
        )  # fmt: skip
    return rows


def reward_models(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What the first round's reward models know of pairs of tasks that they have not seen."""
    rows = []
    for run in ("values", "drawn"):
        each = [read_counts(stage(arguments, run, seed, 0, "reward_model")) for seed in arguments.seeds]
        known = [counts for counts in each if counts]
        right = sum(round(counts["accuracy"] * counts["held_out_pairs"]) for counts in known)
        rows.append({"run": run, "right": right, "pairs": round(sum(counts["held_out_pairs"] for counts in known))})
    return rows


def markdown(rows: Sequence[dict[str, Any]], models: Sequence[dict[str, Any]], where: Mapping[str, Any]) -> str:
    lines = [
        f"# {TITLE}", "", f"Command: `{where['command']}`; commit {where['commit']}; {where['machine']}.", "",
        "| run | policy | unseen tasks solved in two attempts | by seed | against | it alone / the other alone | p |",
        "|---" * 7 + "|",
    ]  # fmt: skip
    for row in rows:
        low, high = row["interval95"]
        of_all = f"{row['n']:g}/{row['N']} = {100 * row['n'] / max(row['N'], 1):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        seeds = ", ".join(f"{n}/{total}" for n, total in row["seeds"].values())
        test = ("", "", "") if row["p_value"] is None else (
            row["against"], f"{row['it_alone']} / {row['other_alone']}", f"{row['p_value']:.2g}"
        )  # fmt: skip
        lines.append(f"| {row['run']} | {row['policy']} | {of_all} | {seeds} | {' | '.join(test)} |")
    for model in models:
        if model["pairs"]:
            share = Share(model["right"], model["pairs"])
            lines += ["", f"Reward model of `{model['run']}`, pairs of held-out tasks: {share}."]
    return "\n".join([*lines, ""])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tree_learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--rounds", type=int, default=2, help="of the runs without a reward model (2)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all runs")
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser, cores="--set num_threads=N")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    setup_logging()
    arguments = parse(argv)
    wanted = lines(arguments)
    script = ENTRIES["self_improve_tree_search"].script
    file = JobsFile(jobs_path(arguments.folder / EXPERIMENT, wanted), TITLE, CRITERION, script)
    for ended in run_lines(file, wanted, arguments.cluster, places=arguments.jobs):
        print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
    rows, models, where = table(scores(arguments), arguments.seeds), reward_models(arguments), provenance()
    text = markdown(rows, models, where)
    print(text)
    if arguments.save:
        folder = ROOT / "experiments" / "results"
        record = {
            "rows": rows,
            "reward_models": models,
            "arguments": {k: str(v) for k, v in vars(arguments).items()},
            "provenance": where,
        }
        write_atomically(folder / f"{arguments.save}.json", json.dumps(record, indent=1) + "\n")
        write_atomically(folder / f"{arguments.save}.md", text)


if __name__ == "__main__":
    run_main(main)
