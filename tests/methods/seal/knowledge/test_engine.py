"""The inner loop: facts are learned from statements, and the model is put back."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from arclab.config.seal_knowledge_schema import Style
from arclab.config.seal_schema import AdaptKind
from arclab.methods.seal.knowledge.engine import Asked, Engine, seed_of, sequence_rows
from arclab.methods.seal.knowledge.prompts import question_prompt

from .common import request

if TYPE_CHECKING:
    from arclab.lm.hf import HfModel

_FACTS = {"Oro": "red", "Ula": "blue", "Ket": "green", "Mib": "white"}
_QUESTIONS = tuple(Asked(name, f"Colour of {name}?") for name in _FACTS)


def stated(colors: dict[str, str]) -> list[str]:
    """A statement of each, in the words in which it is asked for: a random model carries nothing over to other words."""
    asked = {name: question_prompt(name, f"Colour of {name}?", Style.completion)[0].content for name in colors}
    return [f"{asked[name]} {color}" for name, color in colors.items()]


def num_right(texts: tuple[str, ...]) -> int:
    return sum(text == color for text, color in zip(texts, _FACTS.values(), strict=True))


def weights_hash(model: HfModel) -> str:
    found = {name.replace(".base_layer", ""): p for name, p in model.network.named_parameters() if ".lora_" not in name}
    return hashlib.sha256(b"".join(found[name].detach().numpy().tobytes() for name in sorted(found))).hexdigest()


def test_facts_are_learned_from_statements_and_unrelated_text_does_not_help(model: HfModel) -> None:
    engine = Engine(model)
    base = engine.answer(request(questions=_QUESTIONS))
    assert num_right(base.texts) == 0 and base.num_steps == 0 and base.loss is None
    own = engine.answer(request(*stated(_FACTS), questions=_QUESTIONS, epochs=60, kind=AdaptKind.full))
    assert num_right(own.texts) == 4 and own.num_steps == 60 and own.loss is not None and own.loss < 0.5
    others = dict(zip(("Pim", "Sol", "Dak", "Rut"), ("der", "ulbe", "neger", "hetiw"), strict=True))
    unrelated = engine.answer(request(*stated(others), questions=_QUESTIONS, epochs=60, kind=AdaptKind.full))
    assert num_right(unrelated.texts) == 0 and unrelated.num_steps == own.num_steps
    assert engine.answer(request(questions=_QUESTIONS)) == base, "the model is put back"


def test_the_base_is_the_same_after_many_requests_and_an_outcome_depends_on_its_request_alone(model: HfModel) -> None:
    engine, before = Engine(model), weights_hash(model)
    first = engine.answer(request(*stated(_FACTS), epochs=2))
    for number in range(50):
        kind = AdaptKind.full if number % 4 == 3 else AdaptKind.lora
        engine.answer(request(*stated(_FACTS), epochs=1, rank=1 + number % 5, kind=kind, lr=1e-3))
    assert weights_hash(model) == before
    again = engine.answer(request(*stated(_FACTS), epochs=2))
    assert (again.texts, again.loss) == (first.texts, first.loss)
    other = engine.answer(replace(request(*stated(_FACTS), epochs=2), seed=2))
    assert other.loss != first.loss and weights_hash(model) == before, "all in one batch: another seed begins elsewhere"


def test_padding_has_no_loss_and_what_is_too_long_is_said(model: HfModel) -> None:
    engine = Engine(model)
    alone = engine.answer(request("a b c", epochs=1, batch_size=1))
    assert alone.num_padding == 0
    padded = engine.answer(request("a b c", "a much longer sequence than the other one " * 5, epochs=1, batch_size=2))
    assert padded.num_padding > 0 and padded.num_tokens > 2 * alone.num_tokens
    rows = sequence_rows(model, ["a b"])
    assert rows[0]["labels"] == rows[0]["input_ids"] and rows[0]["input_ids"][-1] == model.reply_ids("")[0]
    with pytest.raises(
        ValueError, match=r"sequence 0 has \d+ tokens, more than the context of 2048 tokens of .*; give shorter"
    ):
        engine.answer(request("word " * 3000))
    assert seed_of(0, "a/0/0") != seed_of(0, "a/0/1") and seed_of(0, "a") == seed_of(0, "a")
