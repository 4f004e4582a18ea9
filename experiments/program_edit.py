"""Do models that edit programs learn what they are meant to learn? Controls on toy programs, at several seeds.

    python -m experiments.program_edit                        # three seeds; goes on where it was stopped
    python -m experiments.program_edit --seeds 0 --set grpo.steps=6 scratch.steps=50
    python -m experiments.program_edit --jobs 2 --set num_threads=1 --save program_edit_control

Runs of self_improve.py experiment=edit_quickstart, all of one seed from one start model: `selected` learned the sampled edits
that gain most, `random` as many whatever they do; `grpo` goes on from the first with rewards, `shuffled` with rewards that are
dealt out at random, each as the best checkpoint on held-out tasks. `adaptive` and `uniform` have a start model of their own
and a mixture of easy tasks (a colour map) and hard ones (a view and a colour map): how many rollouts does each need to reach a
score on held-out tasks? They are lines of jobs files (experiments/queued.py). The first table counts start programs of unseen
rules that an edit puts right, with 95 % intervals and McNemar's tests over those of all seeds.

--save NAME writes experiments/results/NAME.{md,json}. It says nothing about ARC.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import compose_run, run_main
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.entries import ENTRIES
from arclab.methods.program_edit.controls import START, solved_of
from arclab.methods.program_edit.editing import read_records
from arclab.metrics.logger import read_rows
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from arclab.runs.stages import read_counts
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines
from experiments.saved import heading, save

TITLE = "Models that edit programs, and their controls"
CRITERION = "selected is above random, grpo above selected, shuffled not; adaptive needs fewer rollouts than uniform, or not."
EXPERIMENT = "program_edit_control"
ENTRY = "self_improve_program_edit"
_TOY = "tasks={count}&side=3&colors=3&palette=6&demos=1"
_MIXED = "toy:color_map+dihedral_color?" + _TOY


def mixture() -> tuple[str, ...]:
    """Tasks of two families, of which the second takes a line more. Few of them, so that each is drawn often enough to be known
    as hard or learned."""
    sources = {"train": 24, "eval": 40, "validation": 40}
    split = {"train": "train", "eval": "test", "validation": "validation"}
    return (
        *(f'dataset.{key}_sources=["{_MIXED.format(count=count)}&split={split[key]}"]' for key, count in sources.items()),
        "max_tasks=24", "grpo.eval_tasks=40", "grpo.refills=0", "scratch.context=400", "scratch.steps=1200",
        "sample.sampling.max_new_tokens=160", "grpo.max_new_tokens=160", "controls=none",
    )  # fmt: skip


SCRATCH = f'scratch.source="{_MIXED.format(count=4000)}&split=train&seed=1"'
_LONGER = ("controls=none", "grpo.steps=150", "grpo.prompts_per_step=16", "grpo.eval_every=25", "grpo.checkpoint_every=25")
# Run -> what it changes. The first of a start model makes it.
RUNS: Mapping[str, tuple[str, ...]] = {
    "selected": ("grpo.steps=0", "controls=start"),
    "random": ("grpo.steps=0", "controls=none", "select.rule=random"),
    "grpo": _LONGER,
    "shuffled": (*_LONGER, "grpo.shuffle_rewards=true"),
    "adaptive": (*mixture(), SCRATCH, "curriculum.kind=adaptive"),
    "uniform": (*mixture(), "curriculum.kind=uniform"),
}
STARTS = {"selected": "selected", "random": "selected", "grpo": "selected", "shuffled": "selected", "adaptive": "adaptive",
          "uniform": "adaptive"}  # fmt: skip
AGAINST = {
    "selected": "random", "random": START, "grpo": "selected", "shuffled": "selected", "uniform": None, "adaptive": "uniform",
}  # fmt: skip
Solved = Mapping[str, bool]


def lines(arguments: argparse.Namespace, seed: int) -> list[dict[str, list[str]]]:
    """name -> overrides of self_improve.py: first the runs that make a start model, then those that begin with it."""
    found: list[dict[str, list[str]]] = [{}, {}]
    for run in arguments.runs:
        start = STARTS[run]
        own = [
            "experiment=edit_quickstart", f"experiment_name={EXPERIMENT}", f"name={run}_s{seed}", f"seed={seed}",
            f"runs_dir={arguments.folder}", "criterion=null", *RUNS[run], *arguments.set,
        ]  # fmt: skip
        if start != run:
            own = [each for each in own if not each.startswith("scratch.")]
            own += ["scratch=null", f"lm.name={stage(arguments, start, seed, 'start') / 'model'}"]
        found[start != run][f"{run}_s{seed}"] = own
    return found


def stage(arguments: argparse.Namespace, run: str, seed: int, name: str) -> Path:
    return arguments.folder / EXPERIMENT / f"{run}_s{seed}" / "round_0" / name


def scores(arguments: argparse.Namespace) -> dict[tuple[str, int], Solved]:
    """(run, seed) -> {start program: put right}, as far as there are any; the start model is a run, too."""
    found: dict[tuple[str, int], Solved] = {}
    for seed in arguments.seeds:
        for run in AGAINST:
            for name, file in ((run, "edits.jsonl"), (START, f"edits_{START}.jsonl")):
                path = stage(arguments, run, seed, "evaluate") / file
                if path.is_file() and (name != START or run == "selected"):
                    found[name, seed] = solved_of(read_records(path))
    return found


def table(found: Mapping[tuple[str, int], Solved], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each run over all seeds, tested against the run that it is compared with."""
    rows = []
    for run in (START, *AGAINST):
        each = {seed: found[run, seed] for seed in seeds if (run, seed) in found}
        against = AGAINST.get(run)
        other = {seed: found.get((against, seed), {}) for seed in each} if against else {}
        outcomes = [
            (right, other[s][id_]) for s, own in each.items() for id_, right in own.items() if s in other and id_ in other[s]
        ]
        paired = PairedTest.count("programs", outcomes)
        total = Share(sum(sum(own.values()) for own in each.values()), sum(map(len, each.values())))
        rows.append(
            {
                "run": run, "n": total.n, "N": total.total, "interval95": list(total.interval),
                "seeds": {str(seed): [sum(own.values()), len(own)] for seed, own in each.items()}, "against": against,
                "it_alone": paired.only_first, "other_alone": paired.only_second,
                "p_value": paired.p_value if outcomes else None,
            }
        )  # fmt: skip
    return rows


