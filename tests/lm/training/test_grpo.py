"""Reinforcement learning with trl: what is learned from, what is not, and that it is a run's."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from arclab.config.run import DeviceChoice
from arclab.lm.training import grpo as grpo_module
from arclab.lm.training import life
from arclab.lm.training.rollouts import Rollout, RolloutSettings
from arclab.lm.training.turns import turn_passes
from arclab.runs.monitor import UnhealthyRun
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import start_ranks, stop_ranks

from .reinforced import GROUPS, SETTINGS, Sampler, is_even, measured, rows_of, same, train
from .test_sft import Cadence

QUIET = RolloutSettings(group_size=4, refills=0, mask_truncated=True, shuffle_rewards=False)


@pytest.fixture(scope="module")
def start(tiny_lm: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(tiny_lm).named_parameters())


@pytest.fixture(scope="module")
def whole(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Four steps without a break."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    return folder, train(tiny_lm, folder, cadence=Cadence(steps=4))


def is_short(rollouts: Sequence[Rollout]) -> list[float]:
    return [float(len(row.completion_ids) == 1) for row in rollouts]


def test_the_sampler_and_the_trainer_agree_and_the_reward_rises(tiny_lm: Path, tmp_path: Path) -> None:
    settings, cadence = replace(SETTINGS, prompts_per_step=4, lr=3e-2), Cadence(steps=12, checkpoint_every=99)
    train(tiny_lm, tmp_path / "a", settings, cadence, reward=is_short)
    rows = rows_of(tmp_path / "a")
    assert rows[0]["rl/offpolicy"] < 1e-4 and max(row["rl/offpolicy"] for row in rows) < 1e-3  # every step draws anew
    assert rows[0]["rl/reward"] < 0.5 and rows[-1]["rl/reward"] > 0.9 and rows[-1]["rl/tokens"] < 1.5
    assert rows[0]["rl/entropy"] > 4 and all(row["timing/rollouts_per_s"] > 0 for row in rows)


def test_a_temperature_is_that_of_both(tiny_lm: Path, tmp_path: Path) -> None:
    train(tiny_lm, tmp_path / "a", replace(SETTINGS, temperature=0.5), Cadence(steps=1))
    assert rows_of(tmp_path / "a")[0]["rl/offpolicy"] < 1e-4


def test_advantages_of_a_group_sum_to_zero_and_masks_end_with_the_answer(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    made = grpo_module._Grpo._generate_and_score_completions

    def score(self: Any, inputs: Any) -> Any:
        seen.append(made(self, inputs))
        return seen[-1]

    monkeypatch.setattr(grpo_module._Grpo, "_generate_and_score_completions", score)
    train(tiny_lm, tmp_path / "a", cadence=Cadence(steps=2))
    for batch in seen:
        torch.testing.assert_close(batch["advantages"].view(-1, 4).sum(1), torch.zeros(2), atol=1e-5, rtol=0)
        assert batch["advantages"].abs().max() > 0.1
        for tokens, mask in zip(batch["completion_ids"].tolist(), batch["completion_mask"].tolist(), strict=True):
            length = next((at + 1 for at, token in enumerate(tokens) if token in range(100)), len(tokens))
            assert mask == [1] * length + [0] * (len(tokens) - length)


def always(rollouts: Sequence[Rollout]) -> list[float]:
    return [1.0] * len(rollouts)


@pytest.mark.parametrize(("given", "share"), [
    ({"reward": always}, "rl/zero_variance_share"), ({"sampler": {"is_cut": True}}, "rl/truncated_share"),
])  # fmt: skip
def test_what_says_nothing_gives_no_gradient(
    tiny_lm: Path, tmp_path: Path, start: dict[str, torch.Tensor], given: dict[str, Any], share: str
) -> None:
    """Groups whose rewards are alike; and replies that were cut, as all of these are. Not by a reference either."""
    ended = train(tiny_lm, tmp_path / "a", replace(SETTINGS, beta=0.1), groups=QUIET, **given)
    row = rows_of(tmp_path / "a")[-1]
    assert same(start, ended) and row["grad/total_norm"] == 0 and row["rl/dropped_share"] == row[share] == 1


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_a_step_in_pieces_is_the_step(tiny_lm: Path, tmp_path: Path, loss: str) -> None:
    settings = replace(SETTINGS, loss=loss)
    one = train(tiny_lm, tmp_path / "one", settings, Cadence(steps=1))
    pieces = train(tiny_lm, tmp_path / "pieces", replace(settings, grad_accumulation=4), Cadence(steps=1))
    first, second = (rows_of(tmp_path / name)[0] for name in ("one", "pieces"))
    assert first["grad/total_norm"] == pytest.approx(second["grad/total_norm"], rel=1e-3)
    for name, value in one.items():
        torch.testing.assert_close(value, pieces[name], atol=1e-4, rtol=1e-3, msg=name)


def test_told_to_end_it_goes_on_to_the_same_weights_and_metrics(
    tiny_lm: Path, tmp_path: Path, whole: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vote = StopRequest.vote

    def told(self: Any, step: int) -> Any:
        if step == 2:
            self._run.preempt.touch()
        return vote(self, step)

    folder, weights = whole
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "vote", told)
        train(tiny_lm, tmp_path / "a", cadence=Cadence(steps=4))
    assert [row["_step"] for row in rows_of(tmp_path / "a")] == [1, 2]
    (tmp_path / "a" / "PREEMPT").unlink()
    ended = train(tiny_lm, tmp_path / "a", cadence=Cadence(steps=4))
    assert same(weights, ended) and measured(tmp_path / "a") == measured(folder)


def test_told_to_end_between_two_updates_it_goes_on_with_the_same_rollouts(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Drawn once: a policy that has moved meanwhile would draw others. In pieces, too."""
    calls: list[int] = []
    answer, vote = Sampler.__call__, StopRequest.vote
    monkeypatch.setattr(Sampler, "__call__", lambda self, *given: calls.append(1) or answer(self, *given))
    settings, quiet = (
        replace(SETTINGS, updates_per_rollout=2, lr=3e-2, grad_accumulation=2),
        RolloutSettings(4, 0, False, False),
    )
    whole = train(tiny_lm, tmp_path / "whole", settings, Cadence(steps=4), groups=quiet)

    def told(self: Any, step: int) -> Any:
        if step == 3:
            self._run.preempt.touch()
        return vote(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "vote", told)
        train(tiny_lm, tmp_path / "a", settings, Cadence(steps=4), groups=quiet)
    (tmp_path / "a" / "PREEMPT").unlink()
    calls.clear()
    ended = train(tiny_lm, tmp_path / "a", settings, Cadence(steps=4), groups=quiet)
    assert not calls and same(whole, ended) and measured(tmp_path / "a") == measured(tmp_path / "whole")
    checkpoint = tmp_path / "a" / "checkpoints"
    assert (checkpoint / "step_00000003" / "rollouts_0_of_1.pt").is_file() and not list(
        checkpoint.glob("step_00000004/rollouts*")
    )
    assert "drawn anew" not in caplog.text


