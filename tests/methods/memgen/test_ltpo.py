"""Latents that are optimised at test time: they move, the reward rises, nothing else changes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from arclab.config.memgen_schema import LtpoConfig, LtpoReward
from arclab.methods.memgen.generation import InsertionRule, generate
from arclab.methods.memgen.ltpo import LatentOptimiser
from arclab.methods.memgen.model import MemGenModel
from tests.methods.memgen.conftest import Build, some_ids
from tests.methods.memgen.test_generation import sampling

PROMPTS, NAMES = some_ids(5, 17, 9, 24), ["a", "b", "c", "d"]
CONFIG = LtpoConfig(
    enabled=True, reward=LtpoReward.entropy, lr=0.1, sigma=0.1, sigma_decay=0.99, max_steps=8, reward_threshold=None, top_k=10,
    lookahead_tokens=3, use_auto_grad=True, verbose=True,
)  # fmt: skip


def _digest(model: MemGenModel) -> str:
    digest = hashlib.sha256()
    for _, value in sorted(model.state_dict().items()):
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("use_auto_grad", [True, False])
@pytest.mark.parametrize("reward", list(LtpoReward))
def test_latents_move_the_reward_rises_and_weights_stay(
    build: Build, rule: InsertionRule, reward: LtpoReward, use_auto_grad: bool
) -> None:
    model = build()
    before = _digest(model)
    optimiser = LatentOptimiser(model, replace(CONFIG, reward=reward, use_auto_grad=use_auto_grad), 0, NAMES)
    answers = generate(model, PROMPTS, rule, sampling(16, 0.0), [0] * 4, optimiser)
    told = [optimiser.told(row) for row in range(4)]
    pairs = [(b, a) for row in told for b, a in zip(row["reward_before"], row["reward_after"], strict=True)]
    assert len(pairs) == sum(len(answer.inserted) for answer in answers) >= 4
    assert sum(after > before for before, after in pairs) >= 0.9 * len(pairs)
    assert all(moved > 0.01 for row in told for moved in row["moved"])
    assert _digest(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_do_not_depend_on_their_batch(build: Build, rule: InsertionRule) -> None:
    model = build()
    together = LatentOptimiser(model, CONFIG, 0, NAMES)
    answers = generate(model, PROMPTS, rule, sampling(16, 0.0), [0] * 4, together)
    for row in (1, 3):
        alone = LatentOptimiser(model, CONFIG, 0, [NAMES[row]])
        (answer,) = generate(model, [PROMPTS[row]], rule, sampling(16, 0.0), [0], alone)
        assert answer.tokens == answers[row].tokens
        assert alone.told(0)["reward_after"] == pytest.approx(together.told(row)["reward_after"], abs=1e-4)


def test_no_steps_change_nothing_and_a_reached_threshold_ends_a_row(build: Build, rule: InsertionRule) -> None:
    model = build()
    plain = generate(model, PROMPTS, rule, sampling(12, 0.0), [0] * 4)
    none = LatentOptimiser(model, replace(CONFIG, max_steps=0), 0, NAMES)
    assert [a.tokens for a in generate(model, PROMPTS, rule, sampling(12, 0.0), [0] * 4, none)] == [a.tokens for a in plain]
    assert set(none.told(0)["moved"]) == {0.0}
    reached = LatentOptimiser(model, replace(CONFIG, reward_threshold=-100.0), 0, NAMES)
    generate(model, PROMPTS, rule, sampling(1, 0.0), [0] * 4, reached)
    assert reached.told(0)["ltpo_steps"] == [0]


def test_the_published_reward_is_not_monotone_in_certainty_and_the_default_is() -> None:
    from arclab.methods.memgen.ltpo import _topk
    from arclab.methods.memgen.trigger import entropy

    def logits(peak: float) -> torch.Tensor:
        return torch.cat([torch.tensor([peak]), torch.zeros(999)])[None]

    peaks = [0.0, 2.0, 5.0, 8.0, 12.0]
    sureness = [-float(entropy(logits(peak))) for peak in peaks]
    assert sureness == sorted(sureness)
    valid_BN = torch.ones(1, 1, dtype=torch.bool)
    ten = torch.cat([torch.full((10,), 9.0), torch.zeros(990)])[None]  # surer than the even distribution, and rewarded less
    assert -float(entropy(ten)) > sureness[0]
    assert float(_topk(ten[:, None], valid_BN, 10)) < float(_topk(logits(0.0)[:, None], valid_BN, 10))


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({"reward": LtpoReward.lookahead}, {}), ({"lr": 0.02}, {}), ({"sigma": 0.5}, {}), ({"sigma_decay": 0.1}, {}),
        ({"max_steps": 3}, {}), ({"reward_threshold": -4.9}, {}), ({"use_auto_grad": False}, {}), ({"verbose": False}, {}),
        ({"top_k": 3}, {"reward": LtpoReward.topk}), ({"lookahead_tokens": 5}, {"reward": LtpoReward.lookahead}),
    ],
    ids=lambda value: "".join(value),
)  # fmt: skip
def test_every_key_changes_what_becomes_of_latents(
    build: Build, rule: InsertionRule, changes: dict[str, object], base: dict[str, object]
) -> None:
    def told(config: LtpoConfig) -> list[dict[str, object]]:
        optimiser = LatentOptimiser(model, config, 0, NAMES)
        generate(model, PROMPTS, rule, sampling(2, 0.0), [0] * 4, optimiser)
        return [optimiser.told(row) for row in range(4)]

    model, before = build(), replace(CONFIG, **base)  # type: ignore[arg-type]
    assert told(before) == told(before)
    assert told(before) != told(replace(before, **changes))  # type: ignore[arg-type]
