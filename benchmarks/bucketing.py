"""Does bucketing change what is learned? The same experiment on the full canvas and bucketed, several seeds each.

    python -m benchmarks.bucketing                                            # quickstart and the toy control, three seeds each
    python -m benchmarks.bucketing --seeds 1 --set trainer.steps=200
    python -m benchmarks.bucketing --jobs 8 --set trainer.num_threads=1       # on a machine with many cores

quickstart: twelve real tasks, scored on themselves. toy_control: unseen colour maps on grids of side 3 and 5, which bucketing
puts on canvases 4 and 6. Every run is pretrain_encoder.py and then evaluate.py in processes of their own; the same command
continues what was stopped. Prints a table and writes benchmarks/results/bucketing.{json,md} with --save: final exact accuracy
(all.exact_accuracy, n/N over augmented test inputs, Wilson interval), ARC/pass@1, first step with 90 % train exact, and
training time (which says little while other runs share the machine). Speed by itself: benchmarks/train_step.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main, thaw
from arclab.config.schema import CanvasRule
from arclab.files import read_object, write_atomically
from arclab.metrics.logger import read_rows
from arclab.results.scoring import Share
from arclab.runs.folder import provenance, short_commit
from benchmarks.arguments import at_least_1

ROOT = Path(__file__).resolve().parents[1]
_NEARLY_ALL = 0.9


def _toy(tasks: int, split: str) -> str:
    sides = (
        f'"toy:color_map?tasks={tasks}&side={side}&colors=4&palette=6&demos=3&split={split}&seed={side}"' for side in (3, 5)
    )
    return f"[{','.join(sides)}]"


EXPERIMENTS: dict[str, list[str]] = {
    "quickstart": [],
    "toy_control": [
        f"dataset.train_sources={_toy(4000, 'train')}", f"dataset.validation_sources={_toy(100, 'validation')}",
        f"dataset.eval_sources={_toy(100, 'test')}", "evaluation.split=evaluation", "trainer.steps=1200",
    ],
}  # fmt: skip


def run(experiment: str, rule: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one run, or read what an earlier call of it left."""
    name = f"{experiment}-{rule}-seed{seed}"
    folder = Path(given.runs_dir) / "bucketing" / name
    command = [
        f"experiment={experiment}",
        "experiment_name=bucketing",
        f"name={name}",
        f"runs_dir={given.runs_dir}",
        f"seed={seed}",
        f"trainer.canvas={rule}",
        f"evaluation.canvas={rule}",
        "trainer.eval_every=0",
        "wandb.mode=disabled",
        *EXPERIMENTS[experiment],
        *given.set,
    ]
    subprocess.run([sys.executable, str(ROOT / "pretrain_encoder.py"), *command], check=True)
    config = thaw(folder / "config.yaml")
    metrics = folder / "evaluation" / config.evaluation.split.value / "metrics.json"
    if not metrics.is_file():
        subprocess.run([sys.executable, str(ROOT / "evaluate.py"), f"checkpoint={folder}"], check=True)
    scored, rows = read_object(metrics), read_rows(folder / "metrics.jsonl")
    statistics, passed = scored["statistics"], scored["scores"]["ARC/pass@1"]
    total = round(statistics["all.count"])
    fitted = [r["_step"] for r in rows if r.get("train/exact_accuracy", 0.0) >= _NEARLY_ALL]
    return {
        "experiment": experiment,
        "rule": rule,
        "seed": seed,
        "exact": {"n": round(statistics["all.exact_accuracy"] * total), "N": total},
        "pass1": {"n": passed["n"], "N": passed["N"]},
        "first_90": fitted[0] if fitted else None,
        "steps": config.trainer.steps,
        "seconds": rows[-1]["_runtime"],
        **provenance(),
    }


def share(record: dict[str, Any]) -> Share:
    return Share(record["n"], record["N"])


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One row a run, and one for all seeds of a rule together."""
    lines = ["| canvas | seed | all.exact_accuracy | ARC/pass@1 | first 90 % train exact | s |", "|---|---|---|---|---|---|"]
    for rule in CanvasRule:
        group = [r for r in runs if r["rule"] == rule.value]
        for r in group:
            lines.append(
                f"| {rule.value} | {r['seed']} | {share(r['exact'])} | {share(r['pass1'])} | {r['first_90']} | "
                f"{r['seconds']:.0f} |"
            )
        if group:
            pooled = [Share(sum(r[key]["n"] for r in group), sum(r[key]["N"] for r in group)) for key in ("exact", "pass1")]
            lines.append(
                f"| {rule.value} | all | {pooled[0]} | {pooled[1]} | | {sum(r['seconds'] for r in group) / len(group):.0f} "
                "(mean) |"
            )
    return "\n".join(lines)


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """A section for each experiment, with the command that made its runs."""
    lines = ["# Full canvas and bucketed"]
    for experiment in EXPERIMENTS:
        of_it = [r for r in runs if r["experiment"] == experiment]
        if of_it:
            made = dict.fromkeys(f"`{r['command']}`, commit {short_commit(r)}, {r['machine']}" for r in of_it)
            lines += [
                "",
                f"## {experiment}, {of_it[0]['steps']} steps",
                "",
                *made,
                "",
                "Intervals: 95 % Wilson.",
                "",
                table(of_it),
            ]
    return "\n".join(lines) + "\n"


def save(runs: Sequence[dict[str, Any]], results: Path) -> None:
    """Runs of experiments that this call did not make stay."""
    path = results / "bucketing.json"
    before = read_object(path, {"runs": list[dict]})["runs"] if path.is_file() else []
    made = {r["experiment"] for r in runs}
    merged = [*(r for r in before if r["experiment"] not in made), *runs]
    write_atomically(path, json.dumps({"runs": merged}, indent=1) + "\n")
    write_atomically(results / "bucketing.md", markdown(merged))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=at_least_1, default=3)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--jobs", type=at_least_1, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args(argv)
    cells = [(e, rule.value, seed) for e in given.experiments for seed in range(given.seeds) for rule in CanvasRule]
    with ThreadPoolExecutor(given.jobs) as pool:  # every run is a process of its own
        runs = list(pool.map(lambda cell: run(cell[0], cell[1], cell[2], given), cells))
    command = f"python -m benchmarks.bucketing --experiments {' '.join(given.experiments)} --seeds {given.seeds}"
    command += f" --jobs {given.jobs}{' --set ' * bool(given.set)}{' '.join(given.set)}"
    runs = [{**r, "command": command} for r in runs]
    print(markdown(runs))
    if given.save:
        save(runs, Path(__file__).parent / "results")


if __name__ == "__main__":
    run_main(main)
