"""Continuous batching: a fixed number of rows is refined together; a row that has ended leaves and another one enters at once.

    for landed in fly(model, take, num_rows=256, early=True):
        ...                                       # rows that have ended, with their logits

Rows enter from `take`, which gives ready rows until there are none; it is asked again whenever there is room, so what has
landed may decide what flies next. A row's result depends on the row alone, whoever flies beside it. It neither chooses nor
counts rows. Shapes: B rows, S canvas cells, V tokens; arrays on the host are numpy, the others live on the model's device.
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


@dataclass(slots=True)
class Ready:
    """Rows that can enter: their numbers, inputs and labels, and what was read; row b uses row puzzle_B[b] of the reading."""

    rows_B: IntArray
    inputs_BS: Tensor
    labels_BS: Tensor
    reading: Reading
    puzzle_B: Tensor

    def split(self, count: int) -> tuple[Ready, Ready]:
        """The first `count` rows, and the rest."""
        parts = (slice(0, count), slice(count, None))
        first, rest = (
            Ready(self.rows_B[p], self.inputs_BS[p], self.labels_BS[p], self.reading, self.puzzle_B[p]) for p in parts
        )
        return first, rest


@dataclass(slots=True)
class Landed:
    """Rows that have ended, with the logits of their last step and the number of steps."""

    rows_B: IntArray
    labels_BS: Tensor
    logits_BSV: Tensor
    q_halt_B: Tensor
    steps_B: IntArray


@dataclass(slots=True)
class _Flight:
    rows_B: IntArray
    steps_B: IntArray
    inputs_BS: Tensor
    labels_BS: Tensor
    reading: Reading
    latents: Latents

    def select(self, keep_B: npt.NDArray[np.bool_]) -> _Flight | None:
        """The rows that stay; None if there are none."""
        if keep_B.all():
            return self
        if not keep_B.any():
            return None
        index = torch.from_numpy(keep_B.nonzero()[0]).to(self.inputs_BS.device)
        latents = Latents(self.latents.z_H[index], self.latents.z_L[index])
        return _Flight(self.rows_B[keep_B], self.steps_B[keep_B], self.inputs_BS[index], self.labels_BS[index],
                       self.reading.rows(index), latents)  # fmt: skip

    def join(self, other: _Flight) -> _Flight:
        z_H, z_L = torch.cat([self.latents.z_H, other.latents.z_H]), torch.cat([self.latents.z_L, other.latents.z_L])
        return _Flight(
            np.concatenate([self.rows_B, other.rows_B]), np.concatenate([self.steps_B, other.steps_B]),
            torch.cat([self.inputs_BS, other.inputs_BS]), torch.cat([self.labels_BS, other.labels_BS]),
            self.reading.join(other.reading), Latents(z_H, z_L),
        )  # fmt: skip


def fly(model: RecursiveModel, take: Callable[[], Ready | None], num_rows: int, *, early: bool) -> Iterator[Landed]:
    """Refine rows until `take` has none left. early: a row ends when its halt logit is positive; all end at halt_max_steps."""
    flight: _Flight | None = None
    ready: Ready | None = None
    while True:
        flight, ready = _fill(model, flight, ready, take, num_rows)
        if flight is None:
            return
        latents, reading, logits_BSV, q_halt_B = model.refine(flight.latents, flight.inputs_BS, flight.reading)
        flight.latents, flight.reading = latents, reading
        flight.steps_B = flight.steps_B + 1
        ended_B = flight.steps_B >= model.halting.halt_max_steps
        if early:
            ended_B |= (q_halt_B > 0).cpu().numpy()
        if not ended_B.any():
            continue
        index = torch.from_numpy(ended_B.nonzero()[0]).to(logits_BSV.device)
        landed = Landed(
            flight.rows_B[ended_B], flight.labels_BS[index], logits_BSV[index], q_halt_B[index], flight.steps_B[ended_B]
        )
        flight = flight.select(~ended_B)
        yield landed


def _fill(
    model: RecursiveModel, flight: _Flight | None, ready: Ready | None, take: Callable[[], Ready | None], num_rows: int
) -> tuple[_Flight | None, Ready | None]:
    """Let rows enter until num_rows are in flight or there are none; returns what flies and what is still ready."""
    while True:
        room = num_rows - (0 if flight is None else len(flight.rows_B))
        if ready is None and room > 0:
            ready = take()
        if ready is None or room == 0:
            return flight, ready
        entering, rest = ready.split(room)
        ready = rest if len(rest.rows_B) else None
        reading = entering.reading.rows(entering.puzzle_B)
        new = _Flight(
            entering.rows_B, np.zeros(len(entering.rows_B), dtype=np.int64), entering.inputs_BS, entering.labels_BS, reading,
            model.start(entering.inputs_BS, reading),
        )  # fmt: skip
        flight = new if flight is None else flight.join(new)
