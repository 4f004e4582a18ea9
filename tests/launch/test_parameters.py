"""Counting weights without torch gives what the real model has."""

from __future__ import annotations

import pytest

from arclab.config.plain_composer import PlainComposer
from arclab.launch.parameters import count_parameters
from arclab.methods.recursive.model import build_model

from ..conftest import ROOT

SMALL = ["decoder.width=32", "decoder.num_heads=2", "dataset.canvas=6", "trainer.precision=fp32"]
QUICK = PlainComposer()
ENCODERS = sorted(path.stem for path in (ROOT / "conf/encoder").glob("[!_]*.yaml"))
OPTIONS = [
    ["encoder.pooling=attention", "encoder.tokens_per_demo=3"], ["encoder.pooling=weighted", "encoder.tokens_per_demo=2"],
    ["encoder.pooling=max"], ["encoder.pooling=colors", "encoder.tokens_per_demo=10"], ["encoder.demo_layout=aligned"], ["encoder.demo_layout=symmetry"], ["encoder.layer_scale=0.1"],
    ["encoder.width=16"], ["encoder.num_layers=4"], ["encoder.set_layers=3"], ["encoder/context=trm_compat"],
    ["encoder.expansion=8"], ["decoder.mlp_t=true"], ["decoder.positions=learned"], ["decoder.num_layers=3"],
    ["encoder=hierarchical", "encoder.demo_layout=aligned", "encoder.grid_layers=1", "encoder.width=16"],
    ["encoder=set_transformer", "encoder.num_induced=3", "encoder.induced_layers=1"], ["encoder=lpn", "encoder.demo_layout=symmetry"],
    ["encoder=lpn_variational", "encoder.latent_dim=8", "encoder.width=16"], ["encoder=in_context", "encoder.num_layers=1", "encoder.width=16"],
    ["encoder=recurrent_trm", "encoder.cycle_layers=3", "encoder.width=16"], ["encoder=cross_attention", "encoder.cross_layers=2"],
    ["encoder=recurrent", "encoder.layer_scale=0.1"], ["encoder=variational", "encoder.latent_dim=8", "encoder.width=16"],
]  # fmt: skip


def num_built(overrides: list[str]) -> tuple[int, int]:
    """(decoder, everything else) of the real model."""
    model = build_model(QUICK.compose("pretrain_encoder", overrides), num_puzzles=1)
    decoder = sum(p.numel() for p in model.decoder.parameters())
    return decoder, sum(p.numel() for p in model.parameters()) - decoder


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder(encoder: str) -> None:
    overrides = [*SMALL, f"encoder={encoder}"]
    overrides += ["dataset.regime=puzzle_id"] if encoder == "puzzle_table" else []
    overrides += ["encoder.latent_dim=16"] if encoder in ("variational", "hybrid_variational") else []
    count = count_parameters(QUICK.compose("pretrain_encoder", overrides))
    assert (count.decoder, count.encoder) == num_built(overrides)


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_every_option_that_adds_weights(options: list[str]) -> None:
    overrides = [*SMALL, *options]
    count = count_parameters(QUICK.compose("pretrain_encoder", overrides))
    assert (count.decoder, count.encoder) == num_built(overrides)


def test_the_published_trm_at_full_size() -> None:
    overrides = ["experiment=trm_arc1"]
    assert count_parameters(QUICK.compose("pretrain_encoder", overrides)).total == num_built(overrides)[0]
