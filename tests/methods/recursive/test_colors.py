"""Colours that share their weights: what is exactly equivariant, what training draws, and who reads the identities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from arclab.config.encoder_schema import DemoAttention
from arclab.config.schema import ColorEmbedding, ExperimentConfig
from arclab.data.codec import FIRST_COLOR
from arclab.data.sampler import Batch
from arclab.methods.recursive.auxiliary import auxiliary_losses
from arclab.methods.recursive.colors import draw_identities, shown_as
from arclab.methods.recursive.encoders import TaskEncoder, build_encoder
from arclab.methods.recursive.encoders.blocks import TokenStage
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel

from .common import ROWS, setup
from .test_encoders import KINDS, config_of, never, noise

Tiny = Callable[..., ExperimentConfig]
LAYOUTS = ("aligned", "symmetry", "concat")
NUM_COLORS = 10


def logits_of(model: RecursiveModel, batch: Batch, identities_BCC: torch.Tensor | None) -> torch.Tensor:
    """(B, S, V) after two supervision steps with these identities."""
    carry = model.initial_carry(batch)
    carry.identities_BCC, carry.data, carry.halted_B = identities_BCC, batch, never().bool()
    with torch.no_grad():
        for _ in range(2):
            carry, output = model(carry, batch, torch.full((ROWS,), 4))
    return output.logits_BSV


def moved(kind: ColorEmbedding) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colours that become others in every row (B, 10), identities, and the identities that go along."""
    identities_BCC, colors_BC = draw_identities(kind, ROWS, noise())
    first = NUM_COLORS - identities_BCC.shape[1]
    along_BCC = torch.empty_like(identities_BCC)
    for b in range(ROWS):
        along_BCC[b, colors_BC[b, first:] - first] = identities_BCC[b]
    return colors_BC, identities_BCC, along_BCC


def as_moved(logits_BSV: torch.Tensor, colors_BC: torch.Tensor) -> torch.Tensor:
    """The logits with that of colour c where colors_BC[:, c] was predicted instead."""
    kept = torch.arange(FIRST_COLOR).expand(ROWS, -1)
    token_BV = torch.cat([kept, colors_BC + FIRST_COLOR], dim=1)[:, None].expand_as(logits_BSV)
    return logits_BSV.gather(2, token_BV)


