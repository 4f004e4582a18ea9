"""What evaluate.py takes: a checkpoint, and wishes that replace settings of its run (whose schema is schema.py).

Rules as in schema.py: fields have no defaults (values live in conf/evaluate.yaml), check(path) returns broken rules as
sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from arclab.config.rules import at_least, sized
from arclab.config.run import DeviceChoice
from arclab.config.schema import CanvasRule, EvalHalting, SplitName, VotesRule, WeightsKind


@dataclass(kw_only=True, slots=True)
class EvaluationWishes:
    """Keys of a run's evaluation that evaluate.py spells as the run does (a bare halting= would name the group of that
    name)."""

    halting: Optional[EvalHalting]
    votes: Optional[VotesRule]
    canvas: Optional[CanvasRule]


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Root of evaluate.py. null means: as the checkpoint's own run was configured."""

    checkpoint: str
    output_dir: Optional[str]
    weights: WeightsKind
    split: Optional[SplitName]
    num_augmentations: Optional[int]
    batch_size: Optional[int]
    max_tasks: Optional[int]
    evaluation: EvaluationWishes
    device: DeviceChoice
    num_threads: Optional[int]

    def check(self, path: str) -> list[str]:
        problems = sized(path, 0, num_augmentations=self.num_augmentations)
        problems += sized(path, 1, batch_size=self.batch_size, num_threads=self.num_threads)
        problems += [] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks)
        if not self.checkpoint:
            problems.append("checkpoint is empty; give checkpoint=RUN_FOLDER or checkpoint=RUN_FOLDER/checkpoints/step_N.")
        return problems
