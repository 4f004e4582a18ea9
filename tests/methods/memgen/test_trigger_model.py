"""The trained trigger in generation and in the forward pass: one policy, and nothing else of the model is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arclab.lm.language_model import Sampling
from arclab.lm.switched import LoraSettings, adapter_parameters
from arclab.methods.memgen import generation
from arclab.methods.memgen.generation import InsertionRule, decided_plan, generate
from arclab.methods.memgen.model import TRIGGER, WEAVER, MemGenModel
from arclab.methods.memgen.reinforcement import decided, decision_policy
from arclab.methods.memgen.saved import MemoryWeights
from arclab.methods.memgen.sparsity import ACTION
from arclab.methods.memgen.trigger import always, trained_trigger
from arclab.methods.memgen.trigger_model import TriggerSettings
from arclab.text.examples import TextExample

from .conftest import Build, reasoner_of, some_ids
from .test_reinforcement import played

PROMPTS, SEEDS = some_ids(5, 17, 9), [1, 2, 3]
GREEDY = Sampling(30, 0.0, 1.0, 0, 0.0, stop=(), seed=0)
KINDS = {
    "head": TriggerSettings(8, None),
    "lora": TriggerSettings(None, LoraSettings(rank=3, alpha=6.0, dropout=0.1, target_modules=("q_proj", "o_proj"))),
}


def model_of(build: Build, tiny_lm: Path, kind: str, *, moved: bool = True, fast: bool = False) -> MemGenModel:
    """moved: with a trigger whose decisions differ, as if it had been trained."""
    plain = build(fast=fast)
    weaver = {name: value.detach() for name, value in MemoryWeights(plain).tensors().items()}
    model = MemGenModel(reasoner_of(tiny_lm), plain.backbone.settings, seed=0, trigger=KINDS[kind])
    MemoryWeights(model, weaver_alone=True).load(weaver)
    if moved:
        generator, trigger = torch.Generator().manual_seed(5), model.backbone.trigger
        assert trigger is not None
        for value in [*trigger.parameters(), *adapter_parameters(model.reasoner, TRIGGER).values()]:
            value.data.add_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def drawn(model: MemGenModel, rule: InsertionRule, *, is_drawn: bool = True) -> InsertionRule:
    assert model.backbone.trigger is not None
    return replace(rule, trigger=trained_trigger(model.backbone.trigger, is_drawn=is_drawn))


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_is_always_and_changes_nothing(build: Build, rule: InsertionRule, tiny_lm: Path, kind: str) -> None:
    model, plain = model_of(build, tiny_lm, kind, moved=False), build()
    mine = generate(model, PROMPTS, drawn(model, rule, is_drawn=False), GREEDY, SEEDS)
    other = generate(plain, PROMPTS, replace(rule, trigger=always), GREEDY, SEEDS)
    assert [(answer.tokens, answer.inserted, answer.logprobs) for answer in mine] == [
        (answer.tokens, answer.inserted, answer.logprobs) for answer in other
    ]
    assert all(answer.asked == answer.inserted and not any(answer.decision_logprobs) for answer in mine)


@pytest.mark.parametrize(("kind", "fast"), [("head", False), ("lora", False), ("head", True)])
def test_the_sampler_and_the_trainer_have_one_policy(
    build: Build, rule: InsertionRule, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool
) -> None:
    """Rows that differ in length and in where memory stands, in a batch and alone."""
    monkeypatch.setattr(generation, "_SPARE_COLUMNS", 5)
    model = model_of(build, tiny_lm, kind, fast=fast)
    answers = generate(model, PROMPTS, drawn(model, rule), GREEDY, SEEDS)
    actions = {number in answer.inserted for answer in answers for number in answer.asked}
    assert actions == {True, False} and all(answer.asked[0] == 0 for answer in answers)
    assert any(0 not in answer.inserted for answer in answers)
    for prompt, seed, answer in zip(PROMPTS, SEEDS, answers, strict=True):
        (alone,) = generate(model, [prompt], drawn(model, rule), GREEDY, [seed])
        assert (alone.tokens, alone.inserted, alone.asked) == (answer.tokens, answer.inserted, answer.asked)
        rollout = decided(played(TextExample("a", "?", "", "1"), prompt, answer))
        assert rollout.is_policy is not None and sum(rollout.is_policy) == len(answer.asked)
        ids_BL = torch.tensor([prompt + answer.tokens])
        extra = {name: torch.tensor([values]) for name, values in rollout.extra.items()}
        told_BC, entropy_BC = decision_policy(model, ids_BL, torch.ones_like(ids_BL), len(answer.tokens), extra)
        asked = torch.tensor(rollout.is_policy)
        torch.testing.assert_close(told_BC[0][asked], torch.tensor(answer.decision_logprobs), atol=1e-4, rtol=0)
        p = told_BC[0][asked].detach().exp().double()
        torch.testing.assert_close(entropy_BC[0][asked].double(), -(p * p.log() + (1 - p) * (1 - p).log()), atol=1e-5, rtol=0)
        plan = decided_plan(model, prompt + answer.tokens, len(prompt), drawn(model, rule), seed)
        assert [place + 1 - len(prompt) for place, is_there in enumerate(plan) if is_there] == answer.inserted


def test_a_decision_stands_at_the_token_that_it_is_made_before() -> None:
    answer = generation.Answer(
        tokens=[6, 7, 8], logprobs=[-9.0] * 3, inserted=[0], asked=[0, 2], decision_logprobs=[-0.25, -0.5], is_ended=True
    )
    rollout = decided(played(TextExample("a", "?", "", "1"), [4, 5], answer))
    assert rollout.is_policy == [True, False, True] and rollout.logprobs == [-0.25, 0.0, -0.5]
    assert rollout.extra[ACTION] == [0, 0, 1, 0, 0]
    assert rollout.numbers == {"rl/insertions": 1.0, "rl/decisions": 2.0, "rl/insert_share": 0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_all_of_the_trigger_and_nothing_else(
    build: Build, rule: InsertionRule, tiny_lm: Path, kind: str
) -> None:
    model = model_of(build, tiny_lm, kind)
    model.backbone.train_trigger()
    ids_BL = torch.tensor(some_ids(9))
    plan_BL = torch.tensor([[0, 0, 1, 0, 0, 2, 0, 0, 0]])
    model.train()
    model(ids_BL, None, plan_BL=plan_BL, decides=True).logits.square().sum().backward()
    own = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all(value.grad is not None and bool(value.grad.any()) for value in own.values())
    assert model.backbone.trigger is not None
    trained = {
        id(value) for value in [*model.backbone.trigger.parameters(), *adapter_parameters(model.reasoner, TRIGGER).values()]
    }
    assert {id(value) for value in own.values()} == trained
    assert not trained & {id(value) for value in adapter_parameters(model.reasoner, WEAVER).values()}


def test_the_lora_trigger_reads_plain_tokens_alone_and_the_head_what_memory_has_changed(build: Build, tiny_lm: Path) -> None:
    ids_BL = torch.tensor(some_ids(9))
    plans = [torch.tensor([[0, 0, kind, 0, 0, 0, 0, 0, 0]]) for kind in (0, 1)]
    for kind in KINDS:
        model = model_of(build, tiny_lm, kind)
        without, given = (model(ids_BL, None, plan_BL=plan, decides=True).logits[0].detach() for plan in plans)
        apart_L = (without - given).abs()
        assert apart_L[:3].max() < 1e-6  # what stands before a decision, and the token itself
        assert (apart_L[3:].max() < 1e-6) == (kind == "lora")
