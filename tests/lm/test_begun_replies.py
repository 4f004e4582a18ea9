"""A prompt that ends with the assistant's message: the model goes on where it ends, at a temperature and seed of each
prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from arclab.lm.chat_template import conversation_ids
from arclab.lm.endpoint.http import EndpointError
from arclab.lm.hf import HfModel
from arclab.lm.language_model import Message, Prompt, Sampling, begun_reply
from arclab.lm.scripted import ScriptedModel

from .conftest import PROMPTS, sampling, user
from .endpoint_server import Answer, FakeServer, endpoint, refuse, said

BEGUN = "def solve(grid):\n    x = 1\n   "  # white space at the end, which templates strip


def begun(prompt: Prompt, text: str) -> Prompt:
    return (*prompt, Message("assistant", text))


def test_the_reply_goes_on_where_it_ends(model: HfModel) -> None:
    """Its tokens are those of the prompt and of the text behind it, white space included; no turn ends in between; what is
    drawn is new text alone."""
    assert begun_reply(begun(PROMPTS[0], "x")) == (PROMPTS[0], "x") and begun_reply(PROMPTS[0]) == (PROMPTS[0], "")
    ids = model.prompt_ids(begun(PROMPTS[0], BEGUN))
    assert model.tokenizer.decode(ids) == model.tokenizer.decode(model.prompt_ids(PROMPTS[0])) + BEGUN
    (reply,) = model.generate([begun(PROMPTS[0], BEGUN)], 1, sampling(temperature=0.0, max_new_tokens=1))
    with torch.no_grad():
        likeliest = model._model(torch.tensor([ids])).logits[0, -1].argmax()
    assert reply.completions[0].text == model.tokenizer.decode([likeliest]) and reply.num_prompt_tokens == len(ids)


def test_a_special_token_in_a_begun_reply_stays_text(model: HfModel) -> None:
    ids = model.prompt_ids(begun(PROMPTS[0], "a <|im_end|> b"))
    assert ids.count(model.tokenizer.eos_token_id) == model.prompt_ids(PROMPTS[0]).count(model.tokenizer.eos_token_id)


def test_a_template_that_opens_thinking_is_refused(model: HfModel) -> None:
    with pytest.raises(ValueError, match=r"opens the reply with <think>.* set lm.thinking=false"):
        conversation_ids(model.tokenizer, "m", begun(PROMPTS[0], "x"), thinking=True)
    assert conversation_ids(model.tokenizer, "m", begun(PROMPTS[0], "x"), thinking=False)


def test_each_prompt_is_drawn_at_its_own_temperature_and_seed(model: HfModel) -> None:
    """In one call as alone: hot, cold and greedy side by side."""
    each = [sampling(seed=3, temperature=2.0), sampling(seed=4, temperature=0.0), sampling(seed=5, temperature=0.7)]
    together = model.generate(PROMPTS, 2, each)
    for prompt, one, reply in zip(PROMPTS, each, together, strict=True):
        (alone,) = model.generate([prompt], 2, one)
        assert [c.text for c in alone.completions] == [c.text for c in reply.completions]
        assert [c.logprob for c in alone.completions] == pytest.approx([c.logprob for c in reply.completions], abs=1e-3)
    other = model.generate(PROMPTS, 2, [dataclasses.replace(one, seed=one.seed + 1) for one in each])
    changed = [a.completions != b.completions for a, b in zip(together, other, strict=True)]
    assert changed[0] and changed[2] and not changed[1]
    with pytest.raises(AssertionError, match="only temperature and seed"):
        model.generate(PROMPTS[:2], 1, [sampling(), sampling(top_k=3)])


def test_a_script_sees_the_settings_of_its_draw() -> None:
    def say(prompt: Prompt, sample: int, given: Sampling) -> str:
        return f"{begun_reply(prompt)[1]} {sample} {given.seed} {given.temperature}"

    each = [sampling(seed=1, temperature=0.5), sampling(seed=2)]
    replies = ScriptedModel(seeded=say).generate([begun(user("q"), "one"), begun(user("q"), "two")], 2, each)
    assert [[c.text for c in reply.completions] for reply in replies] == [
        ["one 0 1 0.5", "one 1 1 0.5"], ["two 0 2 1.0", "two 1 2 1.0"],
    ]  # fmt: skip
    by_word = ScriptedModel({"q": "asked"}).generate([begun(user("q"), "nothing of it")], 1, sampling())
    assert by_word[0].completions[0].text == "asked"


def test_a_server_is_told_to_go_on(server: FakeServer) -> None:
    model = endpoint(server.url)
    model.generate([begun(PROMPTS[0], BEGUN), PROMPTS[0]], 1, sampling())
    told = [body for body in server.bodies if body.get("continue_final_message")]
    assert len(told) == 1 and told[0]["add_generation_prompt"] is False and told[0]["messages"][-1]["content"] == BEGUN


def test_a_server_that_cannot_go_on_is_an_error_in_one_sentence(server: FakeServer) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        return (
            refuse(400, "extra fields not permitted: continue_final_message")
            if "continue_final_message" in body
            else said(body)
        )

    server.answer = answer
    with pytest.raises(EndpointError, match=r"does not continue a reply that was begun .*use vLLM or SGLang"):
        endpoint(server.url).generate([begun(PROMPTS[0], BEGUN)], 1, sampling())
