"""Adapters begin as the weights that they stand on, change them by a matrix of their rank, and leave nothing behind."""

from __future__ import annotations

import torch

from arclab.methods.recursive.adaptation.low_rank import linear_layers, low_rank

from .common import etrm, tensors


def test_adapters_begin_as_the_weights_and_end_merged_into_them() -> None:
    _, model = etrm("decoder.num_layers=2")
    before, classes = tensors(model), [type(module) for module in model.modules()]
    layers = linear_layers([model.decoder])
    assert len(layers) == 8, "four in each of two layers"
    assert not {id(model.decoder.lm_head), id(model.decoder.q_head)} & set(map(id, layers))
    with low_rank([model.decoder], 2, torch.Generator().manual_seed(0)) as parameters:
        assert len(parameters) == 16
        for layer in layers:
            name = next(name for name, module in model.named_modules() if module is layer)
            assert torch.equal(layer.weight, before[f"{name}.weight"])
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_()
        acting = [layer.weight.detach().clone() for layer in layers]
    after = tensors(model)
    assert after.keys() == before.keys() and classes == [type(module) for module in model.modules()]
    assert all(torch.equal(weight, layer.weight) for weight, layer in zip(acting, layers, strict=True))
    changes = [after[name] - before[name] for name in before if not torch.equal(after[name], before[name])]
    assert len(changes) == 8 and all(torch.linalg.matrix_rank(change, atol=1e-4) == 2 for change in changes)
