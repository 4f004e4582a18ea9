"""Constrained decoding of self-edits: the JSON is given, values are drawn by the model's own probabilities, records say so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.files import read_lines, read_object
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.language_model import Message, Prompt, Sampling
from arclab.methods.seal.fewshot.constrained import chosen_edits, closing, slots_of
from arclab.methods.seal.fewshot.edits import Verdict, parse_edit
from arclab.runs.stages import MANIFEST, read_counts

from .conftest import Stage

SAMPLING = Sampling(160, 1.0, 1.0, 0, 0.0, (), 0)
GRID = "grid={augmentations: [none], strategies: [train_using_all_tokens], learning_rates: [1e-4, 3e-3, 0.05], num_train_epochs: [2, 12]}"


def composed(*more: str) -> SealFewshotConfig:
    config = compose_run("self_improve_seal_fewshot", ["method=seal_fewshot", "lm=tiny", "dataset=toy", "name=a", *more])
    assert isinstance(config, SealFewshotConfig)
    return config


def asked(text: str) -> Prompt:
    return (Message("user", text),)


class Known:
    """As HfModel. weight: of a text; its log-probability is the logarithm of it, and the end mark's is any number."""

    max_context: int | None = None

    def __init__(self, weight: Callable[[str], float]) -> None:
        self.weight, self.texts = weight, list[str]()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return list(prompt[-1].content.encode())

    def reply_ids(self, text: str) -> list[int]:
        return [*text.encode(), 0]

    def shared_logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        whole = [prompt[-1].content + text for prompt, text in zip(prompts, texts, strict=True)]
        self.texts += whole
        return [[math.log(self.weight(text)), -float(number % 7)] for number, text in enumerate(whole)]


def written(model: Known, count: int, config: SealFewshotConfig, sampling: Sampling = SAMPLING) -> list[str]:
    (reply,) = chosen_edits(cast(HfModel, model), [asked("a")], count, sampling, slots_of(config))
    return [each.text for each in reply.completions]


@pytest.mark.parametrize("grid", [[], [GRID]])
def test_every_allowed_value_makes_a_valid_self_edit(grid: list[str]) -> None:
    """Rates of the grid outside of propose.min_lr and max_lr are not allowed."""
    config = composed(*grid)
    slots = slots_of(config)
    texts = ["".join(slot.before + slot.values[n % len(slot.values)] for slot in slots) + closing() for n in range(60)]
    found = [parse_edit(text, config.propose) for text in texts]
    assert all(verdict is Verdict.ok and edit is not None and edit.text == text for (verdict, edit), text in zip(found, texts, strict=True))  # fmt: skip
    assert [len(slot.values) for slot in slots] == [2, 2, 2, 2, 2, *([2, 2] if grid else [37, 20])]
    assert slots[-2].values == (("0.0001", "0.003") if grid else tuple(dict.fromkeys(slots[-2].values)))
    assert [slot.end for slot in slots] == [",", ",", ",", "}", ",", ",", "}"]


def test_values_are_drawn_by_the_models_probabilities_given_those_before() -> None:
    """true is three times as likely as false at first; the learning rate depends on what was chosen before it."""

    def weight(text: str) -> float:
        if text.endswith('"use_basic_augmentations": true,'):
            return 0.3
        if text.endswith('"use_basic_augmentations": false,'):
            return 0.1
        if "learning_rate" in text and "num_train" not in text:
            return 1.0 if ('"use_basic_augmentations": true' in text) == text.endswith("0.003,") else 1e-9
        return 0.5

    config = composed(GRID)
    edits = [parse_edit(text, config.propose)[1] for text in written(Known(weight), 400, config)]
    counts = Counter((("basic" in each.sets), each.learning_rate) for each in edits if each is not None)
    assert sum(counts.values()) == 400 and counts.keys() == {(True, 0.003), (False, 0.0001)}
    assert 260 < counts[True, 0.003] < 340, "three quarters of 400, within 4.6 standard deviations"
    greedy = written(Known(weight), 5, config, replace(SAMPLING, temperature=0.0))
    assert len(set(greedy)) == 1 and '"use_basic_augmentations": true' in greedy[0]
    sharp = written(Known(weight), 100, config, replace(SAMPLING, temperature=0.05))
    assert sum('"use_basic_augmentations": true' in text for text in sharp) > 98
    assert len(set(written(Known(weight), 30, config, replace(SAMPLING, top_k=1)))) == 1


def test_a_shorter_number_is_not_taken_for_the_beginning_of_a_longer_one() -> None:
    """What is asked about ends with what stands behind the value."""
    model = Known(lambda text: 0.5)
    written(model, 1, composed(GRID))
    assert {text[-3:] for text in model.texts if "num_train_epochs" in text} == {" 2}", "12}"}


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    def weight(text: str) -> float:
        return 1 + sum(text.encode()) % 5

    config = composed(GRID)
    assert written(Known(weight), 3, config) == written(Known(weight), 9, config)[:3]
    assert written(Known(weight), 9, config) != written(Known(weight), 9, config, replace(SAMPLING, seed=1))


def test_a_prompt_without_room_has_a_reply_that_says_so() -> None:
    model = Known(lambda text: 0.5)
    model.max_context = 420
    short, long = chosen_edits(cast(HfModel, model), [asked("a"), asked("a" * 200)], 2, SAMPLING, slots_of(composed(GRID)))
    assert len(short.completions) == 2 and not short.problem and not long.completions
    assert "more than the context of 420; shorten the prompt" in long.problem


def test_a_real_model_writes_valid_self_edits_and_the_records_say_how(
    stage: Stage, tmp_path: Path, lm_config: Callable[..., HfModelConfig]
) -> None:
    """A random model, which writes none by itself. The same replies in batches of another size."""
    keys = ("propose.decoding=constrained", "propose.num_edits=3", "propose.max_draws=3", "propose.max_steps=100000")
    assert stage("propose", *keys) == 0
    folder = tmp_path / "seal_fewshot/a/round_0/propose"
    rows: list[dict[str, Any]] = [row for row in read_lines(folder / "proposals.jsonl") if "settings" not in row]
    assert read_counts(folder)["ok"] == len(rows) == 6 and {row["decoding"] for row in rows} == {"constrained"}
    assert len({row["key"] for row in rows}) > 3, "a random model has no favourites"
    assert "the JSON of the self-edits was given" in read_object(folder / MANIFEST)["notes"][0]
    config = composed(*keys)
    replies = [
        chosen_edits(load_hf(lm_config(batch_size=size)), [asked("1 2"), asked("3")], 2, SAMPLING, slots_of(config))
        for size in (1, 5)
    ]
    assert replies[0] == replies[1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lm=endpoint", "lm.name=x", "stage=propose"], "lm.kind=endpoint does not say it; use propose.decoding=free"),
        ([GRID, "propose.max_lr=1e-5"], "none is between propose.min_lr=1e-06 and propose.max_lr=1e-05; add one"),
    ],
)
def test_what_cannot_be_constrained_is_a_sentence(overrides: list[str], says: str) -> None:
    base = ["method=seal_fewshot", "dataset=toy", "name=a", "propose.decoding=constrained"]
    lm = [] if overrides[0].startswith("lm=") else ["lm=tiny"]
    with pytest.raises(ConfigError, match=says):
        compose_run("self_improve_seal_fewshot", [*base, *lm, *overrides])
