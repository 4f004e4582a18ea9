"""Continuous batching: a fixed number of rows is refined together; a row that has ended leaves and another one enters at once.

    for finished in run_rows(model, take, num_rows=256, early=True):
        ...                                       # rows that have ended, with their logits

Rows enter from `take`, which gives ready rows until there are none; it is asked again whenever there is room, so what has
finished may decide what enters next. A row's result depends on the row alone, whoever is refined beside it. It neither chooses
nor counts rows. Shapes: B rows, S canvas cells, V tokens; arrays on the host are numpy, the others live on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arclab.methods.recursive.decoder import Latents
from arclab.methods.recursive.model import Reading, RecursiveModel

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StartNoise:
    """Gaussian noise on start latents, for each row from a seed of its own. scale: in units of the root mean square of the
    row's start."""

    seeds_B: IntArray
    scale: float

    def added(self, latents: Latents) -> Latents:
        z_H, z_L = latents.z_H.clone(), latents.z_L.clone()
        for b, seed in enumerate(self.seeds_B.tolist()):
            generator = torch.Generator(device=z_H.device).manual_seed(seed)
            for z in (z_H, z_L):
                noise = torch.randn(z[b].shape, generator=generator, device=z.device)
                z[b] += (self.scale * z[b].float().square().mean().sqrt() * noise).to(z.dtype)
        return Latents(z_H, z_L)


@dataclass(slots=True)
class ReadyRows:
    """Rows that can enter: their numbers, inputs and labels, and what was read; row b uses row puzzle_B[b] of the reading.
    noise: on their start; None: none."""

    rows_B: IntArray
    inputs_BS: Tensor
    labels_BS: Tensor
    reading: Reading
    puzzle_B: Tensor
    noise: StartNoise | None = None

    def split(self, count: int) -> tuple[ReadyRows, ReadyRows]:
        """The first `count` rows, and the rest."""
        parts = (slice(0, count), slice(count, None))
        noises = [None if self.noise is None else StartNoise(self.noise.seeds_B[p], self.noise.scale) for p in parts]
        first, rest = (
            ReadyRows(self.rows_B[p], self.inputs_BS[p], self.labels_BS[p], self.reading, self.puzzle_B[p], noise)
            for p, noise in zip(parts, noises, strict=True)
        )
        return first, rest


@dataclass(slots=True)
class FinishedRows:
    """Rows that have ended, with the logits of their last step, the number of steps, and facts of their reading."""

    rows_B: IntArray
    labels_BS: Tensor
    logits_BSV: Tensor
    q_halt_B: Tensor
    steps_B: IntArray
    facts_BF: Tensor | None = None


@dataclass(slots=True)
class _RunningRows:
    rows_B: IntArray
    steps_B: IntArray
    inputs_BS: Tensor
    labels_BS: Tensor
    reading: Reading
    latents: Latents

    def select(self, keep_B: npt.NDArray[np.bool_]) -> _RunningRows | None:
        """The rows that stay; None if there are none."""
        if keep_B.all():
            return self
        if not keep_B.any():
            return None
        index = torch.from_numpy(keep_B.nonzero()[0]).to(self.inputs_BS.device)
        latents = Latents(self.latents.z_H[index], self.latents.z_L[index])
        return _RunningRows(self.rows_B[keep_B], self.steps_B[keep_B], self.inputs_BS[index], self.labels_BS[index],
                       self.reading.rows(index), latents)  # fmt: skip

    def join(self, other: _RunningRows) -> _RunningRows:
        z_H, z_L = torch.cat([self.latents.z_H, other.latents.z_H]), torch.cat([self.latents.z_L, other.latents.z_L])
        return _RunningRows(
            np.concatenate([self.rows_B, other.rows_B]), np.concatenate([self.steps_B, other.steps_B]),
            torch.cat([self.inputs_BS, other.inputs_BS]), torch.cat([self.labels_BS, other.labels_BS]),
            self.reading.join(other.reading), Latents(z_H, z_L),
        )  # fmt: skip


def run_rows(
    model: RecursiveModel, take: Callable[[], ReadyRows | None], num_rows: int, *, early: bool
) -> Iterator[FinishedRows]:
    """Refine rows until `take` has none left. early: a row ends when its halt logit is positive; all end at halt_max_steps."""
    running: _RunningRows | None = None
    ready: ReadyRows | None = None
    while True:
        running, ready = _fill(model, running, ready, take, num_rows)
        if running is None:
            return
        latents, reading, logits_BSV, q_halt_B = model.refine(running.latents, running.inputs_BS, running.reading)
        running.latents, running.reading = latents, reading
        running.steps_B = running.steps_B + 1
        ended_B = running.steps_B >= model.halting.halt_max_steps
        if early:
            ended_B |= (q_halt_B > 0).cpu().numpy()
        if not ended_B.any():
            continue
        index = torch.from_numpy(ended_B.nonzero()[0]).to(logits_BSV.device)
        facts = running.reading.facts_BF
        finished = FinishedRows(
            running.rows_B[ended_B], running.labels_BS[index], logits_BSV[index], q_halt_B[index], running.steps_B[ended_B],
            None if facts is None else facts[index],
        )  # fmt: skip
        running = running.select(~ended_B)
        yield finished


def _fill(
    model: RecursiveModel,
    running: _RunningRows | None,
    ready: ReadyRows | None,
    take: Callable[[], ReadyRows | None],
    num_rows: int,
) -> tuple[_RunningRows | None, ReadyRows | None]:
    """Let rows enter until num_rows are in flight or there are none; returns what is refined and what is still ready."""
    while True:
        room = num_rows - (0 if running is None else len(running.rows_B))
        if ready is None and room > 0:
            ready = take()
        if ready is None or room == 0:
            return running, ready
        entering, rest = ready.split(room)
        ready = rest if len(rest.rows_B) else None
        reading = entering.reading.rows(entering.puzzle_B)
        latents = model.start(entering.inputs_BS, reading)
        if entering.noise is not None:
            latents = entering.noise.added(latents)
        new = _RunningRows(
            entering.rows_B, np.zeros(len(entering.rows_B), dtype=np.int64), entering.inputs_BS, entering.labels_BS, reading,
            latents,
        )  # fmt: skip
        running = new if running is None else running.join(new)
