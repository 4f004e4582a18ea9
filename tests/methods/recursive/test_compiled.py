"""What trainer.compile=true compiles, and that it computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.compiled import compile_model, uncompiled
from arclab.methods.recursive.model import RecursiveModel

from .common import setup
from .test_canvases import CANVAS, SIDE, crop
from .test_encoders import config_of

Tiny = Callable[..., ExperimentConfig]
SMALL = ("decoder.num_layers=2", "decoder.h_cycles=2", "decoder.l_cycles=1", "encoder.num_layers=2", f"dataset.canvas={CANVAS}")


def train_once(model: RecursiveModel, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    _, output = model(model.initial_carry(batch), batch, torch.zeros(len(batch), dtype=torch.int64))
    (output.logits_BSV.square().mean() + output.q_halt_B.sum()).backward()
    return {"logits": output.logits_BSV.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.slow
def test_the_compiled_model_computes_the_same_without_a_graph_break(tiny: Tiny) -> None:
    """On two canvases with other numbers of demonstrations: two more graphs for the decoder's layers, with and without gradient, none for
    the encoder's."""
    torch._dynamo.reset()
    counters.clear()
    plain, _, batch = setup(config_of(tiny, "standard", *SMALL))
    model, _, _ = setup(config_of(tiny, "standard", *SMALL))
    compile_model(model, backend="aot_eager")
    graphs = []
    for rows in (batch, crop(batch.rows(0, 7), SIDE, CANVAS)):
        expected, actual = train_once(plain, rows), train_once(model, rows)
        assert expected.keys() == actual.keys() and len(expected) > 10
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-5, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[0] + 2 and not counters["graph_break"]
    with uncompiled():
        model.predict(batch.rows(0, 3))
    assert counters["stats"]["unique_graphs"] == graphs[1]
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("kind", ["lpn", "hierarchical"])
def test_every_layer_of_an_encoder_is_compiled(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how["dynamic"])))
    model, _, _ = setup(config_of(tiny, kind, *["encoder.num_layers=2"] * (kind == "lpn")))
    compile_model(model)
    assert compiled[:1] == [(model.decoder.layers[0], False)]
    layers = [m for n, m in model.named_modules() if n.startswith("encoder.") and n.rsplit(".", 2)[-2].endswith("layers")]
    own = len(model.decoder.layers)
    assert [m for m, _ in compiled[own:]] == layers and len(layers) > 1 and all(dynamic for _, dynamic in compiled[own:])
