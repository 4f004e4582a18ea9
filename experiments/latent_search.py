"""Does searching the context help? Accuracy and seconds against search steps, beside one encoding.

    python -m experiments.latent_search runs/control/standard-trained runs/control/lpn-trained --save latent_search
    python -m experiments.latent_search RUN --frozen TWIN --steps 0 100 --starts encoder     # a small one; the same goes on

Trained runs of the control (experiments/control.py) are scored on their unseen compositions (--family, of their own
dataset.eval_sources), as the control scores them, with each number of search steps from each start: the encoder's context,
noise of the same size, the context of another task. Steps 0 from the encoder is one encoding, which every other cell is tested
against (McNemar, the same tasks). --frozen: the twins with an encoder of random weights, searched from their encoder alone.
Evaluations are lines of a jobs file (experiments/queued.py) with folders below --folder: those that are DONE are not made
again, a killed one goes on. Seconds are those of a task's answer, its search included, on this machine with whatever else ran.

It trains nothing. --split validation with --set chooses settings on tasks that are no test; --save NAME writes
experiments/results/NAME.{md,json,png}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.adaptation_schema import LatentStart
from arclab.config.compose import ConfigError, run_main, thaw
from arclab.data.synthetic import FAMILIES
from arclab.entries import ENTRIES
from arclab.files import write_atomically
from arclab.results.paired import PairedTest
from arclab.results.reading import ScoredSplit, read_runs
from arclab.results.scoring import Share
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_0, at_least_1
from experiments.control_table import COMPOSED
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines

ROOT = Path(__file__).resolve().parents[1]
TITLE = "Latent search on unseen compositions"
CRITERION = "a search from the encoder's context answers at least 15 points more than one encoding, and one from noise fewer."
STARTS = (LatentStart.encoder, LatentStart.gaussian, LatentStart.other_task)
_SPLITS = ("test", "validation")
_COLORS = {"encoder": "#2a6fdb", "gaussian": "#d1495b", "other_task": "#7a5195", "zeros": "#8d99ae"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One evaluation. frozen: of a twin, whose encoder has random weights."""

    run: Path
    frozen: bool
    start: LatentStart
    steps: int

    @property
    def encoder(self) -> str:
        return f"{thaw(self.run / 'config.yaml').encoder.kind}{', frozen' if self.frozen else ''}"

    @property
    def name(self) -> str:
        """Of its folder: runs of the same name have different parents."""
        return f"{self.run.parent.name}-{self.run.name}-{self.start.value}-{self.steps}"


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every evaluation, one encoding of each run first. Steps 0 of a control start answers without any demonstration."""
    found = []
    for run, frozen in [*((run, False) for run in arguments.runs), *((run, True) for run in arguments.frozen)]:
        starts = [LatentStart.encoder, *(s for s in arguments.starts if s is not LatentStart.encoder and not frozen)]
        found += [Cell(run, frozen, start, steps) for start in starts for steps in sorted({0, *arguments.steps})]
    return found


def source_of(run: Path, arguments: argparse.Namespace) -> str:
    """The tasks of one family and split, of the settings and seed of the run's own scored tasks. ConfigError: it has none."""
    for source in thaw(run / "config.yaml").dataset.eval_sources:
        kind, _, rest = source.partition(":")
        families, _, settings = rest.partition("?")
        if kind == "toy" and arguments.family in families.split("+"):
            kept = [part for part in settings.split("&") if part.partition("=")[0] not in ("tasks", "split")]
            return f"toy:{arguments.family}?{'&'.join([f'tasks={arguments.tasks}', *kept, f'split={arguments.split}'])}"
    raise ConfigError(
        f"{run} has no toy tasks of the family {arguments.family} in dataset.eval_sources; give another --family."
    )


def evaluation_line(cell: Cell, arguments: argparse.Namespace) -> list[str]:
    source = source_of(cell.run, arguments)
    return [
        f"checkpoint={cell.run}", f'dataset.eval_sources=["{source}"]', f"dataset.name={arguments.family}",
        f"output_dir={arguments.folder / arguments.split / cell.name}", "evaluation.health_tasks=0", "num_augmentations=0",
        "adaptation=latent", f"adaptation.steps={cell.steps}", f"adaptation.start={cell.start.value}", *arguments.set,
    ]  # fmt: skip


def scored(cell: Cell, arguments: argparse.Namespace) -> ScoredSplit | None:
    """None if the evaluation is not there."""
    folder = arguments.folder / arguments.split / cell.name
    if not (folder / "metrics.json").is_file():
        return None
    (run,) = read_runs([folder])
    return run.split("evaluation")


