"""Inner steps of training: the context moves before the outer loss, which sees the move as a constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arclab.config.compose import ConfigError
from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.adaptation.training import training_config
from arclab.methods.recursive.colors import draw_identities, shown_as
from arclab.methods.recursive.encoders import TaskContext
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.search.inner_steps import InnerSteps, inner_steps_of
from arclab.metrics.logger import read_rows

from ..adaptation.common import wanted
from ..common import ROWS, setup
from ..test_encoders import KINDS, config_of, never, noise
from ..training.common import run_training

Tiny = Callable[..., ExperimentConfig]
SHALLOW = ("decoder.num_layers=1", "decoder.h_cycles=1", "decoder.l_cycles=1")


class Recorded:
    """Moves as InnerSteps does, and keeps what it was given and what it made."""

    def __init__(self, steps: InnerSteps) -> None:
        self.steps = steps

    def __call__(self, context: TaskContext, data: Batch, identities_BCC: Tensor | None) -> TaskContext:
        self.before, self.after = context, self.steps(context, data, identities_BCC)
        return self.after


def built(tiny: Tiny, kind: str, *overrides: str) -> tuple[RecursiveModel, Batch, InnerSteps]:
    config = config_of(tiny, kind, *SHALLOW, "encoder.inner_steps=1", "encoder.inner_lr=0.02", *overrides)
    model, _, batch = setup(config)
    steps = inner_steps_of(config.encoder, model)
    assert steps is not None
    return model, batch, steps


def gradients(model: RecursiveModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoder_learns_from_contexts_that_have_moved(tiny: Tiny, kind: str) -> None:
    """The inner loss falls, what the decoder reads has moved, and the outer gradient is that of a constant offset: bit for bit
    what adding the same numbers by hand gives."""
    model, batch, steps = built(tiny, kind)
    move = Recorded(steps)
    _, output = model(model.initial_carry(batch), batch, never(), noise(), move=move)
    assert all(p.grad is None for p in model.parameters())
    assert (steps.losses["inner_after"] <= steps.losses["inner_before"]).all()
    assert steps.losses["inner_after"].mean() < steps.losses["inner_before"].mean() - 1e-5
    assert output.context is move.before and output.context.tokens_BTD.requires_grad
    moved_B = (move.after.tokens_BTD - move.before.tokens_BTD).abs().amax((1, 2)) > 1e-5
    assert moved_B.sum() > ROWS / 2
    row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5).backward()
    found = gradients(model)
    encoder = [grad for name, grad in found.items() if name.startswith("encoder.")]
    assert encoder and sum(float(grad.norm()) for grad in encoder) > 1e-6

    def by_hand(context: TaskContext, data: Batch, identities_BCC: Tensor | None) -> TaskContext:
        def added(now: Tensor, after: Tensor, before: Tensor) -> Tensor:
            return now + (after - before).detach()

        memory = context.memory
        if memory is not None:
            assert move.after.memory is not None and move.before.memory is not None
            parts = memory.tokens_BMD, move.after.memory.tokens_BMD, move.before.memory.tokens_BMD
            memory = replace(memory, tokens_BMD=added(*parts))
        parts = context.tokens_BTD, move.after.tokens_BTD, move.before.tokens_BTD
        return replace(context, tokens_BTD=added(*parts), memory=memory)

    _, output = model(model.initial_carry(batch), batch, never(), noise(), move=by_hand)
    row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS).total(0.5).backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, found[name], rtol=1e-3, atol=1e-5)


def test_more_and_longer_steps_go_further_and_rows_do_not_mix(tiny: Tiny) -> None:
    model, batch, steps = built(tiny, "standard")
    context = model.condition(batch).context
    assert context is not None
    one = steps(context, batch, None).tokens_BTD
    gain = (steps.losses["inner_before"] - steps.losses["inner_after"]).mean()
    _, _, many = built(tiny, "standard", "encoder.inner_steps=5")
    many(context, batch, None)
    assert (many.losses["inner_before"] - many.losses["inner_after"]).mean() > 1.5 * gain
    alone = replace(context, tokens_BTD=context.tokens_BTD[3:5])
    torch.testing.assert_close(steps(alone, batch.rows(3, 5), None).tokens_BTD, one[3:5], rtol=1e-3, atol=1e-4)


def test_the_search_reads_the_identities_of_the_row(tiny: Tiny) -> None:
    """Permuted colours with their identities are the same questions; with others they are not."""
    model, batch, steps = built(tiny, "standard", "decoder.color_embedding=shared")
    identities, colors_BC = draw_identities(model.decoder.config.color_embedding, ROWS, noise())
    along = torch.empty_like(identities)
    for b in range(ROWS):
        along[b, colors_BC[b]] = identities[b]
    losses = []
    for data, each in ((batch, identities), (shown_as(batch, colors_BC), along), (batch, along)):
        context = model.condition(data, identities_BCC=each).context
        assert context is not None
        steps(context, data, each)
        losses.append(steps.losses["inner_before"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    assert (losses[0] - losses[2]).abs().max() > 1e-3


def test_a_training_step_has_them_as_its_keys_say(tiny: Tiny) -> None:
    """They change the weights, so does their length, and the log has the loss before and after; without them it has neither."""
    logged = {}
    for number, overrides in enumerate(((), ("encoder.inner_steps=1",), ("encoder.inner_steps=1", "encoder.inner_lr=0.3"))):
        config = tiny(*SHALLOW, *overrides, "trainer.steps=2", "trainer.log_every=1", f"name=n{number}")
        run_training(config)
        logged[number] = read_rows(Path(config.runs_dir) / f"quickstart/n{number}/metrics.jsonl")[-1]
    assert len({row["train/lm_loss"] for row in logged.values()}) == 3
    assert not any(name.startswith("train/inner") for name in logged[0])
    for number in (1, 2):
        assert logged[number]["train/inner_after_loss"] < logged[number]["train/inner_before_loss"]
    plain = tiny(*SHALLOW)
    assert isinstance(plain.encoder, TaskEncoderConfig) and plain.encoder.inner_steps == 0
    assert inner_steps_of(plain.encoder, setup(plain)[0]) is None


def test_they_are_no_part_of_an_adaptation(tiny: Tiny) -> None:
    """An adapted model answers from the context that its encoder writes."""
    config = tiny("encoder.inner_steps=3")
    adapted = training_config(config, wanted("weights"), 0).encoder
    assert isinstance(adapted, TaskEncoderConfig) and adapted.inner_steps == 0
    assert isinstance(config.encoder, TaskEncoderConfig) and config.encoder.inner_steps == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("encoder.optim.freeze_steps=9", "trainer.steps=9"), r"encoder\.inner_steps=1 .* never lets it train; set"),
        (("encoder.inner_lr=0",), r"encoder\.inner_lr=0\.0 must be between"),
        (("encoder.inner_steps=-1",), r"encoder\.inner_steps=-1 must be at least 0"),
        (("encoder=lpn", "encoder.inner_steps=2000"), r"encoder\.inner_steps=2000 must be at most"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Tiny, overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as found:
        tiny("encoder.inner_steps=1", *overrides)
    assert len(str(found.value).splitlines()) == 1


def test_a_puzzle_table_has_no_context_to_move(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.inner_steps is not a key of the chosen encoder; drop it"):
        tiny("encoder.inner_steps=1", trm=True)
