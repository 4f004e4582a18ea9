"""What the decoder is told about each puzzle of an evaluation: who reads its demonstrations.

    reading = ModelReader(model, max_demos, puzzle_rows, device).read(Puzzles(space, task_P, augmentation_P))

A solver takes any Reader, so that what reads otherwise (a search) shares its agenda, votes and resumption.
Shapes: P augmented puzzles, K demonstration slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from arclab.data.sampler import Batch, BatchPlan, IntArray, PuzzleSpace
from arclab.methods.recursive.model import Reading, RecursiveModel


@dataclass(frozen=True, slots=True)
class Puzzles:
    """Augmented puzzles: (task, augmentation) of each, in a space whose canvas they are rendered on."""

    space: PuzzleSpace
    task_P: IntArray
    augmentation_P: IntArray


class Reader(Protocol):
    """facts: names of the registered metrics that it has of each row that it reads, in the order of Reading.facts_BF; results
    have their means over predictions."""

    @property
    def facts(self) -> tuple[str, ...]: ...

    def read(self, puzzles: Puzzles) -> Reading:
        """Row p is what the decoder reads for puzzle p; it must not depend on the other puzzles."""
        ...


@dataclass(frozen=True, slots=True)
class ModelReader:
    """The model reads, once. puzzle_rows: task id -> first row of the task in a puzzle table; None for an encoder."""

    model: RecursiveModel
    max_demos: int
    puzzle_rows: dict[str, int] | None
    device: torch.device

    @property
    def facts(self) -> tuple[str, ...]:
        return ()

    def read(self, puzzles: Puzzles) -> Reading:
        return self.model.read(self.demonstrations(puzzles))

    def demonstrations(self, puzzles: Puzzles) -> Batch:
        """All demonstrations of each puzzle in file order, nothing translated, without a query; or the rows of a puzzle
        table."""
        space, task_P = puzzles.space, puzzles.task_P
        store = space.store
        slots = np.arange(min(self.max_demos, int(store.num_demos_T.max())) if self.puzzle_rows is None else 0)[None]
        demos_PK = np.where(slots < store.num_demos_T[task_P][:, None], store.first_pair_T[task_P][:, None] + slots, -1)
        offsets = np.zeros((len(task_P), 1 + slots.shape[1], 2), dtype=np.int64)
        plan = BatchPlan(task_P, puzzles.augmentation_P, np.full(len(task_P), -1), demos_PK, offsets)
        batch = space.render(plan, with_puzzle_ids=False)
        if self.puzzle_rows is not None:
            first = np.array([self.puzzle_rows[space.tasks[t].id] for t in task_P])
            batch.puzzle_id_B = torch.from_numpy(first + puzzles.augmentation_P)
        return batch.to(self.device)
