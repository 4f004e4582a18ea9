"""A small folder of a finished run to hand on: averaged weights without the optimiser's state, and the record of its scores.

    python -m arclab.methods.recursive.release RUN OUT [--control RUN]
    python evaluate.py checkpoint=OUT                     # as of any run; its results go to runs/released/, OUT stays as it is

OUT is a run folder: config.yaml, provenance.json, status.json, metrics.jsonl, checkpoints/step_*/ (averaged weights, training
tasks), evaluation/ (what evaluate.py made of these weights, with its page) and release.json: command, commit, machine, seed,
and every score as n/N with its 95 % interval, beside that of a control on the same tasks: a run that shows what the score is
worth, such as one with a frozen encoder. Predictions are those of the run. A release cannot be trained further; another run
takes its decoder with decoder_init=pretrained decoder_init.path=OUT.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, run_main
from arclab.config.evaluate_schema import RELEASE_FILE
from arclab.config.schema import WeightsKind
from arclab.data.record import TASKS_FILE
from arclab.files import naming, write_atomically
from arclab.methods.recursive.saved import WEIGHT_FILES, TrainedRun
from arclab.results.reading import Run, ScoredSplit, read_runs
from arclab.runs.checkpoints import CheckpointFolder, checked_file, save_tensors
from arclab.runs.folder import State

MAX_BYTES = 5_000_000  # of the whole folder: it is kept in git
_COPIED = ("config.yaml", "provenance.json", "status.json", "metrics.jsonl", "criterion.json")
_COPIED_SCORES = ("metrics.json", "predictions.jsonl", "report.html")
_TRACED = ("command", "commit", "machine", "started")
_KEPT_STATE = ("step", "settings", "stamps")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.methods.recursive.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run that evaluate.py has scored")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; it must not exist")
    parser.add_argument("--control", type=Path, metavar="RUN", help="a run scored on the same tasks, to compare with")
    arguments = parser.parse_args(argv)
    record = release(arguments.run, arguments.out, arguments.control)
    lines = [
        f"{s['split']}: {s['metric']} {s['text']}; control: {(s['control'] or {}).get('text', 'none')}"
        for s in record["scores"]
    ]
    with naming("standard output"):
        sys.stdout.write("\n".join([*lines, f"{arguments.out}: {_size(arguments.out) / 1e6:.1f} MB"]) + "\n")


def release(folder: Path, out: Path, control: Path | None = None) -> dict[str, Any]:
    """Make the folder and return what is in its release.json. ConfigError: nothing was written."""
    trained = TrainedRun.open(folder)
    if out.exists():
        raise ConfigError(f"{out} exists already; give a folder that does not, or remove it first.")
    if trained.run.state is not State.done:
        raise ConfigError(f"{folder} is not DONE; let it end (the same command continues it) before it is released.")
    run, *others = read_runs([trained.run.path, *([control] if control else [])])
    splits = [split for split in run.splits if _is_of(split, trained)]
    if not splits:
        raise ConfigError(
            f"{folder} has no scores of its averaged weights at step {trained.state['step']}; first run python evaluate.py "
            f"checkpoint={folder}"
        )
    record = _record(trained, run, splits, others[0] if others else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".new-") as beside:
        made = Path(beside) / out.name
        _write(trained, splits, record, made)
        if (size := _size(made)) > MAX_BYTES:
            raise ConfigError(
                f"{out} would have {size / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:.0f} MB of a release; release a smaller "
                "model, or one with fewer training tasks."
            )
        made.rename(out)
    return record


def _is_of(split: ScoredSplit, trained: TrainedRun) -> bool:
    return (split.record.get("step"), split.record.get("weights")) == (trained.state["step"], WeightsKind.ema.value)


def _record(trained: TrainedRun, run: Run, splits: Sequence[ScoredSplit], control: Run | None) -> dict[str, Any]:
    return {
        "run": "/".join(trained.config.title),
        "step": trained.state["step"],
        "weights": WeightsKind.ema.value,
        "seed": trained.config.seed,
        **{key: run.provenance.get(key) for key in _TRACED},
        "scores": [_scores(split, control) for split in splits],
    }


def _scores(split: ScoredSplit, control: Run | None) -> dict[str, Any]:
    """How the run did on a split, and how the control did on the same tasks. ConfigError: it has no such scores."""
    found = None if control is None else _same_tasks(split, control)
    return {
        "split": split.split,
        "metric": "ARC/solved@2",
        **_score(split),
        "swap_drop": split.statistics.get("encoder/swap_drop"),
        "stamps": list(split.record.get("stamps", [])),
        "control": None if found is None or control is None else {**_traced(control), **_score(found)},
    }


def _same_tasks(split: ScoredSplit, control: Run) -> ScoredSplit:
    digest = split.record.get("tasks_digest")
    found = [other for other in control.splits if digest is not None and other.record.get("tasks_digest") == digest]
    if not found:
        raise ConfigError(
            f"the control {control.path} is not scored on the tasks of {split.name}; run python evaluate.py "
            f"checkpoint={control.path} split={split.split}, or leave --control away."
        )
    return found[0]


def _traced(run: Run) -> dict[str, Any]:
    return {"run": run.label, **{key: run.provenance.get(key) for key in _TRACED}}


def _score(split: ScoredSplit) -> dict[str, Any]:
    share = split.shares["ARC/solved@2"]
    return {"n": share.n, "N": share.total, "interval95": list(share.interval), "text": str(share)}


def _write(trained: TrainedRun, splits: Sequence[ScoredSplit], record: dict[str, Any], out: Path) -> None:
    folder = CheckpointFolder(out / "checkpoints", keep_last=1)
    temporary = folder.begin(trained.state["step"])
    save_tensors(trained.tensors(WeightsKind.ema), temporary / WEIGHT_FILES[1])
    if TASKS_FILE in trained.state["files"]:
        _copy(checked_file(trained.checkpoint, TASKS_FILE, trained.state), temporary / TASKS_FILE)
    folder.commit(temporary, {**{key: trained.state.get(key) for key in _KEPT_STATE}, "is_release": True})
    run = trained.run.path
    for source in (run / name for name in _COPIED):
        if source.is_file():
            _copy(source, out / source.name)
    for source in (run / "evaluation" / split.name / name for split in splits for name in _COPIED_SCORES):
        if source.is_file():
            _copy(source, out / source.relative_to(run))
    write_atomically(out / RELEASE_FILE, json.dumps(record, indent=1) + "\n")


def _copy(source: Path, target: Path) -> None:
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run_main(main)
