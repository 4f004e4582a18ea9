"""The control table as pages: control.json (every record), control.md (the cells, and which encoders are done).

    print(write_table(Path("experiments/results"), new_records))

An encoder is done if, with its best layout, it answers at least 90 % of unseen colour maps, loses at least 50 points there
when demonstrations are swapped, and beats its frozen random twin by at least 20 points on compositions of a dihedral view
and a colour map. in_context compresses nothing, so its twin reads demonstrations as well as it does: it is the baseline of the
others and never done. It trains and scores nothing: experiments/control.py does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arclab.data.synthetic import parse_toy
from arclab.files import read_object, write_atomically
from arclab.results.scoring import Share
from arclab.runs.folder import short_commit

MIN_COLOR_MAP, MIN_SWAP_DROP, MIN_OVER_TWIN = 0.90, 0.50, 0.20
SIMPLE, COMPOSED = "color_map", "dihedral_color"
BASELINE = "in_context"
CRITERION = (
    f"at least {100 * MIN_COLOR_MAP:.0f} % of unseen colour maps, {100 * MIN_SWAP_DROP:.0f} points lost to swapped "
    f"demonstrations, {100 * MIN_OVER_TWIN:.0f} points over the frozen twin on compositions."
)
# Overrides that change how fast a cell is made and what is kept of it, not what it learns.
_SPEED_KEYS = {"trainer.num_threads", "trainer.num_workers", "trainer.device", "trainer.compile", "trainer.checkpoint_every",
               "trainer.health_every", "trainer.log_every"}  # fmt: skip
_HEAD = """# Control table

Exact answers on held-out toy tasks (n/N, 95 % Wilson interval), one seed, and in brackets the percentage points lost with the
demonstrations of another task of the family / with an empty context. A row is one run that learned its families together.
frozen: the encoder keeps its random weights. steps: optimiser steps x rows of each.
"""


def write_table(results: Path, cells: Sequence[dict[str, Any]]) -> str:
    """Merge cells into control.json by name and toy settings, write control.md beside it, and return the latter."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / "control.json"
    recorded = read_object(path, {"cells": list[dict]})["cells"] if path.is_file() else []
    by_key = {(c["name"], toy_settings(c["train_source"])): c for c in [*recorded, *cells]}
    merged = [by_key[key] for key in sorted(by_key)]
    write_atomically(path, json.dumps({"cells": merged}, indent=1) + "\n")
    text = markdown(merged)
    write_atomically(results / "control.md", text)
    return text


def share(record: dict[str, Any]) -> Share:
    return Share(record["n"], record["N"])


def drop(scores: dict[str, Any], ablated: str) -> float:
    """Share of tasks lost to the ablation `ablated`: swapped or zero_context."""
    return (scores["exact"]["n"] - scores[ablated]["n"]) / scores["exact"]["N"]


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Cells by the families they learned, then the verdict on each encoder and layout with both twins."""
    parts = [_HEAD]
    for families, settings in dict.fromkeys(_group(c) for c in cells):
        group = [c for c in cells if _group(c) == (families, settings)]
        parts += [f"## {', '.join(families)}", "", settings, "", *_cell_table(families, group), "", *_verdicts(group)]
    made = {
        f"{short_commit(c['provenance'])}, {c['provenance']['machine']}, {c['train_source']}, {' '.join(c['overrides'])}"
        for c in cells
    }
    return "\n".join([*parts, "Made with `python -m experiments.control`:", *(f"- {m}" for m in sorted(made)), ""])


def toy_settings(source: str) -> str:
    """What the grids of a source look like, in words."""
    toy = parse_toy(source)
    return f"Side {toy.side}, {toy.colors} colours into {toy.palette}, {toy.demos} demonstrations."


def learned_from(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that change what a cell learns."""
    return tuple(sorted(o for o in overrides if o.partition("=")[0] not in _SPEED_KEYS))


def _group(cell: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Families and toy settings: cells are compared only if they learned the same."""
    return tuple(cell["scores"]), toy_settings(cell["train_source"])


def _cell_table(families: Sequence[str], cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    columns = ("encoder", "layout", "twin", *families, "parameters", "steps", "steps/s", "s")
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for c in cells:
        scores = [
            f"{share(s['exact'])} ({100 * drop(s, 'swapped'):.1f} / {100 * drop(s, 'zero_context'):.1f})"
            for s in c["scores"].values()
        ]
        values = [c["encoder"], c["layout"], c["twin"], *scores, f"{c['parameters']:,}", f"{c['steps']} x {c['batch_size']}",
                  f"{c['steps_per_s']:.1f}", f"{c['seconds']:.0f}"]  # fmt: skip
        yield "| " + " | ".join(values) + " |"


def _verdicts(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    twins = {
        (c["encoder"], c["layout"], c["steps"], c["batch_size"], c["seed"], learned_from(c["overrides"]), c["twin"]): c[
            "scores"
        ]
        for c in cells
    }
    pairs = [(key, scores, twins.get((*key[:-1], "frozen"))) for key, scores in twins.items() if key[-1] == "trained"]
    for (encoder, layout, steps, rows, *_), trained, frozen in pairs:
        if {SIMPLE, COMPOSED} <= trained.keys() and frozen is not None:
            yield f"- {encoder}, {layout}, {steps} x {rows}: {verdict(trained, frozen, is_baseline=encoder == BASELINE)}"
    yield ""


def verdict(trained: dict[str, Any], frozen: dict[str, Any], is_baseline: bool = False) -> str:
    """DONE, or OPEN with every number that falls short. What compresses nothing is BASELINE: all but the distance from its twin
    counts."""
    simple, swap = share(trained[SIMPLE]["exact"]).value, drop(trained[SIMPLE], "swapped")
    ours, theirs = trained[COMPOSED]["exact"], frozen[COMPOSED]["exact"]
    over_twin = (ours["n"] - theirs["n"]) / ours["N"]  # of the same tasks: exact at the limit
    measured = (
        (simple, MIN_COLOR_MAP, "% of unseen colour maps"),
        (swap, MIN_SWAP_DROP, "points lost to swapped demonstrations"),
        (over_twin, MIN_OVER_TWIN, "points over the frozen twin on compositions"),
    )
    needed = measured[:-1] if is_baseline else measured
    short = [f"{100 * value:.1f} {what} (needs {100 * least:.0f})" for value, least, what in needed if value < least]
    reached = ", ".join(f"{100 * value:.1f} {what}" for value, _, what in measured)
    return f"OPEN: {'; '.join(short)}" if short else f"{'BASELINE' if is_baseline else 'DONE'}: {reached}"
