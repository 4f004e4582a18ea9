"""The model with memory: what it leaves alone, what it changes, and where gradients go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arclab.lm.switched import LoraSettings, active, adapter_parameters, base_state
from arclab.methods.memgen.insertions import INFERENCE, PROMPT
from arclab.methods.memgen.model import WEAVER, MemGenModel
from arclab.methods.memgen.saved import MemoryWeights
from tests.methods.memgen.conftest import Build, reasoner_of, some_ids


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four rows, padding on either side, with up to four insertions in a row and none in one."""
    ids_BL = torch.tensor(some_ids(24, 24, 24, 24))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, :5], mask_BL[2, 18:] = 0, 0
    plan_BL = torch.zeros_like(ids_BL)
    plan_BL[[0, 1, 3], 8] = PROMPT
    plan_BL[0, [12, 13, 20]], plan_BL[1, 10], plan_BL[3, 22] = INFERENCE, INFERENCE, INFERENCE
    return ids_BL, mask_BL, plan_BL


@pytest.mark.parametrize("fast", [False, True])
def test_without_memory_it_is_the_reasoner_bit_for_bit(build: Build, tiny_lm: Path, fast: bool) -> None:
    ids_BL, mask_BL, plan_BL = _batch()
    model = build(fast=fast)
    position_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = reasoner_of(tiny_lm)(input_ids=ids_BL, attention_mask=mask_BL, position_ids=position_BL).logits
        without_plan = model(ids_BL, mask_BL).logits
        with model.memory_off():
            off = model(ids_BL, mask_BL, plan_BL=plan_BL).logits
    real = mask_BL.bool()
    assert torch.equal(off[real], plain[real]) and torch.equal(without_plan[real], plain[real])


@pytest.mark.parametrize("fast", [False, True])
def test_a_row_is_what_it_is_alone_and_memory_changes_only_what_comes_after(build: Build, fast: bool) -> None:
    ids_BL, mask_BL, plan_BL = _batch()
    model = build(fast=fast)
    with torch.no_grad():
        together = model(ids_BL, mask_BL, plan_BL=plan_BL).logits
        off = model(ids_BL, mask_BL).logits
        for row in range(4):
            real = mask_BL[row].bool()
            alone = model(ids_BL[row : row + 1, real], None, plan_BL=plan_BL[row : row + 1, real]).logits[0]
            torch.testing.assert_close(together[row, real], alone, atol=2e-5, rtol=1e-4)
    assert torch.equal(together[0, :8], off[0, :8])
    assert (together[0, 8:] - off[0, 8:]).abs().amax(-1).min() > 1e-3  # the token after the insertion is the first to change
    torch.testing.assert_close(together[2], off[2], atol=2e-5, rtol=1e-4)


def test_the_token_after_an_insertion_is_predicted_from_the_last_latent(build: Build) -> None:
    model = build()
    ids_BL = torch.tensor(some_ids(10))
    plan_BL = torch.zeros_like(ids_BL)
    plan_BL[0, 6] = PROMPT
    seen = []
    reason = model.backbone.reason

    def watched(embeds, mask, position, cache):
        states = reason(embeds, mask, position, cache)
        seen.append(states)
        return states

    model.backbone.reason = watched  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        logits = model(ids_BL, None, plan_BL=plan_BL).logits
    states_BTD = seen[-1]
    assert states_BTD.shape[1] == 10 + 4
    torch.testing.assert_close(logits[0, 6], model.get_output_embeddings()(states_BTD[0, 6 + 4]))
    torch.testing.assert_close(logits[0, 7], model.get_output_embeddings()(states_BTD[0, 7 + 4]))


