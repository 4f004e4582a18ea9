"""The mechanisms of TRM and ETRM: gradients, carry, halting, demonstrations that matter, padding that does not."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from arclab.config.schema import DemoLayout, ExperimentConfig, HaltingConfig, StandardEncoderConfig
from arclab.data.sampler import Batch, Cursor, TrainingData, build_training_data
from arclab.data.splits import load_tasks
from arclab.models.ema import Ema
from arclab.models.encoders import Demonstrations
from arclab.models.halting import draw_min_steps, halts
from arclab.models.losses import row_losses, stablemax_cross_entropy
from arclab.models.recursive import RecursiveModel, build_model

Tiny = Callable[..., ExperimentConfig]
ROWS = 12


def setup(config: ExperimentConfig) -> tuple[RecursiveModel, TrainingData, Batch]:
    data = build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)
    torch.manual_seed(0)
    model = build_model(config, data.space.num_puzzles)
    with torch.no_grad():  # leave the init at which nothing halts and all queries look alike
        model.decoder.q_head.weight.normal_(std=0.5)
        model.decoder.q_head.bias.zero_()
        if model.encoder is not None:
            model.encoder.queries.normal_()
    return model, data, data.batch(Cursor.first(0), ROWS, 0, ROWS)


def never(batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch), dtype=torch.int64)


@pytest.mark.parametrize("layout", list(DemoLayout))
def test_every_parameter_gets_a_gradient(tiny: Tiny, layout: DemoLayout) -> None:
    """At a step after the first, so that the path through a carry of rows that go on is covered too."""
    model, data, batch = setup(tiny(f"encoder.demo_layout={layout.name}", "encoder.set_layers=2"))
    carry, _ = model(model.initial_carry(batch), batch, torch.full((ROWS,), 2))
    model.zero_grad()
    _, output = model(carry, data.batch(Cursor(0, 1, 0, 1), ROWS, 0, ROWS), never(batch))
    row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5).backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}
    assert min(norms.values()) > 1e-7, {n: v for n, v in norms.items() if v <= 1e-7}
    assert any(name.startswith("encoder.") for name in norms)


def test_every_row_of_the_carry_gives_the_encoder_a_gradient(tiny: Tiny) -> None:
    """Also rows that go on: demonstrations are encoded again at every step, never cached."""
    model, _, batch = setup(tiny())
    carry, output = model(model.initial_carry(batch), batch, torch.full((ROWS,), 4))
    assert not output.halted_B.any()
    _, output = model(carry, batch, torch.full((ROWS,), 4))
    assert output.context is not None
    losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
    (grad,) = torch.autograd.grad(losses.total(0.5), output.context.tokens_BTD)
    assert (grad.norm(dim=(1, 2)) > 1e-8).all()


def swap_demos(batch: Batch, order: torch.Tensor) -> Batch:
    swapped = batch.rows(0, len(batch))
    for name in ("demo_inputs_BKS", "demo_outputs_BKS", "num_demos_B"):
        setattr(swapped, name, getattr(batch, name)[order])
    return swapped


def test_output_changes_when_demonstrations_are_swapped_between_tasks(tiny: Tiny) -> None:
    model, _, batch = setup(tiny())
    logits, _ = model.predict(batch)
    swapped, _ = model.predict(swap_demos(batch, torch.arange(ROWS).roll(1)))
    assert ((logits - swapped).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_order_of_demonstrations_does_not_matter(tiny: Tiny) -> None:
    model, _, batch = setup(tiny())
    shuffled = batch.rows(0, ROWS)
    shuffled.demo_inputs_BKS, shuffled.demo_outputs_BKS = batch.demo_inputs_BKS.clone(), batch.demo_outputs_BKS.clone()
    for b in range(ROWS):
        order = torch.randperm(int(batch.num_demos_B[b]))
        shuffled.demo_inputs_BKS[b, : len(order)] = batch.demo_inputs_BKS[b, order]
        shuffled.demo_outputs_BKS[b, : len(order)] = batch.demo_outputs_BKS[b, order]
    torch.testing.assert_close(model.predict(batch)[0], model.predict(shuffled)[0], atol=1e-4, rtol=1e-4)


def test_pairing_inside_a_demonstration_matters(tiny: Tiny) -> None:
    model, _, batch = setup(tiny())
    exchanged = batch.rows(0, ROWS)
    exchanged.demo_inputs_BKS, exchanged.demo_outputs_BKS = batch.demo_outputs_BKS, batch.demo_inputs_BKS
    assert (model.predict(batch)[0] - model.predict(exchanged)[0]).abs().max() > 1e-3


def test_empty_slots_cost_nothing_and_change_nothing(tiny: Tiny) -> None:
    """Extra empty slots, even with junk in them, and from 1 to 10 demonstrations: same result, no NaN, no row encoded."""
    model, _, batch = setup(tiny())
    wide = batch.rows(0, ROWS)
    slots = batch.demo_inputs_BKS.shape[1]
    for name in ("demo_inputs_BKS", "demo_outputs_BKS"):
        junk = torch.randint(0, 12, (ROWS, 10, 36), dtype=torch.uint8)
        junk[:, :slots] = torch.where(
            torch.arange(slots)[None, :, None] < batch.num_demos_B[:, None, None], getattr(batch, name), junk[:, :slots]
        )
        setattr(wide, name, junk)
    torch.testing.assert_close(model.predict(batch)[0], model.predict(wide)[0], atol=1e-4, rtol=1e-4)
    assert len(Demonstrations.from_batch(wide).inputs_NS) == int(batch.num_demos_B.sum())
    for count in range(1, 11):
        wide.num_demos_B = torch.full((ROWS,), count)
        logits, q_halt = model.predict(wide)
        assert torch.isfinite(logits).all() and torch.isfinite(q_halt).all()


@pytest.mark.parametrize("layout", list(DemoLayout))
def test_pad_cells_are_neither_attended_to_nor_pooled(tiny: Tiny, layout: DemoLayout) -> None:
    """Moving the embedding of PAD moves no context where a whole token is PAD; moving a colour's does."""
    model, _, batch = setup(tiny(f"encoder.demo_layout={layout.name}"))
    assert model.encoder is not None
    demos = Demonstrations.from_batch(batch)
    if layout is DemoLayout.aligned:  # there a token is PAD only where both cells are
        empty = (demos.inputs_NS == 0) | (demos.outputs_NS == 0)
        demos.inputs_NS, demos.outputs_NS = demos.inputs_NS.masked_fill(empty, 0), demos.outputs_NS.masked_fill(empty, 0)
    before = model.encoder(demos, torch.float32).tokens_BTD
    with torch.no_grad():
        model.encoder.demo_tokens.embed_input.weight[0] += 5
        model.encoder.demo_tokens.embed_output.weight[0] -= 5
    torch.testing.assert_close(model.encoder(demos, torch.float32).tokens_BTD, before)
    with torch.no_grad():
        model.encoder.demo_tokens.embed_input.weight[2] += 5
    assert (model.encoder(demos, torch.float32).tokens_BTD - before).abs().max() > 1e-2