def test_rollouts_are_used_for_as_many_steps_as_asked(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    answer = Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda self, *given: calls.append(1) or answer(self, *given))
    settings = replace(SETTINGS, updates_per_rollout=2, lr=3e-3)
    train(tiny_lm, tmp_path / "a", settings, Cadence(steps=4), groups=RolloutSettings(4, 0, False, False))
    rows = rows_of(tmp_path / "a")
    assert len(calls) == 2
    for name in ("rl/reward", "rl/offpolicy"):  # of new rollouts
        assert [name in row for row in rows] == [True, False, True, False], name
    assert max(rows[0]["rl/offpolicy"], rows[2]["rl/offpolicy"]) < 1e-4


def test_the_reference_is_what_the_context_makes_of_the_model(tiny_lm: Path, tmp_path: Path) -> None:
    kept: list[Any] = []

    @contextmanager
    def other() -> Any:
        """Inside it the model is another one."""
        weight = kept[0].get_output_embeddings().weight
        before = weight.detach().clone()
        weight.data.mul_(1.5)
        yield
        weight.data.copy_(before)

    settings = replace(SETTINGS, beta=0.1)
    itself = train(tiny_lm, tmp_path / "itself", settings, Cadence(steps=1))
    away = train(tiny_lm, tmp_path / "away", settings, Cadence(steps=1), prepare=kept.append, reference=other)
    assert rows_of(tmp_path / "itself")[0]["rl/kl"] == pytest.approx(0, abs=1e-6)
    assert rows_of(tmp_path / "away")[0]["rl/kl"] > 1e-3 and not same(itself, away)