def table(cells: Sequence[Cell], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each evaluation that there is: its share, its test against one encoding of the same run, and its costs."""
    rows = []
    for cell in cells:
        split, plain = scored(cell, arguments), scored(Cell(cell.run, cell.frozen, LatentStart.encoder, 0), arguments)
        if split is None or plain is None:
            continue
        after, before = split.solved, plain.solved
        paired = PairedTest.count("tasks", [(after[task], before[task]) for task in after])
        share, statistics = Share(sum(after.values()), len(after)), split.statistics
        rows.append(
            {
                "run": str(cell.run), "encoder": cell.encoder, "start": cell.start.value, "steps": cell.steps,
                "n": share.n, "N": share.total, "interval95": list(share.interval),
                "search_alone_right": paired.only_first, "one_encoding_alone_right": paired.only_second,
                "p_value": paired.p_value,
                "seconds_per_task": 1 / statistics["timing/eval_samples_per_s"],
                "loss_before": statistics["search/loss_before"], "loss_after": statistics["search/loss_after"],
            }
        )  # fmt: skip
    return rows


def markdown(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace, where: Mapping[str, Any]) -> str:
    lines = [
        "| encoder | start | steps | right | search alone / one encoding alone | p | loss before, after | seconds a task |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        against = f"{row['search_alone_right']} / {row['one_encoding_alone_right']}"
        losses = f"{row['loss_before']:.3f}, {row['loss_after']:.3f}"
        lines.append(
            f"| {row['encoder']} | {row['start']} | {row['steps']} | {Share(row['n'], row['N'])} | {against} "
            f"| {row['p_value']:.2g} | {losses} | {row['seconds_per_task']:.2f} |"
        )
    tasks = f"{arguments.tasks} {arguments.split} tasks of {arguments.family}"
    settings = f" with {' '.join(arguments.set)}" if arguments.set else ""
    facts = f"Command: `{where['command']}`; commit {where['commit']}; {where['machine']}."
    return "\n".join(
        [f"# {TITLE}", "", f"Scored: {tasks}{settings}. Steps 0 from the encoder is one encoding. {facts}", "", *lines, ""]
    )


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy (above) and seconds (below) against search steps, a column for each encoder and a line for each start."""
    from matplotlib.figure import Figure

    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    figure = Figure(figsize=(3.2 * len(encoders), 5.0), layout="constrained")
    axes = figure.subplots(2, len(encoders), squeeze=False, sharex=True, sharey="row")
    for column, encoder in enumerate(encoders):
        of_encoder = [row for row in rows if row["encoder"] == encoder]
        for start in dict.fromkeys(row["start"] for row in of_encoder):
            line = sorted((row for row in of_encoder if row["start"] == start), key=lambda row: row["steps"])
            steps, color = [row["steps"] for row in line], _COLORS[start]
            low, high = ([100 * row["interval95"][end] for row in line] for end in (0, 1))
            axes[0, column].fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
            axes[0, column].plot(steps, [100 * row["n"] / row["N"] for row in line], "o-", color=color, label=start)
            axes[1, column].plot(steps, [row["seconds_per_task"] for row in line], "o-", color=color)
        axes[0, column].set(title=encoder, ylim=(0, 100))
        axes[1, column].set(xlabel="search steps")
    axes[0, 0].set_ylabel("tasks solved, %")
    axes[1, 0].set_ylabel("seconds a task")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.latent_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of trained encoders")
    parser.add_argument("--frozen", type=Path, nargs="+", default=[], metavar="RUN", help="their twins with frozen encoders")
    parser.add_argument("--steps", type=at_least_0, nargs="+", default=[0, 10, 50, 100, 200])
    starts = {"type": LatentStart, "choices": list(LatentStart), "default": list(STARTS)}
    parser.add_argument("--starts", nargs="+", metavar="|".join(start.value for start in LatentStart), **starts)
    parser.add_argument("--family", choices=list(FAMILIES), default=COMPOSED)
    parser.add_argument("--tasks", type=at_least_1, default=200)
    parser.add_argument("--split", choices=_SPLITS, default=_SPLITS[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/latent_search"), help="of the evaluations")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every evaluation")
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser, "--set num_threads=N")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    setup_logging()
    arguments = parse(argv)
    cells = cells_of(arguments)
    lines = {cell.name: evaluation_line(cell, arguments) for cell in cells}
    file = JobsFile(jobs_path(arguments.folder, lines), TITLE, CRITERION, ENTRIES["evaluate"].script)
    failed = []
    for ended in run_lines(file, lines, arguments.cluster, places=arguments.jobs):
        print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
        failed += [ended.name] if ended.fault else []
    rows, where = table(cells, arguments), provenance()
    text = markdown(rows, arguments, where)
    print(text)
    if arguments.save and rows:
        path = ROOT / "experiments" / "results" / arguments.save
        record = {"rows": rows, "arguments": {k: str(v) for k, v in vars(arguments).items()}, "provenance": where}
        write_atomically(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        write_atomically(path.with_suffix(".md"), text)
        draw(rows, path.with_suffix(".png"))
    if failed:
        raise SystemExit(f"{len(failed)} of {len(cells)} evaluations failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_main(main)
