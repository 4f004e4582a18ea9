"""Where memory is inserted: one table, one rule."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT, InsertionLimits, delimiter_table, plan_of


def test_a_token_is_a_delimiter_if_its_own_text_ends_with_one(tiny_lm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    size = len(tokenizer) + 5  # an embedding may have more rows than the tokenizer has tokens
    table_V = delimiter_table(tokenizer, size, {tokenizer.eos_token_id})
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        is_special = token in tokenizer.all_special_ids
        assert bool(table_V[token]) == (text.endswith((",", ".", "\n")) and not is_special), repr(text)
    assert not table_V[len(tokenizer) :].any() and table_V.any()


def test_the_plan_counts_delimiters_of_the_answer_only_and_nothing_after_the_last_token() -> None:
    table_V = torch.zeros(10, dtype=torch.bool)
    table_V[7] = True
    limits = InsertionLimits(max_prompt=1, max_inference=2)
    #      prompt      answer; a delimiter before the header, two that count, one too many, and one at the end
    ids = [7, 1, 2, 3, 7, 5, 7, 7, 5, 7]
    plan = plan_of(ids, 4, table_V, limits)
    assert plan == [NONE, NONE, NONE, PROMPT, INFERENCE, NONE, INFERENCE, NONE, NONE, NONE]
    assert plan_of(ids, 4, table_V, InsertionLimits(0, 1)) == [NONE] * 4 + [INFERENCE] + [NONE] * 5
    assert plan_of(ids, 4, table_V, InsertionLimits(1, 9))[4:] == [INFERENCE, NONE, INFERENCE, INFERENCE, NONE, NONE]
    assert plan_of([1, 2], 2, table_V, limits) == [NONE, NONE]  # no answer: nothing is predicted after the prompt
