"""Methods that improve themselves in rounds: a stage is a run that reads files and writes files, stage=round chains them.

    def collect(config, ranks, signals, folder):              # a stage, with the life of a run
        return make_stage(config, ranks, signals, folder, {"policy": path}, num_items, work)

    exit_status = run_stages(config, given, {"collect": collect, ...}, conclude)

A stage's folder has what every run folder has, and manifest.json: its settings, the digests of what it read and wrote, seeds,
counts. A finished stage is left alone; the same command says so, and refuses where a file it was made from has changed since.
A stage that trains (arclab.lm.training) writes its manifest with write_manifest when it is done.

Nothing here knows a method. Ranks: only the first writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from arclab.config.compose import ConfigError, identity
from arclab.config.stages_schema import StagedConfig
from arclab.files import naming, read_object, write_atomically
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import OwnFolder, RecordFailure, RunFolder, WorkProgress, in_ranks, until_told
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_HASHED_AT_ONCE = 1 << 20
C = TypeVar("C", bound=StagedConfig)
Stage = Callable[[C, Ranks, StopSignals, RunFolder], State]
Conclude = Callable[[C, RunDir], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a stage has made. outputs: files of its folder that others read. counts: {what: how many}. message: for DONE.
    isolation: of the sandbox, where programs were run."""

    outputs: Sequence[Path]
    counts: Mapping[str, float]
    message: str
    isolation: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def run_stages(config: C, given: RunDir | None, stages: Mapping[str, Stage[C]], conclude: Conclude[C]) -> int:
    """Run the stage that the configuration names, or all of them; the exit status. conclude: called on rank 0 once all rounds
    are made, returns DONE's message."""

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        if config.is_whole:
            return _all_rounds(config, ranks, signals, folder, stages, conclude)
        return stages[config.stage.value](config, ranks, signals, folder)

    return in_ranks(work, config, given, config.device, config.num_threads)


def _all_rounds(
    config: C, ranks: Ranks, signals: StopSignals, folder: RunFolder, stages: Mapping[str, Stage[C]], conclude: Conclude[C]
) -> State:
    run = folder.run
    with folder.building(), folder.held(config, ()) as is_finished:
        if is_finished:
            return State.done
        with RecordFailure(run):
            progress = WorkProgress(run, ranks, signals, len(config.order))

            def work() -> str:
                for number, (stage, turn) in enumerate(config.order):
                    progress.report(number)
                    _one_stage(config.at(stage, turn), ranks, signals, run, stages[stage], progress)
                return conclude(config, run) if ranks.is_main else ""

            return until_told(run, ranks, progress, work)


def _one_stage(
    config: C, ranks: Ranks, signals: StopSignals, outer: RunDir, stage: Stage[C], progress: WorkProgress
) -> None:  # fmt: skip
    """ToldToEnd: it was told to end, and has kept what it had."""
    where = f"{config.stage.value} of round {config.round}"
    if progress.is_told:
        raise ToldToEnd(f"{where} is next")
    log.info("%s", where)
    state = stage(config, ranks, signals, OwnFolder(RunDir(config.folder, outer), ranks))
    if state is State.preempted:
        raise ToldToEnd(f"{where} is not finished")


def make_stage(
    config: StagedConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder, inputs: Mapping[str, Path], num_items: int,
    work: Callable[[RunDir, WorkProgress], Made],
) -> State:  # fmt: skip
    """A stage that does not train. inputs: {key: file} of what it reads. work: returns what it made, or raises ToldToEnd once
    its progress says so and everything is kept. ConfigError: an input is missing, or is another one than the finished stage was
    made from."""
    run = folder.run
    with folder.building():
        require_inputs(config, inputs)
        with folder.held(config, ()) as is_finished:
            if is_finished:
                require_same_inputs(run, inputs)
                return State.done
            with RecordFailure(run):
                progress = WorkProgress(run, ranks, signals, num_items)

                def whole() -> str:
                    made = work(run, progress)
                    if ranks.is_main:
                        write_manifest(config, run, inputs, made)
                    return made.message

                return until_told(run, ranks, progress, whole)


def require_inputs(config: StagedConfig, inputs: Mapping[str, Path]) -> None:
    """ConfigError: a file is not there, its stage has not finished, or it is not what that stage has written."""
    for key, path in inputs.items():
        if not path.is_file():
            made_by = path.parent.name if path.parent.name in config.STAGES else None
            remedy = f"run stage={made_by} first" if made_by else f"give {key} a file that is there"
            raise ConfigError(f"stage={config.stage.value} needs {path}, which does not exist; {remedy}.")
        manifest = path.parent / MANIFEST
        if path.parent.name in config.STAGES and not manifest.is_file():
            raise ConfigError(
                f"stage={config.stage.value} needs {path}, whose stage has not finished; run stage={path.parent.name} "
                f"round={path.parent.parent.name.removeprefix('round_')} to its end first."
            )
        known = read_object(manifest).get("outputs", {}) if manifest.is_file() else {}
        if path.name in known and known[path.name] != digest(path):
            raise ConfigError(
                f"{path} has been changed since its stage wrote it ({MANIFEST} has another digest); restore it, or remove "
                f"{path.parent} and make it again."
            )


def require_same_inputs(run: RunDir, inputs: Mapping[str, Path]) -> None:
    """ConfigError: the finished stage was made from other files."""
    before = read_object(run.path / MANIFEST).get("inputs", {})
    for key, path in inputs.items():
        if key in before and before[key]["sha256"] != digest(path):
            raise ConfigError(
                f"{run.path} was made from another {path}, which has changed since; remove {run.path} to make it again."
            )


def write_manifest(config: StagedConfig, run: RunDir, inputs: Mapping[str, Path], made: Made) -> None:
    """manifest.json of a finished stage."""
    record: dict[str, Any] = {
        "stage": config.stage.value,
        "round": config.round,
        "seed": config.seed,
        "counts": dict(made.counts),
        "isolation": made.isolation,
        "inputs": {key: {"path": str(path), "sha256": digest(path)} for key, path in inputs.items()},
        "outputs": {path.name: digest(path) for path in made.outputs},
        "notes": list(made.notes),
        "settings": identity(config),
        "provenance": provenance(),
    }
    write_atomically(run.path / MANIFEST, json.dumps(record, indent=1) + "\n")


def read_counts(folder: Path) -> dict[str, float]:
    """The counts of a finished stage; empty if it has no manifest."""
    path = folder / MANIFEST
    return dict(read_object(path, {"counts": dict})["counts"]) if path.is_file() else {}


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    found = hashlib.sha256()
    with naming(path), path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            found.update(piece)
    return found.hexdigest()
