"""Writes the parts of the documents that follow from code and records, so that no number is copied by hand.

    python -m docs.tables            # rewrite what is not up to date
    python -m docs.tables --check    # exit status 1, with the names, if something is not

A generated part stands between <!-- begin: NAME (python -m docs.tables) --> and <!-- end: NAME -->. Metrics come from the
registry (arclab.metrics.names), results from benchmarks/results and experiments/results, encoders from conf/encoder and the
records. It measures nothing. What is written between the marks by hand is lost.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from arclab.config.compose import CONF_DIR
from arclab.files import read_object, read_text, write_atomically
from arclab.metrics.names import REGISTRY, Metric
from docs.records import control_scores, results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_PART = re.compile(r"(<!-- begin: (?P<name>\w+) \(python -m docs\.tables\) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)

# What an encoder's idea comes from; the others are of this project or of ETRM.
PAPERS = {
    "recurrent_trm": "[TRM](https://arxiv.org/abs/2510.04871)",
    "lpn": "[LPN](https://arxiv.org/abs/2411.08706)",
    "lpn_variational": "[LPN](https://arxiv.org/abs/2411.08706), [VAE](https://arxiv.org/abs/1312.6114)",
    "hybrid": "[LPN](https://arxiv.org/abs/2411.08706) in part",
    "hybrid_variational": "[LPN](https://arxiv.org/abs/2411.08706) in part, [VAE](https://arxiv.org/abs/1312.6114)",
    "variational": "[VAE](https://arxiv.org/abs/1312.6114)",
    "set_transformer": "[Set Transformer](https://arxiv.org/abs/1810.00825)",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is not up to date")
    is_check = parser.parse_args().check
    pages = outdated()
    for path, text in pages.items():
        if not is_check:
            write_atomically(path, text)
        sys.stdout.write(f"{path.relative_to(ROOT)} {'is not up to date' if is_check else 'written'}\n")
    return int(is_check and bool(pages))


def outdated() -> dict[Path, str]:
    """{page: what it should be} of the pages that are not up to date. KeyError: a part that nobody makes."""
    found = {}
    for path in sorted(DOCS.rglob("*.md")):
        text = read_text(path)
        fresh = _PART.sub(lambda match: match[1] + PARTS[match["name"]]() + match[3], text)
        if fresh != text:
            found[path] = fresh
    return found


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def metrics() -> str:
    return table(("name", "unit", "direction", "healthy", "meaning"), (_metric_row(metric) for metric in REGISTRY.values()))


def _metric_row(metric: Metric) -> tuple[str, ...]:
    low, high = metric.healthy or (None, None)
    healthy = "" if low is None else f"at least {low:g}" if high in (1, float("inf")) else f"{low:g} to {high:g}"
    direction = "" if metric.direction == "none" else metric.direction
    return f"`{metric.name}`", metric.unit, direction, healthy, metric.meaning.replace("|", "\\|")


def encoders() -> str:
    """One row each: idea, paper, parameters, cost of a training step beside standard, share of compositions in the control."""
    record = read_object(ROOT / "benchmarks/results/encoders.json", {"encoders": dict})
    control = control_scores()
    rows = (
        (
            f"`{name}`",
            _idea(name),
            PAPERS.get(name, ""),
            f"{figures['parameters']['quickstart']:,}",
            f"{figures['parameters']['published']:,}",
            f"{figures['times_standard']:.2f}",
            control.get(name, "not run"),
        )
        for name, figures in record["encoders"].items()
    )
    columns = ("encoder", "idea", "paper", "parameters, quickstart", "parameters, published size", "step", "control")
    return table(columns, rows)


def _idea(name: str) -> str:
    """The comment at the head of the encoder's file, without its full stop."""
    return read_text(CONF_DIR / "encoder" / f"{name}.yaml").splitlines()[0].removeprefix("# ").rstrip(".")


PARTS: dict[str, Callable[[], str]] = {"metrics": metrics, "encoders": encoders, "results": results}

if __name__ == "__main__":
    sys.exit(main())
