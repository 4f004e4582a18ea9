"""The recorded results as one page: a section for each record, with its commands, commits and machines.

    text = results()              # the generated part of docs/results.md
    scores = control_scores()     # {"standard": "47.0 %, twin 9.0 %"}

What a record does not hold is "not recorded". A record that no function here knows is a KeyError: add one to RECORDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from arclab.files import read_object
from arclab.results.scoring import Share
from arclab.runs.folder import short_commit
from docs.records_lm import LM_RECORDS, Record, Rows, Section, share_of
from experiments.control_table import BASELINE, COMPOSED, SIMPLE, learned_from, share

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks/results", "experiments/results", "experiments/results/control_muon")
_CONTROL_FILES = ("experiments/results/control.json", "experiments/results/control_muon/control.json")


def results() -> str:
    return "\n".join(_section(path) for path in record_files()) + "\n"


def record_files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.json"))]


def _section(path: Path) -> str:
    record = read_object(path)
    title, columns, rows, made = RECORDS[_kind(path)](record)
    name = path.relative_to(ROOT)
    beside = path.with_suffix(".md")
    links = f"[{name}](../{name})" + (f", [its table](../{beside.relative_to(ROOT)})" if beside.is_file() else "")
    lines = [f"## {title}", "", links, "", *_provenance(made), ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, ""])


def _kind(path: Path) -> str:
    """The function that knows a record: by the longest beginning of its name."""
    kinds = [kind for kind in RECORDS if path.stem.startswith(kind)]
    if not kinds:
        raise KeyError(f"no function in docs/records.py knows {path.name}")
    return max(kinds, key=len)


def _provenance(made: Iterable[Record]) -> Iterator[str]:
    """One line for each way in which the numbers came about."""
    lines = {}
    for record in made:
        command = f"`{record['command']}`" if record.get("command") else "command not recorded"
        commit = f"commit {short_commit(record)}" if record.get("commit") else "commit not recorded"
        seed = f"seed {record['seed']}" if record.get("seed") is not None else "seed not recorded"
        date = str(record.get("started", "date not recorded"))[:10]
        lines[f"- {command}, {commit}, {record.get('machine', 'machine not recorded')}, {seed}, {date}"] = None
    return iter(lines)


def _bucketing(record: Record) -> Section:
    def rows() -> Rows:
        for key in dict.fromkeys((run["experiment"], run["rule"]) for run in record["runs"]):
            runs = [run for run in record["runs"] if (run["experiment"], run["rule"]) == key]
            sums = [
                Share(sum(run[name]["n"] for run in runs), sum(run[name]["N"] for run in runs)) for name in ("exact", "pass1")
            ]
            yield *key, ", ".join(str(run["seed"]) for run in runs), *map(str, sums)

    made = [{**run, "seed": "of the table"} for run in record["runs"]]
    return "Full canvas and bucketed", ("experiment", "canvas", "seeds", "all.exact_accuracy", "ARC/pass@1"), rows(), made


def _data(record: Record) -> Section:
    ready, rate = record["readiness"], record["throughput"]
    rows = (
        ("tasks", f"{ready['tasks']:,}"),
        ("augmented puzzles", f"{ready['puzzles']:,}"),
        ("ready after", f"{ready['ready_s']} s"),
        ("memory", f"{ready['resident_mib']} MiB"),
        (f"batches of {rate['queries']}", f"{rate['batches_per_s']}/s"),
    )
    return "Data", ("what", "measured"), iter(rows), [record]


def _rearc(record: Record) -> Section:
    pairs = [
        (
            f"pairs with sides up to {p['max_side']}",
            f"{p['pairs_per_s']}/s, {p['share_usable_at_once']:.1%} usable at once, {p['share_skipped']:.1%} without one",
        )
        for p in record["pairs"]
    ]
    rows = [(f"rows of dataset={group}, canvas 10", f"{of['rows_per_s']:,}/s") for group, of in record["rows"].items()]
    return f"RE-ARC ({record['package']})", ("what", "measured"), iter([*pairs, *rows]), [record]


def _evaluate(record: Record) -> Section:
    rows = (
        (
            p["path"],
            f"{p['seconds']:g}",
            f"{p['times_faster']:.2f}",
            p["same_first"]["text"],
            share_of(p["pass@1"]),
            share_of(p["pass@2"]),
        )
        for p in record["paths"]
    )
    title = f"Rules of evaluation: {record['tasks']} {record['split']} tasks, {record['augmentations']} augmentations"
    columns = ("rules", "seconds", "times faster", "same first grid", "pass@1", "pass@2")
    return title, columns, rows, [record]


def _kills(record: Record) -> Section:
    trials = record["trials"]
    rows = (
        (what, str(Share(sum(bool(trial[key]) for trial in trials), len(trials))))
        for what, key in (("ends with the bits of the uninterrupted run", "identical"), ("each step once", "each_step_once"))
    )
    return "Runs killed at random", ("what", "runs"), rows, [{**record["provenance"], "seed": record["seed"]}]


def _shards(record: Record) -> Section:
    seconds, forecasts = record["seconds"], record["forecasts"]
    alone_s = median(seconds["1"])
    rows = (
        (
            count,
            f"{median(walls):.0f} s ({min(walls):.0f} to {max(walls):.0f})",
            f"{alone_s / median(walls):.2f}",
            *(f"{found[count]:.0f} s" for found in forecasts.values()),
        )
        for count, walls in seconds.items()
    )
    columns = ("shards", "measured", "speed-up", *(f"forecast from {by} shards" for by in forecasts))
    return f"{record['tasks']} toy tasks in shards on two SLURM nodes", columns, rows, [record["provenance"]]


def _precision(record: Record) -> Section:
    rows = (
        (run["experiment"], form, f"{figures['rows_per_s']:.0f}", f"{figures['times_fp32']:.2f}")
        for run in record["runs"]
        for form, figures in run["forms"].items()
    )
    return "bf16 and compiling on a CPU", ("experiment", "form", "rows/s", "times fp32"), rows, [record]


def _sandbox(record: Record) -> Section:
    speed, mixture = record["speed"], record["mixture"]
    rows = [
        ("programs/s, one worker", f"{speed['programs_per_s']:.0f}"),
        ("programs per CPU second", f"{speed['programs_per_cpu_s']:.0f}"),
        ("times a fresh interpreter each", f"{speed['ratio']:.1f}"),
        ("same answers as a serial oracle", str(Share(mixture["equal"], mixture["programs"]))),
        *[
            (
                f"attacks as {attack['user']} that ended as they should",
                str(Share(sum(row[2] for row in attack["rows"]), len(attack["rows"]))),
            )
            for attack in record["attacks"]
        ],
    ]
    return "Sandbox", ("what", "measured"), iter(rows), [{**record["provenance"], "seed": mixture["seed"]}]


def _scaling(record: Record) -> Section:
    def rows() -> Rows:
        for name, points in record["points"].items():
            first, last = points[0], points[-1]
            yield (
                f"{name} {first[name]} to {last[name]}",
                f"{first['seconds']:.2f} to {last['seconds']:.2f} s",
                f"{first['mib']} to {last['mib']} MiB",
            )
        yield "two ranks against one", f"{record['ranks']['two_vs_one']:.2f} times the rows/s", ""

    return "Scaling", ("what", "time of a step", "memory"), rows(), [record]


def _train_step(record: Record) -> Section:
    rate = record["matmul_flops_per_s"]
    rows = (
        (system, form, f"{figures['queries_per_s']:,.3g}", f"{100 * figures['flops_per_s'] / rate:.0f} %")
        for system, forms in record["systems"].items()
        for form, figures in forms.items()
    )
    is_compiled = "--compile" in record["command"]
    title = f"Training step on {record['device']}, {record['precision']}{', compiled' if is_compiled else ''}"
    return title, ("system", "canvas", "queries/s", "of the matmul rate"), rows, [record]


def _encoders(record: Record) -> Section:
    rows = (
        (
            name,
            f"{figures['seconds']:.3f}",
            f"{figures['times_standard']:.2f}",
            f"{figures['low']:.2f} to {figures['high']:.2f}",
        )
        for name, figures in record["encoders"].items()
    )
    columns = ("encoder", "seconds a step", "times standard", "middle half of the turns")
    return "Training step by encoder", columns, rows, [record]


def _phase1(record: Record) -> Section:
    rows = (
        (
            run["encoder"],
            run["layout"],
            str(run["last_step"]),
            f"{run['seconds']:.0f}",
            share_of(run["pass@1"]),
            run["criterion"],
        )
        for run in record["runs"]
    )
    layouts = sorted({run["layout"] for run in record["runs"]})
    columns = ("encoder", "layout", "steps", "seconds", "ARC/pass@1", "criterion")
    return f"Phase 1 on 32 small tasks, {', '.join(layouts)}", columns, rows, [record]


def _control(record: Record) -> Section:
    rows = (
        (
            cell["encoder"],
            cell["layout"],
            cell["twin"],
            "muon" if "trainer.optimizer=muon" in cell["overrides"] else "adam_atan2",
            cell["train_source"].partition("palette=")[2].partition("&")[0],
            f"{cell['steps']} x {cell['batch_size']}",
            *(str(share(cell["scores"][family]["exact"])) if family in cell["scores"] else "" for family in (SIMPLE, COMPOSED)),
            str(cell["seed"]),
            short_commit(cell["provenance"]),
        )
        for cell in record["cells"]
    )
    columns = ("encoder", "layout", "twin", "optimiser", "palette", "steps", "colour maps", "compositions", "seed", "commit")
    # Commands name the folders of the machine that ran them and differ by cell alone: the record has them.
    made = [
        {**cell["provenance"], "command": "python -m experiments.control", "seed": cell["seed"]} for cell in record["cells"]
    ]
    is_muon = any("trainer.optimizer=muon" in cell["overrides"] for cell in record["cells"])
    return f"Positive control{', with Muon' if is_muon else ''}", columns, rows, made


def _color_embedding(record: Record) -> Section:
    rows = (
        (
            row["task"],
            row["arm"],
            f"{record['first_loss'][row['task']]:g}: "
            + ", ".join(str(r["first_step"] or "none") for r in row["seeds"].values()),
            ", ".join(f"{r['loss']:.3f}" for r in row["seeds"].values()),
            share_of(row),
        )
        for row in record["rows"]
    )
    columns = ("task", "embedding", "first step with loss", "loss at the end", "exact answers")
    command = {"command": "python -m experiments.color_embedding"}
    made = [{**row["provenance"], **command, "seed": ", ".join(row["seeds"])} for row in record["rows"]]
    return "Colours that share their weights", columns, rows, made


def _latent_search(record: Record) -> Section:
    rows = (
        (
            row["encoder"],
            row["start"],
            str(row["steps"]),
            share_of(row),
            f"{row['search_alone_right']} / {row['one_encoding_alone_right']}",
            f"{row['p_value']:.2g}",
            f"{row['seconds_per_task']:.2f}",
        )
        for row in record["rows"]
    )
    columns = ("encoder", "start", "steps", "right", "search alone / one encoding alone", "p (McNemar)", "seconds a task")
    return "Latent search on unseen compositions", columns, rows, [record["provenance"] | {"seed": "of the runs"}]


RECORDS: dict[str, Callable[[Record], Section]] = {
    **LM_RECORDS,
    "bucketing": _bucketing,
    "data": _data,
    "evaluate": _evaluate,
    "rearc": _rearc,
    "kills": _kills,
    "shards": _shards,
    "latent_search": _latent_search,
    "color_embedding": _color_embedding,
    "precision": _precision,
    "sandbox": _sandbox,
    "scaling": _scaling,
    "train_step": _train_step,
    "encoders": _encoders,
    "phase1": _phase1,
    "control": _control,
}


def control_scores() -> dict[str, str]:
    """Of every encoder the best share of compositions that has a frozen twin of the same steps, layout and settings."""
    cells = [cell for file in _CONTROL_FILES for cell in read_object(ROOT / file, {"cells": list[dict]})["cells"]]
    by_twin = {(_settings(cell), cell["twin"]): cell for cell in cells if COMPOSED in cell["scores"]}
    best: dict[str, tuple[float, str]] = {}
    for (settings, twin), cell in by_twin.items():
        frozen = by_twin.get((settings, "frozen"))
        if twin == "trained" and frozen is not None:
            ours, theirs = (share(c["scores"][COMPOSED]["exact"]) for c in (cell, frozen))
            note = ", the baseline" if cell["encoder"] == BASELINE else ""
            optimizer = ", with Muon" if "trainer.optimizer=muon" in cell["overrides"] else ""
            text = f"{100 * ours.value:.1f} %, twin {100 * theirs.value:.1f} %{optimizer}{note}"
            best[cell["encoder"]] = max(best.get(cell["encoder"], (-1.0, "")), (ours.value, text))
    return {name: text for name, (_, text) in best.items()}


def _settings(cell: Record) -> tuple[Any, ...]:
    learned = learned_from(cell["overrides"])
    return (cell["encoder"], cell["layout"], cell["steps"], cell["batch_size"], cell["seed"], cell["train_source"], learned)
