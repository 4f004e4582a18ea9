"""Tokens that are drawn for training are those that the model would generate, with the log-probabilities of their policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arclab.config.compose import compose_run
from arclab.config.llm_schema import EvaluateLmConfig, HfModelConfig
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.language_model import Message, Sampling

SAMPLING = Sampling(6, 0.7, 1.0, 0, 0.0, (), 3)


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> HfModel:
    config = compose_run(
        "evaluate_programs", ["lm=tiny", "dataset=toy", f"lm.name={tiny_lm}", "lm.device=cpu", "lm.batch_size=2"]
    )
    assert isinstance(config, EvaluateLmConfig) and isinstance(config.lm, HfModelConfig)
    return load_hf(config.lm)


def test_they_are_what_is_generated_whatever_the_batch(model: HfModel) -> None:
    prompts = [(Message("user", text),) for text in ("1 2", "3", "3")]
    samplings = [replace(SAMPLING, seed=seed) for seed in (1, 2, 3)]
    texts = [model.generate([prompt], 1, one)[0].completions[0].text for prompt, one in zip(prompts, samplings, strict=True)]
    drawn = model.draw_tokens([model.prompt_ids(prompt) for prompt in prompts], samplings)
    assert [each.text for each in drawn] == texts and texts[1] != texts[2]
    for prompt, each in zip(prompts, drawn, strict=True):
        assert len(each.ids) == len(each.logprobs) and (each.is_ended or len(each.ids) == 6)
        ids = [*model.prompt_ids(prompt), *each.ids]
        with torch.no_grad():
            logits = model._model(torch.tensor([ids])).logits[0].float() / 0.7
        wanted = logits.log_softmax(-1)[-len(each.ids) - 1 : -1].gather(1, torch.tensor(each.ids)[:, None])[:, 0]
        assert each.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_row_has_its_own_limit_and_stop_strings_stay(model: HfModel) -> None:
    rows = [model.prompt_ids((Message("user", "1 2"),))] * 2
    long, short = model.draw_tokens(rows, [SAMPLING, replace(SAMPLING, max_new_tokens=2)])
    assert short.ids == long.ids[:2] and not short.is_ended
    stop = model.text_of(long.ids[2:3])
    (stopped,) = model.draw_tokens(rows[:1], [replace(SAMPLING, stop=(stop,))])
    assert stopped.is_ended and stop in stopped.text and stopped.ids == long.ids[: len(stopped.ids)]
    assert len(stopped.ids) <= 3
    with pytest.raises(ValueError, match="more than the context"):
        model.draw_tokens(rows[:1], [replace(SAMPLING, max_new_tokens=10**6)])
