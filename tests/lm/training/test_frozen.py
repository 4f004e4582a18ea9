"""A frozen copy computes as the weights were, and gives the trained ones back untouched."""

from __future__ import annotations

import torch
from torch import nn

from arclab.lm.training.frozen import FrozenCopy


def test_it_is_the_reference_and_what_is_trained_goes_on() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[1].weight = nn.Parameter(network[1].weight.detach())
    x, optimizer = torch.ones(1, 3), torch.optim.SGD(network.parameters(), lr=0.1)
    before, copy = network(x).detach(), FrozenCopy(network)
    network(x).sum().backward()
    optimizer.step()
    trained, storage = network(x).detach(), [parameter.data_ptr() for parameter in network.parameters()]
    assert not torch.equal(trained, before)
    with copy.in_place():
        assert torch.equal(network(x), before)
    assert torch.equal(network(x), trained) and storage == [parameter.data_ptr() for parameter in network.parameters()]
    network(x).sum().backward()
    optimizer.step()  # of the trained weights, not of the copy
    with copy.in_place():
        assert torch.equal(network(x), before)
    copy.restore()
    assert torch.equal(network(x), before)
    optimizer.step()
    with copy.in_place():
        assert torch.equal(network(x), before)
