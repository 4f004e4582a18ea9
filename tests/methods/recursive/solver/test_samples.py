"""evaluation.samples and carry_noise: noise of the right size from seeds of their own, and the surest answer votes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from arclab.config.schema import EvalHalting, ExperimentConfig
from arclab.methods.recursive.decoder import Latents
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.solver.continuous_batching import FinishedRows, StartNoise
from arclab.methods.recursive.solver.samples import surest
from arclab.results.attempts import Attempts

from .test_resume import model, same, solve  # noqa: F401  # model is a fixture


def grids(attempts: Attempts) -> list[list[Any]]:
    return [[(c.votes, c.grid is None or c.grid.tobytes()) for c in found] for found in attempts.candidates.values()]


def test_noise_has_the_size_that_was_asked_for_and_comes_from_its_seed() -> None:
    start = Latents(torch.full((3, 400, 16), 2.0), torch.full((3, 400, 16), -0.5))
    noisy = StartNoise(np.array([7, 8, 7]), 0.5).added(start)
    for z, before, rms in ((noisy.z_H, 2.0, 2.0), (noisy.z_L, -0.5, 0.5)):
        assert (z - before).std().item() == pytest.approx(0.5 * rms, rel=0.03) and (z - before).mean().abs() < 0.03 * rms
        assert torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
    assert not torch.equal((noisy.z_H - 2.0) / 2.0, (noisy.z_L + 0.5) / 0.5) and torch.all(start.z_H == 2.0)


def ended(rows: list[int], q_halt: list[float]) -> FinishedRows:
    number = torch.tensor(rows)[:, None]
    return FinishedRows(np.array(rows), number, number[:, :, None].float(), torch.tensor(q_halt), np.array(rows) + 100)


def test_the_surest_of_several_samples_votes() -> None:
    """Rows 0, 1 and 2 with three samples each, which end in any order; of equal halt logits the first sample's counts."""
    parts = [ended([1, 3, 8], [0.5, -1.0, 2.0]), ended([0, 4, 5, 7], [0.5, -3.0, -1.0, 9.0]), ended([2, 6], [0.1, 3.0])]

    def stream() -> Iterator[FinishedRows]:
        yield from parts

    found = {
        row: (int(part.labels_BS[b]), float(part.logits_BSV[b]), float(part.q_halt_B[b]), int(part.steps_B[b]))
        for part in surest(stream(), 3)
        for b, row in enumerate(part.rows_B.tolist())
    }
    assert found == {1: (3, 3.0, -1.0, 103), 0: (0, 0.0, 0.5, 100), 2: (7, 7.0, 9.0, 107)}


@pytest.mark.parametrize("halting", EvalHalting)
def test_samples_are_those_of_the_row_in_any_batch(model: RecursiveModel, halting: EvalHalting) -> None:  # noqa: F811
    """A random model, whose answers move with the noise; the halt logit of the chosen sample is the higher one."""
    plain = solve(model, None, views=6, halting=halting)
    noisy = solve(model, None, views=6, halting=halting, samples=3, carry_noise=2.0)
    assert grids(noisy) != grids(plain)
    from arclab.methods.recursive.solver.solver import RecursiveSolver

    with pytest.MonkeyPatch.context() as patch:
        original = RecursiveSolver.__init__

        def other(self: RecursiveSolver, *args: Any, **given: Any) -> None:
            original(self, *args, **{**given, "batch_size": 5})

        patch.setattr(RecursiveSolver, "__init__", other)
        same(noisy, solve(model, None, views=6, halting=halting, samples=3, carry_noise=2.0))

    def sure(attempts: Attempts) -> float:
        return sum(c.confidence * c.votes for found in attempts.candidates.values() for c in found)

    one = solve(model, None, views=6, halting=halting, samples=1, carry_noise=2.0)
    assert sure(noisy) > sure(one) and grids(one) != grids(plain)
    assert noisy.statistics["all.count"] == plain.statistics["all.count"]


def test_samples_without_noise_are_refused(tiny: Callable[..., ExperimentConfig]) -> None:
    with pytest.raises(ValueError, match=r"evaluation.samples=4 with evaluation.carry_noise=0 predicts the same 4 times; set"):
        tiny("evaluation.samples=4")
    with pytest.raises(ValueError, match=r"evaluation.carry_noise=-1.0 must be between 0 and 100"):
        tiny("evaluation.carry_noise=-1")
    assert tiny("evaluation.samples=4", "evaluation.carry_noise=0.5").evaluation.samples == 4