@pytest.mark.parametrize(("number", "kind"), list(enumerate(KINDS)))
def test_permuted_colours_with_their_identities_permute_the_logits(tiny: Tiny, number: int, kind: str) -> None:
    """And nothing less does: not with identities that stay, and not with a vector for each colour."""
    layout, color_embedding = LAYOUTS[number % 3], ("shared", "shared_nonzero")[number % 2]
    model, _, batch = setup(config_of(tiny, kind, f"decoder.color_embedding={color_embedding}", layout=layout))
    colors_BC, identities, along = moved(ColorEmbedding(color_embedding))
    permuted = shown_as(batch, colors_BC)
    plain = logits_of(model, batch, identities)
    torch.testing.assert_close(as_moved(logits_of(model, permuted, along), colors_BC), plain, atol=2e-4, rtol=0)
    assert (as_moved(logits_of(model, permuted, identities), colors_BC) - plain).abs().max() > 0.02
    free, _, _ = setup(config_of(tiny, kind, layout=layout))
    plain = logits_of(free, batch, None)
    assert (as_moved(logits_of(free, permuted, None), colors_BC) - plain).abs().max() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_every_shared_weight_learns_and_auxiliary_losses_read_the_identities(tiny: Tiny, kind: str) -> None:
    on = ["encoder.contrastive.weight=0.1", "encoder.contrastive.view=augmentations", "encoder.reconstruction.weight=0.1"]
    config = config_of(tiny, kind, "decoder.color_embedding=shared", *on, layout="symmetry")
    model, _, batch = setup(config)
    carry, output = model(model.initial_carry(batch), batch, never(), noise())
    losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5)
    assert output.context is not None
    arguments = (config.encoder, model, carry.data, output.context)
    with_own = auxiliary_losses(*arguments, noise(), carry.identities_BCC)  # type: ignore[arg-type]
    with_others = auxiliary_losses(*arguments, noise())  # type: ignore[arg-type]
    assert all(not torch.equal(with_own[name], with_others[name]) for name in ("contrastive", "reconstruction"))
    losses.backward()
    shared = {n: p for n, p in model.named_parameters() if n.endswith((".own", ".color", ".from_identity"))}
    assert len(shared) == 12 and {n.split(".")[0] for n in shared} == {"decoder", "encoder"}
    assert all(p.grad is not None and p.grad.norm() > 1e-9 for p in shared.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_laid_end_to_end_have_the_identities_of_their_rows(tiny: Tiny, layout: str) -> None:
    options = ["decoder.color_embedding=shared", "encoder.demo_attention=varlen", "encoder.num_layers=1"]
    model, _, batch = setup(config_of(tiny, "standard", *options, layout=layout))
    _, identities, _ = moved(ColorEmbedding.shared)
    stage = next(m for m in model.modules() if isinstance(m, TokenStage))
    flat = model.condition(batch, identities_BCC=identities).prefix_BPD
    stage.demo_attention = DemoAttention.dense
    dense = model.condition(batch, identities_BCC=identities).prefix_BPD
    torch.testing.assert_close(flat, dense, atol=1e-4, rtol=0)
    assert (model.condition(batch).prefix_BPD - dense).abs().max() > 0.01


@pytest.mark.parametrize("kind", [ColorEmbedding.shared, ColorEmbedding.shared_nonzero])
def test_what_a_row_draws(kind: ColorEmbedding) -> None:
    identities, colors = draw_identities(kind, 4000, noise())
    size = identities.shape[1]
    assert size == (10 if kind is ColorEmbedding.shared else 9)
    torch.testing.assert_close(identities @ identities.transpose(1, 2), torch.eye(size).expand(4000, -1, -1), atol=1e-5, rtol=0)
    assert identities.mean(0).abs().max() < 0.03  # no direction is anybody's; without the signs, the diagonal would be -0.8
    assert torch.equal(colors.sort(1).values, torch.arange(NUM_COLORS).expand(4000, -1))
    counts = torch.nn.functional.one_hot(colors, NUM_COLORS).double().mean(0)
    first = NUM_COLORS - size
    assert torch.equal(counts[:first, :first], torch.eye(first).double())
    assert (counts[first:, first:] - 1 / size).abs().max() < 0.03
    again, _ = draw_identities(kind, 4000, noise())
    assert torch.equal(identities, again)


def test_a_row_keeps_its_identities_until_it_halts(tiny: Tiny) -> None:
    """Its latents speak of them. Its grids are shown in the order that was drawn, labels and demonstrations alike."""
    model, _, batch = setup(config_of(tiny, "standard", "decoder.color_embedding=shared"))
    carry, _ = model(model.initial_carry(batch), batch, torch.full((ROWS,), 4), noise())
    before = carry.identities_BCC
    assert before is not None and len(before.flatten(1).unique(dim=0)) == ROWS
    for shown, given in ((carry.data.labels_BS, batch.labels_BS), (carry.data.demo_outputs_BKS, batch.demo_outputs_BKS)):
        assert not torch.equal(shown, given) and torch.equal(shown < FIRST_COLOR, given < FIRST_COLOR)
    carry.halted_B = torch.arange(ROWS) < 4
    after, _ = model(carry, batch, torch.full((ROWS,), 4), torch.Generator().manual_seed(7))
    assert after.identities_BCC is not None
    is_same = (after.identities_BCC == before).flatten(1).all(1)
    assert torch.equal(is_same, torch.arange(ROWS) >= 4)


def test_colours_are_what_they_were_where_a_row_is_shown_with_others(tiny: Tiny) -> None:
    """encoder.pooling=colors has a place for each colour: the order that is drawn takes the permutation of a row along."""
    _, _, batch = setup(config_of(tiny, "standard"))
    _, order_BC = draw_identities(ColorEmbedding.shared, ROWS, noise())
    _, moved_BC = draw_identities(ColorEmbedding.shared, ROWS, torch.Generator().manual_seed(7))
    other_BC = torch.empty_like(order_BC).scatter(1, moved_BC, order_BC)
    one, two = shown_as(batch, order_BC), shown_as(shown_as(batch, moved_BC), other_BC)
    assert torch.equal(one.inputs_BS, two.inputs_BS) and torch.equal(one.demo_outputs_BKS, two.demo_outputs_BKS)
    assert torch.equal(one.task_id_B, batch.task_id_B) and not torch.equal(one.inputs_BS, batch.inputs_BS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_draws_nothing(tiny: Tiny, precision: str) -> None:
    """A row's logits do not depend on the rows beside it, nor on when they are asked for."""
    model, _, batch = setup(
        config_of(tiny, "recurrent", "decoder.color_embedding=shared", f"trainer.precision={precision}", layout="symmetry")
    )
    whole, again, part = model.predict(batch)[0], model.predict(batch)[0], model.predict(batch.rows(3, 6))[0]
    assert torch.equal(whole, again) and whole.isfinite().all()
    torch.testing.assert_close(part, whole[3:6], atol=1e-4 if precision == "fp32" else 0.3, rtol=0)


def test_a_puzzle_table_has_one_draw_for_all(tiny: Tiny) -> None:
    """Its vector of a puzzle says which colours are meant."""
    model, _, batch = setup(tiny("decoder.color_embedding=shared", trm=True))
    carry, output = model(model.initial_carry(batch), batch, never(), noise())
    assert carry.identities_BCC is None and torch.equal(output.labels_BS, batch.labels_BS)
    assert output.logits_BSV.shape[-1] == 12


def test_an_encoder_with_an_embedding_of_its_own_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tiny, "standard").encoder
    monkeypatch.setattr("arclab.methods.recursive.encoders.encoder_class", lambda kind: lambda *_: TaskEncoder())
    assert isinstance(build_encoder(config, 16, 6), TaskEncoder)
    with pytest.raises(
        ValueError, match=r"decoder\.color_embedding=shared needs an encoder .* use decoder\.color_embedding=free"
    ):
        build_encoder(config, 16, 6, ColorEmbedding.shared)
