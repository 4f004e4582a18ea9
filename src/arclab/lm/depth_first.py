"""Every reply that a language model gives with at least some probability, found by depth-first search over tokens.

    found = depth_first(network, inputs, ends={2}, log_threshold=math.log(0.1), max_new_tokens=100, num_at_once=8)
    found[0].replies          # of the first prompt: [(tokens, log-probability), ...], the likeliest first

A prefix is followed as long as its own probability is at least the threshold: no reply below it can reach the threshold
otherwise, so none is missed, and at most 1 / threshold prefixes of a prompt are alive at any length. Prefixes of equal length
go through the model together, num_at_once at most; of what waits, the longest goes first. Each keeps the keys and values of its
tokens, so that a token is computed once for each prefix that it ends; with num_at_once=1 it is the plain search that goes back
to the last fork. Tokens are not drawn: the same prompts give the same replies. Shapes: B prefixes, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Found:
    """replies: without their end mark; the log-probability (nats, temperature 1) counts it. num_cut: prefixes that reached
    max_new_tokens. num_tokens: prefixes that went through the model."""

    replies: list[tuple[list[int], float]] = field(default_factory=list)
    num_cut: int = 0
    num_tokens: int = 0


@dataclass(slots=True)
class _Level:
    """Prefixes of equal length that wait for their next token: whose they are, their tokens, their log-probabilities, and the
    cache up to the token before their last one."""

    prompts: list[int]
    tokens: list[list[int]]
    logprobs: list[float]
    mask_BT: Tensor
    cache: Any


@torch.no_grad()
def depth_first(
    network: Any, inputs: Mapping[str, Tensor], *, ends: Collection[int], log_threshold: float, max_new_tokens: int,
    num_at_once: int,
) -> list[Found]:  # fmt: skip
    """inputs: input_ids and attention_mask (B, T) of prompts, padded on the left. ValueError: the model computes what is not
    finite."""
    mask_BT = inputs["attention_mask"]
    found = [Found() for _ in mask_BT]
    output = pass_with_cache(network, inputs["input_ids"], mask_BT, None)
    first = _Level(list(range(len(found))), [[] for _ in found], [0.0 for _ in found], mask_BT, output.past_key_values)
    waiting = _grown(first, output.logits[:, -1], found, ends, log_threshold, max_new_tokens, num_at_once)
    while waiting:
        level = waiting.pop()
        tokens_B1 = torch.tensor([tokens[-1:] for tokens in level.tokens], device=mask_BT.device)
        output = pass_with_cache(network, tokens_B1, level.mask_BT, level.cache)
        for prompt in level.prompts:
            found[prompt].num_tokens += 1
        waiting += _grown(level, output.logits[:, -1], found, ends, log_threshold, max_new_tokens, num_at_once)
    for each in found:
        each.replies.sort(key=lambda reply: -reply[1])
    return found


def pass_with_cache(network: Any, ids_BT: Tensor, mask_BT: Tensor, cache: Any, num_logits: int = 1) -> Any:
    """The output for ids, which follow what the cache (None: nothing) holds. mask_BT: of both. Logits of the last num_logits
    alone where the network can leave out the others."""
    optional = {"position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :], "logits_to_keep": num_logits}
    takes = inspect.signature(network.forward).parameters
    optional = {name: value for name, value in optional.items() if name in takes}
    optional["cache" if "cache" in takes else "past_key_values"] = cache  # the name changes between versions
    return network(input_ids=ids_BT, attention_mask=mask_BT, use_cache=True, **optional)


def _grown(
    level: _Level, logits_BV: Tensor, found: list[Found], ends: Collection[int], log_threshold: float, max_new_tokens: int,
    num_at_once: int,
) -> list[_Level]:  # fmt: skip
    """Prefixes that are one token longer, the unlikeliest of them first; replies that end are added to what was found."""
    logprobs_BV = logits_BV.float().log_softmax(-1).double()
    if bool(logprobs_BV.isnan().any()):
        raise ValueError("the model computes what is not a number; use lm.dtype=bfloat16 or float32, or check its weights.")
    so_far_B1 = torch.tensor(level.logprobs, dtype=torch.float64, device=logits_BV.device)[:, None]
    rows, tokens = ((so_far_B1 + logprobs_BV) >= log_threshold).nonzero(as_tuple=True)
    values = (so_far_B1 + logprobs_BV)[rows, tokens].tolist()
    children: list[tuple[float, int, int]] = []
    for value, row, token in zip(values, rows.tolist(), tokens.tolist(), strict=True):
        whose = found[level.prompts[row]]
        if token in ends:
            whose.replies.append((level.tokens[row], value))
        elif len(level.tokens[row]) + 1 >= max_new_tokens:
            whose.num_cut += 1
        else:
            children.append((value, row, token))
    children.sort()
    # chunks from the likeliest on, which is taken first
    starts = range(math.ceil(len(children) / num_at_once) * num_at_once - num_at_once, -1, -num_at_once)
    likely = children[::-1]
    return [_chosen(level, likely[start : start + num_at_once], is_last=start == 0) for start in starts]


def _chosen(level: _Level, children: list[tuple[float, int, int]], *, is_last: bool) -> _Level:
    """is_last: nobody else needs the cache of the level."""
    rows = torch.tensor([row for _, row, _ in children], device=level.mask_BT.device)
    cache = level.cache if is_last else copied(level.cache)
    if not (is_last and rows.tolist() == list(range(len(level.prompts)))):
        cache.batch_select_indices(rows)
    mask_BT = level.mask_BT[rows]
    return _Level(
        [level.prompts[row] for _, row, _ in children],
        [[*level.tokens[row], token] for _, row, token in children],
        [value for value, _, _ in children],
        torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], 1),
        cache,
    )


def copied(cache: Any) -> Any:
    """Another cache on the same tensors: choosing rows makes new ones, and never writes to these."""
    other = copy(cache)
    other.layers = [copy(layer) for layer in cache.layers]
    return other
