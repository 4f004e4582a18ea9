"""Latent search as the reader of a solver: the context of every augmented puzzle is searched before it is answered.

    reader = LatentSearchReader(config, ModelReader(model, max_demos, None, device), seed)
    RecursiveSolver(model, ..., reader=reader)

After Latent Program Networks (arXiv 2411.08706), which optimise the mean of the encodings at test time. With loss=leave_one_out
an offset is searched that helps the contexts of all demonstrations but one to explain that one; it is then added to the context
of all. A puzzle with one demonstration has nothing to leave out and uses the shared loss (search/shared counts them). It leaves
the weights alone, and refuses a puzzle table. Shapes: P puzzles, N questions.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from arclab.config.adaptation_schema import AdaptationConfig, LatentSearchConfig, LatentStart, SearchLoss
from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.leave_one_out import leave_one_out
from arclab.methods.recursive.model import Reading
from arclab.methods.recursive.search.ascent import Found, Problem, groups, search
from arclab.methods.recursive.search.latent import Latent, Offset, encoder_latent, whole_latent
from arclab.methods.recursive.solver.reader import ModelReader, Puzzles

# Streams of random numbers beside those of other modules that draw from the run's seed.
_START_STREAM, _NOISE_STREAM = 11, 12


@dataclass(frozen=True, slots=True)
class LatentSearchReader:
    """plain: reads the demonstrations. seed: of the noise, drawn for each puzzle by itself. before_step: see search."""

    config: LatentSearchConfig
    plain: ModelReader
    seed: int
    before_step: Callable[[], None] = lambda: None

    @property
    def facts(self) -> tuple[str, ...]:
        return ("search/loss_before", "search/loss_after", "search/best_step", "search/shared", "timing/search_s")

    def read(self, puzzles: Puzzles) -> Reading:
        reading: Reading | None = None
        demos = self.plain.demonstrations(puzzles)
        for first, end in groups(demos, self.config.batch_size, self.config.num_starts):
            part = Puzzles(puzzles.space, puzzles.task_P[first:end], puzzles.augmentation_P[first:end])
            found = self._read(part, demos.rows(first, end))
            reading = found if reading is None else reading.join(found)
        assert reading is not None
        return reading

    def _read(self, puzzles: Puzzles, demos: Batch) -> Reading:
        began = time.monotonic()
        model = self.plain.model
        problem, is_shared_P = self._problem(puzzles, demos)
        noise = [self._noise(problem.start, puzzles, _NOISE_STREAM, number) for number in range(1, self.config.num_starts)]
        found = search(model, problem, self.config, noise, self.before_step)
        with torch.no_grad():
            reading = problem.start.reading(model, found.offset, problem.start)
        return replace(reading, facts_BF=_facts(found, is_shared_P, (time.monotonic() - began) / len(demos)))

    def _problem(self, puzzles: Puzzles, demos: Batch) -> tuple[Problem, Tensor]:
        """What is searched, and (P,) whether nothing is left out."""
        model, config = self.plain.model, self.config
        questions = leave_one_out(demos, shared=config.loss is SearchLoss.shared)
        is_shared_P = demos.num_demos_B == 1 if config.loss is SearchLoss.leave_one_out else torch.ones_like(demos.num_demos_B)
        start = self._start(puzzles, demos)
        asked = start.rows(questions.puzzle_N)
        if config.loss is SearchLoss.leave_one_out and config.start is LatentStart.encoder:
            asked = encoder_latent(model, questions.data, questions.shown_NK)
        return Problem(start, asked, questions.data, questions.puzzle_N), is_shared_P

    def _start(self, puzzles: Puzzles, demos: Batch) -> Latent:
        if self.config.start is LatentStart.other_task:
            space = puzzles.space
            task_P = (puzzles.task_P + 1) % len(space.tasks)
            augmentation_P = np.minimum(puzzles.augmentation_P, space.num_augmentations_T[task_P] - 1)
            demos = self.plain.demonstrations(Puzzles(space, task_P, augmentation_P))
        start = whole_latent(self.plain.model, demos)
        if self.config.start is LatentStart.zeros:
            return start.replaced(start.offset())
        if self.config.start is LatentStart.gaussian:
            return start.replaced(self._noise(start, puzzles, _START_STREAM, 0))
        return start

    def _noise(self, like: Latent, puzzles: Puzzles, stream: int, number: int) -> Offset:
        """Unit normal numbers for each puzzle, the same whoever is beside it."""

        def drawn(puzzle: int, part: Tensor) -> Tensor:
            task, augmentation = puzzles.space.tasks[puzzles.task_P[puzzle]], int(puzzles.augmentation_P[puzzle])
            key = [self.seed, stream, zlib.crc32(task.id.encode()), augmentation, number, part.shape[0]]
            return torch.from_numpy(np.random.default_rng(key).standard_normal(tuple(part.shape), dtype=np.float32))

        parts = like.offset().parts
        return Offset.of([torch.stack([drawn(p, part[p]) for p in range(len(part))]).to(part.device) for part in parts])


def _facts(found: Found, is_shared_P: Tensor, seconds: float) -> Tensor:
    """(P, F) in the order of LatentSearchReader.facts."""
    seconds_P = torch.full_like(found.before_P, seconds)
    return torch.stack([found.before_P, found.after_P, found.step_P, is_shared_P.to(found.before_P), seconds_P], dim=1)


def require_searchable(adaptation: AdaptationConfig, config: ExperimentConfig, num_scored: int) -> None:
    """ValueError if this run's model or tasks do not go with a latent search."""
    if not isinstance(adaptation, LatentSearchConfig):
        return
    if not isinstance(config.encoder, TaskEncoderConfig):
        raise ValueError(
            "adaptation=latent searches the context that an encoder writes, and this checkpoint has a puzzle table "
            "(encoder.kind=puzzle_table); use adaptation=embeddings, which trains the vectors of the table."
        )
    if adaptation.unroll > config.halting.halt_max_steps:
        raise ValueError(
            f"adaptation.unroll={adaptation.unroll} is above the {config.halting.halt_max_steps} supervision steps of this run "
            "(halting.halt_max_steps); lower it."
        )
    if adaptation.start is LatentStart.other_task and num_scored == 1:
        raise ValueError(
            "adaptation.start=other_task takes the context of another scored task, and only one is scored; score more tasks or "
            "choose another start."
        )
