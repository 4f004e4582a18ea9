"""Models with known answers, in place of what a recursive solver asks: the labels, or a rule read from the demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from arclab.data.codec import VOCAB_SIZE
from arclab.data.sampler import Batch
from arclab.methods.recursive.decoder import Latents
from arclab.methods.recursive.model import Reading, RecursiveModel
from arclab.methods.recursive.solver import solver as recursive
from arclab.methods.recursive.solver.continuous_batching import FinishedRows, ReadyRows


def sure_of(tokens_BS: Tensor) -> Tensor:
    """Logits that say these tokens."""
    return torch.nn.functional.one_hot(tokens_BS.long(), VOCAB_SIZE).float() * 100


def answer_labels(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ReadyRows], Tensor] = lambda ready: ready.labels_BS,
    halt: Callable[[ReadyRows], Tensor] = lambda ready: torch.ones(len(ready.rows_B)),
) -> None:
    """Every row lands at once with the right answer, or the tokens that `change` gives, and the halt logits of `halt`; no
    demonstration is read."""

    def run_rows(
        model: RecursiveModel, take: Callable[[], ReadyRows | None], num_rows: int, *, early: bool
    ) -> Iterator[FinishedRows]:
        while (ready := take()) is not None:
            steps = np.full(len(ready.rows_B), model.halting.halt_max_steps)
            yield FinishedRows(ready.rows_B, ready.labels_BS, sure_of(change(ready)), halt(ready), steps)

    monkeypatch.setattr(RecursiveModel, "read", lambda self, data: Reading(0))
    monkeypatch.setattr(recursive, "run_rows", run_rows)


def answer_by_rule(monkeypatch: pytest.MonkeyPatch, read: Callable[[Batch], Tensor]) -> None:
    """The model recolours its input by the table (rows, tokens) that `read` makes of the demonstrations."""

    def refine(
        self: RecursiveModel, latents: Latents, inputs_BS: Tensor, reading: Reading
    ) -> tuple[Latents, Reading, Tensor, Tensor]:
        assert reading.prefix_BPD is not None
        tokens = reading.prefix_BPD[:, 0].gather(1, inputs_BS.long())
        return latents, reading, sure_of(tokens), torch.zeros(len(tokens))

    monkeypatch.setattr(RecursiveModel, "read", lambda self, data: Reading(0, prefix_BPD=read(data)[:, None]))
    monkeypatch.setattr(RecursiveModel, "refine", refine)
