"""trainer=trigger_grpo of pretrain_memgen.py: what moves, what a run keeps, and runs that are refused."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import ConfigError, compose_run
from arclab.config.memgen_schema import Memory
from arclab.config.run import DeviceChoice
from arclab.lm.switched import adapter_layers
from arclab.methods.memgen import run as memgen_run
from arclab.methods.memgen.evaluation import evaluate
from arclab.methods.memgen.model import TRIGGER
from arclab.methods.memgen.saved import MemoryWeights, load_memgen
from arclab.methods.memgen.setting import build_memgen, load_reasoner
from arclab.metrics.logger import read_rows
from arclab.text import environments

from .test_reinforcement import _check_answers, _digest, _measured, _same, _weights, pretrain_with

TINY = (
    "experiment=memgen_trigger_quickstart", "trainer.steps=4", "trainer.eval_every=4", "trainer.checkpoint_every=2",
    "trainer.prompts_per_step=2", "trainer.group_size=4", "trainer.max_new_tokens=12", "trainer.mask_truncated=false",
    "trainer.sft_steps=2", "trainer.sft_batch_size=4", "trainer.lr=0.05", "memgen.reasoner.scratch.steps=3",
    "memgen.reasoner.scratch.width=16", "memgen.reasoner.scratch.batch_size=4", "memgen.reasoner.scratch.vocab_size=300",
    "dataset.num_train=40", "dataset.num_validation=6", "dataset.num_test=6", "evaluation.sampling.max_new_tokens=6",
    "wandb.mode=disabled",
)  # fmt: skip
LORA = ("memgen/trigger=lora", "memgen.trigger.lora.rank=2", "memgen.trigger.lora.dropout=0.5")


@pytest.fixture(autouse=True)
def answers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "check_answers", _check_answers)


def _pretrain(runs: Path, name: str, *overrides: str) -> Path:
    return pretrain_with(TINY, runs, name, *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "check_answers", _check_answers)
        return _pretrain(tmp_path_factory.mktemp("memgen"), "a")


def _moved(run: Path, start: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in _weights(run).items() if not torch.equal(value, start[name])}


def test_the_trigger_alone_moves_and_the_run_is_scored_with_its_baselines(trained: Path) -> None:
    assert json.loads((trained / "status.json").read_text())["state"] == "DONE"
    stage = _weights(trained / "weaver_sft", 2)
    fresh = load_memgen(trained, DeviceChoice.cpu, Memory.random).model
    start = {name: value.detach() for name, value in MemoryWeights(fresh).tensors().items()} | stage
    moved = _moved(trained, start)
    assert moved == {name for name in start if name.startswith("trigger.")} and len(moved) == 4
    rows = read_rows(trained / "metrics.jsonl")
    assert rows[0]["num_params"] == sum(value.numel() for name, value in start.items() if name in moved)
    for row in rows[1:]:
        assert (
            row["rl/offpolicy"] < 1e-4 and 0 < row["rl/entropy"] < 0.6932 and row["rl/sparsity_weight"] == pytest.approx(0.05)
        )
        assert row["rl/decisions"] >= 1 and row["rl/insertions"] == pytest.approx(
            row["rl/decisions"] * row["rl/insert_share"], abs=1
        )
        assert row["rl/reward"] == pytest.approx(row["rl/reward_right"] + 0.05 * row["rl/reward_sparsity"], abs=1e-6)
    assert rows[1]["rl/entropy"] == pytest.approx(0.5822, abs=1e-3)  # of the untrained trigger, everywhere
    scores = {f"text/{name}_accuracy" for name in ("off", "always", "never", "random_trigger")}
    assert scores <= rows[-1].keys() and "text/start_accuracy" not in rows[-1]
    assert json.loads((trained / "criterion.json").read_text())["result"] in ("PASS", "FAIL")


def test_the_lora_trigger_moves_alone_too(trained: Path, tmp_path: Path) -> None:
    """From the weaver of another run, whose own trigger is left behind; the reasoner's file stays as it is."""
    before = _digest(trained / "reasoner")
    given = (f"lm.name={trained / 'reasoner'}", f"memgen.weaver.start_from={trained}", "trainer.sft_steps=0")
    run = _pretrain(tmp_path, "a", *given, *LORA)
    fresh = load_memgen(run, DeviceChoice.cpu, Memory.random).model
    start = {name: value.detach() for name, value in MemoryWeights(fresh).tensors().items()}
    start |= {name: value for name, value in _weights(trained).items() if not name.startswith("trigger")}
    assert _moved(run, start) == {name for name in start if name.startswith("trigger")}
    assert all(row["rl/offpolicy"] < 1e-4 for row in read_rows(run / "metrics.jsonl")[1:])
    assert _digest(trained / "reasoner") == before


