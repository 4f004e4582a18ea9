"""Generation with one growing cache equals the model's forward pass, in every batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from arclab.config.llm_schema import TriggerConfig, TriggerKind
from arclab.lm.language_model import Sampling
from arclab.methods.memgen import generation
from arclab.methods.memgen.generation import Answer, InsertionRule, decided_plan, generate
from arclab.methods.memgen.insertions import INFERENCE, PROMPT, InsertionLimits
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.trigger import new_trigger
from tests.methods.memgen.conftest import Build, some_ids

PROMPTS = some_ids(5, 17, 9, 24, 12)
SEEDS = [1, 2, 3, 4, 5]

TRIGGERS = {
    kind: new_trigger(TriggerConfig(kind=TriggerKind[kind], probability=probability, threshold=threshold))
    for kind, probability, threshold in (
        ("always", None, None), ("never", None, None), ("random", 0.7, None), ("entropy", None, 5.46),
    )
}  # fmt: skip


def sampling(num: int, temperature: float = 1.0) -> Sampling:
    return Sampling(num, temperature, 1.0, 0, 0.0, (), 0)


def _logprobs(model: MemGenModel, prompt: list[int], answer: Answer, rule: InsertionRule) -> torch.Tensor:
    """Of the answer's tokens, by one pass over all of it."""
    ids = prompt + answer.tokens
    plan = [0] * len(ids)
    for number in answer.inserted:
        plan[len(prompt) - 1 + number] = INFERENCE if number else PROMPT
    with torch.no_grad():
        logits = model(torch.tensor([ids]), None, plan_BL=torch.tensor([plan])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["always", "never", "random", "entropy"])
@pytest.mark.parametrize(("fast", "other"), [(False, False), (True, False), (False, True)])
def test_it_equals_a_full_pass_and_rows_do_not_depend_on_their_batch(
    build: Build, rule: InsertionRule, monkeypatch: pytest.MonkeyPatch, fast: bool, other: bool, kind: str
) -> None:
    monkeypatch.setattr(generation, "_SPARE_COLUMNS", 5)  # so that columns are moved in this short a run
    model, rule = build(fast=fast, other=other), replace(rule, trigger=TRIGGERS[kind])
    answers = generate(model, PROMPTS, rule, sampling(48), SEEDS)
    assert len({len(answer.tokens) for answer in answers}) > 1  # rows left at different times
    decided = {number in answer.inserted for answer in answers for number in answer.asked}
    assert decided == {"always": {True}, "never": {False}}.get(kind, {True, False})
    assert all(answer.inserted == [0] for answer in answers) if kind == "never" else max(len(a.inserted) for a in answers) == 4
    for prompt, answer, seed in zip(PROMPTS, answers, SEEDS, strict=True):
        plan = decided_plan(model, prompt + answer.tokens, len(prompt), rule, seed)  # everything encoded again
        assert [place + 1 - len(prompt) for place, kind in enumerate(plan) if kind] == answer.inserted
        full = _logprobs(model, prompt, answer, rule)
        torch.testing.assert_close(torch.tensor(answer.logprobs), full, atol=2e-5, rtol=1e-4)
        (alone,) = generate(model, [prompt], rule, sampling(48), [seed])
        assert alone.tokens == answer.tokens and alone.is_ended == answer.is_ended
        assert (alone.inserted, alone.asked) == (answer.inserted, answer.asked)
        assert answer.is_ended == (answer.tokens[-1] in rule.ends)
        assert not any(token in rule.ends for token in answer.tokens[:-1])


def test_without_memory_it_is_plain_generation(build: Build, rule: InsertionRule) -> None:
    model = build()
    with model.memory_off():
        answers = generate(model, PROMPTS, rule, sampling(12, temperature=0.0), SEEDS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for token in answer.tokens:
                assert int(model.reasoner(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
                ids.append(token)
    assert all(not answer.inserted for answer in answers)


def test_max_prompt_aug_num_means_the_same_in_generation_as_in_training(build: Build, rule: InsertionRule) -> None:
    model = build()
    at_delimiters_only = InsertionRule(rule.delimiters_V, InsertionLimits(0, 3), rule.ends, rule.pad_id)
    answers = generate(model, PROMPTS, at_delimiters_only, sampling(48), SEEDS)
    assert all(0 not in answer.inserted for answer in answers) and any(answer.inserted for answer in answers)
    nothing = InsertionRule(rule.delimiters_V, InsertionLimits(0, 0), rule.ends, rule.pad_id)
    with model.memory_off():
        off = generate(model, PROMPTS, rule, sampling(8), SEEDS)
    assert [a.tokens for a in generate(model, PROMPTS, nothing, sampling(8), SEEDS)] == [a.tokens for a in off]


def test_every_column_is_computed_once(build: Build, rule: InsertionRule) -> None:
    """The work of an answer: each token and latent once by the reasoner; each once by the weaver, and its queries."""
    model = build()
    read: list[int] = []
    reason = model.backbone.reason

    def counted(embeds, mask, position, cache):
        read.append(embeds.shape[1])
        return reason(embeds, mask, position, cache)

    model.backbone.reason = counted  # pyright: ignore[reportAttributeAccessIssue]
    (answer,) = generate(model, PROMPTS[:1], rule, sampling(40), SEEDS[:1])
    latents = 4 * answer.inserted.count(0) + 3 * sum(place > 0 for place in answer.inserted)
    assert sum(read) == len(PROMPTS[0]) + len(answer.tokens) - 1 + latents
