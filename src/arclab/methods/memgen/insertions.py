"""Where memory is inserted: one rule, for training and for generation.

    table_V = delimiter_table(tokenizer, vocab_size, end_tokens)
    plan = plan_of(ids, num_prompt, table_V, InsertionLimits(max_prompt=1, max_inference=5))

Memory stands after the assistant's header at the end of the prompt (PROMPT), and in the answer after tokens whose text ends
with a delimiter (INFERENCE): a comma, a full stop or a new line. The first max_inference delimiters of an answer count, the
one at the end of the prompt does not. A plan marks the token after which memory stands; the token after that is predicted
from the last latent. What the rule says of a token is looked up in a table over the vocabulary, so text is never decoded
while a model runs.

Shapes: L tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NONE, PROMPT, INFERENCE = 0, 1, 2
DELIMITERS = (",", ".", "\n")


@dataclass(frozen=True, slots=True)
class InsertionLimits:
    """At most so many insertions in a row of tokens: max_prompt before assistant turns, max_inference inside an answer."""

    max_prompt: int
    max_inference: int


def delimiter_table(tokenizer: Any, vocab_size: int, end_tokens: Collection[int]) -> Tensor:
    """Bool (V): does the token's own text end with a delimiter? False for tokens that end an answer, and for special ones.
    vocab_size: rows of the embedding, which may be more than the tokenizer knows."""
    special = set(tokenizer.all_special_ids) | set(end_tokens)
    known = [token for token in range(min(vocab_size, len(tokenizer))) if token not in special]
    texts = tokenizer.batch_decode([[token] for token in known], clean_up_tokenization_spaces=False)
    table_V = torch.zeros(vocab_size, dtype=torch.bool)
    table_V[torch.tensor(known, dtype=torch.long)] = torch.tensor([text.endswith(DELIMITERS) for text in texts])
    return table_V


def plan_of(ids: Sequence[int], num_prompt: int, table_V: Tensor, limits: InsertionLimits) -> list[int]:
    """NONE, PROMPT or INFERENCE for each token of one prompt (num_prompt tokens) and its answer. After the last token nothing
    is inserted: no token is predicted there."""
    assert 0 < num_prompt <= len(ids), (num_prompt, len(ids))
    plan, counted = [NONE] * len(ids), 0
    if limits.max_prompt > 0 and num_prompt < len(ids):
        plan[num_prompt - 1] = PROMPT
    for place in range(num_prompt, len(ids) - 1):
        if counted < limits.max_inference and bool(table_V[ids[place]]):
            plan[place], counted = INFERENCE, counted + 1
    return plan


def thinned(plan: Sequence[int], inserts: Sequence[bool]) -> list[int]:
    """The plan without those of its insertions for which `inserts`, one after the other, is False; what has no value stays."""
    kept = itertools.chain(inserts, itertools.repeat(True))
    return [kind if kind != NONE and next(kept) else NONE for kind in plan]
