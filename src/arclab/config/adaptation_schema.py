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


ADAPTATION_SCHEMAS: dict[str, type[AdaptationConfig]] = {"none": NoAdaptation, "latent": LatentSearchConfig}
