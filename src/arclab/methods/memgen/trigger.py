"""Triggers: after which delimiters of an answer is memory inserted?

    trigger = new_trigger(TriggerConfig(kind=TriggerKind.entropy, probability=None, threshold=2.0))
    decisions = trigger.decide(Asked(seeds, counted, number, logits_BV, hidden_BD))       # one for each row that is asked

A trigger is asked in generation, about the rows whose last token is a delimiter and which have insertions left
(max_inference_aug_num). What it declines does not count against that limit. A trained one (kinds head and lora: see
trigger_model.py) is also asked at the end of the prompt, where the others always insert. Weavers are trained without asking:
memory stands after every delimiter up to the limit, as published. A decision may depend on its row alone, never on the batch.

Shapes: B rows that are asked, V vocabulary, D width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from arclab.config.llm_schema import TRAINED_TRIGGERS, TriggerConfig, TriggerKind
from arclab.methods.memgen.trigger_model import TriggerModel


@dataclass(frozen=True, slots=True)
class Asked:
    """counted: insertions inside the answer so far. number: of the next token; 0: the end of the prompt. logits_BV: of the next
    token; hidden_BD: the state that they come from, or for a trigger that reads tokens itself its own one."""

    seeds: Sequence[int]
    counted: Sequence[int]
    number: int
    logits_BV: Tensor
    hidden_BD: Tensor


@dataclass(frozen=True, slots=True)
class Decision:
    """logprob: of having decided so (nats); 0 where nothing is drawn."""

    inserts: bool
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Trigger:
    """has_prompt: it is asked at the end of the prompt too. reads_tokens: it reads the plain tokens with a pass of its own."""

    name: str
    decide: Callable[[Asked], list[Decision]]
    has_prompt: bool = False
    reads_tokens: bool = False


always = Trigger("always", lambda asked: [Decision(True)] * len(asked.seeds))
never = Trigger("never", lambda asked: [Decision(False)] * len(asked.seeds))


def new_trigger(config: TriggerConfig, model: TriggerModel | None = None) -> Trigger:
    """The trigger that a checked configuration describes. Its kind must not be null: see chosen_trigger. model: of a trained
    one, which decides for what is more likely."""
    match config.kind:
        case TriggerKind.always:
            return always
        case TriggerKind.never:
            return never
        case TriggerKind.first_k:
            assert config.count is not None
            return _first(config.count)
        case TriggerKind.random:
            assert config.probability is not None
            return random_trigger(config.probability)
        case TriggerKind.entropy:
            assert config.threshold is not None
            return _uncertain(config.threshold)
        case TriggerKind.head | TriggerKind.lora:
            assert model is not None
            return trained_trigger(model, is_drawn=False)
        case None:
            raise AssertionError("kind null is for whoever takes the run's trigger")


def chosen_trigger(wish: TriggerConfig, of_the_run: TriggerConfig, model: TriggerModel | None, key: str) -> Trigger:
    """What an evaluation asks for; kind null: as the run is configured. model: the run's trained trigger, if it has one. key:
    of the wish. ValueError, in one sentence: a trained trigger of a run that has another one, or none."""
    if wish.kind in TRAINED_TRIGGERS and wish.kind is not of_the_run.kind:
        assert wish.kind is not None and of_the_run.kind is not None
        raise ValueError(
            f"{key}.kind={wish.kind.value} is trained, and this run has memgen.trigger.kind={of_the_run.kind.value}; give a "
            f"checkpoint that was trained with memgen/trigger={wish.kind.value}, or {key}.kind=null for the run's own."
        )
    return new_trigger(of_the_run if wish.kind is None else wish, model)


def trained_trigger(model: TriggerModel, *, is_drawn: bool) -> Trigger:
    """is_drawn: decisions are drawn by their probability, for each row's seed and token; else the likelier one is taken."""

    def decide(asked: Asked) -> list[Decision]:
        logit_B = model(asked.hidden_BD)
        yes, no = nn.functional.logsigmoid(logit_B).tolist(), nn.functional.logsigmoid(-logit_B).tolist()
        limits = [_uniform(seed, asked.number) for seed in asked.seeds] if is_drawn else [0.5] * len(yes)
        inserts = [limit < math.exp(logprob) for limit, logprob in zip(limits, yes, strict=True)]
        told = zip(inserts, yes, no, strict=True)
        return [Decision(does, (likely if does else rest) if is_drawn else 0.0) for does, likely, rest in told]

    return Trigger("trained", decide, has_prompt=True, reads_tokens=model.reads_tokens)


def entropy(logits_BV: Tensor) -> Tensor:
    """(B), nats: 0 is certain, log V is even."""
    logprobs_BV = logits_BV.log_softmax(-1)
    return -(logprobs_BV.exp() * logprobs_BV).sum(-1)


def _first(count: int) -> Trigger:
    return Trigger("first_k", lambda asked: [Decision(counted < count) for counted in asked.counted])


def random_trigger(probability: float) -> Trigger:
    def decide(asked: Asked) -> list[Decision]:
        inserts = [_uniform(seed, asked.number) < probability for seed in asked.seeds]
        return [Decision(does, math.log(probability if does else 1 - probability)) for does in inserts]

    return Trigger("random", decide)


def _uncertain(threshold: float) -> Trigger:
    def decide(asked: Asked) -> list[Decision]:
        return [Decision(is_unsure) for is_unsure in (entropy(asked.logits_BV.float()) >= threshold).tolist()]

    return Trigger("entropy", decide)


def _uniform(seed: int, number: int) -> float:
    """In [0, 1), the same for a row's seed and token in every batch."""
    drawn = hashlib.sha256(f"{seed} trigger {number}".encode()).digest()[:8]
    return int.from_bytes(drawn, "little") / 2**64