@pytest.mark.parametrize(("fast", "other"), [(False, False), (True, False), (False, True)])
def test_gradients_reach_all_that_trains_and_nothing_else(build: Build, fast: bool, other: bool) -> None:
    ids_BL, mask_BL, plan_BL = _batch()
    model = build(fast=fast, other=other).train()
    before = {name: value.clone() for name, value in base_state(model.reasoner).items()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == {id(p) for p in MemoryWeights(model).tensors().values()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    loss = model(ids_BL, mask_BL, plan_BL=plan_BL).logits[mask_BL.bool()].log_softmax(-1)[:, 3].mean()
    loss.backward()
    silent = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in base_state(model.reasoner).items())
    with torch.no_grad(), model.memory_off():
        off = model(ids_BL, mask_BL, plan_BL=plan_BL).logits
        fresh = build(fast=fast, other=other)
        with fresh.memory_off():
            assert torch.equal(off, fresh(ids_BL, mask_BL, plan_BL=plan_BL).logits)


def test_training_mode_reaches_the_adapters_dropout_and_nothing_of_the_reasoner(build: Build) -> None:
    model = build(lora=LoraSettings(4, 8.0, 0.5, ("q_proj", "v_proj"))).train()
    ids_BL, mask_BL, plan_BL = _batch()
    training = {type(part).__name__ for part in model.reasoner.modules() if part.training}
    assert training <= {"Dropout", "ModuleDict"}, training
    with torch.no_grad():
        assert not torch.equal(model(ids_BL, mask_BL, plan_BL=plan_BL).logits, model(ids_BL, mask_BL, plan_BL=plan_BL).logits)
        model.eval()
        assert torch.equal(model(ids_BL, mask_BL, plan_BL=plan_BL).logits, model(ids_BL, mask_BL, plan_BL=plan_BL).logits)


def test_a_fresh_weaver_depends_on_its_seed_alone(build: Build, tiny_lm: Path) -> None:
    torch.manual_seed(3)
    first = MemoryWeights(build(adapted=False)).tensors()
    torch.manual_seed(4)
    second = MemoryWeights(build(adapted=False)).tensors()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = MemGenModel(reasoner_of(tiny_lm), build().backbone.settings, seed=1)
    assert not torch.equal(MemoryWeights(other).tensors()["weaver.prompt_queries"], first["weaver.prompt_queries"])


def test_latents_have_the_size_of_an_embedding(build: Build) -> None:
    model = build()
    ids_BL = torch.tensor(some_ids(12))
    context = model.backbone.new_context(torch.ones(1, 0, dtype=torch.long))
    with torch.no_grad():
        context.read(model.backbone.embed(ids_BL), torch.ones(1, 12, dtype=torch.bool), torch.arange(12)[None])
        latents_BND, valid_BN = context.ask(torch.tensor([PROMPT]), torch.tensor([12]))
    rms = model.get_input_embeddings().weight.square().mean().sqrt()
    torch.testing.assert_close(latents_BND.square().mean(-1).sqrt(), rms.expand(1, 4), rtol=1e-2, atol=1e-4)
    assert valid_BN.all() and context.mask_BC.shape == (1, 12) and context.cache.get_seq_length() == 12


def test_only_one_adapter_is_active_and_only_inside_its_block(build: Build) -> None:
    model = build()
    ids_BL = torch.tensor(some_ids(9))
    with torch.no_grad():
        off = model.reasoner(input_ids=ids_BL).logits
        with active(model.reasoner, WEAVER):
            on = model.reasoner(input_ids=ids_BL).logits
        assert torch.equal(model.reasoner(input_ids=ids_BL).logits, off) and not torch.equal(on, off)


def test_target_modules_that_the_model_lacks_are_named_with_those_it_has(build: Build) -> None:
    with pytest.raises(ValueError, match=r"names query, which is no linear layer of the model; choose among .*q_proj"):
        build(lora=LoraSettings(4, 8.0, 0.0, ("q_proj", "query")))


def test_saved_weights_come_back_and_others_are_refused(build: Build) -> None:
    ids_BL, mask_BL, plan_BL = _batch()
    model, fresh = build(), build(adapted=False)
    saved = {name: value.detach().clone() for name, value in MemoryWeights(model).tensors().items()}
    MemoryWeights(fresh).load(saved)
    with torch.no_grad():
        assert torch.equal(model(ids_BL, mask_BL, plan_BL=plan_BL).logits, fresh(ids_BL, mask_BL, plan_BL=plan_BL).logits)
    before = {name: value.detach().clone() for name, value in MemoryWeights(fresh).tensors().items()}
    name = next(name for name in saved if name.startswith("adapter."))
    for wrong, words in (
        ({key: value for key, value in saved.items() if key != name}, "was not saved"),
        ({**saved, "adapter.more": torch.zeros(1)}, "too many"),
        ({key.replace("adapter.", "adapter.base_model.model."): value for key, value in saved.items()}, "was not saved"),
        ({**saved, "weaver.prompt_queries": torch.zeros(5, saved["weaver.prompt_queries"].shape[1])}, "shape"),
    ):
        with pytest.raises(ValueError, match=words):
            MemoryWeights(build()).load(wrong)
    assert all(torch.equal(value, before[key]) for key, value in MemoryWeights(fresh).tensors().items())
    assert adapter_parameters(model.reasoner, WEAVER).keys() == adapter_parameters(fresh.reasoner, WEAVER).keys()


def test_the_lora_control_adapts_the_reasoner_and_has_no_memory(build: Build, tiny_lm: Path) -> None:
    ids_BL, mask_BL, plan_BL = _batch()
    model = build()
    settings = replace(model.backbone.settings, adapts_reasoner=True)
    control = MemGenModel(reasoner_of(tiny_lm), settings, seed=0)
    with torch.no_grad():
        off = model(ids_BL, mask_BL).logits
        assert torch.equal(control(ids_BL, mask_BL, plan_BL=plan_BL).logits[mask_BL.bool()], off[mask_BL.bool()])  # B is zero
        for parameter in adapter_parameters(control.reasoner, WEAVER).values():
            parameter.normal_(0.0, 0.05)
        assert not torch.equal(control(ids_BL, mask_BL, plan_BL=plan_BL).logits, off)
        with control.memory_off():
            assert torch.equal(control(ids_BL, mask_BL, plan_BL=plan_BL).logits[mask_BL.bool()], off[mask_BL.bool()])
    assert {name for name, p in control.named_parameters() if p.requires_grad and ".lora_" not in name} == set()


@pytest.mark.parametrize("fast", [False, True])
def test_what_trains_is_float32_in_a_model_of_half_precision(build: Build, tiny_lm: Path, fast: bool) -> None:
    settings = replace(build().backbone.settings, fast=fast)
    model = MemGenModel(reasoner_of(tiny_lm).to(torch.bfloat16), settings, seed=0).train()
    trained = MemoryWeights(model).tensors()
    assert {value.dtype for value in trained.values()} == {torch.float32}
    ids_BL, mask_BL, plan_BL = _batch()
    logits = model(ids_BL, mask_BL, plan_BL=plan_BL).logits
    assert logits.dtype is torch.bfloat16
    before = {name: value.detach().clone() for name, value in trained.items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    logits[mask_BL.bool()].float().log_softmax(-1)[:, 3].mean().backward()
    optimiser.step()
    # A is behind B, which is zero at first, and gets no gradient yet.
    still = [name for name, value in trained.items() if torch.equal(value, before[name]) and "lora_A" not in name]
    assert not still
