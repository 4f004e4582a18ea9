"""Depth-first search over tokens: it finds every reply above the threshold, whatever goes through the model at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from arclab.config.llm_schema import HfModelConfig
from arclab.lm.depth_first import Found, depth_first
from arclab.lm.hf import HfModel, load_hf

from .conftest import user

END, VOCAB, LENGTH = 0, 5, 4


@pytest.fixture(scope="module")
def network() -> Any:
    """A random model with five tokens, whose replies can all be written down."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, initializer_range=0.6, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Qwen3ForCausalLM(config).eval()


@torch.no_grad()
def by_hand(network: nn.Module, prompt: list[int], threshold: float) -> dict[tuple[int, ...], float]:
    """Every reply of at most LENGTH - 1 tokens before the end mark, one pass for each."""
    found = {}
    for length in range(LENGTH):
        for reply in itertools.product(range(1, VOCAB), repeat=length):
            ids = [*prompt, *reply, END]
            logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
            value = sum(logprobs[len(prompt) - 1 + n, token].item() for n, token in enumerate([*reply, END]))
            if value >= math.log(threshold):
                found[reply] = value
    return found


def search(network: nn.Module, prompts: list[list[int]], threshold: float, num_at_once: int) -> list[Found]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[1] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return depth_first(
        network, {"input_ids": ids, "attention_mask": mask}, ends={END}, log_threshold=math.log(threshold), max_new_tokens=LENGTH,
        num_at_once=num_at_once,
    )  # fmt: skip


@pytest.mark.parametrize("threshold", [0.2, 0.02, 0.002])
@pytest.mark.parametrize("num_at_once", [1, 3, 100])
def test_it_finds_what_is_above_the_threshold_and_nothing_else(network: nn.Module, threshold: float, num_at_once: int) -> None:
    """One forward pass for each possible reply is the reference; prompts of other lengths share a batch."""
    prompts = [[2, 3, 1], [4], [3, 3]]
    for prompt, found in zip(prompts, search(network, prompts, threshold, num_at_once), strict=True):
        wanted = by_hand(network, prompt, threshold)
        assert {tuple(tokens) for tokens, _ in found.replies} == wanted.keys()
        assert [value for _, value in found.replies] == sorted((v for _, v in found.replies), reverse=True)
        for tokens, value in found.replies:
            assert value == pytest.approx(wanted[tuple(tokens)], abs=1e-4)
    low = search(network, prompts, 0.002, num_at_once)
    assert sum(len(found.replies) for found in low) > 10 and sum(found.num_cut for found in low) > 0


def test_nothing_is_likely_enough_and_what_is_no_number(network: nn.Module) -> None:
    assert search(network, [[2]], 0.999, 2) == [Found()]

    class Broken(nn.Module):
        def forward(self, **_: object) -> Any:
            return SimpleNamespace(logits=torch.full((1, 1, VOCAB), math.nan), past_key_values=None)

    with pytest.raises(ValueError, match="not a number"):
        search(Broken(), [[2]], 0.5, 2)


def test_the_model_gives_texts_with_the_probabilities_of_its_replies(hf_config: Callable[..., HfModelConfig]) -> None:
    """A model that was taught two answers has both, with what logprobs() says of them."""
    from arclab.config.seal_schema import AdaptKind, InnerConfig
    from arclab.lm.training.inner import InnerAdapter
    from arclab.lm.training.rows import IGNORED, Row

    model = load_hf(hf_config(batch_size=2))
    assert isinstance(model, HfModel)
    rows: list[Row] = []
    for answer in ("4 2", "4 7 7"):
        for text in ("0 1", "2", "5 5 5"):
            shown, reply = model.prompt_ids(user(text)), model.reply_ids(answer)
            rows.append({"input_ids": shown + reply, "labels": [IGNORED] * len(shown) + reply})
    config = InnerConfig(
        kind=AdaptKind.full, rank=1, alpha=1.0, target_modules=None, lr=1e-2, epochs=20, batch_size=6, warmup_steps=0,
        weight_decay=0.0, clip_norm=1.0,
    )  # fmt: skip
    prompts = [user("0 1"), user("2"), user("5 5 5")]
    with InnerAdapter(model, seed=0).fit(rows, config, seed=0):
        found = model.replies_above(prompts, 0.1, 12)
        for prompt, likely in zip(prompts, found, strict=True):
            assert {text for text, _ in likely.replies} == {"4 2", "4 7 7"} and likely.num_tokens >= 6
            for text, value in likely.replies:
                assert value == pytest.approx(sum(model.logprobs([prompt], [text])[0]), abs=1e-3)
    with pytest.raises(ValueError, match="more than the context"):
        model.replies_above(prompts, 0.1, 1000)