def test_a_reward_that_fails_for_some_is_counted_and_for_all_ends_the_run(tiny_lm: Path, tmp_path: Path) -> None:
    def fails_on(*lengths: int) -> Any:
        def reward(rollouts: Sequence[Rollout]) -> list[float]:
            if any(len(row.prompt) in lengths for row in rollouts):
                raise KeyError("no answer")
            return is_even(rollouts)

        return reward

    train(tiny_lm, tmp_path / "a", replace(SETTINGS, prompts_per_step=4), groups=QUIET, reward=fails_on(1))
    assert [row["rl/failed_share"] for row in rows_of(tmp_path / "a")] == [0.25, 0.25]
    with pytest.raises(
        ValueError, match=r"no reward of step 0 could be computed \(right: KeyError: 'no answer'\); correct the"
    ):
        train(tiny_lm, tmp_path / "b", reward=fails_on(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("settings", "group_size", "words"),
    [
        ({}, 1, r"trainer.group_size=1 leaves nothing to compare"),
        ({"grad_accumulation": 3}, 4, r"trainer.grad_accumulation=3 must divide the 8 rollouts of a rank"),
    ],
)
def test_what_cannot_be_compared_or_split_is_refused(
    tiny_lm: Path, tmp_path: Path, settings: dict[str, Any], group_size: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        train(tiny_lm, tmp_path / "a", replace(SETTINGS, **settings), groups=RolloutSettings(group_size, 0, False, False))
    with pytest.raises(ValueError, match=r"prompts_per_step=3 must be divisible by the number of ranks \(2\)"):
        grpo_module._rows_per_piece(replace(SETTINGS, prompts_per_step=3), 4, 2)


@pytest.mark.parametrize(
    ("kind", "settings", "given"),
    [
        ("NO_SIGNAL", {}, {"reward": always}),
        ("STALE_ROLLOUTS", {}, {"sampler": {"wrong_by": 1.0}}),
        ("COLLAPSED", {"temperature": 0.001}, {}),
        ("CLIPPED", {"updates_per_rollout": 12, "lr": 0.02}, {}),
        ("LENGTH_DRIFT", {}, {"sampler": {"length": lambda calls: 1 if calls <= 12 else 5}}),
        ("DEAD", {}, {"prepare": lambda model: [layer.register_hook(torch.zeros_like) for layer in model.parameters()]}),
    ],
)
def test_a_sick_run_is_told_so(tiny_lm: Path, tmp_path: Path, kind: str, settings: dict[str, Any], given: Any) -> None:
    steps = {"NO_SIGNAL": 11, "CLIPPED": 12, "LENGTH_DRIFT": 22}.get(kind, 2)
    train(
        tiny_lm, tmp_path / "a", replace(SETTINGS, **settings), Cadence(steps=steps, health_every=1, checkpoint_every=99),
        groups=RolloutSettings(4, 0, False, False), **given,
    )  # fmt: skip
    verdicts = [(row["health"], row["health_level"]) for row in rows_of(tmp_path / "a")]
    assert kind in [word for word, _ in verdicts], verdicts
    if kind == "NO_SIGNAL":
        assert verdicts[0][1] == "warning" and verdicts[-1][1] == "bad"


def test_a_run_without_signal_is_stopped_if_it_may_be(tiny_lm: Path, tmp_path: Path) -> None:
    cadence = Cadence(steps=20, stop_when_unhealthy=True, checkpoint_every=99)
    with pytest.raises(UnhealthyRun, match=r"NO_SIGNAL rl/zero_variance_share 1 = 1"):
        train(tiny_lm, tmp_path / "a", cadence=cadence, groups=QUIET, reward=always)
    assert rows_of(tmp_path / "a")[-1]["_step"] == 11


def test_a_loss_that_is_no_number_ends_the_run(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(life.DivergedError, match=r"training diverged: .* at step \d; lower trainer.lr"):
        train(tiny_lm, tmp_path / "a", replace(SETTINGS, lr=1e30), Cadence(steps=4))


@pytest.mark.parametrize(("key", "value"), [
    ("lr", 5e-3), ("warmup_steps", 7), ("schedule", "cosine"), ("weight_decay", 0.3), ("clip_norm", 0.25), ("seed", 9),
    ("prompts_per_step", 1), ("temperature", 0.7), ("loss", "grpo"), ("scale_rewards", "none"),
])  # fmt: skip
def test_every_setting_changes_the_weights(
    tiny_lm: Path, tmp_path: Path, whole: tuple[Path, dict[str, torch.Tensor]], key: str, value: Any
) -> None:
    other = train(tiny_lm, tmp_path / "other", replace(SETTINGS, **{key: value}), Cadence(steps=4))
    assert not same(whole[1], other)


@pytest.mark.parametrize(("key", "value"), [("clip_low", 0.001), ("clip_high", 0.001)])
def test_the_clip_limits_count_where_rollouts_are_used_again(tiny_lm: Path, tmp_path: Path, key: str, value: float) -> None:
    settings = replace(SETTINGS, updates_per_rollout=3, lr=1e-4)
    base = train(tiny_lm, tmp_path / "base", settings, Cadence(steps=3))
    assert not same(base, train(tiny_lm, tmp_path / "other", replace(settings, **{key: value}), Cadence(steps=3)))


def test_rewards_that_are_shuffled_teach_something_else(
    tiny_lm: Path, tmp_path: Path, whole: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    other = train(tiny_lm, tmp_path / "a", cadence=Cadence(steps=4), groups=replace(GROUPS, shuffle_rewards=True))
    assert not same(whole[1], other)
    first, mixed = rows_of(whole[0])[0], rows_of(tmp_path / "a")[0]
    assert first["rl/reward"] == mixed["rl/reward"] and first["rl/entropy"] == mixed["rl/entropy"]


def _rank(rank: int, tiny_lm: Path, folder: Path, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    ranks = start_ranks(DeviceChoice.cpu)
    weights = train(tiny_lm, folder / "two" if rank == 0 else folder / "other", ranks=ranks)
    torch.save(weights, folder / f"rank{rank}.pt")
    stop_ranks()


@pytest.mark.slow
def test_two_ranks_do_what_one_does(tiny_lm: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(tiny_lm, tmp_path, port), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    one = train(tiny_lm, tmp_path / "one")
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"rank{rank}.pt").items():
            torch.testing.assert_close(value, one[name], atol=1e-4, rtol=1e-3, msg=name)
    for mine, other in zip(measured(tmp_path / "two"), measured(tmp_path / "one"), strict=True):
        for name in ("rl/reward", "rl/tokens", "rl/entropy", "grad/total_norm", "rl/zero_variance_share"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3), name


def turned(tokens: Sequence[int], turns: list[tuple[int, int]], extra: list[int]) -> Rollout:
    prompt = list(range(len(extra) - len(tokens)))
    return Rollout("p", prompt, list(tokens), [0.0] * len(tokens), True, {"plan": extra}, turns=turns)


def test_each_turn_is_a_pass_from_the_plain_tokens_before_it() -> None:
    """Two rows, of two turns and of one; the second is shorter, so that it is padded on both sides."""
    rows = [
        turned([5, 6, 7, 8, 9, 10], [(0, 2), (4, 6)], [0, 0, 1, 2, 0, 0, 1, 2, 0]), turned([5, 6], [(0, 2)], [0, 1, 2, 0]),
    ]  # fmt: skip
    assert rows[0].turn_numbers == [1, 1, 0, 0, 2, 2] and rows[0].num_drawn == 4 and rows[1].turn_numbers == [1, 1]
    ids_BL = torch.tensor([[1, 2, 3, 5, 6, 7, 8, 9, 10], [0, 1, 2, 5, 6, 0, 0, 0, 0]])
    mask_BL = (ids_BL > 0).long()
    turn_BL = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 2, 2], [0, 0, 0, 1, 1, 0, 0, 0, 0]])
    plan_BL = torch.tensor([[0, 0, 1, 2, 0, 0, 1, 2, 0], [0, 0, 1, 2, 0, 0, 0, 0, 0]])
    passes = turn_passes(ids_BL, mask_BL, turn_BL, {"plan": plan_BL})
    assert passes.rows_N.tolist() == [0, 0, 1]
    assert passes.given["plan"].tolist() == [
        [0, 0, 1, 2, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 2, 0],
        [0, 0, 1, 2, 0, 0, 0, 0, 0],
    ]
    assert passes.given["attention_mask"].sum(1).tolist() == [5, 9, 4]
    none = -100
    assert passes.given["labels"].tolist() == [
        [none] * 3 + [5, 6] + [none] * 4, [none] * 7 + [9, 10], [none] * 3 + [5, 6] + [none] * 4,
    ]  # fmt: skip
    value_NM = torch.arange(24.0).view(3, 8)  # of all tokens but the first
    assert passes.gathered(value_NM, 6).tolist() == [[2, 3, 0, 0, 14, 15], [18, 19, 0, 0, 0, 0]]


def test_what_an_environment_says_has_no_loss(tiny_lm: Path, tmp_path: Path, start: dict[str, torch.Tensor]) -> None:
    """Tokens that were not drawn change the context of later turns, and are neither pushed up nor down, nor compared."""

    def replied(sampler: Any, rollouts: list[Rollout]) -> list[Rollout]:
        for row in rollouts:
            row.completion_ids += [300] * 3
            row.logprobs += [0.0] * 3
            row.turns = [(0, len(row.completion_ids) - 3)]
        return rollouts

    answer = Sampler.__call__
    plain = train(tiny_lm, tmp_path / "plain", cadence=Cadence(steps=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "__call__", lambda self, *given: replied(self, answer(self, *given)))
        told = train(tiny_lm, tmp_path / "told", cadence=Cadence(steps=1))
    first, second = (rows_of(tmp_path / name)[0] for name in ("plain", "told"))
    for name in ("rl/offpolicy", "rl/entropy", "rl/tokens", "grad/total_norm"):
        assert first[name] == pytest.approx(second[name], rel=1e-3, abs=1e-6), name
    for name, value in plain.items():
        torch.testing.assert_close(value, told[name], atol=1e-5, rtol=1e-3, msg=name)
    assert not same(start, told)
