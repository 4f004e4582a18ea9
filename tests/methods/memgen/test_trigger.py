"""Triggers: what each decides, and that it looks at its row alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from arclab.config.compose import ConfigError, compose_run
from arclab.config.llm_schema import TriggerConfig, TriggerKind, as_the_run
from arclab.methods.memgen.generation import InsertionRule, generate
from arclab.methods.memgen.insertions import InsertionLimits
from arclab.methods.memgen.trigger import Asked, Decision, Trigger, chosen_trigger, entropy, new_trigger
from tests.methods.memgen.conftest import Build, some_ids
from tests.methods.memgen.test_generation import sampling

PROMPTS, SEEDS = some_ids(5, 9, 12), [1, 2, 3]
LOGITS_BV = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
HIDDEN_BD = torch.zeros(2, 3)


def config(
    kind: str, probability: float | None = None, threshold: float | None = None, count: int | None = None
) -> TriggerConfig:
    return TriggerConfig(kind=TriggerKind[kind], probability=probability, threshold=threshold, count=count)


def decided(trigger: Trigger, seeds: list[int], number: int, counted: int = 0) -> list[bool]:
    return [each.inserts for each in trigger.decide(Asked(seeds, [counted] * len(seeds), number, LOGITS_BV, HIDDEN_BD))]


def test_entropy_is_in_nats_and_decides_row_by_row() -> None:
    entropy_B = entropy(LOGITS_BV)
    assert float(entropy_B[1]) == pytest.approx(math.log(4)) and 0 < float(entropy_B[0]) < 0.01
    assert decided(new_trigger(config("entropy", threshold=1.0)), [1, 2], 3) == [False, True]


def test_random_is_drawn_by_row_and_token_at_its_rate() -> None:
    trigger = new_trigger(config("random", probability=0.3))
    seeds = list(range(400))
    drawn = [decided(trigger, seeds, number) for number in range(1, 6)]
    rate = sum(map(sum, drawn)) / 2000
    assert abs(rate - 0.3) < 0.04  # four standard deviations
    assert drawn[0] != drawn[1] and drawn[0] == decided(trigger, seeds, 1)
    assert decided(trigger, [7], 1) == drawn[0][7:8]  # alone as in its batch
    for probability in (0.0, 1.0):
        assert set(decided(new_trigger(config("random", probability=probability)), seeds, 1)) == {probability == 1.0}
    told = trigger.decide(Asked(seeds, [0] * 400, 1, LOGITS_BV, HIDDEN_BD))
    assert {each.inserts: round(math.exp(each.logprob), 6) for each in told} == {True: 0.3, False: 0.7}


def test_the_first_k_delimiters_are_counted_by_insertions(build: Build, rule: InsertionRule) -> None:
    first = new_trigger(config("first_k", count=2))
    assert [decided(first, [1], 9, counted) for counted in range(4)] == [[True], [True], [False], [False]]
    limited = replace(rule, limits=InsertionLimits(1, 2))
    model, fewer = build(), replace(rule, trigger=first)
    by_limit, by_trigger = (
        [answer.inserted for answer in generate(model, PROMPTS, each, sampling(40), SEEDS)] for each in (limited, fewer)
    )
    assert by_limit == by_trigger and max(map(len, by_limit)) == 3


def test_extreme_thresholds_are_always_and_never(build: Build, rule: InsertionRule) -> None:
    model = build()

    def drawn(trigger: TriggerConfig) -> list[tuple[list[int], list[int], list[int]]]:
        answers = generate(model, PROMPTS, replace(rule, trigger=new_trigger(trigger)), sampling(40), SEEDS)
        return [(answer.tokens, answer.inserted, answer.asked) for answer in answers]

    always, never = drawn(config("always")), drawn(config("never"))
    assert drawn(config("entropy", threshold=0.0)) == always != never == drawn(config("entropy", threshold=math.inf))
    assert any(len(inserted) > 1 for _, inserted, _ in always)
    at_prompt_only = replace(rule, limits=InsertionLimits(1, 0))
    assert [tokens for tokens, _, _ in never] == [
        a.tokens for a in generate(model, PROMPTS, at_prompt_only, sampling(40), SEEDS)
    ]


def test_what_is_declined_does_not_count_against_the_limit(build: Build, rule: InsertionRule) -> None:
    """Every second delimiter: as many insertions as without declining, and more delimiters are asked about."""
    asked: list[int] = []

    def every_second(about: Asked) -> list[Decision]:
        assert about.logits_BV.shape == (1, 400) and about.hidden_BD.shape[0] == 1 and about.counted == [len(asked) // 2]
        asked.append(about.number)
        return [Decision(len(asked) % 2 == 0)]

    often = torch.zeros(512, dtype=torch.bool)
    often[::2] = True
    changed = InsertionRule(often, InsertionLimits(1, 3), frozenset(), 0, Trigger("second", every_second))
    (answer,) = generate(build(), PROMPTS[:1], changed, sampling(40), SEEDS[:1])
    assert answer.asked == asked and answer.inserted == [0, *asked[1::2]] and len(answer.asked) == 6


def test_an_evaluation_takes_the_runs_trigger_unless_it_has_its_own() -> None:
    wished = chosen_trigger(config("never"), config("always"), None, "trigger")
    of_the_run = chosen_trigger(as_the_run(), config("always"), None, "trigger")
    assert (decided(wished, [1], 1), decided(of_the_run, [1], 1)) == ([False], [True])


@pytest.mark.parametrize(
    ("entry", "overrides", "words"),
    [
        ("pretrain_memgen", ["memgen.trigger.kind=null"], "memgen.trigger.kind=null is for evaluations; choose always, never"),
        ("pretrain_memgen", ["memgen/trigger=random", "memgen.trigger.probability=1.5"], "probability=1.5 must be"),
        ("pretrain_memgen", ["memgen/trigger=entropy", "memgen.trigger.threshold=-1"], "threshold=-1.0 must be at least 0"),
        (
            "evaluate_memgen",
            ["checkpoint=a", "trigger.kind=entropy"],
            "trigger.threshold has no value, and trigger.kind=entropy",
        ),
        ("evaluate_memgen", ["checkpoint=a", "trigger.threshold=1"], "trigger.threshold=1.0 is of trigger.kind=entropy; set"),
    ],
)
def test_settings_that_do_not_fit(entry: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose_run(entry, overrides)


def test_an_evaluation_with_its_own_trigger_has_its_own_folder() -> None:
    given = ["checkpoint=runs/a", "trigger.kind=random", "trigger.probability=0.5"]
    assert compose_run("evaluate_memgen", given).folder.name == "test_trained_random"
    assert compose_run("evaluate_memgen_ltpo", given).folder.name == "test_trained_random_ltpo"
