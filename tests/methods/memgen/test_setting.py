"""Inputs at the edge: what is refused in one sentence, and what works like everything else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arclab.config.compose import compose_run
from arclab.config.memgen_schema import PretrainMemGenConfig
from arclab.lm.language_model import Sampling
from arclab.methods.memgen.generation import generate
from arclab.methods.memgen.insertions import PROMPT
from arclab.methods.memgen.setting import build_memgen, insertion_rule, load_reasoner, training_rows
from arclab.text.examples import TextExample
from tests.methods.memgen.conftest import Build, some_ids

PLAIN = TextExample("a", "How many", "seven", "7")  # no delimiter anywhere


@pytest.fixture
def config(tiny_lm: Path, tmp_path: Path) -> PretrainMemGenConfig:
    copy = shutil.copytree(tiny_lm, tmp_path / "lm")
    return compose_run("pretrain_memgen", ["lm=tiny", f"lm.name={copy}", "lm.device=cpu", "name=a"])


def test_a_tokenizer_without_a_chat_template_is_one_sentence(config: PretrainMemGenConfig) -> None:
    (Path(config.lm.name) / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template.*chat_template\.jinja"):
        load_reasoner(config.lm).prompt_ids("How many?")


def test_a_row_without_a_delimiter_has_memory_at_its_prompt_alone(config: PretrainMemGenConfig) -> None:
    """Batches of one row; padding that is the end token, as SmolLM2 has it."""
    language, weaver = load_reasoner(config.lm), config.memgen.weaver
    rule = replace(insertion_rule(language, weaver), pad_id=language.end)
    (row,) = training_rows(language, [PLAIN], rule, weaver)
    assert [kind for kind in row["plan_BL"] if kind] == [PROMPT] and row["labels"][-1] == language.end
    model = build_memgen(language, config.memgen, seed=0)
    sampling, prompts = (
        Sampling(5, 1.0, 1.0, 0, 0.0, (), 0),
        [language.prompt_ids(q) for q in ("How many", "Why, and how many?")],
    )
    together = generate(model, prompts, rule, sampling, [1, 2])
    assert [generate(model, [ids], rule, sampling, [n])[0].tokens for n, ids in ((1, prompts[0]), (2, prompts[1]))] == [
        answer.tokens for answer in together
    ]


def test_a_batch_without_insertions_can_be_trained_on(build: Build) -> None:
    """Every parameter gets a gradient in every batch: ranks wait for each of them."""
    (ids,) = some_ids(9)
    for place in (None, 4):
        model, ids_BL, plan_BL = build().train(), torch.tensor([ids]), torch.zeros(1, 9, dtype=torch.long)
        if place is not None:
            plan_BL[0, place] = PROMPT
        model(ids_BL, None, plan_BL=plan_BL).logits.square().mean().backward()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        assert not [name for name, value in trained.items() if value.grad is None]
        moved = any(bool(value.grad.any()) for value in trained.values() if value.grad is not None)
        assert moved == (place is not None)