def deltas(arguments: argparse.Namespace) -> dict[str, float]:
    """What an edit of each run adds, mean over seeds."""
    found: dict[str, float] = {}
    for run in AGAINST:
        counts = [read_counts(stage(arguments, run, seed, "evaluate")) for seed in arguments.seeds]
        if known := [each["mean_delta"] for each in counts if each]:
            found[run] = sum(known) / len(known)
    return found


def curve(arguments: argparse.Namespace, run: str, seed: int) -> dict[int, float]:
    """Rollouts drawn -> start programs of held-out tasks put right, in training."""
    (made,) = [each[name] for each in lines(arguments, seed) for name in each if name == f"{run}_s{seed}"]
    config = compose_run(ENTRY, made)
    assert isinstance(config, ProgramEditConfig)
    wished, path = config.grpo, stage(arguments, run, seed, "grpo") / "metrics.jsonl"
    rows = read_rows(path) if path.is_file() else []
    drawn = wished.prompts_per_step * wished.group_size
    return {
        -(-row["_step"] // wished.updates_per_rollout) * drawn: row["edits/solved_share"]
        for row in rows
        if "edits/solved_share" in row
    }


def needed(curves: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """The rollouts after which each run first has nine tenths of the best score of any; None: it never has."""
    best = max(value for each in curves.values() for value in each.values())
    reached = {run: next((n for n, value in sorted(each.items()) if value >= 0.9 * best), None) for run, each in curves.items()}
    return {"score": 0.9 * best, **reached}


def curricula(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for seed in arguments.seeds:
        curves = {run: curve(arguments, run, seed) for run in ("adaptive", "uniform") if run in arguments.runs}
        if len(curves) == 2 and all(curves.values()):
            rows.append({"seed": seed, "curves": {run: list(each.items()) for run, each in curves.items()}, **needed(curves)})
    return rows


def markdown(
    rows: Sequence[dict[str, Any]], added: Mapping[str, float], drawn: Sequence[dict[str, Any]], where: Mapping[str, Any]
) -> str:
    text = [
        *heading(TITLE, where),
        "| run | start programs of unseen rules put right | by seed | an edit adds | against | it alone / other alone | p |",
        "|---" * 7 + "|",
    ]  # fmt: skip
    for row in (row for row in rows if row["N"]):
        low, high = row["interval95"]
        of_all = f"{row['n']:g}/{row['N']} = {100 * row['n'] / row['N']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        seeds = ", ".join(f"{n}/{total}" for n, total in row["seeds"].values())
        gain = f"{added[row['run']]:+.3f}" if row["run"] in added else ""
        test = ("", "", "") if row["p_value"] is None else (
            row["against"], f"{row['it_alone']} / {row['other_alone']}", f"{row['p_value']:.2g}"
        )  # fmt: skip
        text.append(f"| {row['run']} | {of_all} | {seeds} | {gain} | {' | '.join(test)} |")
    if drawn:
        text += ["", "Rollouts until nine tenths of the best score of held-out tasks:", ""]
        text += ["| seed | score | adaptive | uniform |", "|---|---|---|---|"]
        for row in drawn:
            adaptive, uniform = ("never" if row[run] is None else f"{row[run]:,}" for run in ("adaptive", "uniform"))
            text.append(f"| {row['seed']} | {100 * row['score']:.1f} % | {adaptive} | {uniform} |")
    return "\n".join([*text, ""])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.program_edit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all runs")
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser, cores="--set num_threads=N")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    setup_logging()
    arguments = parse(argv)
    script = ENTRIES[ENTRY].script
    for seed in arguments.seeds:
        for wanted in lines(arguments, seed):
            file = JobsFile(jobs_path(arguments.folder / EXPERIMENT, wanted), TITLE, CRITERION, script)
            for ended in run_lines(file, wanted, arguments.cluster, places=arguments.jobs):
                print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
    rows, added, drawn, where = table(scores(arguments), arguments.seeds), deltas(arguments), curricula(arguments), provenance()
    text = markdown(rows, added, drawn, where)
    print(text)
    if arguments.save:
        record = {
            "rows": rows, "deltas": added, "curricula": drawn, "arguments": {k: str(v) for k, v in vars(arguments).items()},
            "provenance": where,
        }  # fmt: skip
        save(arguments.save, record, text)


if __name__ == "__main__":
    run_main(main)
