"""What every encoder must do, for every kind and layout: learn, read its demonstrations, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from arclab.config.encoder_schema import DemoLayout, TaskEncoderConfig
from arclab.config.encoders import ENCODER_SCHEMAS
from arclab.config.schema import ExperimentConfig
from arclab.data.augment import NUM_DIHEDRAL, dihedral
from arclab.data.codec import PAD, decode, encode
from arclab.data.sampler import Batch, Cursor
from arclab.methods.recursive import auxiliary
from arclab.methods.recursive.auxiliary import auxiliary_losses, auxiliary_weights, supervised_contrastive
from arclab.methods.recursive.encoders import Demonstrations
from arclab.methods.recursive.encoders.blocks import LOGVAR_START, Gaussian, kl_to_unit_normal
from arclab.methods.recursive.encoders.standard import StandardEncoder
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.token_views import dihedral_views
from arclab.methods.recursive.training.step import noise_generator

from ...conftest import compose
from .common import ROWS, setup

Tiny = Callable[..., ExperimentConfig]
KINDS = sorted(k for k, schema in ENCODER_SCHEMAS.items() if issubclass(schema, TaskEncoderConfig))
RECURRENT = ("recurrent", "recurrent_trm")
VARIATIONAL = ("variational", "hybrid_variational", "lpn_variational")
CPU = torch.device("cpu")


def config_of(tiny: Tiny, kind: str, *overrides: str, layout: str = "aligned") -> ExperimentConfig:
    small = [f"encoder={kind}", "encoder.num_heads=2", f"encoder.demo_layout={layout}"]
    small += ["encoder.latent_dim=8"] * (kind in VARIATIONAL) + ["encoder.width=16"] * kind.startswith("lpn")
    return tiny(*small, *overrides)


def noise() -> torch.Generator:
    return noise_generator((0, 1, 2), CPU)


def never() -> torch.Tensor:
    return torch.zeros(ROWS, dtype=torch.int64)


def loss_of(model: RecursiveModel, config: ExperimentConfig, batch: Batch, steps: int = 2) -> torch.Tensor:
    """The training loss of the last of several supervision steps, auxiliary losses included."""
    carry = model.initial_carry(batch)
    for _ in range(steps):
        model.zero_grad()
        carry, output = model(carry, batch, torch.full((ROWS,), steps + 1), noise())
    total = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5)
    assert output.context is not None and isinstance(config.encoder, TaskEncoderConfig)
    extra = auxiliary_losses(config.encoder, model, carry.data, output.context, noise())
    weights = auxiliary_weights(config.encoder, 1)
    return total + sum((weights[n] * v.sum() for n, v in extra.items()), torch.zeros(()))


@pytest.mark.parametrize("layout", [layout.name for layout in DemoLayout])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(tiny: Tiny, kind: str, layout: str) -> None:
    """At the first step of a row (start states are learned) and at a later one (rows that go on are covered too)."""
    config = config_of(tiny, kind, layout=layout)
    model, _, batch = setup(config)
    seen: dict[str, float] = {}
    for steps in (1, 2):
        loss_of(model, config, batch, steps).backward()
        for name, p in model.named_parameters():
            seen[name] = max(seen.get(name, 0.0), 0.0 if p.grad is None else float(p.grad.norm()))
        model.zero_grad()
    # in_context's prefix is normed and then scaled by one gain, like any context; nothing may stand still.
    assert min(seen.values()) > 1e-9, {n: v for n, v in seen.items() if v <= 1e-9}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_the_carry_gives_the_encoder_a_gradient(tiny: Tiny, kind: str) -> None:
    """Also rows that go on: demonstrations are encoded again at every step, never cached or detached."""
    config = config_of(tiny, kind)
    model, _, batch = setup(config)
    carry, output = model(model.initial_carry(batch), batch, torch.full((ROWS,), 4), noise())
    assert not output.halted_B.any()
    _, output = model(carry, batch, torch.full((ROWS,), 4), noise())
    losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
    encoder = [p for n, p in model.encoder.named_parameters() if "embed_output" in n]  # type: ignore[union-attr]
    for b in range(ROWS):
        grads = torch.autograd.grad(losses.lm[b], encoder, retain_graph=True)
        assert max(float(g.norm()) for g in grads) > 1e-9, b


def swap_demos(batch: Batch, order: torch.Tensor) -> Batch:
    swapped = batch.rows(0, len(batch))
    for name in ("demo_inputs_BKS", "demo_outputs_BKS", "num_demos_B"):
        setattr(swapped, name, getattr(batch, name)[order])
    return swapped


@pytest.mark.parametrize("layout", [layout.name for layout in DemoLayout])
@pytest.mark.parametrize("kind", KINDS)
def test_output_changes_when_demonstrations_are_swapped_between_tasks(tiny: Tiny, kind: str, layout: str) -> None:
    model, _, batch = setup(config_of(tiny, kind, layout=layout))
    logits, _ = model.predict(batch)
    swapped, _ = model.predict(swap_demos(batch, torch.arange(ROWS).roll(1)))
    assert ((logits - swapped).abs().amax(dim=(1, 2)) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_demonstrations_does_not_matter_but_pairing_does(tiny: Tiny, kind: str) -> None:
    model, _, batch = setup(config_of(tiny, kind))
    shuffled, exchanged = batch.rows(0, ROWS), batch.rows(0, ROWS)
    shuffled.demo_inputs_BKS, shuffled.demo_outputs_BKS = batch.demo_inputs_BKS.clone(), batch.demo_outputs_BKS.clone()
    for b in range(ROWS):
        order = torch.randperm(int(batch.num_demos_B[b]))
        shuffled.demo_inputs_BKS[b, : len(order)] = batch.demo_inputs_BKS[b, order]
        shuffled.demo_outputs_BKS[b, : len(order)] = batch.demo_outputs_BKS[b, order]
    exchanged.demo_inputs_BKS, exchanged.demo_outputs_BKS = batch.demo_outputs_BKS, batch.demo_inputs_BKS
    plain, same = model.condition(batch), model.condition(shuffled)  # compared before the recursion, which amplifies rounding
    torch.testing.assert_close(plain.context.summary_BTD, same.context.summary_BTD, atol=1e-3, rtol=1e-3)  # type: ignore[union-attr]
    assert (model.predict(batch)[0] - model.predict(exchanged)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["standard", "hierarchical", "cross_attention"])
def test_context_tokens_start_as_several_and_differ_between_tasks(tiny: Tiny, kind: str) -> None:
    """Queries near zero make one token of sixteen (a spread of 0.001), large ones say the same about every task."""
    _, _, batch = setup(config_of(tiny, kind))
    torch.manual_seed(0)
    context = build_model(config_of(tiny, kind), 1).condition(batch).context
    assert context is not None
    tokens_BTD = context.tokens_BTD
    assert (tokens_BTD - tokens_BTD.mean(1, keepdim=True)).square().mean() > 0.05
    assert (tokens_BTD - tokens_BTD.mean(0)).square().mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_empty_slots_cost_nothing_and_change_nothing(tiny: Tiny, kind: str) -> None:
    """Extra empty slots, even with junk in them, and from 1 to 10 demonstrations: same result, no NaN, no row encoded."""
    model, _, batch = setup(config_of(tiny, kind))
    wide, slots = batch.rows(0, ROWS), batch.demo_inputs_BKS.shape[1]
    real = torch.arange(slots)[None, :, None] < batch.num_demos_B[:, None, None]
    for name in ("demo_inputs_BKS", "demo_outputs_BKS"):
        junk = torch.randint(0, 12, (ROWS, 10, 36), dtype=torch.uint8)
        junk[:, :slots] = torch.where(real, getattr(batch, name), junk[:, :slots])
        setattr(wide, name, junk)
    model.halting.halt_max_steps = 1  # an untrained recursion amplifies rounding a hundredfold in four steps
    torch.testing.assert_close(model.predict(batch)[0], model.predict(wide)[0], atol=1e-3, rtol=1e-3)
    assert len(Demonstrations.from_batch(wide).inputs_NS) == int(batch.num_demos_B.sum())
    for count in (1, 2, 10):
        wide.num_demos_B = torch.full((ROWS,), count)
        logits, q_halt = model.predict(wide)
        assert torch.isfinite(logits).all() and torch.isfinite(q_halt).all()


@pytest.mark.parametrize("layout", [layout.name for layout in DemoLayout])
@pytest.mark.parametrize("kind", KINDS)
def test_pad_cells_are_neither_attended_to_nor_pooled(tiny: Tiny, kind: str, layout: str) -> None:
    """Where a whole token is PAD, moving its embedding moves no context; moving a colour's embedding does."""
    model, _, batch = setup(config_of(tiny, kind, layout=layout))
    assert model.encoder is not None
    demos = Demonstrations.from_batch(batch)
    if layout == "symmetry":  # full grids: every view covers the same square, so a token is PAD in all views or in none
        square = torch.zeros(6, 6, dtype=torch.bool)
        square[:4, :4] = True
        demos.inputs_NS = torch.where(square.view(-1), torch.randint(2, 12, demos.inputs_NS.shape), 0).to(torch.uint8)
        demos.outputs_NS = torch.where(square.view(-1), torch.randint(2, 12, demos.inputs_NS.shape), 0).to(torch.uint8)
    if layout == "aligned":
        empty = (demos.inputs_NS == PAD) | (demos.outputs_NS == PAD)
        demos.inputs_NS, demos.outputs_NS = demos.inputs_NS.masked_fill(empty, PAD), demos.outputs_NS.masked_fill(empty, PAD)
    before = model.encoder(demos, torch.float32).summary_BTD
    tables = [m for n, m in model.encoder.named_modules() if n.endswith(("embed_input", "embed_output"))]
    with torch.no_grad():
        for table in tables:
            table.weight[0::12] += 3 * torch.randn(table.weight.shape[1])  # the row of PAD in every view's table
    torch.testing.assert_close(model.encoder(demos, torch.float32).summary_BTD, before, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for table in tables:
            table.weight[2::12] += 3 * torch.randn(table.weight.shape[1])
    assert (model.encoder(demos, torch.float32).summary_BTD - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_context_tokens_have_unit_rms(tiny: Tiny, kind: str) -> None:
    model, _, batch = setup(config_of(tiny, kind, "encoder.context.num_tokens=5"))
    context = model.condition(batch).context
    assert context is not None and context.tokens_BTD.shape[1] == 5
    torch.testing.assert_close(context.tokens_BTD.square().mean(-1).sqrt(), torch.ones(ROWS, 5), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_equals_the_training_forward_run_to_the_last_step(tiny: Tiny, kind: str) -> None:
    """Reading the demonstrations once per query gives what reading them at every step gives."""
    model, _, batch = setup(config_of(tiny, kind))
    reads = []
    original = model.encoder.read  # type: ignore[union-attr]
    model.encoder.read = lambda *args: (reads.append(1), original(*args))[1]  # type: ignore[union-attr,method-assign]
    prediction = model.predict(batch)[0]
    assert len(reads) == 1
    carry = model.initial_carry(batch)
    with torch.no_grad():
        for _ in range(model.halting.halt_max_steps):
            carry, output = model(carry, batch, torch.full((ROWS,), model.halting.halt_max_steps))
    assert output.halted_B.all()
    torch.testing.assert_close(prediction, output.logits_BSV, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_state_moves_is_carried_and_starts_anew(tiny: Tiny, kind: str) -> None:
    model, data, batch = setup(config_of(tiny, kind))
    start = model.initial_carry(batch)
    assert start.encoder_state is not None
    carry, output = model(start, batch, torch.tensor([0, 3] * (ROWS // 2)))
    assert carry.encoder_state is not None and not carry.encoder_state.requires_grad
    assert output.context is not None and output.context.state is not None and output.context.state.requires_grad
    assert ((carry.encoder_state - start.encoder_state).abs().amax(dim=(1, 2)) > 1e-2).all()
    carry.halted_B = torch.tensor([True, False] * (ROWS // 2))
    other = data.batch(Cursor(0, 3, 0, 3), ROWS, 0, ROWS)
    admitted = model.admit(carry, other)
    assert admitted.encoder_state is not None
    assert torch.equal(admitted.encoder_state[::2], start.encoder_state[::2])
    assert torch.equal(admitted.encoder_state[1::2], carry.encoder_state[1::2])
    fresh, _ = model(model.initial_carry(other), other, never())
    later, _ = model(carry, other, never())
    assert fresh.encoder_state is not None and later.encoder_state is not None
    torch.testing.assert_close(fresh.encoder_state[::2], later.encoder_state[::2])


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_sampling_is_seeded_in_training_and_off_in_evaluation(tiny: Tiny, kind: str) -> None:
    model, _, batch = setup(config_of(tiny, kind))
    assert model.encoder is not None
    demos = Demonstrations.from_batch(batch)
    means = [model.encoder(demos, torch.float32).tokens_BTD for _ in range(2)]
    samples = [model.encoder(demos, torch.float32, noise=noise_generator((0, step), CPU)).tokens_BTD for step in (1, 1, 2)]
    assert torch.equal(means[0], means[1]) and torch.equal(samples[0], samples[1])
    assert not torch.allclose(samples[0], samples[2]) and not torch.allclose(samples[0], means[0])


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_kl_has_its_weight_at_any_batch_size(tiny: Tiny, kind: str) -> None:
    """The KL of a row does not depend on the other rows, and its gradient per row is that of weight x KL."""
    config = config_of(tiny, kind, "encoder.kl.weight=0.5")
    model, _, batch = setup(config)
    whole = model.condition(batch, noise=None).context
    part = model.condition(batch.rows(0, 3), noise=None).context
    assert whole is not None and part is not None and (whole.aux_losses["kl"] > 0).all()
    torch.testing.assert_close(whole.aux_losses["kl"][:3], part.aux_losses["kl"], atol=1e-5, rtol=1e-4)
    assert auxiliary_weights(config.encoder, 1) == {"kl": 0.5}
    annealed = config_of(tiny, kind, "encoder.kl.weight=0.5", "encoder.kl.anneal_steps=10")
    assert [auxiliary_weights(annealed.encoder, s)["kl"] for s in (1, 5, 10, 99)] == [0.05, 0.25, 0.5, 0.5]


def test_kl_formula_and_free_bits() -> None:
    mu, logvar = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, np.log(4.0)]])
    expected = 0.5 + 0.5 * (4 - 1 - np.log(4))
    assert kl_to_unit_normal(mu, logvar, 0.0).item() == pytest.approx(expected, abs=1e-5)
    assert kl_to_unit_normal(torch.zeros(1, 3), torch.zeros(1, 3), 0.25).item() == pytest.approx(0.75)
    latent = Gaussian(8, 4)
    sample, mean, log_variance = latent(torch.randn(20000, 8), noise())
    assert (sample - mean).std().item() == pytest.approx(math.exp(LOGVAR_START / 2), rel=0.02)
    assert (log_variance == LOGVAR_START).all()


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_free_bits_do_not_hide_a_collapsed_posterior(tiny: Tiny, kind: str) -> None:
    """A latent that says nothing costs latent_dim x free_bits as a loss; what is logged for health is its KL, 0."""
    model, _, batch = setup(config_of(tiny, kind, "encoder.latent_dim=4", "encoder.kl.free_bits=2.0"))
    assert model.encoder is not None
    alive = model.condition(batch).context
    assert alive is not None and alive.kl_B is not None and (alive.kl_B > 0).all() and not alive.kl_B.requires_grad
    for part in (model.encoder.latent.mu, model.encoder.latent.logvar):  # type: ignore[union-attr]
        torch.nn.init.zeros_(part.weight)  # type: ignore[union-attr]
    torch.nn.init.zeros_(model.encoder.latent.logvar_bias)  # type: ignore[union-attr]
    dead = model.condition(batch).context
    assert dead is not None and dead.kl_B is not None
    torch.testing.assert_close(dead.aux_losses["kl"], torch.full_like(dead.kl_B, 8.0))
    assert dead.kl_B.abs().max() == 0


def test_latent_dim_is_honoured(tiny: Tiny) -> None:
    for kind in VARIATIONAL:
        model, _, _ = setup(config_of(tiny, kind, "encoder.latent_dim=5"))
        assert model.encoder.latent.mu.weight.shape[0] == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("side", [(3, 3), (2, 4), (4, 1), (6, 6), (5, 6)])
@pytest.mark.parametrize("corner", [(0, 0), (1, 2)])
def test_dihedral_views_of_a_grid_on_the_canvas(side: tuple[int, int], corner: tuple[int, int]) -> None:
    """View d of the tokens is the plain view d of the grid at the same corner, cropped to the canvas."""
    if side[0] + corner[0] > 6 or side[1] + corner[1] > 6:
        corner = (0, 0)
    grid = np.random.default_rng(0).integers(0, 10, size=side).astype(np.uint8)
    tokens = torch.from_numpy(encode(grid, 6, *corner))[None]
    views = dihedral_views(tokens, 6)
    assert torch.equal(views[..., 0], tokens)
    for view in range(1, NUM_DIHEDRAL):
        expected = np.zeros((6, 6), dtype=np.uint8)
        turned = dihedral(grid, view)[: 6 - corner[0], : 6 - corner[1]] + 2
        expected[corner[0] : corner[0] + turned.shape[0], corner[1] : corner[1] + turned.shape[1]] = turned
        assert np.array_equal(views[0, :, view].numpy().reshape(6, 6), expected), view


def test_a_turned_demonstration_is_visible_within_single_tokens() -> None:
    """In the symmetry layout the view that equals the input matches it in every cell; no other view does."""
    grid = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)
    for view in range(NUM_DIHEDRAL):
        output = dihedral(grid, view)
        views = dihedral_views(torch.from_numpy(encode(np.ascontiguousarray(output), 6))[None], 6)
        same = [np.array_equal(decode(views[0, :, v].numpy(), 6), grid) for v in range(NUM_DIHEDRAL)]  # type: ignore[arg-type]
        assert same == [v == (0, 3, 2, 1, 4, 5, 6, 7)[view] for v in range(NUM_DIHEDRAL)]


def test_in_context_compresses_nothing(tiny: Tiny) -> None:
    """The decoder's sequence grows by every demonstration cell, and one changed cell changes the prediction."""
    model, _, batch = setup(config_of(tiny, "in_context"))
    slots = batch.demo_inputs_BKS.shape[1]
    assert model.initial_carry(batch).latents.z_H.shape[1] == 16 + 36 + 36 * slots
    changed = batch.rows(0, ROWS)
    changed.demo_outputs_BKS = batch.demo_outputs_BKS.clone()
    cell = changed.demo_outputs_BKS[:, 0, 0]
    changed.demo_outputs_BKS[:, 0, 0] = torch.where(cell == 11, 10, cell + 1).to(torch.uint8)
    assert ((model.predict(batch)[0] - model.predict(changed)[0]).abs().amax(dim=(1, 2)) > 1e-5).all()


@pytest.mark.parametrize("view", ["subsets", "augmentations"])
def test_contrastive_loss_pulls_a_task_together(tiny: Tiny, view: str) -> None:
    """Training on it alone raises the similarity within tasks above that between tasks; rows without a pair are left out."""
    config = config_of(
        tiny, "standard", "encoder.contrastive.weight=1.0", f"encoder.contrastive.view={view}", "dataset.num_augmentations=3"
    )
    model, data, _ = setup(config)
    assert isinstance(config.encoder, TaskEncoderConfig)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=3e-3)  # type: ignore[union-attr]
    cursor, history = Cursor.first(0), []
    for step in range(40):
        batch = data.batch(cursor, 36, 0, 36)
        cursor = data.next_cursor(cursor, 36)
        context = model.condition(batch).context
        assert context is not None
        rows = auxiliary_losses(config.encoder, model, batch, context, noise_generator((0, step), CPU))["contrastive"]
        # Every row has its own augmented view as a positive; halves need two demonstrations.
        assert ((rows > 0) == ((batch.num_demos_B > 1) | (view == "augmentations"))).all()
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()
        history.append(float(rows.mean().detach()))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])


def test_contrastive_views_of_a_recurrent_encoder_differ_by_the_view_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the identity as augmentation both are the same, however far the carry has refined its state."""
    config = config_of(tiny, "recurrent", "encoder.contrastive.weight=1.0", "encoder.contrastive.view=augmentations")
    model, _, batch = setup(config)
    monkeypatch.setattr(auxiliary, "augmented", lambda data, noise, identities: Demonstrations.from_batch(data))
    seen: list[torch.Tensor] = []
    pooled = auxiliary._pooled
    monkeypatch.setattr(auxiliary, "_pooled", lambda context: seen.append(pooled(context)) or seen[-1])
    carry = model.initial_carry(batch)
    for _ in range(3):
        carry, output = model(carry, batch, torch.full((len(batch),), 9))
    assert output.context is not None and isinstance(config.encoder, TaskEncoderConfig)
    auxiliary_losses(config.encoder, model, carry.data, output.context, noise_generator((0, 1), CPU))
    torch.testing.assert_close(seen[0], seen[1])


def test_supervised_contrastive_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    loss, has_positive = supervised_contrastive(z, torch.tensor([7, 8, 7]), temperature=1.0)
    assert has_positive.tolist() == [True, False, True]
    expected = -np.log(np.e / (np.e + 1))
    assert loss.tolist() == pytest.approx([expected, 0.0, expected], abs=1e-6)


def test_reconstruction_reads_the_other_demonstrations_only(tiny: Tiny) -> None:
    """It has a gradient, is 0 for a single demonstration, and does not see the held-out output."""
    config = config_of(tiny, "standard", "encoder.reconstruction.weight=1.0")
    model, _, batch = setup(config)
    assert isinstance(config.encoder, TaskEncoderConfig)
    context = model.condition(batch).context
    assert context is not None
    rows = auxiliary_losses(config.encoder, model, batch, context, noise())["reconstruction"]
    assert (rows[batch.num_demos_B == 1] == 0).all() and (rows[batch.num_demos_B > 1] > 0).all()
    rows.sum().backward()
    norms = [
        float(p.grad.norm())
        for n, p in model.named_parameters()
        if p.grad is not None and n.startswith(("encoder", "decoder.layers"))
    ]
    assert len(norms) > 10 and min(norms) > 0
    seen = []
    original = model.encoder.read  # type: ignore[union-attr]
    model.encoder.read = lambda demos, dtype: (seen.append(demos), original(demos, dtype))[1]  # type: ignore[union-attr,method-assign]
    auxiliary_losses(config.encoder, model, batch, context, noise())
    assert seen[0].valid_BK.sum(1).tolist() == [max(1, n - 1) for n in batch.num_demos_B.tolist()]


@pytest.mark.parametrize("option", ["pooling=max", "pooling=attention", "pooling=weighted", "norm=pre", "layer_scale=0.1", "qk_norm=true", "width=32", "tokens_per_demo=3"])  # fmt: skip
def test_options_change_the_encoder_and_keep_it_sound(tiny: Tiny, option: str) -> None:
    extra = ["encoder.pooling=attention"] if option.startswith("tokens") else []
    config = config_of(tiny, "standard", f"encoder.{option}", *extra)
    model, _, batch = setup(config)
    loss_of(model, config, batch).backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in model.encoder.parameters()
    )  # type: ignore[union-attr]
    plain, _, _ = setup(config_of(tiny, "standard", *extra))
    same_shape = [
        n for n, p in plain.state_dict().items() if n in model.state_dict() and model.state_dict()[n].shape == p.shape
    ]
    plain.load_state_dict({**plain.state_dict(), **{n: model.state_dict()[n] for n in same_shape}})
    assert (plain.predict(batch)[0] - model.predict(batch)[0]).abs().max() > 1e-4


COLORS = ("encoder.pooling=colors", "encoder.tokens_per_demo=10")


@pytest.mark.parametrize("layout", ["concat", "symmetry"])
@pytest.mark.parametrize("kind", ["standard", "hierarchical", "set_transformer", "recurrent", "recurrent_trm", "variational"])
def test_pooling_by_color_learns_and_reads_which_output_goes_with_which_input(tiny: Tiny, kind: str, layout: str) -> None:
    config = config_of(tiny, kind, *COLORS, layout=layout)
    model, _, batch = setup(config)
    assert model.encoder is not None
    loss_of(model, config, batch, steps=1).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.encoder.parameters())
    context = model.condition(batch).context
    shuffled = swap_demos(batch, torch.arange(ROWS).roll(1))
    other = model.condition(shuffled).context
    assert context is not None and other is not None
    assert (context.tokens_BTD - other.tokens_BTD).abs().max() > 1e-2


def test_a_color_token_is_the_mean_over_the_cells_of_its_color(tiny: Tiny) -> None:
    model, _, batch = setup(config_of(tiny, "standard", *COLORS))
    assert isinstance(model.encoder, StandardEncoder)
    demos, stage = Demonstrations.from_batch(batch), model.encoder.demo_stage
    with torch.no_grad():
        x_NLD, _ = stage.token_stage(demos, torch.float32)
        tokens_BMD, mask_BM = demos.unpack_tokens(*stage(demos, torch.float32))
    for color in range(10):
        shows_NL = demos.inputs_NS == color + 2
        present_N = mask_BM.view(*demos.valid_BK.shape, 10)[demos.valid_BK][:, color]
        assert torch.equal(present_N, shows_NL.any(1))
        if present_N.any():
            n = int(present_N.nonzero()[0])
            expected = stage.to_set(x_NLD[n][shows_NL[n]].mean(0))
            actual = tokens_BMD.view(*demos.valid_BK.shape, 10, -1)[demos.valid_BK][n, color]
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert not mask_BM.all()


def test_published_sizes() -> None:
    """Parameter counts of the published encoders at width 512, canvas 30 (differences are named in the modules)."""
    from arclab.methods.recursive.encoders import build_encoder

    def count(kind: str, *overrides: str) -> float:
        config = compose("pretrain_encoder", [f"encoder={kind}", *overrides])
        return sum(p.numel() for p in build_encoder(config.encoder, 512, 30).parameters()) / 1e6

    assert count("standard") == pytest.approx(10.51, abs=0.01)
    assert count("hybrid") == pytest.approx(17.06, abs=0.3)
    assert count("lpn") == pytest.approx(1.45, abs=0.03)
    assert count("lpn_variational") == pytest.approx(0.673, abs=0.02)
    assert count("lpn_variational", "encoder.latent_dim=64") > count("lpn_variational")


BAD = [
    ("variational", ["encoder.kl.weight=0"], "or encoder.kl.allow_zero_weight=true"),
    ("variational", ["encoder.latent_dim=17"], "encoder.latent_dim=17 must be between 1 and the encoder's width 16"),
    ("lpn_variational", ["encoder.latent_dim=17"], "encoder.latent_dim=17 must be between 1 and the encoder's width 16"),
    ("standard", ["encoder.pooling=cls"], "encoder.pooling=cls is not what encoder=standard has; choose mean, max, attention, weighted, colors"),
    ("hybrid", ["encoder.pooling=mean"], "encoder.pooling=mean is not what encoder=hybrid has; choose cls"),
    ("standard", ["encoder.pooling=colors"], "encoder.tokens_per_demo=1 does not go with encoder.pooling=colors"),
    ("recurrent", ["encoder.pooling=colors", "encoder.tokens_per_demo=10", "encoder.context.num_tokens=2"], "set encoder.context.num_tokens=10"),
    ("standard", ["encoder.tokens_per_demo=2"], "set encoder.tokens_per_demo=1 or encoder.pooling=attention or encoder.pooling=weighted or encoder.pooling=colors."),
    ("hybrid", ["encoder.tokens_per_demo=2"], "encoder.pooling=cls, which gives one token; set encoder.tokens_per_demo=1."),
    ("in_context", ["decoder.mlp_t=true"], "encoder.kind=in_context needs attention with rotary positions"),
    ("standard", ["encoder.width=15"], "encoder.width=15 must be an even multiple of encoder.num_heads=2"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "overrides", "words"), BAD, ids=[f"{k} {o[0]}" for k, o, _ in BAD])
def test_bad_encoder_settings(tiny: Tiny, kind: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError) as error:
        config_of(tiny, kind, *overrides)
    assert words in str(error.value)


def test_zero_kl_on_purpose(tiny: Tiny) -> None:
    config = config_of(tiny, "variational", "encoder.kl.weight=0", "encoder.kl.allow_zero_weight=true")
    assert auxiliary_weights(config.encoder, 1) == {"kl": 0.0}
