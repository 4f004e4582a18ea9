"""The weights that a training began with, kept beside it: the reference of a KL divergence.

    start = FrozenCopy(network)
    with start.in_place():                  # the network computes as it did when the copy was made; no gradient is taken here
        ...
    start.restore()                         # the network is again what it was

It costs the memory of the weights once more. Weights are those that have a name; tied ones count once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FrozenCopy:
    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._kept = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}

    def _own(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self._network.named_parameters()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The trained weights are put back at the end, the very same tensors."""
        trained = self._own()
        self._put(self._kept)
        try:
            yield
        finally:
            self._put(trained)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._network.named_parameters():
            parameter.data = tensors[name]

    @torch.no_grad()
    def restore(self) -> None:
        for name, parameter in self._network.named_parameters():
            parameter.copy_(self._kept[name])
