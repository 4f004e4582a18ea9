"""Does tree search learn from itself? Rounds on toy rules at several seeds, against the start and a shuffled twin.

    python -m experiments.tree_learning                       # three seeds, two rounds; goes on where it was stopped
    python -m experiments.tree_learning --seeds 0 --rounds 1 --set scratch.steps=300

For each seed a run of self_improve.py experiment=search_quickstart with a reward model, `learned` (rounds with all baselines).
Then `drawn`: the same first round, copied, with a reward model that is trained on pairs whose labels are drawn at random. They
are lines of two jobs files (experiments/queued.py).

Scored on unseen rules, all with the same number of finished programs a task: the start, the twin, and the trained policy by
the search alone, by plain sampling, and by the search with its reward model. The table has two-attempt scores with 95 %
intervals, and McNemar's tests over the tasks of all seeds: what is learned (the search alone against the start), what the twin
learned, and what the reward model adds to the search and to sampling.

--save NAME writes experiments/results/NAME.{md,json}. It says nothing about ARC.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.entries import ENTRIES
from arclab.methods.tree_search.learning.evaluate import (
    SAMPLING,
    SCORES,
    SEARCH,
    START,
    START_SAMPLING,
    START_VALUED,
    read_scores,
)
from arclab.methods.tree_search.learning.policy import MODEL, TWIN
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from arclab.runs.stages import MANIFEST, read_counts
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines
from experiments.saved import heading, save

TITLE = "Tree search that learns from itself"
CRITERION = "trained is above the start on unseen rules, the twin is not; a reward model of drawn labels is right by chance."
WITH_VALUES = "search with reward model"
EXPERIMENT, ENTRY = "tree_learning", "self_improve_tree_search"
VALUES = (
    "reward_model.steps=300", "reward_model.lr=2e-3", "reward_model.batch_size=32", "reward_model.warmup_steps=20",
)  # fmt: skip
LEARNED, DRAWN = "learned", "drawn"
RUNS = (LEARNED, DRAWN)
_COPIED, _MADE = ("start", "collect", "curate", "sft"), ("reward_model", "evaluate")  # stages of `drawn`
Solved = Mapping[str, bool]
Which = tuple[str, str]  # run, what was scored


def lines(arguments: argparse.Namespace, run: str) -> dict[str, list[str]]:
    """name -> overrides of self_improve.py."""
    found: dict[str, list[str]] = {}
    for seed in arguments.seeds:
        common = [
            "experiment=search_quickstart", f"experiment_name={EXPERIMENT}", f"name={run}_s{seed}", f"seed={seed}",
            f"runs_dir={arguments.folder}", "criterion=null", *VALUES, "evaluate.baselines=true", *arguments.set,
        ]  # fmt: skip
        if run == LEARNED:
            found[f"{run}_s{seed}"] = [*common, f"rounds={arguments.rounds}"]
        else:
            for made in _MADE:
                own = ["reward_model.shuffle_labels=true", "sft.twin=false", f"stage={made}"]
                found[f"{run}_s{seed}-0-{made}"] = [*common, *own]
    return found


def copy_first_rounds(arguments: argparse.Namespace) -> list[int]:
    """What `drawn` has in common with `learned`; the seeds whose first round is there."""
    done = [seed for seed in arguments.seeds if (stage(arguments, LEARNED, seed, 0, "sft") / MANIFEST).is_file()]
    for seed in done:
        for name in _COPIED:
            target = stage(arguments, DRAWN, seed, 0, name)
            if not (target / MANIFEST).is_file():
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(stage(arguments, LEARNED, seed, 0, name), target)
    return done


def scores(arguments: argparse.Namespace) -> dict[tuple[str, int], dict[str, Solved]]:
    """(run, seed) -> {what: {task: solved}}, as far as there are any. All but the start have the number of their round."""
    found: dict[tuple[str, int], dict[str, Solved]] = {}
    for seed in arguments.seeds:
        for run in arguments.runs:
            for number in range(arguments.rounds):
                path = stage(arguments, run, seed, number, "evaluate") / SCORES
                if path.is_file():
                    each = read_scores(path)
                    own = found.setdefault((run, seed), {})
                    own |= {START: each[START], f"{WITH_VALUES} {number}": each[MODEL]}
                    own |= {name: each[name] for name in (START_SAMPLING, START_VALUED) if name in each}
                    own |= {f"{name} {number}": each[name] for name in (TWIN, SEARCH, SAMPLING) if name in each}
    return found


def stage(arguments: argparse.Namespace, run: str, seed: int, number: int, name: str) -> Path:
    return arguments.folder / EXPERIMENT / f"{run}_s{seed}" / f"round_{number}" / name


def table(found: Mapping[tuple[str, int], Mapping[str, Solved]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for all that was scored, over all seeds."""
    rows = []
    for run, what in dict.fromkeys((run, what) for (run, _), each in found.items() for what in each):
        each = {seed: found[run, seed][what] for seed in seeds if what in found.get((run, seed), {})}
        total = Share(sum(sum(own.values()) for own in each.values()), sum(map(len, each.values())))
        rows.append(
            {
                "run": run, "what": what, "n": total.n, "N": total.total, "interval95": list(total.interval),
                "seeds": {str(seed): [sum(own.values()), len(own)] for seed, own in each.items()},
            }
        )  # fmt: skip
    return rows


