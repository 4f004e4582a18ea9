"""What evaluate.py solver=ensemble takes: finished results, and how their candidates are merged.

Rules as in schema.py: fields have no defaults (values live in conf/evaluate_ensemble.yaml), check(path) returns broken rules as
sentences. What is in the folders is checked when it runs: in a job file they may still have to be made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.launch_schema import LaunchConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import sized
from arclab.config.run import EvaluationConfig

ENSEMBLE = "ensemble"


class MergeRule(Enum):
    """What a candidate gets from each member that has it. votes: its share of the member's votes. confidence: the probability
    that it is right, calibrated on other results of the member. rank: 1 / its place."""

    votes = "votes"
    confidence = "confidence"
    rank = "rank"


@dataclass(kw_only=True, slots=True)
class EvaluateEnsembleConfig(EvaluationConfig):
    """Root of evaluate.py solver=ensemble. members: folders with metrics.json. weights: one for each member; null: all equal.
    calibration: of each member a result on other tasks, in the order of members. The folder is <runs_dir>/ensemble/<name>, or
    output_dir; name null: the rule, and a digest of what is merged."""

    FREE_KEYS: ClassVar[tuple[str, ...]] = ("launch.", "num_threads", "output_dir")

    members: list[str]
    merge: MergeRule
    weights: Optional[list[float]]
    calibration: Optional[list[str]]
    name: Optional[str]
    runs_dir: str
    output_dir: Optional[str]
    num_threads: Optional[int]
    launch: LaunchConfig

    @property
    def title(self) -> tuple[str, str]:
        return ENSEMBLE, self._name

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) if self.output_dir else Path(self.runs_dir) / ENSEMBLE / self._name

    @property
    def _name(self) -> str:
        merged = json.dumps([self.members, self.weights, self.calibration])
        return self.name or f"{self.merge.value}_{hashlib.sha256(merged.encode()).hexdigest()[:8]}"

    def inputs(self) -> dict[str, Path]:
        given = {"members": self.members, "calibration": self.calibration or []}
        return {f"{key}[{number}]": Path(path) for key, paths in given.items() for number, path in enumerate(paths)}

    def check(self, path: str) -> list[str]:
        problems = [*_broken_paths("members", self.members), *_broken_paths("calibration", self.calibration or [])]
        if len(self.members) < 2:
            problems.append(
                f"members={_text(self.members)} is too few: an ensemble merges at least two results; give "
                "members=[RESULT,RESULT,...], folders with metrics.json."
            )
        problems += [*self._broken_weights(), *self._broken_calibration(), *sized(path, 1, num_threads=self.num_threads)]
        problems += [] if self.name is None else broken_name("name", self.name)
        problems += broken_path("runs_dir", self.runs_dir)
        if self.launch.num_ranks > 1:
            problems.append(
                f"launch asks for {self.launch.num_ranks} ranks, and solver={ENSEMBLE} runs in one process; set launch.gpus "
                "and launch.cpus to 0 or 1, and launch.nodes=1."
            )
        return problems

    def _broken_weights(self) -> Iterator[str]:
        weights = self.weights
        if weights is None:
            return
        if len(weights) != len(self.members):
            yield (
                f"weights={_text(weights)} has {len(weights)} numbers and members has {len(self.members)} results; give one "
                "weight for each member, or weights=null for equal ones."
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            yield f"weights={_text(weights)} must all be above 0 and finite; leave out a member that is to count nothing."

    def _broken_calibration(self) -> Iterator[str]:
        is_calibrated = self.merge is MergeRule.confidence
        if is_calibrated and not self.calibration:
            yield (
                "merge=confidence has nothing to calibrate on; give calibration=[RESULT,...], for each member its result on "
                "other tasks with known answers (split=validation, say), or choose merge=votes or merge=rank."
            )
        elif not is_calibrated and self.calibration is not None:
            yield f"calibration is for merge=confidence, and merge={self.merge.value}; drop calibration, or change merge."
        elif self.calibration and len(self.calibration) != len(self.members):
            yield (
                f"calibration has {len(self.calibration)} results and members has {len(self.members)}; give one for each "
                "member, in their order."
            )


def _broken_paths(key: str, paths: Sequence[str]) -> Iterator[str]:
    """A path that is empty or cannot go to sbatch, and a result that is given twice."""
    seen: dict[str, str] = {}
    for each in paths:
        yield from broken_path(key, each)
        first = seen.get(os.path.realpath(each))
        seen[os.path.realpath(each)] = each
        if first is not None:
            same = f"{each} twice" if first == each else f"{first} and {each}, which are the same folder"
            yield f"{key} has {same}; give each result once (weights make one count more)."


def _text(values: Sequence[object]) -> str:
    return f"[{','.join(map(str, values))}]"