def test_told_to_end_it_goes_on_to_the_same_weights(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the weaver is taught, and while the trigger is trained."""
    steps_seen: list[int] = []
    vote = memgen_run.StopRequest.vote

    def told(self: Any, step: int) -> Any:
        steps_seen.append(step)
        if len(steps_seen) in (4, 7):
            self._run.preempt.touch()
        return vote(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(memgen_run.StopRequest, "vote", told)
        for _ in range(3):
            run = _pretrain(trained.parents[1], "b")
    assert steps_seen == [1, 2, 3, 1, 2, 1, 2, 3, 4]
    assert _same(run, trained) and _measured(run) == _measured(trained)


def _rank(rank: int, runs: Path, given: Sequence[str], port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    environments.check_answers = _check_answers
    _pretrain(runs, "two", *given)


@pytest.mark.slow
def test_two_ranks_train_the_trigger_of_one(trained: Path, tmp_path: Path) -> None:
    """The penalty's target is the mean over the rollouts of both."""
    given = (f"lm.name={trained / 'reasoner'}", f"memgen.weaver.start_from={trained}", "trainer.sft_steps=0", "trainer.lr=1e-3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(tmp_path, given, port), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    one = _pretrain(tmp_path, "one", *given)
    two = one.parent / "two"
    for name, value in _weights(two).items():
        torch.testing.assert_close(value, _weights(one)[name], atol=1e-4, rtol=1e-3, msg=name)
    for mine, other in zip(read_rows(two / "metrics.jsonl")[1:], read_rows(one / "metrics.jsonl")[1:], strict=True):
        for name in ("rl/reward", "rl/insert_target", "rl/insert_share", "rl/decisions", "rl/entropy", "grad/total_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3), name
        shares = [key for key in other if key.startswith("text/")]
        assert {key: mine[key] for key in shares} == {key: other[key] for key in shares}


@pytest.mark.parametrize(
    "override", ["trainer.sparsity_weight=0.5", "trainer.shuffle_rewards=true", "trainer.beta=1.0", "trainer.temperature=0.7"]
)
def test_what_is_rewarded_and_drawn_changes_the_decisions(trained: Path, tmp_path: Path, override: str) -> None:
    given = (f"lm.name={trained / 'reasoner'}", f"memgen.weaver.start_from={trained}", "trainer.sft_steps=0")
    run = _pretrain(tmp_path, "a", *given, "trainer.eval_every=0", "criterion=null", override)
    mine, other = _measured(run), _measured(trained)
    assert mine[1:4] != other[1:4] and mine[1]["rl/offpolicy"] < 1e-4
    if "beta" in override:  # the reference is the untrained trigger, where the run begins
        assert mine[1]["rl/kl"] == pytest.approx(0, abs=1e-6) and mine[4]["rl/kl"] > 1e-5
    assert not _same(run, trained)


def test_a_step_in_which_nothing_is_decided_moves_nothing(trained: Path, tmp_path: Path) -> None:
    """No memory at the end of the prompt, and replies that end before a delimiter."""
    given = (f"lm.name={trained / 'reasoner'}", f"memgen.weaver.start_from={trained}", "trainer.sft_steps=0", "criterion=null")
    nothing = ("memgen.weaver.max_prompt_aug_num=0", "trainer.max_new_tokens=1", "trainer.eval_every=0", "trainer.steps=2")
    run = _pretrain(tmp_path, "a", *given, *nothing)
    rows = read_rows(run / "metrics.jsonl")[1:]
    assert [row["rl/decisions"] for row in rows] == [0, 0] == [row["rl/reward_sparsity"] for row in rows]
    assert [row["rl/insert_target"] for row in rows] == [1, 1] and all(row["grad/total_norm"] == 0 for row in rows)
    weights = _weights(run, 2)
    assert not weights["trigger.layers.2.weight"].any() and weights["trigger.layers.2.bias"] == 1


def _answers(run: Path, *overrides: str) -> list[dict[str, Any]]:
    config = compose_run("evaluate_memgen", [f"checkpoint={run}", "sampling.max_new_tokens=12", *overrides])
    evaluate(config)
    return [json.loads(line) for line in (config.folder / "answer.json").read_text().splitlines()][:-1]


def test_an_evaluation_takes_the_trained_trigger_or_a_baseline_on_the_same_weights(trained: Path, tmp_path: Path) -> None:
    mine, again = _answers(trained), _answers(trained, "trigger.kind=head", f"output_dir={tmp_path}/head")
    assert mine == again and all(answer["asked"][0] == 0 for answer in mine)
    never = _answers(trained, "trigger.kind=never")
    assert all(answer["inserted"] == [0] for answer in never)
    assert max(len(answer["inserted"]) for answer in _answers(trained, "trigger.kind=first_k", "trigger.count=1")) <= 2
    untrained = _answers(trained, "memory=random")  # a trigger as it began always inserts
    assert all(answer["inserted"] == answer["asked"] for answer in untrained)
    with pytest.raises(
        ValueError, match=r"trigger.kind=lora is trained, and this run has memgen.trigger.kind=head; give a checkpoint"
    ):
        _answers(trained, "trigger.kind=lora")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.sft_steps=0"], r"memgen.weaver.start_from=null leaves trainer=trigger_grpo without a trained weaver; give"),
        (["trainer.sft_steps=0", "memgen.weaver.start_from=untrained"], r"start_from=untrained leaves .* without memory worth"),
        (["memgen/trigger=always"], r"memgen.trigger.kind=always has nothing that trainer=trigger_grpo could train; choose"),
        (["trainer.group_size=1"], r"trainer.group_size=1 must be at least 2"),
        (["trainer.temperature=-1"], r"trainer.temperature=-1.0 must be at least 0"),
        (["trainer.sparsity_weight=-1"], r"trainer.sparsity_weight=-1.0 must be at least 0"),
        (["memgen.trigger.width=0"], r"memgen.trigger.width=0 must be at least 1"),
        (["memgen.trigger.kind=lora"], r"memgen.trigger.lora goes with memgen.trigger.kind=lora and with no other"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _pretrain(tmp_path, "bad", *overrides)


def test_a_trained_trigger_needs_its_trainer() -> None:
    with pytest.raises(
        ConfigError, match=r"memgen.trigger.kind=head is trained by trainer=trigger_grpo, not by trainer=sft; use"
    ):
        compose_run("pretrain_memgen", ["lm=tiny", "name=a", "memgen/trigger=head"])


def test_every_key_of_a_trained_trigger_builds_another_one(tiny_lm: Path) -> None:
    def built(*overrides: str) -> Any:
        config = compose_run(
            "pretrain_memgen",
            [
                "lm=tiny",
                f"lm.name={tiny_lm}",
                "lm.device=cpu",
                "name=a",
                "trainer=trigger_grpo",
                "trainer.sft_steps=1",
                *overrides,
            ],
        )
        model = build_memgen(load_reasoner(config.lm), config.memgen, config.seed)
        layers = [layer for layer in adapter_layers(model.reasoner) if TRIGGER in layer.scaling]
        return [
            {name: (tuple(value.shape), value.sum().item()) for name, value in MemoryWeights(model).tensors().items()},
            [(layer.scaling[TRIGGER], getattr(layer.lora_dropout[TRIGGER], "p", 0.0)) for layer in layers],
        ]

    for kind, keys in {
        "head": ["width=7"], "lora": ["lora.rank=3", "lora.alpha=9", "lora.dropout=0.4", "lora.target_modules=[k_proj]"],
    }.items():  # fmt: skip
        base = built(f"memgen/trigger={kind}")
        assert base == built(f"memgen/trigger={kind}")  # nothing is drawn but by the seed
        for key in keys:
            assert built(f"memgen/trigger={kind}", f"memgen.trigger.{key}") != base, key
