"""Muon: matrices of linear layers move by orthogonal matrices of a known size, everything else as AdamATan2 moves it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.training.optim import AdamATan2, Muon, orthogonalised
from arclab.methods.recursive.training.state import build_optimizer

Tiny = Callable[..., ExperimentConfig]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 16), (2, 16, 5), (1, 1, 4)])
def test_orthogonalised_keeps_directions_and_levels_sizes(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    moved = orthogonalised(x)
    sizes = torch.linalg.svdvals(moved)
    # Jordan's coefficients trade exactness for speed: values end in about 0.7 to 1.2, later if they start very small.
    assert moved.shape == x.shape and sizes.min() > 0.3 and sizes.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    along = torch.diagonal(u.mT @ moved @ v.mT, dim1=1, dim2=2)
    assert torch.allclose(along, sizes.gather(1, along.argsort(1, descending=True).argsort(1)), atol=1e-4)
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_only_the_given_matrices_move_otherwise() -> None:
    """Two of one shape and one of another among other parameters: the others get AdamATan2's bits, the matrices steps of a known size."""
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 5), torch.randn(6, 4), torch.randn(7)]
    mixed, plain = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.5}
    muon, adam = Muon(mixed, mixed[:3], **settings), AdamATan2(plain, **settings)  # type: ignore[arg-type]
    for _ in range(3):
        before = [p.detach().clone() for p in mixed]
        for p, q in zip(mixed, plain, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step()
        adam.step()
        assert all(torch.equal(p, q) for p, q in zip(mixed[3:], plain[3:], strict=True))
        for p, old in zip(mixed[:3], before[:3], strict=True):
            sizes = torch.linalg.svdvals(p.detach() - old * (1 - 0.1 * 0.5)) / (0.1 * 0.2 * math.sqrt(max(p.shape)))
            assert sizes.min() > 0.3 and sizes.max() < 1.3
    assert muon.state[mixed[0]].keys() == {"step", "exp_avg"} and muon.state[mixed[3]].keys() == adam.state[plain[3]].keys()


def test_the_matrices_are_those_of_linear_layers(tiny: Tiny) -> None:
    """Not embeddings, queries, gains, or the heads that read a token or the halt logit."""

    def moved_by_muon(model: RecursiveModel) -> set[str]:
        optimizer = build_optimizer(config, model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return {name for name, p in model.named_parameters() if "exp_avg_sq" not in optimizer.state[p]}

    config = tiny("trainer.optimizer=muon")
    names = moved_by_muon(build_model(config, 1))
    assert any(name.startswith("encoder.") for name in names) and any(name.startswith("decoder.") for name in names)
    assert all(name.rsplit(".", 2)[1] in ("qkv", "out", "gate_up", "down", "to_set", "query", "key_value") for name in names), (
        names
    )
    config = tiny()
    assert not moved_by_muon(build_model(config, 1))
