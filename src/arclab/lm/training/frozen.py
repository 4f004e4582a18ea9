"""The weights that a training began with, kept beside it: the reference of a KL divergence.

    start = FrozenCopy(network)
    with start.in_place():                  # the network computes as it did when the copy was made; no gradient is taken here
        ...
    start.restore()                         # the network is again what it was

Weights that want no gradient stay where they are. It costs the memory of the others once more: little with an adapter, whose
base is the reference then. Tied weights count once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FrozenCopy:
    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._kept = {name: each.detach().clone() for name, each in network.named_parameters() if each.requires_grad}

    def _own(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self._network.named_parameters() if name in self._kept}

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
            if name in self._kept:
                parameter.data = tensors[name]

    @torch.no_grad()
    def restore(self) -> None:
        for name, parameter in self._network.named_parameters():
            if name in self._kept:
                parameter.copy_(self._kept[name])