def test_context_tokens_have_unit_rms_and_presets_fill_the_prefix(tiny: Tiny) -> None:
    for preset, filled in (("dense16", 16), ("trm_compat", 1)):
        model, _, batch = setup(tiny(f"encoder/context={preset}"))
        prefix, context, _ = model.condition(batch)
        assert context is not None and context.tokens_BTD.shape[1] == filled
        torch.testing.assert_close(context.tokens_BTD.square().mean(-1).sqrt(), torch.ones(ROWS, filled), atol=1e-3, rtol=0)
        rms = prefix.square().mean(-1).sqrt()
        assert (rms[:, :filled] > 0).all() and (rms[:, filled:] == 0).all()
        if preset == "trm_compat":  # matched to the token embedding: 1 / sqrt(width)
            torch.testing.assert_close(rms[:, 0], torch.full((ROWS,), 0.25), atol=1e-3, rtol=0)


def test_carry_resets_only_halted_rows_and_keeps_labels_with_their_data(tiny: Tiny) -> None:
    model, data, batch = setup(tiny())
    other = data.batch(Cursor(0, 3, 0, 3), ROWS, 0, ROWS)
    with torch.no_grad():
        model.decoder.q_head.bias += 100  # everything halts that may
    carry, output = model(model.initial_carry(batch), batch, torch.tensor([0, 2] * (ROWS // 2)))
    halted = output.halted_B
    assert halted.tolist() == [True, False] * (ROWS // 2)
    mixed = model.admit(carry, other)
    for f in fields(Batch):
        old, new, now = getattr(batch, f.name), getattr(other, f.name), getattr(mixed.data, f.name)
        assert torch.equal(now[halted], new[halted]) and torch.equal(now[~halted], old[~halted])
    assert mixed.steps_B.tolist() == [0 if h else 1 for h in halted]
    assert torch.equal(mixed.latents.z_H[halted], model.decoder.start(ROWS).z_H[halted])
    assert torch.equal(mixed.latents.z_H[~halted], carry.latents.z_H[~halted])
    _, output = model(carry, other, never(batch))
    assert torch.equal(output.labels_BS[~halted], batch.labels_BS[~halted])
    assert torch.equal(output.labels_BS[halted], other.labels_BS[halted])
    assert not torch.equal(batch.labels_BS, other.labels_BS)


def test_carry_is_detached_and_moves(tiny: Tiny) -> None:
    model, _, batch = setup(tiny())
    start = model.initial_carry(batch)
    carry, _ = model(start, batch, never(batch))
    assert not carry.latents.z_H.requires_grad and not carry.latents.z_L.requires_grad
    assert (carry.latents.z_H - start.latents.z_H).abs().max() > 0.1


def test_prediction_equals_training_forward_run_to_the_last_step(tiny: Tiny) -> None:
    """Encoding once per query gives what encoding at every step gives."""
    model, _, batch = setup(tiny())
    carry = model.initial_carry(batch)
    with torch.no_grad():
        for _ in range(model.halting.halt_max_steps):
            carry, output = model(carry, batch, torch.full((ROWS,), model.halting.halt_max_steps))
    assert output.halted_B.all()
    torch.testing.assert_close(model.predict(batch)[0], output.logits_BSV)


def test_encoder_runs_once_per_query_in_evaluation(tiny: Tiny) -> None:
    model, _, batch = setup(tiny())
    calls = []
    assert model.encoder is not None
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    model.predict(batch)
    assert len(calls) == 1


def test_puzzle_table_conditions_by_its_row(tiny: Tiny) -> None:
    model, _, batch = setup(tiny(trm=True))
    assert model.puzzle_table is not None
    before, _ = model.predict(batch)
    model.puzzle_table.weight[batch.puzzle_id_B[0]] = 1.0
    after, _ = model.predict(batch)
    changed = (before - after).abs().amax(dim=(1, 2)) > 1e-4
    assert changed.tolist() == (batch.puzzle_id_B == batch.puzzle_id_B[0]).tolist()


def test_halting_rule() -> None:
    config = HaltingConfig(halt_max_steps=5, halt_exploration_prob=0.0, halt_loss_weight=0.5)
    steps, q = torch.tensor([1, 5, 1, 3, 3]), torch.tensor([0.1, -1.0, -0.1, 2.0, 2.0])
    assert halts(config, steps, q, torch.tensor([0, 0, 0, 4, 3])).tolist() == [True, True, False, False, True]


def test_exploration_draws_are_pure_and_have_the_asked_frequency() -> None:
    config = HaltingConfig(halt_max_steps=8, halt_exploration_prob=0.3, halt_loss_weight=0.5)
    draws = draw_min_steps(config, 20000, seed=1, step=5)
    assert torch.equal(draws, draw_min_steps(config, 20000, seed=1, step=5))
    assert not torch.equal(draws, draw_min_steps(config, 20000, seed=1, step=6))
    assert (draws > 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert set(draws.tolist()) == {0, *range(2, 9)}


def test_stablemax_against_its_definition() -> None:
    logits = torch.tensor([[[3.0, -1.0, 0.5, *[-2.0] * 9]]])
    s = np.array([4.0, 0.5, 1.5, *[1 / 3] * 9])
    loss = stablemax_cross_entropy(logits, torch.tensor([[2]], dtype=torch.uint8))
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(-np.log(1.5 / s.sum()), abs=1e-12)
    assert stablemax_cross_entropy(logits, torch.tensor([[0]], dtype=torch.uint8)).item() == 0


def test_ema_warm_up_follows_early_and_averages_late() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    with_warmup, without = Ema(layer, 0.999, warmup=True), Ema(layer, 0.999, warmup=False)
    torch.nn.init.ones_(layer.weight)
    for _ in range(60):
        with_warmup.update(layer)
        without.update(layer)
    assert with_warmup.shadow["weight"].item() > 0.999 and without.shadow["weight"].item() == pytest.approx(
        1 - 0.999**60, abs=1e-5
    )
    assert with_warmup.current_decay() == pytest.approx(61 / 70)


def test_bf16_runs_and_keeps_fp32_weights(tiny: Tiny) -> None:
    model, _, batch = setup(tiny("trainer.precision=bf16"))
    carry, output = model(model.initial_carry(batch), batch, never(batch))
    assert carry.latents.z_H.dtype == torch.bfloat16 and output.q_halt_B.dtype == torch.float32
    row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5).backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())


def test_config_reaches_the_encoder(tiny: Tiny) -> None:
    config = tiny("encoder.num_layers=3", "encoder.set_layers=2")
    assert isinstance(config.encoder, StandardEncoderConfig)
    model = build_model(config, 1)
    assert model.encoder is not None
    assert (len(model.encoder.layers), len(model.encoder.set_layers)) == (3, 2)


def test_flash_attention_is_called_where_no_mask_is_needed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the CUDA package: same outputs as SDPA, called by every decoder block and by no masked encoder."""
    calls = []

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    package = types.ModuleType("flash_attn")
    package.flash_attn_func = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    plain, _, batch = setup(tiny("trainer.precision=bf16"))
    flash, _, _ = setup(tiny("trainer.precision=bf16", "decoder.attention=flash"))
    flash.load_state_dict(plain.state_dict())
    torch.testing.assert_close(flash.predict(batch)[0], plain.predict(batch)[0])
    blocks_per_step = 2 * flash.decoder.config.h_cycles * (flash.decoder.config.l_cycles + 1)
    assert len(calls) == blocks_per_step * flash.halting.halt_max_steps


def test_flash_attention_without_the_package_is_one_sentence(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match=r"decoder\.attention=flash needs the package flash-attn"):
        setup(tiny("trainer.precision=bf16", "decoder.attention=flash"))
    with pytest.raises(ValueError, match=r"does not go with trainer\.precision=fp32"):
        tiny("decoder.attention=flash")