def comparisons(num_rounds: int) -> list[tuple[str, Which, Which]]:
    """What is asked, what is compared, and with what."""
    found: list[tuple[str, Which, Which]] = []
    for number in range(num_rounds):
        alone, valued = (LEARNED, f"{SEARCH} {number}"), (LEARNED, f"{WITH_VALUES} {number}")
        found += [
            ("does it learn", alone, (LEARNED, START)),
            ("does the twin", (LEARNED, f"{TWIN} {number}"), (LEARNED, START)),
            ("does the reward model add to the search", valued, alone),
            ("does it, and the search, add to sampling", valued, (LEARNED, f"{SAMPLING} {number}")),
        ]
    valued = (LEARNED, START_VALUED)
    found.append(("does the reward model add to the search of the start", valued, (LEARNED, START)))
    found.append(("does it, and the search, add to sampling from the start", valued, (LEARNED, START_SAMPLING)))
    found.append(("does the second round add to the first", (LEARNED, f"{SEARCH} 1"), (LEARNED, f"{SEARCH} 0")))
    found.append(("does a reward model of drawn labels", (DRAWN, START_VALUED), (DRAWN, START)))
    return found


def paired_tests(
    found: Mapping[tuple[str, int], Mapping[str, Solved]], seeds: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """McNemar's tests over the tasks of all seeds that have both sides."""
    rows = []
    for question, first, second in comparisons(rounds):
        outcomes = [
            (solved, other[id_])
            for seed in seeds
            for other in [found.get((second[0], seed), {}).get(second[1], {})]
            for id_, solved in found.get((first[0], seed), {}).get(first[1], {}).items()
            if id_ in other
        ]
        if outcomes:
            paired = PairedTest.count("tasks", outcomes)
            rows.append(
                {
                    "question": question, "first": first[1], "second": second[1], "tasks": len(outcomes),
                    "first_alone": paired.only_first, "second_alone": paired.only_second, "p_value": paired.p_value,
                }
            )  # fmt: skip
    return rows


def took(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Programs and tokens of the last round's trained policy, all seeds together: they finish as many programs."""
    each = [read_counts(stage(arguments, LEARNED, seed, arguments.rounds - 1, "evaluate")) for seed in arguments.seeds]
    known = [counts for counts in each if counts]
    keys = {WITH_VALUES: "programs/", SEARCH: f"learned/{SEARCH}_", SAMPLING: f"learned/{SAMPLING}_"}
    return [
        {"what": what, **{name: round(sum(counts[f"{key}{name}"] for counts in known)) for name in ("count", "tokens")}}
        for what, key in keys.items()
    ]


def reward_models(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What the first round's reward models know of pairs of tasks that they have not seen."""
    rows = []
    for run in RUNS:
        each = [read_counts(stage(arguments, run, seed, 0, "reward_model")) for seed in arguments.seeds]
        known = [counts for counts in each if counts]
        right = sum(round(counts["accuracy"] * counts["held_out_pairs"]) for counts in known)
        rows.append({"run": run, "right": right, "pairs": round(sum(counts["held_out_pairs"] for counts in known))})
    return rows


def markdown(record: Mapping[str, Any]) -> str:
    where = record["provenance"]
    lines = [
        *heading(TITLE, where),
        "| run | scored | unseen tasks solved in two attempts | by seed |", "|---" * 4 + "|",
    ]  # fmt: skip
    for row in record["scores"]:
        low, high = row["interval95"]
        of_all = f"{row['n']:g}/{row['N']} = {100 * row['n'] / max(row['N'], 1):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(
            f"| {row['run']} | {row['what']} | {of_all} | {', '.join(f'{n}/{of}' for n, of in row['seeds'].values())} |"
        )
    lines += ["", "| question | compared | solved by it alone | by the other alone | p |", "|---" * 5 + "|"]
    for row in record["tests"]:
        compared = f"{row['first']} against {row['second']}"
        lines.append(
            f"| {row['question']} | {compared} | {row['first_alone']} | {row['second_alone']} | {row['p_value']:.2g} |"
        )
    for row in record["took"]:
        lines += ["", f"{row['what']}, last round: {row['count']:,} programs, {row['tokens']:,} tokens."]
    for model in record["reward_models"]:
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
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--rounds", type=int, default=2, help="of the run `learned` (2)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all runs")
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser, cores="--set num_threads=N")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    setup_logging()
    arguments = parse(argv)
    for run in arguments.runs:
        if run == DRAWN:
            arguments.seeds = copy_first_rounds(arguments)
        wanted = lines(arguments, run)
        file = JobsFile(jobs_path(arguments.folder / EXPERIMENT, wanted), TITLE, CRITERION, ENTRIES[ENTRY].script)
        for ended in run_lines(file, wanted, arguments.cluster, places=arguments.jobs):
            print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
    found = scores(arguments)
    record = {
        "scores": table(found, arguments.seeds),
        "tests": paired_tests(found, arguments.seeds, arguments.rounds),
        "took": took(arguments),
        "reward_models": reward_models(arguments),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
        "provenance": provenance(),
    }
    text = markdown(record)
    print(text)
    if arguments.save:
        save(arguments.save, record, text)


if __name__ == "__main__":
    run_main(main)
