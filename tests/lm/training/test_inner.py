"""The inner loop: it learns, leaves the base as it was bit for bit, and does not remember what came before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_schema import AdaptKind, InnerConfig
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.switched import base_state
from arclab.lm.training.inner import InnerAdapter, Job, _batches, _Fit, batch_loss
from arclab.lm.training.rows import IGNORED, Row, collate

from ..conftest import sampling, user

CONFIG = InnerConfig(
    kind=AdaptKind.lora, rank=4, alpha=8.0, target_modules=None, lr=1e-2, epochs=15, batch_size=3, warmup_steps=2,
    weight_decay=0.0, clip_norm=1.0,
)  # fmt: skip
KINDS = {kind: replace(CONFIG, kind=kind) for kind in (AdaptKind.lora, AdaptKind.full)}
QUESTIONS = ["0 1 2", "3 4 5 6", "7 8", "9", "1 1 1 1 1 1"]


@pytest.fixture
def model(hf_config: Callable[..., HfModelConfig]) -> HfModel:
    return load_hf(hf_config())


def rows(model: HfModel, answer: str) -> list[Row]:
    found = []
    for text in QUESTIONS:
        shown, reply = model.prompt_ids(user(text)), model.reply_ids(answer)
        found.append({"input_ids": shown + reply, "labels": [IGNORED] * len(shown) + reply})
    return found


def digest(model: HfModel) -> str:
    state = base_state(model.network)
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def thoughts(model: HfModel) -> list[list[float]]:
    return model.logprobs([user("0 1 2"), user("5")], ["4 4 4", "6 7"])


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_inside_the_block_and_the_base_is_as_it_was(model: HfModel, kind: AdaptKind) -> None:
    before, thought, inner = digest(model), thoughts(model), InnerAdapter(model, seed=0)
    with inner.fit(rows(model, "4 2"), KINDS[kind], seed=1) as fitted:
        assert not fitted.problem and len(fitted.losses) == 30 and fitted.losses[-1] < 0.5 * fitted.losses[0]
        ((reply,),) = (r.completions for r in model.generate([user("0 1 2")], 1, sampling(temperature=0.0)))
        assert reply.text == "4 2"
        assert (digest(model) == before) is (kind is AdaptKind.lora)
    assert digest(model) == before and thoughts(model) == thought
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_does_not_remember_the_one_before(
    hf_config: Callable[..., HfModelConfig], model: HfModel, kind: AdaptKind
) -> None:
    """Also not one of another kind and rank."""

    def second(model: HfModel, inner: InnerAdapter) -> Any:
        with inner.fit(rows(model, "3"), KINDS[kind], seed=2) as fitted:
            return fitted.losses, thoughts(model), digest(model)

    alone = second(model, InnerAdapter(model, seed=0))
    other = load_hf(hf_config())
    inner = InnerAdapter(other, seed=0)
    for earlier in (KINDS[AdaptKind.lora], KINDS[AdaptKind.full], replace(CONFIG, rank=2, target_modules=["q_proj"])):
        with inner.fit(rows(other, "8 8"), replace(earlier, epochs=2), seed=1):
            pass
    assert second(other, inner) == alone
    assert second(other, inner)[0] != InnerAdapter(model, seed=0).fit(rows(model, "3"), KINDS[kind], seed=9).__enter__().losses


def test_an_adapter_begins_with_numbers_of_its_own_where_they_are_asked_for(model: HfModel) -> None:
    """All rows in one batch, so that nothing but the beginning differs."""
    inner, whole = InnerAdapter(model, seed=0), replace(CONFIG, batch_size=8, epochs=3)

    def losses(**how: Any) -> tuple[float, ...]:
        with inner.fit(rows(model, "4 2"), whole, seed=1, **how) as fitted:
            return fitted.losses

    usual, five = losses(), losses(start=5)
    assert losses(start=6) != five != usual and losses(start=5) == five and losses() == usual
    assert InnerAdapter(model, seed=1).fit(rows(model, "4 2"), whole, 1, start=5).__enter__().losses == five


def test_what_is_kept_is_base_plus_b_times_a_and_can_be_kept_again(
    hf_config: Callable[..., HfModelConfig], model: HfModel
) -> None:
    inner, before = InnerAdapter(model, seed=0), {k: v.clone() for k, v in base_state(model.network).items()}
    with inner.fit(rows(model, "4 2"), CONFIG, seed=1, start=5):
        adapted, learned = thoughts(model), inner.learned()
        inner.keep()
        for own, before_it in zip(thoughts(model), adapted, strict=True):
            assert own == pytest.approx(before_it, abs=1e-4)
    after = base_state(model.network)
    for name in [name for name in learned if "lora_A" in name]:
        layer, a, b = name.partition(".lora_A")[0], learned[name], learned[name.replace("lora_A", "lora_B")]
        expected = before.pop(f"{layer}.weight") + CONFIG.alpha / CONFIG.rank * (b @ a)
        assert torch.allclose(after[f"{layer}.weight"], expected, atol=1e-6) and b.abs().max() > 1e-3
    assert all(torch.equal(after[name], value) for name, value in before.items()), "nothing else changes"
    kept, other = thoughts(model), load_hf(hf_config())
    InnerAdapter(other, seed=3).keep_learned(CONFIG, learned)
    assert digest(other) == digest(model) and thoughts(other) == kept
    for kind in (AdaptKind.full, AdaptKind.lora):  # the base that is put back is the new one
        with inner.fit(rows(model, "7"), replace(CONFIG, kind=kind, epochs=1), seed=1):
            pass
    assert digest(other) == digest(model) and thoughts(model) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_puts_the_base_back_and_says_so(model: HfModel, kind: AdaptKind) -> None:
    before, thought = digest(model), thoughts(model)
    inner = InnerAdapter(model, seed=0)
    with inner.fit(rows(model, "1"), replace(KINDS[kind], lr=1e30, clip_norm=None), seed=1) as fitted:
        assert "finite" in fitted.problem and len(fitted.losses) < 30
        assert thoughts(model) == thought and digest(model) == before
    with inner.fit(rows(model, "1"), KINDS[kind], seed=1) as fitted:
        assert not fitted.problem and fitted.losses[-1] < fitted.losses[0]
    assert digest(model) == before


def test_an_error_inside_and_an_end_before_a_step_put_the_base_back(model: HfModel) -> None:
    before, inner = digest(model), InnerAdapter(model, seed=0)
    full, calls = KINDS[AdaptKind.full], []

    def told() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), inner.fit(rows(model, "1"), full, seed=1, before_step=told):
        raise AssertionError
    assert digest(model) == before
    with pytest.raises(LookupError), inner.fit(rows(model, "1"), full, seed=1):
        raise LookupError
    assert digest(model) == before


def test_none_and_no_rows_change_nothing(model: HfModel) -> None:
    inner, thought = InnerAdapter(model, seed=0), thoughts(model)
    for given, config in ((rows(model, "1"), replace(CONFIG, kind=AdaptKind.none)), ([], CONFIG)):
        with inner.fit(given, config, seed=1) as fitted:
            assert fitted.losses == () and thoughts(model) == thought
    with (
        pytest.raises(ValueError, match="no linear layer"),
        inner.fit(rows(model, "1"), replace(CONFIG, target_modules=["x"]), 1),
    ):
        pass


def test_padding_carries_no_loss(model: HfModel) -> None:
    """Rows of other lengths in one batch: the mean over their learned tokens; and logits that nobody learns are not missed."""
    each = [*rows(model, "4 2 7")[:3], {"input_ids": [5, 6, 7, 8], "labels": [5, 6, IGNORED, 8]}]
    counts = [sum(label != IGNORED for label in row["labels"][1:]) for row in each]
    with torch.no_grad():
        alone = [batch_loss(model.network, collate([row], model.pad_id)).item() for row in each]
        together = batch_loss(model.network, collate(each, model.pad_id)).item()
    weighted = sum(loss * count for loss, count in zip(alone, counts, strict=True))
    assert together == pytest.approx(weighted / sum(counts), rel=1e-5)


def test_batches_are_of_like_lengths_and_hold_every_row_once() -> None:
    given: list[Row] = [{"input_ids": [0] * length} for length in [3, 50] * 24]
    config = replace(CONFIG, epochs=2, batch_size=4)
    batches = list(_batches(given, config, seed=0))
    assert sorted(n for batch in batches for n in batch) == sorted([*range(48)] * 2)
    assert all(len({len(given[n]["input_ids"]) for n in batch}) == 1 for batch in batches)
    assert batches == list(_batches(given, config, seed=0)) != list(_batches(given, config, seed=1))


def jobs_of(model: HfModel) -> list[Job]:
    """Of other rows, rates, lengths and seeds."""
    return [
        Job(rows(model, "4 2"), CONFIG, 1),
        Job(rows(model, "7 7 7")[:2], replace(CONFIG, lr=3e-3, epochs=4, batch_size=1), 2),
        Job(rows(model, "1")[:3], replace(CONFIG, epochs=9, clip_norm=None), 3),
    ]


def test_adapters_that_are_trained_together_are_what_each_alone_is(
    hf_config: Callable[..., HfModelConfig], model: HfModel
) -> None:
    """Up to rounding; afterwards the base is as it was, and a fit alone after it is what it was before."""
    before, jobs, inner = digest(model), jobs_of(model), InnerAdapter(model, seed=0)
    alone = []
    for job in jobs:
        with InnerAdapter(model_of := load_hf(hf_config()), seed=0).fit(job.rows, job.config, job.seed) as fitted:
            alone.append((fitted.losses, thoughts(model_of), fitted.num_tokens - fitted.num_padding))
    with inner.fit_together(jobs) as adapted:
        assert [len(each.fitted.losses) for each in adapted] == [30, 8, 9]
        for each, (losses, thought, num_tokens) in zip(adapted, alone, strict=True):
            assert not each.fitted.problem and each.fitted.losses == pytest.approx(losses, rel=1e-3, abs=1e-4)
            assert each.fitted.num_tokens - each.fitted.num_padding == num_tokens
            with each.in_use():
                assert thoughts(model) == [pytest.approx(values, abs=2e-2) for values in thought]
        assert digest(model) == before
    with inner.fit(jobs[0].rows, jobs[0].config, 1) as fitted:
        assert fitted.losses == alone[0][0] and thoughts(model) == alone[0][1]
    assert digest(model) == before


def test_a_gradient_comes_from_its_own_rows_alone(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step's gradient of an adapter is that of its rows, whatever the other's rows are; one that is not finite gets
    no step, is answered by the model as it is, and the other goes on as without it."""
    seen: dict[str, list[torch.Tensor]] = {}
    step = _Fit.step

    def noting(fit: _Fit, loss: float, **counts: int) -> None:
        seen.setdefault(fit.name, [weight.grad.clone() for weight in fit._weights if weight.grad is not None])
        step(fit, loss, **counts)

    monkeypatch.setattr(_Fit, "step", noting)
    thought, inner, (first, second, third) = thoughts(model), InnerAdapter(model, seed=0), jobs_of(model)
    found = []
    for other in (second, third, replace(second, config=replace(second.config, lr=1e30, clip_norm=None))):
        seen.clear()
        with inner.fit_together([first, other]) as adapted:
            found.append((seen["inner_0"], adapted[0].fitted.losses))
            if other.config.lr == 1e30:
                assert "finite" in adapted[1].fitted.problem and len(adapted[1].fitted.losses) < 8
                with adapted[1].in_use():
                    assert thoughts(model) == thought
    assert all(any(bool(gradient.any()) for gradient in gradients) for gradients, _ in found)
    for gradients, losses in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, found[0][0], strict=True))
        assert losses == pytest.approx(found[0][1], rel=1e-3, abs=1e-4)
    with inner.fit_together([second, first]) as adapted:
        assert not any(each.fitted.problem for each in adapted), "nothing of it is left"
