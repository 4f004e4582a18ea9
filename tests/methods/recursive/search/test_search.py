"""Latent search: the context moves until it explains the demonstrations better, the weights never, each puzzle by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from arclab.config.adaptation_schema import LatentSearchConfig, LatentStart, SearchLoss, SearchOptimizer
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch, PuzzleSpace
from arclab.methods.recursive.leave_one_out import leave_one_out
from arclab.methods.recursive.model import Reading, RecursiveModel
from arclab.methods.recursive.search.reader import LatentSearchReader
from arclab.methods.recursive.solver.reader import ModelReader, Puzzles

from ..common import setup
from ..test_encoders import KINDS, RECURRENT, config_of

Tiny = Callable[..., ExperimentConfig]
SHALLOW = ("decoder.num_layers=1", "decoder.h_cycles=1", "decoder.l_cycles=1")
CPU = torch.device("cpu")
SEARCH = LatentSearchConfig(
    kind="latent", steps=4, start=LatentStart.encoder, loss=SearchLoss.leave_one_out, optimizer=SearchOptimizer.adam, lr=0.05,
    max_offset=None, num_starts=1, sigma=0.0, unroll=1, batch_size=64, min_wins=None,
)  # fmt: skip
BEFORE, AFTER, STEP, SHARED = range(4)


class Searched:
    """A tiny model and what searches read for its first puzzles."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.model, data, _ = setup(config)
        self.model.eval()
        self.space: PuzzleSpace = data.space
        self.plain = ModelReader(self.model, 3, None, CPU)

    def puzzles(self, tasks: list[int]) -> Puzzles:
        return Puzzles(self.space, np.array(tasks), np.zeros(len(tasks), dtype=np.int64))

    def read(self, tasks: list[int], **changes: Any) -> Reading:
        return LatentSearchReader(replace(SEARCH, **changes), self.plain, 0).read(self.puzzles(tasks))

    def facts(self, reading: Reading, fact: int) -> torch.Tensor:
        assert reading.facts_BF is not None
        return reading.facts_BF[:, fact]


def decoder_input(reading: Reading) -> list[torch.Tensor]:
    """What the decoder is given of it, flat."""
    in_sequence = reading.memory if reading.state_BXD is None else None
    parts = [reading.prefix_BPD, reading.offset_BTD, None if in_sequence is None else in_sequence.tokens_BMD]
    return [part.flatten(1) for part in parts if part is not None]


def logits(model: RecursiveModel, reading: Reading, demos: Batch, steps: int = 2) -> torch.Tensor:
    latents = model.start(demos.demo_inputs_BKS[:, 0], reading)
    for _ in range(steps):
        latents, reading, out, _ = model.refine(latents, demos.demo_inputs_BKS[:, 0], reading)
    return out


@pytest.fixture
def standard(tiny: Tiny) -> Searched:
    return Searched(tiny(*SHALLOW))


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_is_searched_and_its_weights_stay(tiny: Tiny, kind: str) -> None:
    """The loss falls for every puzzle, what the decoder reads has moved, and without steps it is what the encoder wrote, bit for
    bit."""
    searched = Searched(config_of(tiny, kind, *SHALLOW))
    before = {name: value.clone() for name, value in searched.model.state_dict().items()}
    tasks = [0, 1, 2]
    demos, plain = searched.plain.demonstrations(searched.puzzles(tasks)), searched.plain.read(searched.puzzles(tasks))
    for loss in SearchLoss:
        still = searched.read(tasks, steps=0, loss=loss)
        assert torch.equal(logits(searched.model, still, demos), logits(searched.model, plain, demos))
        moved = searched.read(tasks, loss=loss, steps=6)
        assert (searched.facts(moved, AFTER) < searched.facts(moved, BEFORE)).all()
        assert torch.equal(searched.facts(moved, BEFORE), searched.facts(still, AFTER))
        for was, now in zip(decoder_input(still), decoder_input(moved), strict=True):
            assert ((was - now).abs().amax(1) > 1e-4).all()
        assert ((logits(searched.model, moved, demos) - logits(searched.model, plain, demos)).abs().amax((1, 2)) > 1e-5).all()
        assert (moved.state_BXD is not None) == (kind in RECURRENT)
    assert all(torch.equal(value, before[name]) for name, value in searched.model.state_dict().items())
    assert all(p.grad is None for p in searched.model.parameters())


@pytest.mark.parametrize("kind", ["standard", "in_context", "recurrent"])
def test_a_model_of_half_precision_is_searched_in_fp32(tiny: Tiny, kind: str) -> None:
    """Steps that bf16 would round away add up; without steps it reads what it did, bit for bit."""
    searched = Searched(config_of(tiny, kind, *SHALLOW, "trainer.precision=bf16"))
    demos, plain = searched.plain.demonstrations(searched.puzzles([0, 1])), searched.plain.read(searched.puzzles([0, 1]))
    still, moved = searched.read([0, 1], steps=0), searched.read([0, 1], lr=1e-3, steps=40)
    assert torch.equal(logits(searched.model, still, demos), logits(searched.model, plain, demos))
    assert (searched.facts(moved, AFTER) < searched.facts(moved, BEFORE)).all()
    assert not torch.equal(logits(searched.model, moved, demos), logits(searched.model, plain, demos))


