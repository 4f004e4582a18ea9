"""Adapting a trained model to the tasks that are scored: to each by itself, from the same weights, or to all of them together.

    adapter = TaskAdapter(model, config, wanted, scored, rows_of_table, rule, first_step=1000, ranks=ranks)
    with adapter.adapted(task):                # within the block the model is adapted to this task
        adapter.figures                        # {"adapt/loss_before": ..., "adapt/loss_after": ..., "adapt/seconds": ...}
    with adapter.adapted_jointly():            # to all scored tasks together
        ...
    reader = AdaptedReader(plain, adapter)     # reads as the plain one, with these figures as its facts

A puzzle table is exchanged for one of the scored tasks alone. A task that the table was trained on starts from its own vectors;
the vectors of another one start as wanted.start says. What is drawn depends on the seed of the run and the task alone, so
neither order nor ranks change a result. Shapes: N rows of a table, D width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arclab.config.adaptation_schema import (
    AdaptationConfig,
    ShownTask,
    TableStart,
    WeightAdaptationConfig,
    WeightParts,
    WeightsConfig,
)
from arclab.config.encoder_schema import PuzzleTableConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.augment import ViewRule
from arclab.data.sampler import PuzzleSpace
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.adaptation.rows import DemonstrationRows
from arclab.methods.recursive.adaptation.training import FIGURES, train
from arclab.methods.recursive.model import PuzzleTable, Reading, RecursiveModel
from arclab.methods.recursive.solver.reader import ModelReader, Puzzles
from arclab.methods.recursive.training.step import noise_generator
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks

FIRST_ROW = 1  # of the only task in a table of its own: row 0 is the blank one


class TaskAdapter:
    """scored: all tasks of the evaluation. trained_rows: {id: first row} of those that the model's puzzle table was trained on;
    rule: the one that its views were made by. first_step: how far the run was trained. before_step: may raise ToldToEnd, with
    which an adaptation ends. With no steps to take, all tasks share a table that nobody trains: tasks need not take turns."""

    def __init__(
        self, model: RecursiveModel, config: ExperimentConfig, wanted: WeightAdaptationConfig, scored: Sequence[ArcTask],
        trained_rows: Mapping[str, int], rule: ViewRule, *, first_step: int, ranks: Ranks,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._model, self._config, self._wanted, self._scored = model, config, wanted, scored
        self._trained_rows, self._rule, self._first_step, self._ranks = trained_rows, rule, first_step, ranks
        self._before_step = before_step
        self.is_joint = wanted.joint or wanted.steps == 0
        self._next = {task.id: scored[(n + 1) % len(scored)] for n, task in enumerate(scored)}
        self._weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._table = model.puzzle_table
        self.figures: dict[str, float] = {}

    @contextmanager
    def adapted(self, task: ArcTask) -> Iterator[None]:
        """The model is adapted to this task within the block, and after it what it was, bit for bit."""
        try:
            self._adapt(task)
            yield
        finally:
            self._reset()

    @contextmanager
    def adapted_jointly(self) -> Iterator[None]:
        """The same to all scored tasks, with one table for them all. Every rank does so, and gets what the first one found.
        ToldToEnd on every rank if one of them was told to end."""
        try:
            self._train_together()
            table = self._model.puzzle_table
            self._ranks.broadcast_([*self._model.parameters(), *(() if table is None else [table.weight])])
            yield
        finally:
            self._reset()

    def _train_together(self) -> None:
        """No rank leaves alone: the others would wait for it."""
        told = None
        try:
            self._train(self._scored)
        except ToldToEnd as error:
            told = error
        if any(self._ranks.gather_objects(told is not None)):
            raise ToldToEnd("the adaptation to all tasks together was not finished, and begins anew") from told

    def puzzle_rows(self) -> dict[str, int] | None:
        """{id: first row} in the table that the model has when it answers a task; None for an encoder."""
        if self._table is None:
            return None
        if not self.is_joint:
            return dict.fromkeys((task.id for task in self._scored), FIRST_ROW)
        views = self._rows(self._scored).space
        return {task.id: FIRST_ROW + int(first) for task, first in zip(views.tasks, views.first_augmentation_T, strict=True)}

    def _adapt(self, task: ArcTask) -> None:
        if self._wanted.demonstrations is ShownTask.own:
            self._train([task])
            return
        self._train([self._next[task.id]])
        if self._model.puzzle_table is not None:  # its vectors for this task's views: number by number
            table, views = self._model.puzzle_table.weight, self._rows([task]).space.num_puzzles - FIRST_ROW
            number_N = torch.arange(views, device=table.device) % (len(table) - FIRST_ROW)
            self._set_table(torch.cat([table[:FIRST_ROW], table[FIRST_ROW + number_N]]))

    def _rows(self, tasks: Sequence[ArcTask]) -> DemonstrationRows:
        return DemonstrationRows(self._model, self._config, tasks, self._rule, self._seed(tasks))

    def _seed(self, tasks: Sequence[ArcTask]) -> int:
        names = zlib.crc32("\n".join(task.id for task in tasks).encode())
        return int(np.random.SeedSequence([self._config.seed, names]).generate_state(1)[0])

    def _train(self, tasks: Sequence[ArcTask]) -> None:
        rows, seed = self._rows(tasks), self._seed(tasks)
        if self._table is not None:
            self._set_table(self._start(self._table.weight, rows.space, seed))
        self.figures = train(
            self._model, self._config, self._wanted, rows, seed=seed, first_step=self._first_step, device=self._ranks.device,
            before_step=self._before_step,
        )  # fmt: skip

    def _start(self, trained_ND: Tensor, space: PuzzleSpace, seed: int) -> Tensor:
        """The blank row, and one for each view of the tasks."""
        known_ND = trained_ND[FIRST_ROW:]
        parts = [trained_ND[:FIRST_ROW]]
        for task, views in zip(space.tasks, space.num_augmentations_T.tolist(), strict=True):
            if task.id in self._trained_rows:
                first = self._trained_rows[task.id]
                parts.append(trained_ND[first : first + views])
            else:
                parts.append(_new_rows(known_ND, views, self._wanted.start, (seed, zlib.crc32(task.id.encode()))))
        return torch.cat(parts)

    def _set_table(self, weight_ND: Tensor) -> None:
        table = PuzzleTable(0, weight_ND.shape[1])
        table.weight = weight_ND
        self._model.puzzle_table = table

    @torch.no_grad()
    def _reset(self) -> None:
        for name, parameter in self._model.named_parameters():
            parameter.copy_(self._weights[name])
            parameter.grad = None
        self._model.puzzle_table = self._table


@dataclass(frozen=True, slots=True)
class AdaptedReader:
    """The reader of an adapted model. facts: of the adaptation that the model has when it reads."""

    reader: ModelReader
    adapter: TaskAdapter

    @property
    def facts(self) -> tuple[str, ...]:
        return FIGURES

    def read(self, puzzles: Puzzles) -> Reading:
        reading = self.reader.read(puzzles)
        figures = torch.tensor([self.adapter.figures[name] for name in FIGURES], dtype=torch.float64)
        reading.facts_BF = figures.to(self.reader.device).repeat(len(puzzles.task_P), 1)
        return reading


def require_adaptable(wanted: AdaptationConfig, config: ExperimentConfig, num_scored: int, num_known: int) -> None:
    """ValueError if the run, or what is scored of it, does not go with an adaptation that trains the model. num_known: scored
    tasks for which a puzzle table has vectors."""
    if not isinstance(wanted, WeightAdaptationConfig):
        return
    kind, is_table = wanted.kind, isinstance(config.encoder, PuzzleTableConfig)
    if not is_table and not isinstance(wanted, WeightsConfig):
        raise ValueError(
            f"adaptation={kind} trains the vectors of a puzzle table, and this run has none (encoder.kind={config.encoder.kind}"
            "); use adaptation=latent, which moves the context that the encoder writes, or adaptation=weights or lora."
        )
    if is_table and isinstance(wanted, WeightsConfig) and wanted.parts is WeightParts.encoder:
        raise ValueError(
            "adaptation.parts=encoder does not go with encoder.kind=puzzle_table, which has no weights beside its vectors; use "
            "adaptation=embeddings, or adaptation.parts=decoder."
        )
    if wanted.demonstrations is ShownTask.other_task and num_scored < 2:
        raise ValueError(
            "adaptation.demonstrations=other_task needs another scored task, and one alone is scored; raise max_tasks, or use "
            "adaptation.demonstrations=own."
        )
    if is_table and wanted.min_wins is not None and num_known < num_scored:
        raise ValueError(
            f"adaptation.min_wins={wanted.min_wins} compares with the model as it is, which has no vectors for "
            f"{num_scored - num_known} of {num_scored} tasks; drop it, or score the run's own tasks."
        )


def _new_rows(known_ND: Tensor, count: int, start: TableStart, key: tuple[int, int]) -> Tensor:
    """(count, D): the mean of the known rows, zeros, or noise of their root mean square."""
    if start is TableStart.zeros:
        return known_ND.new_zeros(count, known_ND.shape[1])
    if start is TableStart.mean:
        return known_ND.mean(0).repeat(count, 1)
    noise = torch.randn(count, known_ND.shape[1], generator=noise_generator(key, torch.device("cpu"))).to(known_ND)
    return noise * known_ND.square().mean().sqrt()
