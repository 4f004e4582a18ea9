r"""The control table: which encoder and layout learn to read a rule from demonstrations, against a frozen random twin.

    python -m experiments.control --steps 600                                             # every encoder and layout
    python -m experiments.control --seconds 60 --encoders standard_tiny --families color_map dihedral
    python -m experiments.control --steps 5000 --jobs 8 --set trainer.device=cuda trainer.num_threads=1     # on a GPU
    python -m experiments.control --steps 3000 --jobs 2 --set trainer.num_threads=1 trainer.batch_size=256 \
        trainer.precision=bf16 trainer.compile=true                                     # on two cores with units for bf16 (AMX)
    python -m experiments.control --steps 5000 --cluster slurm --set launch=slurm_gpu trainer.device=cuda
    python -m experiments.control --steps 600 --list                                      # the cells, and what is done

A cell is one run of experiment=toy_control in runs/control/<cell>: an encoder of conf/encoder, a demonstration layout
(symmetry+colors: with encoder.pooling=colors, for encoders that pool), and trained or frozen (encoder.optim.freeze_steps: the
decoder alone learns). It learns all --families together and is scored on held-out tasks of each: exact answers with a Wilson
interval, what is lost with swapped demonstrations and with an empty context. Easy families in the mixture are a curriculum:
compositions of all eight views alone give no signal for long. --seconds measures the speed of an encoder once and turns it into
steps; trained and frozen twins get the same number of steps.

Cells are lines of a jobs file that the launcher's queue runs (experiments/queued.py); python -m arclab.launch status FILE shows
them. The same command continues a killed table, also on another machine: cells recorded in experiments/results/control.json are
done, a started one resumes from its checkpoint, and the record and control.md are written after each cell, which this process
scores. For a table of your own name another folder with --results. A cell that fails is shown and the table goes on; the exit
status is then 1. It does not tune: all cells share the settings of experiment=toy_control and KEY=VALUE overrides after --set.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, compose, group_options, identity, known_keys, run_main
from arclab.config.dataset_schema import CANVASES
from arclab.config.encoder_schema import NUM_COLORS, DemoLayout, EncoderConfig, LpnEncoderConfig, Pooling, StandardEncoderConfig
from arclab.config.schema import WeightsKind
from arclab.data.splits import load_tasks
from arclab.data.synthetic import FAMILIES, parse_toy
from arclab.files import read_object, write_atomically
from arclab.launch.cluster import Kind
from arclab.methods.recursive.probes.ablations import context_drop, swap_drop
from arclab.methods.recursive.saved import TrainedRun
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.metrics.logger import read_rows
from arclab.results.scoring import Share
from arclab.runs.folder import provenance
from arclab.runs.ranks import start_ranks
from benchmarks.arguments import above_0, at_least_0, at_least_1
from experiments.control_table import CRITERION, learned_from, toy_settings, write_table
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, measure_speeds, run_lines

EXPERIMENT = "control"  # the folder of its runs
TITLE = "Control table: which encoders read a rule from demonstrations"
NO_LAYOUT = "-"  # an encoder without the key demo_layout
LAYOUTS = (*(layout.value for layout in DemoLayout), *(f"{layout.value}+{Pooling.colors.value}" for layout in DemoLayout))
TWINS = ("trained", "frozen")
_SPEED_STEPS = 30
# An encoder's sizes on tiny grids, where it has the key; LPN keeps those of its paper. A CLS token needs a second layer to
# read what the first one found.
_TOY_SIZES = {
    "num_layers": 1,
    "num_heads": 4,
    "latent_dim": 32,
    "context.gain": 0.1,
    "h_cycles": 1,
    "l_cycles": 2,
    "cycle_layers": 1,
}
_LAYERS_WITH_CLS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    encoder: str
    layout: str
    frozen: bool

    @property
    def twin(self) -> str:
        return TWINS[self.frozen]


@dataclass(frozen=True, slots=True)
class Table:
    """What all cells of a table share. settings: of the toy tasks, as in their source strings; tasks are counted per family."""

    runs_dir: str
    results: Path
    families: tuple[str, ...]
    steps: int | None
    seconds: float | None
    seed: int
    settings: str
    train_tasks: int
    test_tasks: int
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its run folders are."""
        return Path(self.runs_dir) / EXPERIMENT

    @property
    def budget(self) -> str:
        return f"{self.steps}steps" if self.steps is not None else f"{self.seconds:g}s"

    def cell_name(self, cell: Cell) -> str:
        layout = "" if cell.layout == NO_LAYOUT else f"-{cell.layout}"
        return f"{'+'.join(self.families)}-{cell.encoder}{layout}-{cell.twin}-{self.budget}-seed{self.seed}"

    def source(self, tasks: int, split: str) -> str:
        return f"toy:{'+'.join(self.families)}?tasks={tasks}&{self.settings}&split={split}&seed={self.seed}"

    def recorded(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's record in the results. ValueError if it was made from other tasks (of the same settings) or with other
        overrides."""
        path = self.results / "control.json"
        records = read_object(path, {"cells": list[dict]})["cells"] if path.is_file() else []
        source = self.source(self.train_tasks, "train")
        wanted = (self.cell_name(cell), toy_settings(source))
        record = next((c for c in records if (c["name"], toy_settings(c["train_source"])) == wanted), None)
        mine = (source, learned_from(self.overrides))
        if record is not None and (record["train_source"], learned_from(record["overrides"])) != mine:
            raise ValueError(
                f"{path} has a cell {record['name']} made from {record['train_source']} with {record['overrides']}; give "
                "another --results."
            )
        return record


def cell_overrides(table: Table, cell: Cell, steps: int) -> list[str]:
    """The command line of a cell. The canvas is the smallest that shows where a grid ends."""
    side = parse_toy(table.source(table.test_tasks, "test")).side
    canvas = next(c for c in CANVASES if c > side)
    layout = layout_overrides(cell.layout)
    return [
        "experiment=toy_control",
        f"encoder={cell.encoder}",
        *toy_sizes(cell.encoder),
        *layout,
        f"experiment_name={EXPERIMENT}",
        f"name={table.cell_name(cell)}",
        f"runs_dir={table.runs_dir}",
        f"seed={table.seed}",
        "dataset.name=toy",
        f"dataset.canvas={canvas}",
        f'dataset.train_sources=["{table.source(table.train_tasks, "train")}"]',
        f'dataset.eval_sources=["{table.source(table.test_tasks, "test")}"]',
        "dataset.validation_sources=[]",
        "evaluation.split=evaluation",
        f"trainer.steps={steps}",
        f"encoder.optim.freeze_steps={steps if cell.frozen else 0}",
        "trainer.eval_every=0",
        "wandb.mode=disabled",
        *table.overrides,
    ]


def layout_overrides(layout: str) -> list[str]:
    if layout == NO_LAYOUT:
        return []
    grids, _, pooling = layout.partition("+")
    colors = [f"encoder.pooling={pooling}", f"encoder.tokens_per_demo={NUM_COLORS}"] if pooling else []
    return [f"encoder.demo_layout={grids}", *colors]


def pools_by_color(encoder: EncoderConfig) -> bool:
    return isinstance(encoder, StandardEncoderConfig) and Pooling.colors in encoder.poolings()


def toy_sizes(encoder: str) -> list[str]:
    """Overrides that bring an encoder of conf/encoder to the size of the toy tasks. ConfigError if it reads no
    demonstrations."""
    wide = compose("pretrain_encoder", ["experiment=toy_control", f"encoder={encoder}", "decoder.width=512"]).encoder
    keys = set(known_keys(type(wide)))
    sizes = {"context.gain": _TOY_SIZES["context.gain"]} if isinstance(wide, LpnEncoderConfig) else dict(_TOY_SIZES)
    if getattr(wide, "pooling", None) is Pooling.cls:
        sizes["num_layers"] = _LAYERS_WITH_CLS
    return [f"encoder.{key}={value}" for key, value in sizes.items() if key in keys and getattr(wide, key, value) != 0]


def list_cells(encoders: Sequence[str], layouts: Sequence[str], overrides: Sequence[str] = ()) -> Iterator[Cell]:
    """Every combination that exists. An encoder that cannot be composed for few-shot tasks, or that is another one of the list
    once it has the size of the toy tasks, is named and left out."""
    seen: dict[str, str] = {}
    for encoder in encoders:
        try:
            config = compose(
                "pretrain_encoder", ["experiment=toy_control", f"encoder={encoder}", *toy_sizes(encoder), *overrides]
            )
        except ConfigError as error:
            print(f"encoder={encoder} is left out: {error}")
            continue
        settings = {key: value for key, value in identity(config).items() if key != "encoder.demo_layout"}  # the cell sets it
        same = seen.setdefault(json.dumps(settings, sort_keys=True), encoder)
        if same != encoder:
            print(f"encoder={encoder} is left out: at the size of the toy tasks it is the same as encoder={same}.")
            continue
        for layout in layouts if hasattr(config.encoder, "demo_layout") else (NO_LAYOUT,):
            if "+" in layout and not pools_by_color(config.encoder):
                continue
            yield from (Cell(encoder, layout, frozen) for frozen in (False, True))


def cell_steps(table: Table, cells: Sequence[Cell], cluster: Kind, jobs: int) -> dict[Cell, int | str]:
    """The optimiser steps of every cell, or why their number is not known. With --seconds: by the speed of the encoder, layout
    and settings, which is measured once for both twins and written down."""
    if table.steps is not None:
        return dict.fromkeys(cells, table.steps)
    assert table.seconds is not None
    pairs = list(dict.fromkeys(replace(cell, frozen=False) for cell in cells))
    speeds = steps_per_second(table, pairs, cluster, jobs)
    found = {pair: speed if isinstance(speed, str) else max(1, round(table.seconds * speed)) for pair, speed in speeds.items()}
    return {cell: found[replace(cell, frozen=False)] for cell in cells}


def steps_per_second(table: Table, cells: Sequence[Cell], cluster: Kind, jobs: int) -> dict[Cell, float | str]:
    """As noted, or measured now in runs that are thrown away; or why a cell has no speed."""
    notes = {cell: speed_note(table, cell) for cell in cells}
    missing = {table.cell_name(cell): cell for cell, note in notes.items() if not note.is_file()}
    folder = table.folder / "speeds"
    lines = {
        name: [*cell_overrides(table, cell, _SPEED_STEPS), f"runs_dir={folder}", f"trainer.log_every={_SPEED_STEPS // 3}"]
        for name, cell in missing.items()
    }
    file = JobsFile(jobs_path(folder, lines), f"Speeds for {TITLE}", "none, the runs are thrown away.")
    faults: dict[Cell, float | str] = {}
    for name, speed in measure_speeds(file, lines, cluster, jobs):
        if isinstance(speed, str):
            faults[missing[name]] = f"its speed was not measured: {speed}"
        else:
            write_atomically(notes[missing[name]], json.dumps({"steps_per_s": speed}) + "\n")
    return {c: faults[c] if c in faults else read_object(notes[c], {"steps_per_s": float})["steps_per_s"] for c in cells}


def speed_note(table: Table, cell: Cell) -> Path:
    settings = zlib.crc32(json.dumps([table.families, table.settings, table.overrides]).encode())
    return table.folder / "speeds" / f"{cell.encoder}-{cell.layout}-{settings:08x}.json"


def cell_record(table: Table, cell: Cell, folder: Path) -> dict[str, Any]:
    """The record of a cell that is trained; scored only if that is not done yet."""
    record = folder / "cell.json"
    if not record.is_file():
        write_atomically(record, json.dumps(score_cell(table, cell, folder), indent=1) + "\n")
    return read_object(record)


def score_cell(table: Table, cell: Cell, folder: Path) -> dict[str, Any]:
    """Accuracy on the held-out tasks of each family, both drops, and what the run cost."""
    trained = TrainedRun.open(folder)
    config, model = trained.config, trained.model(WeightsKind.ema)
    tasks = load_tasks(config.dataset).evaluation
    ranks = start_ranks(config.trainer.device)
    solver = RecursiveSolver(model.to(ranks.device), ranks, canvas=config.dataset.canvas, seed=config.seed,
                             batch_size=config.evaluation.batch_size, max_demos=config.dataset.max_demos)  # fmt: skip
    scores = {}
    for family in table.families:
        of_family = [task for task in tasks if task.source == f"toy:{family}"]
        swapped, blank = swap_drop(solver, of_family), context_drop(solver, model, of_family)
        scores[family] = {"exact": share_record(swapped.intact), "swapped": share_record(swapped.ablated),
                          "zero_context": share_record(blank.ablated)}  # fmt: skip
    seconds = read_rows(folder / "metrics.jsonl")[-1]["_runtime"]
    return {
        "name": table.cell_name(cell),
        "encoder": cell.encoder,
        "layout": cell.layout,
        "twin": cell.twin,
        "scores": scores,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config.trainer.steps,
        "batch_size": config.trainer.num_rows,
        "steps_per_s": config.trainer.steps / seconds,
        "seconds": seconds,
        "seed": config.seed,
        "train_source": table.source(table.train_tasks, "train"),
        "test_source": table.source(table.test_tasks, "test"),
        "overrides": list(table.overrides),
        "provenance": provenance(),
    }


def share_record(share: Share) -> dict[str, Any]:
    return {"n": share.n, "N": share.total, "interval95": list(share.interval)}


def run_table(table: Table, cells: Sequence[Cell], cluster: Kind, jobs: int) -> list[str]:
    """Run every cell that is not recorded, write the table after each; names of the cells that failed."""
    failed: list[str] = []

    def fail(cell: Cell, why: object) -> None:
        failed.append(table.cell_name(cell))
        print(f"{table.cell_name(cell)} FAILED: {why}", flush=True)

    todo: list[Cell] = []
    for cell in cells:
        try:
            if table.recorded(cell) is None:
                todo.append(cell)
        except ValueError as error:
            fail(cell, error)
    steps = cell_steps(table, todo, cluster, jobs)
    lines: dict[str, list[str]] = {}
    for cell, number in steps.items():
        if isinstance(number, str):
            fail(cell, number)
        else:
            lines[table.cell_name(cell)] = cell_overrides(table, cell, number)
    by_name = {table.cell_name(cell): cell for cell in todo}
    file = JobsFile(jobs_path(table.folder, map(table.cell_name, cells)), TITLE, CRITERION)
    for ended in run_lines(file, lines, cluster, places=jobs):
        if ended.folder is None or ended.fault:
            fail(by_name[ended.name], ended.fault)
            continue
        try:
            write_table(table.results, [cell_record(table, by_name[ended.name], ended.folder)])
        except ValueError as error:
            fail(by_name[ended.name], error)
    return failed


def parse(argv: Sequence[str]) -> tuple[Table, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="experiments.control", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=at_least_1, help="optimiser steps of every cell")
    budget.add_argument("--seconds", type=above_0, help="training time of every cell, by the measured speed of its encoder")
    parser.add_argument("--encoders", nargs="+", choices=group_options("encoder"), default=group_options("encoder"))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--twins", nargs="+", choices=TWINS, default=TWINS)
    parser.add_argument(
        "--families",
        nargs="+",
        choices=list(FAMILIES),
        default=["color_map", "mirror_color", "flips_color", "dihedral_color"],
        help="learned together, scored one by one",
    )
    parser.add_argument(
        "--settings", default="side=3&colors=3&palette=10&demos=3", help="of the toy tasks, as in a source string"
    )
    parser.add_argument("--train-tasks", type=at_least_1, default=20000, help="of each family")
    parser.add_argument("--test-tasks", type=at_least_1, default=200)
    parser.add_argument("--seed", type=at_least_0, default=0)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    add_queue_arguments(parser)
    parser.add_argument("--list", action="store_true", help="only name the cells")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every cell")
    given = parser.parse_args(argv)
    table = Table(given.runs_dir, given.results, tuple(given.families), given.steps, given.seconds, given.seed, given.settings,
                  given.train_tasks, given.test_tasks, tuple(given.set))  # fmt: skip
    return table, given


def main(argv: Sequence[str]) -> None:
    table, given = parse(argv)
    cells = [c for c in list_cells(given.encoders, given.layouts, table.overrides) if c.twin in given.twins]
    if given.list:
        for cell in cells:
            print(f"{table.cell_name(cell)} {'done' if table.recorded(cell) else 'open'}")
        return
    failed = run_table(table, cells, given.cluster, given.jobs)
    if (table.results / "control.md").is_file():
        print((table.results / "control.md").read_text())
    if failed:
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_main(main)
