"""The W&B run of a training run: optional, offline without a key, the same id after every resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from arclab.config.compose import flat
from arclab.config.schema import ExperimentConfig, WandbMode
from arclab.files import write_atomically
from arclab.metrics.names import REGISTRY
from arclab.metrics.workspace import save_workspace


def wandb_mode(mode: WandbMode) -> str:
    """online, offline or disabled. auto is what WANDB_MODE says, else online where a key is set."""
    if mode is not WandbMode.auto:
        return mode.value
    wished = os.environ.get("WANDB_MODE", "")
    if wished in (WandbMode.online.value, WandbMode.offline.value, WandbMode.disabled.value):
        return wished
    has_key = bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in _netrc_text()
    return "online" if has_key else "offline"


def _netrc_text() -> str:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def start_wandb(config: ExperimentConfig, folder: Path, run_id: str) -> Any | None:
    """The started run, or None if disabled. Every registered metric is defined with its direction."""
    mode = wandb_mode(config.wandb.mode)
    if mode == "disabled":
        return None
    import wandb

    if not os.environ.get("WANDB_MODE", "-"):
        del os.environ["WANDB_MODE"]  # wandb refuses an empty one
    run = wandb.init(
        project=config.wandb.project, group=config.wandb.group, name=f"{config.experiment_name}/{config.name}", id=run_id,
        resume="allow" if mode == "online" else None, dir=folder, config=flat(config), mode=mode,  # pyright: ignore[reportArgumentType]
        settings=wandb.Settings(silent=True),
    )  # fmt: skip
    for metric in REGISTRY.values():
        summary = {"up": "max", "down": "min"}.get(metric.direction)
        # A dot would name a key within another: "all.steps" is a metric of its own.
        run.define_metric(metric.name.replace(".", "\\."), summary=f"{summary},last" if summary else "last")
    save_workspace(run, folder)
    # For the tracking sheet; url is null offline, where `wandb sync` makes one later.
    write_atomically(folder / "wandb.json", json.dumps({"id": run_id, "mode": mode, "url": run.url or None}) + "\n")
    return run