@pytest.mark.parametrize("start", [start.name for start in LatentStart])
def test_a_puzzle_does_not_depend_on_its_batch(standard: Searched, start: str) -> None:
    """Beside others, alone, and cut by the row bound; with noise of its own too."""
    changes = {"start": LatentStart[start], "num_starts": 2, "sigma": 0.3, "lr": 0.02}
    together = standard.read([0, 1, 2, 3], **changes)
    cut = standard.read([0, 1, 2, 3], batch_size=7, **changes)
    for number in range(4):
        alone = standard.read([number], **changes)
        for whole, bounded, one in zip(*map(decoder_input, (together, cut, alone)), strict=True):
            torch.testing.assert_close(whole[number], one[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(whole[number], bounded[number], rtol=1e-3, atol=1e-4)


def test_starts_are_what_they_say(standard: Searched) -> None:
    """zeros: nothing; gaussian: as large as the context; other_task: the context of the next task."""
    plain = standard.plain.read(standard.puzzles([0, 1, 2])).prefix_BPD
    assert plain is not None
    zeros, noise, other = (standard.read([0, 1], steps=0, start=start).prefix_BPD for start in list(LatentStart)[1:])
    assert zeros is not None and not zeros.any()
    assert other is not None and torch.equal(other, plain[1:])
    assert noise is not None and not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(noise.square().mean((1, 2)).sqrt(), plain[:2].square().mean((1, 2)).sqrt(), rtol=0.2, atol=0)
    last = len(standard.space.tasks) - 1
    wrapped = standard.read([last], steps=0, start=LatentStart.other_task).prefix_BPD
    assert wrapped is not None
    torch.testing.assert_close(wrapped[0], plain[0])


def test_the_best_iterate_counts_not_the_last(standard: Searched) -> None:
    """Steps that are far too long make the loss worse: the start is kept; of several starts the best one is."""
    wild = standard.read([0, 1], lr=80.0, steps=3, optimizer=SearchOptimizer.adam)
    assert (standard.facts(wild, AFTER) <= standard.facts(wild, BEFORE)).all()
    one, many = standard.read([0, 1]), standard.read([0, 1], num_starts=4, sigma=0.5)
    assert (standard.facts(many, AFTER) <= standard.facts(one, AFTER) + 1e-6).all()
    still = standard.read([0, 1], num_starts=8, sigma=1.0, steps=0)
    assert (standard.facts(still, AFTER) < standard.facts(still, BEFORE)).any()


def test_keys_of_the_search_change_it(standard: Searched) -> None:
    base = standard.read([0]).prefix_BPD
    assert base is not None
    for changes in (
        {"steps": 5}, {"lr": 0.1}, {"optimizer": SearchOptimizer.sgd}, {"loss": SearchLoss.shared}, {"unroll": 2}, {"max_offset": 0.01},
    ):  # fmt: skip
        other = standard.read([0], **changes).prefix_BPD
        assert other is not None and (other - base).abs().max() > 1e-5, changes


def test_the_trust_region_holds(standard: Searched) -> None:
    start = standard.read([0, 1], steps=0).prefix_BPD
    free, held = (standard.read([0, 1], lr=0.5, steps=5, max_offset=limit).prefix_BPD for limit in (None, 0.2))
    assert start is not None and free is not None and held is not None
    unit = start.norm(dim=(1, 2))
    assert ((free - start).norm(dim=(1, 2)) > 0.25 * unit).any()
    assert ((held - start).norm(dim=(1, 2)) < 0.2001 * unit).all()


def test_one_demonstration_has_nothing_to_leave_out(standard: Searched) -> None:
    standard.plain = replace(standard.plain, max_demos=1)
    alone = standard.read([0, 1])
    shared = standard.read([0, 1], loss=SearchLoss.shared)
    assert standard.facts(alone, SHARED).all() and torch.equal(alone.prefix_BPD, shared.prefix_BPD)  # type: ignore[arg-type]
    standard.plain = replace(standard.plain, max_demos=3)
    assert not standard.facts(standard.read([0, 1]), SHARED).any()


def test_questions_leave_one_out(standard: Searched) -> None:
    """Every demonstration is asked once; the others, and nothing of it, are shown."""
    demos = standard.plain.demonstrations(standard.puzzles([0, 1, 2]))
    demos.num_demos_B = torch.tensor([3, 1, 2])
    questions = leave_one_out(demos)
    assert questions.puzzle_N.tolist() == [0, 0, 0, 1, 2, 2] and questions.held_out_N.tolist() == [0, 1, 2, 0, 0, 1]
    assert questions.is_shared_N.tolist() == [False, False, False, True, False, False]
    small = questions.compact()
    assert small.num_demos_B.tolist() == [2, 2, 2, 1, 1, 1]
    for n, (puzzle, held_out) in enumerate(zip(questions.puzzle_N.tolist(), questions.held_out_N.tolist(), strict=True)):
        assert torch.equal(small.inputs_BS[n], demos.demo_inputs_BKS[puzzle, held_out])
        assert torch.equal(small.labels_BS[n], demos.demo_outputs_BKS[puzzle, held_out])
        count = int(demos.num_demos_B[puzzle])
        others = [k for k in range(count) if k != held_out or count == 1]
        assert torch.equal(small.demo_outputs_BKS[n, : len(others)], demos.demo_outputs_BKS[puzzle, others])
        assert not small.demo_outputs_BKS[n, len(others) :].any() and not small.demo_inputs_BKS[n, len(others) :].any()
    assert leave_one_out(demos, shared=True).is_shared_N.all()
