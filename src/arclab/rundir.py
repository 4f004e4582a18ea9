"""One folder per run: <runs_dir>/<experiment_name>/<name>, without timestamps, so that the same command resumes in place.

config.yaml        the resolved configuration        provenance.json   command, commit, machine, versions, data notes
status.json        state, step, message              metrics.jsonl     one row per logged step
criterion.json     PASS or FAIL, if the run has one
checkpoints/       see arclab.training.checkpoint    evaluation/       results of evaluate.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, freeze, identity, thaw
from arclab.config.schema import ExperimentConfig


class State(Enum):
    running = "RUNNING"
    done = "DONE"
    failed = "FAILED"
    stopped = "STOPPED"  # by trainer.stop_when_unhealthy


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    def write_status(self, state: State, step: int, message: str = "") -> None:
        status = {"state": state.value, "step": step, "message": message, "time": time.time()}
        write_atomically(self.path / "status.json", json.dumps(status) + "\n")

    def read_status(self) -> dict[str, Any] | None:
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.is_file() else None


def write_atomically(path: Path, text: str) -> None:
    """The file has its old or its new content, never a part of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def run_path(config: ExperimentConfig) -> Path:
    return Path(config.runs_dir) / config.experiment_name / config.name


def open_run(config: ExperimentConfig, notes: tuple[str, ...]) -> RunDir:
    """The run's folder, created or found. ConfigError if it belongs to another configuration."""
    run = RunDir(run_path(config))
    if run.config.is_file():
        _require_same(run, config)
    else:
        run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.config, freeze(config))
    write_atomically(run.provenance, json.dumps({**provenance(), "notes": list(notes)}, indent=1) + "\n")
    return run


def _require_same(run: RunDir, config: ExperimentConfig) -> None:
    before, now = identity(thaw(run.config)), identity(config)
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if different:
        key = different[0]
        raise ConfigError(
            f"the run folder {run.path} was made with {key}={before.get(key)}, now {key}={now.get(key)} "
            f"({len(different)} keys differ); choose another name=, or remove the folder."
        )


def provenance() -> dict[str, Any]:
    """What a number needs to be traced: command, commit, machine and versions."""
    import torch

    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _git_commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _git_commit() -> str:
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed.strip() else "")
