"""The experiment guide's W&B dashboard as plain JSON: four panels, built from the registry.

    python -m arclab.metrics.workspace --output workspace.json

The W&B client has no import for such a file: add the four sections by hand in a manual workspace ("Add panel", line plot, the
names under y), or build them with the separate package wandb-workspaces, whose Section and LinePlot(x, y) have these fields.
Every W&B run also keeps the file (see save_workspace). Nothing here needs W&B or a network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.files import naming, write_atomically
from arclab.metrics.names import REGISTRY

# Section -> metrics, as in the guide; the first of a section is the one to look at.
PANELS: dict[str, tuple[str, ...]] = {
    "Success Metrics": ("train/exact_accuracy", "all.exact_accuracy", "ARC/pass@1"),
    "Encoder Health": ("train/encoder_cross_sample_var", "grad/encoder_norm", "grad/total_norm"),
    "Learning Dynamics": ("train/lm_loss", "train/q_halt_loss", "train/steps"),
    "Encoder Statistics": ("train/encoder_output_norm", "train/encoder_output_std", "train/encoder_token_std"),
}


def workspace_spec() -> dict[str, Any]:
    """{"sections": [{"name", "panels": [{"kind": "line", "title", "x", "y", "unit", "direction", "healthy"}]}]}."""
    return {"sections": [{"name": name, "panels": [_panel(y) for y in names]} for name, names in PANELS.items()]}


def _panel(name: str) -> dict[str, Any]:
    metric = REGISTRY[name]
    low, high = metric.healthy or (None, None)
    return {
        "kind": "line", "title": metric.meaning, "x": "_step", "y": [name], "unit": metric.unit, "direction": metric.direction,
        "healthy": {"low": low, "high": None if high == float("inf") else high},
    }  # fmt: skip


def save_workspace(run: Any, folder: Path) -> Path:
    """workspace.json in the run folder and among the files of the W&B run."""
    path = folder / "workspace.json"
    write_atomically(path, json.dumps(workspace_spec(), indent=1) + "\n")
    run.save(str(path), base_path=str(folder), policy="now")
    return path


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.metrics.workspace", description="Write the W&B panel specification as JSON."
    )
    parser.add_argument("--output", type=Path, help="a file; without it the JSON goes to standard output")
    output = parser.parse_args(argv).output
    text = json.dumps(workspace_spec(), indent=1) + "\n"
    if output is None:
        with naming("standard output"):
            sys.stdout.write(text)
    else:
        write_atomically(output, text)


if __name__ == "__main__":
    run_main(main)
