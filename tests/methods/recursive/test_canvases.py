"""One set of weights on every canvas, and demonstrations that cost what their own grids need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.encoders import Demonstrations, Memory
from arclab.methods.recursive.encoders.demo_tokens import DemoTokens
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.token_views import corner_cells

from .common import setup
from .test_encoders import KINDS, config_of

Tiny = Callable[..., ExperimentConfig]
SIDE, CANVAS = 6, 15


def crop(batch: Batch, side: int, canvas: int) -> Batch:
    cells = corner_cells(side, canvas)
    names = ("inputs_BS", "labels_BS", "demo_inputs_BKS", "demo_outputs_BKS")
    return replace(batch, **{name: getattr(batch, name)[..., cells] for name in names})


def read(model: RecursiveModel, batch: Batch) -> tuple[Memory, torch.Tensor]:
    assert model.encoder is not None
    demos = Demonstrations.from_batch(batch)
    with torch.no_grad():
        memory = model.encoder.read(demos, torch.float32)
        return memory, model.encoder.write(memory, model.encoder.state_for(demos, torch.float32), None).summary_BTD


def tokens_of(model: RecursiveModel) -> DemoTokens:
    return next(m for m in model.modules() if isinstance(m, DemoTokens))


@pytest.mark.parametrize("layout", ["concat", "aligned", "symmetry"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_demonstrations_give_what_padded_ones_give(tiny: Tiny, kind: str, layout: str) -> None:
    model, _, batch = setup(config_of(tiny, kind, f"dataset.canvas={CANVAS}", layout=layout))
    tokens = tokens_of(model)
    canvases = tokens.canvases
    packed = read(model, batch)
    tokens.canvases = canvases[-1:]
    padded = read(model, batch)
    mask = padded[0].mask_BM
    assert torch.equal(packed[0].mask_BM, mask) and packed[1].abs().max() > 0
    torch.testing.assert_close(packed[0].tokens_BMD[mask], padded[0].tokens_BMD[mask], atol=1e-5, rtol=0)
    # The many cycles of recurrent_trm on a random start magnify the rounding of what was read.
    torch.testing.assert_close(packed[1], padded[1], atol=1e-3 if kind == "recurrent_trm" else 1e-5, rtol=0)


def test_packing_sorts_demonstrations_by_their_own_canvas(tiny: Tiny) -> None:
    model, _, batch = setup(config_of(tiny, "standard", f"dataset.canvas={CANVAS}", layout="concat"))
    tokens, demos = tokens_of(model), Demonstrations.from_batch(batch)
    groups = list(tokens.packed(tokens.cells(demos)))
    assert sorted(torch.cat([rows for rows, _ in groups]).tolist()) == list(range(len(demos.inputs_NS)))
    sides = [round((group.used_GL.shape[1] / 2) ** 0.5) for _, group in groups]
    assert len(set(sides)) == len(sides) > 1 and max(sides) < CANVAS
    for rows, group in groups:
        assert group.cells_GLX.ne(0).sum() == demos.inputs_NS[rows].ne(0).sum() + demos.outputs_NS[rows].ne(0).sum()


@pytest.mark.parametrize("kind", [*KINDS, "puzzle_table"])
def test_a_smaller_canvas_is_the_model_of_that_canvas(tiny: Tiny, kind: str) -> None:
    def config(canvas: int) -> ExperimentConfig:
        if kind == "puzzle_table":
            return tiny(f"dataset.canvas={canvas}", trm=True)
        return config_of(tiny, kind, f"dataset.canvas={canvas}")

    model, data, batch = setup(config(CANVAS))
    small = build_model(config(SIDE), data.space.num_puzzles)
    small.load_state_dict(model.state_dict())
    cropped = crop(batch, SIDE, CANVAS)
    torch.testing.assert_close(model.predict(cropped), small.predict(cropped), atol=1e-5, rtol=1e-5)
    carry, output = model(model.initial_carry(cropped), cropped, torch.zeros(len(batch), dtype=torch.int64))
    assert (
        output.logits_BSV.shape[1] == SIDE**2 and carry.latents.z_H.shape[1] < model.initial_carry(batch).latents.z_H.shape[1]
    )
