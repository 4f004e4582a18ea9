"""The mechanisms of TRM and ETRM: gradients, carry, halting, demonstrations that matter, padding that does not."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from arclab.config.schema import ExperimentConfig, HaltingConfig
from arclab.data.sampler import Batch, Cursor
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.halting import draw_min_steps, halts, most_steps
from arclab.methods.recursive.losses import row_losses, stablemax_cross_entropy
from arclab.methods.recursive.varlen import dense_attention

from .common import ROWS, setup

Tiny = Callable[..., ExperimentConfig]


def never(batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch), dtype=torch.int64)


def test_context_tokens_have_unit_rms_and_presets_fill_the_prefix(tiny: Tiny) -> None:
    for preset, filled in (("dense16", 16), ("trm_compat", 1)):
        model, _, batch = setup(tiny(f"encoder/context={preset}"))
        condition = model.condition(batch)
        prefix, context = condition.prefix_BPD, condition.context
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
    assert torch.equal(mixed.latents.z_H[halted], model.decoder.start(ROWS, batch.inputs_BS.shape[1]).z_H[halted])
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


def test_puzzle_table_conditions_by_its_row(tiny: Tiny) -> None:
    model, _, batch = setup(tiny(trm=True))
    assert model.puzzle_table is not None
    before, _ = model.predict(batch)
    model.puzzle_table.weight[batch.puzzle_id_B[0]] = 1.0
    after, _ = model.predict(batch)
    changed = (before - after).abs().amax(dim=(1, 2)) > 1e-4
    assert changed.tolist() == (batch.puzzle_id_B == batch.puzzle_id_B[0]).tolist()


def test_halting_rule() -> None:
    steps, q = torch.tensor([1, 5, 1, 3, 3]), torch.tensor([0.1, -1.0, -0.1, 2.0, 2.0])
    assert halts(5, steps, q, torch.tensor([0, 0, 0, 4, 3])).tolist() == [True, True, False, False, True]


def test_single_steps_end_at_their_optimiser_step() -> None:
    """Up to and with optimiser step 3 no row may explore or stay; from step 4 on the draws are those of a run without single_steps."""
    config = HaltingConfig(halt_max_steps=8, halt_exploration_prob=1.0, halt_loss_weight=0.5, single_steps=3)
    plain = replace(config, single_steps=0)
    assert [most_steps(config, step) for step in (1, 3, 4)] == [1, 1, 8] and most_steps(plain, 1) == 8
    assert draw_min_steps(config, 50, seed=0, step=3).max() == 0
    assert torch.equal(draw_min_steps(config, 50, seed=0, step=4), draw_min_steps(plain, 50, seed=0, step=4))


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
    assert loss.item() == pytest.approx(-np.log(1.5 / s.sum()), abs=1e-6)
    assert stablemax_cross_entropy(logits, torch.tensor([[0]], dtype=torch.uint8)).item() == 0


def test_stablemax_in_fp32_is_that_in_fp64() -> None:
    """Loss and gradient, from logits that say nothing to logits that are certain, right or wrong."""
    torch.manual_seed(0)
    scale = torch.logspace(-3, 4, 200)[:, None, None]
    logits = torch.randn(200, 30, 12) * scale
    labels = torch.randint(0, 12, (200, 30))

    def reference(x: torch.Tensor) -> torch.Tensor:
        s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
        picked = torch.log(s / s.sum(-1, keepdim=True)).gather(-1, labels[..., None])[..., 0]
        return torch.where(labels != 0, -picked, 0.0)

    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, expected = stablemax_cross_entropy(ours, labels), reference(exact)
    assert (loss.double() - expected).abs().max() < 1e-5
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss.sum(), ours), torch.autograd.grad(expected.sum(), exact)
    assert (gradient.double() - expected_gradient).abs().max() < 1e-5 * expected_gradient.abs().max()


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


def test_flash_attention_is_called_where_no_mask_is_needed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the CUDA package: same outputs as SDPA, called by every decoder block and by no masked encoder."""
    calls = []

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q.shape)
        return dense_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

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
