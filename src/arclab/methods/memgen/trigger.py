"""Triggers: after which delimiters of an answer is memory inserted?

    trigger = new_trigger(TriggerConfig(kind=TriggerKind.entropy, probability=None, threshold=2.0))
    decisions = trigger(seeds, logits_BV, hidden_BD, number)      # one for each row that is asked

A trigger is asked in generation, about the rows whose last token is a delimiter and which have insertions left
(max_inference_aug_num). What it declines does not count against that limit. Training does not ask: there memory stands after
every delimiter up to the limit, as published. A decision may depend on its row alone, never on the batch.

Shapes: B rows that are asked, V vocabulary, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from torch import Tensor

from arclab.config.llm_schema import TriggerConfig, TriggerKind

# (the seed of each row, logits of the next token, the state they come from, number of the next token) -> insert?
Trigger = Callable[[Sequence[int], Tensor, Tensor, int], list[bool]]


def always(seeds: Sequence[int], logits_BV: Tensor, hidden_BD: Tensor, number: int) -> list[bool]:
    return [True] * len(seeds)


def never(seeds: Sequence[int], logits_BV: Tensor, hidden_BD: Tensor, number: int) -> list[bool]:
    return [False] * len(seeds)


def new_trigger(config: TriggerConfig) -> Trigger:
    """The trigger that a checked configuration describes. Its kind must not be null: see chosen_trigger."""
    match config.kind:
        case TriggerKind.always:
            return always
        case TriggerKind.never:
            return never
        case TriggerKind.random:
            assert config.probability is not None
            return _random(config.probability)
        case TriggerKind.entropy:
            assert config.threshold is not None
            return _uncertain(config.threshold)
        case None:
            raise AssertionError("kind null is for whoever takes the run's trigger")


def chosen_trigger(wish: TriggerConfig, of_the_run: TriggerConfig) -> Trigger:
    """What an evaluation asks for; kind null: as the run is configured."""
    return new_trigger(of_the_run if wish.kind is None else wish)


def entropy(logits_BV: Tensor) -> Tensor:
    """(B), nats: 0 is certain, log V is even."""
    logprobs_BV = logits_BV.log_softmax(-1)
    return -(logprobs_BV.exp() * logprobs_BV).sum(-1)


def _random(probability: float) -> Trigger:
    def decide(seeds: Sequence[int], logits_BV: Tensor, hidden_BD: Tensor, number: int) -> list[bool]:
        return [_uniform(seed, number) < probability for seed in seeds]

    return decide


def _uncertain(threshold: float) -> Trigger:
    def decide(seeds: Sequence[int], logits_BV: Tensor, hidden_BD: Tensor, number: int) -> list[bool]:
        return (entropy(logits_BV.float()) >= threshold).tolist()

    return decide


def _uniform(seed: int, number: int) -> float:
    """In [0, 1), the same for a row's seed and token in every batch."""
    drawn = hashlib.sha256(f"{seed} trigger {number}".encode()).digest()[:8]
    return int.from_bytes(drawn, "little") / 2**64
