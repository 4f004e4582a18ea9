"""The group `adaptation` of evaluate.py: what a trained model may change for each scored task before it answers.

    ADAPTATION_SCHEMAS["latent"]         # the class of its configuration

Rules as in schema.py: fields have no defaults (values live in conf/adaptation/*.yaml), check(path) returns broken rules as
sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from arclab.config.rules import at_least, sized, within


class LatentStart(Enum):
    """Where a search starts. encoder: the context of the task's demonstrations. The others are controls: zeros; noise of the
    same size (gaussian); the context of the next scored task (other_task)."""

    encoder = "encoder"
    zeros = "zeros"
    gaussian = "gaussian"
    other_task = "other_task"


class SearchLoss(Enum):
    """What a search lowers: the loss of each demonstration's output. shared: one latent, read from all of them, must explain
    each. leave_one_out: one offset is added to the contexts of all but one, and each must explain the one left out."""

    shared = "shared"
    leave_one_out = "leave_one_out"


class SearchOptimizer(Enum):
    adam = "adam"
    sgd = "sgd"


@dataclass(kw_only=True, slots=True)
class AdaptationConfig:
    """`kind` picks the schema."""

    kind: str

    @property
    def stamp(self) -> str:
        """What every result must say of it; "" for nothing."""
        return ""

    @property
    def wanted_wins(self) -> float | None:
        """The share of the tasks that the adapted model or the plain one alone solves, which the adapted one must reach; None:
        they are not compared."""
        return None


@dataclass(kw_only=True, slots=True)
class NoAdaptation(AdaptationConfig):
    """The model answers as it is."""

    kind: str = "none"


@dataclass(kw_only=True, slots=True)
class LatentSearchConfig(AdaptationConfig):
    """The context is moved by gradient steps on the task's demonstrations; the weights stay as they are.

    Lengths are in units of the root mean square of the context's numbers: lr (of a step), sigma (of the noise that each of
    num_starts but the first begins with), max_offset (how far the result may be from its start; null: anywhere). unroll: how
    many supervision steps the loss sees. batch_size: predicted demonstrations at once. min_wins: a share; tasks are then also
    answered without a search, and criterion.json says whether so many of those that one of the two alone solves are the
    searched one's.
    """

    steps: int
    start: LatentStart
    loss: SearchLoss
    optimizer: SearchOptimizer
    lr: float
    max_offset: Optional[float]
    num_starts: int
    sigma: float
    unroll: int
    batch_size: int
    min_wins: Optional[float]

    @property
    def wanted_wins(self) -> float | None:
        return self.min_wins

    @property
    def stamp(self) -> str:
        return f"the context of every task was searched on its demonstrations: {self.steps} steps from start={self.start.value}"

    def check(self, path: str) -> list[str]:
        limit = {} if self.max_offset is None else {"max_offset": self.max_offset}
        wins = {} if self.min_wins is None else {"min_wins": self.min_wins}
        problems = [
            *at_least(path, 0, steps=self.steps),
            *at_least(path, 1, num_starts=self.num_starts, unroll=self.unroll),
            *within(path, 0.0, 100.0, sigma=self.sigma, lr=self.lr, **limit),
            *within(path, 0.0, 1.0, **wins),
            *sized(path, 1, batch_size=self.batch_size),
        ]
        if self.num_starts > 1 and self.sigma == 0:
            problems.append(
                f"{path}.num_starts={self.num_starts} would search from the same place again with {path}.sigma=0; set "
                f"{path}.sigma above 0 or {path}.num_starts=1."
            )
        return problems


class ShownTask(Enum):
    """Whose demonstrations a model is trained on before it answers a task: the task's own, or those of the next scored task (a
    control)."""

    own = "own"
    other_task = "other_task"


class TableStart(Enum):
    """The vectors that a task gets which a puzzle table does not know: the mean of all known ones, zeros, or noise of their
    size."""

    mean = "mean"
    zeros = "zeros"
    gaussian = "gaussian"


class WeightParts(Enum):
    """Which weights are trained. encoder: with its adapter. A puzzle table's vectors are trained in any case."""

    all = "all"
    decoder = "decoder"
    encoder = "encoder"


@dataclass(kw_only=True, slots=True)
class WeightAdaptationConfig(AdaptationConfig):
    """The model is trained on the demonstrations of each task before it answers it, and set back after it; joint: on those of
    all scored tasks together, once.

    steps: optimiser steps for each task (joint: in all), of rows_per_step demonstrations in random views. table_lr: learning
    rate of a puzzle table's vectors; null: that of the run. start: see TableStart. min_wins: see LatentSearchConfig.
    """

    steps: int
    rows_per_step: int
    table_lr: Optional[float]
    start: TableStart
    demonstrations: ShownTask
    joint: bool
    min_wins: Optional[float]

    @property
    def wanted_wins(self) -> float | None:
        return self.min_wins

    @property
    def weights_lr(self) -> float | None:
        """Of encoder and decoder; None: as in the run."""
        return None

    @property
    def stamp(self) -> str:
        tasks = "all scored tasks together" if self.joint else "each scored task"
        whose = {ShownTask.own: f"the demonstrations of {tasks}", ShownTask.other_task: "those of another task (a control)"}
        what = {"embeddings": "the vectors of the table", "lora": "low-rank adapters"}.get(self.kind, "the model")
        joint = " (transductive over them)" if self.joint else ""
        return f"{what} trained at test time on {whose[self.demonstrations]}{joint}: {self.kind}, {self.steps} steps"

    def check(self, path: str) -> list[str]:
        rates = {name: rate for name in ("table_lr", "lr") if (rate := getattr(self, name, None)) is not None}
        wins = {} if self.min_wins is None else {"min_wins": self.min_wins}
        problems = [
            *at_least(path, 0, steps=self.steps),
            *sized(path, 1, rows_per_step=self.rows_per_step),
            *within(path, 0.0, 1.0, **rates, **wins),
        ]
        if self.joint and self.demonstrations is ShownTask.other_task:
            problems.append(
                f"{path}.joint=true trains on all scored tasks, which leaves no other task for "
                f"{path}.demonstrations=other_task; drop one of them."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class WeightsConfig(WeightAdaptationConfig):
    """Weights are trained, and with them the vectors of a puzzle table. lr: null is that of the run."""

    lr: Optional[float]
    parts: WeightParts

    @property
    def weights_lr(self) -> float | None:
        return self.lr


@dataclass(kw_only=True, slots=True)
class LowRankConfig(WeightsConfig):
    """Low-rank adapters of this rank on the linear layers of the parts; the weights below them stay as they are."""

    rank: int

    def check(self, path: str) -> list[str]:
        return [*WeightsConfig.check(self, path), *sized(path, 1, rank=self.rank)]


@dataclass(kw_only=True, slots=True)
class StagedAdaptationConfig(WeightAdaptationConfig):
    """The vectors of a puzzle table alone for this share of the steps, then everything."""

    lr: Optional[float]
    share: float

    @property
    def weights_lr(self) -> float | None:
        return self.lr

    def check(self, path: str) -> list[str]:
        return [*WeightAdaptationConfig.check(self, path), *within(path, 0.0, 1.0, share=self.share)]


ADAPTATION_SCHEMAS: dict[str, type[AdaptationConfig]] = {
    "none": NoAdaptation,
    "latent": LatentSearchConfig,
    "embeddings": WeightAdaptationConfig,
    "lora": LowRankConfig,
    "weights": WeightsConfig,
    "embeddings_then_weights": StagedAdaptationConfig,
}
