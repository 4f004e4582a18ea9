"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of parts of a recursive model.

    with low_rank([model.decoder], rank=8, noise=generator) as parameters:
        ...                                  # W acts as W + B @ A, and A and B can be trained
                                             # afterwards B @ A is added to W, and nothing is left of the adapters

They stand on layers between a model's input and its heads; the heads stay as they are. The package peft knows torch's own
linear layers alone, so it is of no use here. Shapes: R rank, O and I the sides of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from arclab.methods.recursive.decoder import Decoder
from arclab.methods.recursive.layers import Linear


class LowRank(nn.Module):
    """W (O, I) -> W + B @ A. A is drawn with deviation 1 / sqrt(I) and B is zero, so that it begins as W."""

    def __init__(self, weight_OI: Tensor, rank: int, noise: torch.Generator) -> None:
        super().__init__()
        num_out, num_in = weight_OI.shape
        drawn = torch.randn(rank, num_in, generator=noise, device=noise.device) / math.sqrt(num_in)
        self.a_RI = nn.Parameter(drawn.to(weight_OI))
        self.b_OR = nn.Parameter(weight_OI.new_zeros(num_out, rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + self.b_OR @ self.a_RI


def linear_layers(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """The linear layers of these parts, the heads of a decoder left out."""
    heads = {id(head) for part in parts if isinstance(part, Decoder) for head in (part.lm_head, part.q_head)}
    modules = (module for part in parts for module in part.modules())
    return [module for module in modules if isinstance(module, Linear | nn.Linear) and id(module) not in heads]


@contextmanager
def low_rank(parts: Sequence[nn.Module], rank: int, noise: torch.Generator) -> Iterator[list[nn.Parameter]]:
    """Adapters on every linear layer of these parts; the parameters to train. At the end they are merged into the weights."""
    layers, parameters = linear_layers(parts), []
    for layer in layers:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        adapter = LowRank(weight, rank, noise)
        parametrize.register_parametrization(layer, "weight", adapter)
        parameters += [adapter.a_RI, adapter.b_OR]
    try:
        yield parameters
    finally:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
