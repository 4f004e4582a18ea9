"""What a model is trained on at test time: the demonstrations of some tasks, never a test input or output.

    rows = DemonstrationRows(model, config, tasks, rule, seed)
    batch = rows.next(32)                  # random views of the tasks
    batch = rows.originals()               # every demonstration of every task once, as it is

An encoder gets leave-one-out questions; a task with one demonstration shows the one that it asks for. A puzzle table gets what
it is trained on: (row of the view, demonstration), translated
as in its run; its rows are those of the views that vote. All draws depend on the seed and the tasks alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from arclab.config.dataset_schema import Regime
from arclab.config.schema import CanvasRule, ExperimentConfig
from arclab.data.augment import ViewRule
from arclab.data.buckets import task_canvases
from arclab.data.sampler import Batch, BatchPlan, Cursor, IntArray, PuzzleSpace, TrainingData
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.leave_one_out import leave_one_out
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.solver.reader import ModelReader, Puzzles


class DemonstrationRows:
    """config: of the run, with the evaluation that is asked for. seed: of the draws; views are those of the run's seed."""

    def __init__(
        self, model: RecursiveModel, config: ExperimentConfig, tasks: Sequence[ArcTask], rule: ViewRule, seed: int
    ) -> None:
        self.is_table = config.dataset.regime is Regime.puzzle_id
        views = (config.evaluation if self.is_table else config.dataset).num_augmentations
        self.space = PuzzleSpace(tasks, views, config.seed, config.dataset.canvas, rule)
        self.data = TrainingData(self.space, config.dataset, self.space.store.num_demos_T)
        if config.trainer.canvas is CanvasRule.bucketed:  # the smallest that holds the demonstrations
            self.space.canvas = self.data.canvas = int(task_canvases(self.data).max())
        self._reader = ModelReader(model, config.dataset.max_demos, None, torch.device("cpu"))
        self._seed, self._number = seed, 0
        self._cursor = Cursor.first(seed)

    @property
    def shared_share(self) -> float:
        """Of the tasks: those with one demonstration, whose question shows it too. A puzzle table is shown none."""
        return 0.0 if self.is_table else float((self.space.store.num_demos_T == 1).mean())

    def next(self, num_rows: int) -> Batch:
        """The next batch, of random views."""
        if self.is_table:
            batch = self.data.batch(self._cursor, num_rows, 0, num_rows)
            self._cursor = self.data.next_cursor(self._cursor, num_rows)
            return batch
        rng = np.random.default_rng([self._seed, 5, self._number])
        self._number += 1
        task_P = rng.integers(len(self.space.tasks), size=num_rows)  # enough: each asks a question or more
        augmentation_P = (rng.random(num_rows) * self.space.num_augmentations_T[task_P]).astype(np.int64)
        asked_P = np.minimum(self.space.store.num_demos_T, self._reader.max_demos)[task_P]
        num_puzzles = int(asked_P.cumsum().searchsorted(num_rows)) + 1
        return self._questions(task_P[:num_puzzles], augmentation_P[:num_puzzles]).rows(0, num_rows)

    def originals(self) -> Batch:
        """Every demonstration of every task as a question, in the view that is the task itself."""
        task_P = np.arange(len(self.space.tasks))
        if not self.is_table:
            return self._questions(task_P, np.zeros_like(task_P))
        store = self.space.store
        task_B = np.repeat(task_P, store.num_demos_T)
        pair_B = np.flatnonzero(
            np.arange(store.num_pairs_T.sum()) < np.repeat(store.first_pair_T + store.num_demos_T, store.num_pairs_T)
        )
        corner = np.zeros((len(task_B), 1, 2), dtype=np.int64)
        plan = BatchPlan(task_B, np.zeros_like(task_B), pair_B, np.zeros((len(task_B), 0), dtype=np.int64), corner)
        return self.space.render(plan, with_puzzle_ids=True)

    def _questions(self, task_P: IntArray, augmentation_P: IntArray) -> Batch:
        return leave_one_out(self._reader.demonstrations(Puzzles(self.space, task_P, augmentation_P))).compact()
