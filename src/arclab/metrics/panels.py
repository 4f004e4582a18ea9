"""The experiment guide's four W&B panels, built from the registry, as plain values.

    spec = workspace_spec()                    # {"sections": [...]}, which workspace.json of every W&B run holds
    save_workspace(run, folder)

arclab.metrics.workspace makes real panels of them. Nothing here needs W&B or a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arclab.files import write_atomically
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


def workspace_text() -> str:
    """The specification as JSON."""
    return json.dumps(workspace_spec(), indent=1) + "\n"


def save_workspace(run: Any, folder: Path) -> Path:
    """workspace.json in the run folder and among the files of the W&B run."""
    path = folder / "workspace.json"
    # A file in W&B's own folder is sent as it stands; one elsewhere it links to, and warns of the link.
    copy = Path(run.dir) / path.name
    for place in (path, copy):
        write_atomically(place, workspace_text())
    run.save(str(copy), base_path=run.dir, policy="now")
    return path
