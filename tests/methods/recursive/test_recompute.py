"""trainer.recompute: fewer bytes are kept for the backward pass, and the gradients are the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.training.step import noise_generator

from .common import setup

Tiny = Callable[..., ExperimentConfig]
KINDS = ("puzzle_table", "standard", "lpn_variational", "recurrent_trm", "in_context")


def kept_and_gradients(config: ExperimentConfig, *, compiled: bool = False) -> tuple[int, dict[str, Tensor]]:
    """(bytes that one training step keeps for its backward pass, each storage once; the gradients)."""
    model, _, batch = setup(config)
    if compiled:
        model.decoder.compile(backend="aot_eager", dynamic=False)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    noise = noise_generator((1,), torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, output = model(model.initial_carry(batch), batch, torch.zeros(len(batch), dtype=torch.int64), noise)
        loss = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in parameters), gradients


def configurations(tiny: Tiny, kind: str) -> tuple[ExperimentConfig, ExperimentConfig]:
    """A tiny run that keeps its activations, and its twin that does not."""
    encoder = [] if kind == "puzzle_table" else [f"encoder={kind}", "encoder.num_heads=2", "encoder.width=16"]
    encoder += ["encoder.latent_dim=8"] if "variational" in kind else []
    common = [*encoder, "dataset.max_train_tasks=4", "decoder.l_cycles=4"]
    build = [tiny(*common, f"trainer.recompute={value}", trm=kind == "puzzle_table") for value in ("false", "true")]
    return build[0], build[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_gradients_from_less_than_half_the_memory(tiny: Tiny, kind: str) -> None:
    keeps, recomputes = (kept_and_gradients(config) for config in configurations(tiny, kind))
    assert recomputes[0] < keeps[0] / 2
    assert recomputes[1].keys() == keeps[1].keys() and len(keeps[1]) > 8
    for name, gradient in keeps[1].items():
        assert torch.equal(gradient, recomputes[1][name]), name


def test_a_compiled_decoder_recomputes_too(tiny: Tiny) -> None:
    small = ("dataset.max_train_tasks=4", "decoder.h_cycles=1", "decoder.num_layers=1", "decoder.l_cycles=3")
    keeps = kept_and_gradients(tiny(*small, trm=True))
    recomputes = kept_and_gradients(tiny(*small, "trainer.recompute=true", trm=True), compiled=True)
    assert recomputes[0] < keeps[0] / 2
    for name, gradient in keeps[1].items():
        torch.testing.assert_close(recomputes[1][name], gradient, rtol=1e-4, atol=1e-5)
