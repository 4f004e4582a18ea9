"""trainer=grpo of pretrain_memgen.py: rollouts with memory, the weaver that it begins with, and runs that are told to end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.compose import ConfigError, compose_run
from arclab.config.memgen_schema import Memory
from arclab.config.run import DeviceChoice
from arclab.lm.language_model import Sampling
from arclab.lm.training.rollouts import Rollout
from arclab.methods.memgen import run as memgen_run
from arclab.methods.memgen.generation import Answer, InsertionRule, generate
from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT
from arclab.methods.memgen.interaction import Played, Turn
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.reinforcement import rolled_out
from arclab.methods.memgen.saved import load_memgen
from arclab.metrics.logger import read_rows
from arclab.text import environments
from arclab.text.answers import Checked
from arclab.text.environments import Episode
from arclab.text.examples import TextExample

from .conftest import Build, some_ids
from .test_run import TINY as TINY_SFT

TINY = (
    *(word for word in TINY_SFT if not word.startswith(("experiment=", "trainer."))),
    "experiment=memgen_grpo_quickstart", "trainer.steps=4", "trainer.eval_every=4", "trainer.checkpoint_every=2",
    "trainer.prompts_per_step=2", "trainer.group_size=4", "trainer.max_new_tokens=6", "trainer.mask_truncated=false",
    "trainer.sft_steps=2", "trainer.sft_batch_size=4", "trainer.refills=0",
)  # fmt: skip


def _check_answers(pairs: Sequence[tuple[str, str]]) -> list[Checked]:
    return [Checked("1", len(reply) % 2 == 0) for reply, _ in pairs]


@pytest.fixture(autouse=True)
def answers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model this small is never right: replies of an even length are."""
    monkeypatch.setattr(environments, "check_answers", _check_answers)


def pretrain_with(base: Sequence[str], runs: Path, name: str, *overrides: str) -> Path:
    """The run's folder. base: overrides, beginning with the experiment. With lm.name: of that reasoner, made by another run."""
    is_given = any(word.startswith("lm.name=") for word in overrides)
    words = [word for word in base if not (is_given and word.startswith("memgen.reasoner.scratch."))]
    words += ["memgen/reasoner=given"] if is_given else []
    config = compose_run("pretrain_memgen", [*words, f"name={name}", f"runs_dir={runs}", *overrides])
    memgen_run.pretrain(config)
    return config.folder


def _pretrain(runs: Path, name: str, *overrides: str) -> Path:
    return pretrain_with(TINY, runs, name, *overrides)


@pytest.fixture(scope="module")
def reinforced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "check_answers", _check_answers)
        return _pretrain(tmp_path_factory.mktemp("memgen"), "a")


def _weights(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def _same(mine: Path, other: Path) -> bool:
    return all(torch.equal(value, _weights(other)[name]) for name, value in _weights(mine).items())


def _measured(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith(("_run", "_time", "timing/"))}
        for row in read_rows(run / "metrics.jsonl")
    ]


def test_a_run_is_taught_reinforced_scored_with_its_controls_and_judged(reinforced: Path) -> None:
    assert json.loads((reinforced / "status.json").read_text())["state"] == "DONE"
    start = load_file(reinforced / "weaver_sft" / "checkpoints" / "step_00000002" / "model.safetensors")
    weights = _weights(reinforced)
    assert start.keys() == weights.keys() and all(name.startswith(("adapter.", "weaver.")) for name in weights)
    assert sum(not torch.equal(value, start[name]) for name, value in weights.items()) > len(weights) // 2
    rows = read_rows(reinforced / "metrics.jsonl")
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["rl/offpolicy"] < 1e-4 and 1 <= rows[1]["rl/insertions"] <= 3 and 0 < rows[1]["rl/tokens"] <= 6
    last = rows[-1]
    assert {
        "text/accuracy",
        "text/off_accuracy",
        "text/random_accuracy",
        "text/start_accuracy",
        "rl/reward_right",
    } <= last.keys()
    assert json.loads((reinforced / "criterion.json").read_text())["result"] == "FAIL"
    saved = load_memgen(reinforced, DeviceChoice.cpu, Memory.trained)
    assert saved.step == 4


def test_told_to_end_in_any_stage_it_goes_on_to_the_same_weights(reinforced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the reasoner is made, while the weaver is taught, while it is reinforced."""
    steps_seen: list[int] = []
    vote = memgen_run.StopRequest.vote

    def told(self: Any, step: int) -> Any:
        steps_seen.append(step)
        if len(steps_seen) in (2, 4, 7):
            self._run.preempt.touch()
        return vote(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(memgen_run.StopRequest, "vote", told)
        for _ in range(4):
            run = _pretrain(reinforced.parents[1], "b")
    assert steps_seen == [1, 2, 3, 1, 2, 1, 2, 3, 4]
    assert json.loads((run / "status.json").read_text())["state"] == "DONE"
    assert _same(run, reinforced) and _measured(run) == _measured(reinforced)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_it_begins_with_the_weaver_of_a_run(reinforced: Path, tmp_path: Path) -> None:
    """And leaves the reasoner as it is."""
    given = (f"lm.name={reinforced / 'reasoner'}", "trainer.sft_steps=0", "trainer.lr=0.0")
    before = _digest(reinforced / "reasoner")
    run = _pretrain(tmp_path, "a", *given, f"memgen.weaver.start_from={reinforced}")
    assert _same(run, reinforced) and _digest(reinforced / "reasoner") == before
    other = _pretrain(tmp_path, "b", *given, "memgen.weaver.start_from=untrained", "trainer.steps=1", "trainer.eval_every=1")
    assert not torch.equal(_weights(other, 1)["weaver.gain"], _weights(reinforced)["weaver.gain"])
    made = compose_run("pretrain_memgen", [*TINY, "name=a", f"runs_dir={tmp_path}", f"memgen.weaver.start_from={tmp_path}/x/y"])
    assert made.inputs() == {"memgen.weaver.start_from": tmp_path / "x" / "y"}
    with pytest.raises(ConfigError, match=r"memgen.weaver.start_from=null leaves trainer=grpo without a trained weaver; give"):
        _pretrain(tmp_path, "c", "trainer.sft_steps=0")
    with pytest.raises(ValueError, match=r"memgen.weaver.start_from=.*has no checkpoints"):
        _pretrain(tmp_path, "d", *given, f"memgen.weaver.start_from={tmp_path}/nothing")
    with pytest.raises(ValueError, match=r"memgen.weaver.start_from=.*its weaver was trained for another reasoner"):
        _pretrain(tmp_path, "e", "seed=1", f"memgen.weaver.start_from={reinforced}")


@pytest.mark.parametrize("override", [
    "trainer.shuffle_rewards=true", "trainer.beta=0.5", "trainer.boxed_reward=0.5", "trainer.refills=2",
    "trainer.mask_truncated=true",
])  # fmt: skip
def test_what_is_rewarded_and_counted_changes_the_metrics(reinforced: Path, tmp_path: Path, override: str) -> None:
    given = (f"lm.name={reinforced / 'reasoner'}", "trainer.eval_every=0", "criterion=null")
    run = _pretrain(tmp_path, "a", *given, "trainer.steps=2", override)
    mine, other = _measured(run)[1:3], _measured(reinforced)[1:3]
    assert mine != other
    if "beta" in override:  # the reasoner without memory is another policy
        assert mine[0]["rl/kl"] > 1e-3
    if "boxed" in override:
        assert "rl/reward_boxed" in mine[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.group_size=1"], r"trainer.group_size=1 must be at least 2"),
        (["trainer.temperature=0"], r"trainer.temperature=0.0 must be above 0"),
        (["trainer.grad_accumulation=3"], r"trainer.prompts_per_step x trainer.group_size = 8 must be divisible by"),
        (["trainer.max_new_tokens=600"], r"more than the context of 512 tokens .*; lower trainer.max_new_tokens"),
        (["trainer.batch_size=4"], r"trainer.batch_size"),
    ],
)
def test_what_cannot_be_reinforced_is_one_sentence(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _pretrain(tmp_path, "bad", *overrides)


def test_programs_are_not_rewarded_by_a_box() -> None:
    arc = [word for word in TINY if not word.startswith(("experiment=", "dataset.", "trainer.mask"))]
    arc += ["dataset=arc_programs", "dataset@dataset.dataset=toy", "memgen/reasoner=scratch", "lm=tiny", "trainer=grpo"]
    with pytest.raises(
        ConfigError, match=r"trainer.boxed_reward=0.5 pays for a box, and replies of dataset.kind=arc have none"
    ):
        compose_run("pretrain_memgen", [*arc, "trainer.boxed_reward=0.5"])


def _apart(model: MemGenModel, rollout: Rollout, plan: list[int], temperature: float) -> float:
    """Mean absolute difference of the forward pass under a plan and what the sampler said."""
    ids_BL = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    first = len(rollout.prompt_ids)
    logits_LV = model(ids_BL, None, plan_BL=torch.tensor([plan])).logits[0, first - 1 : -1].detach() / temperature
    found = logits_LV.log_softmax(-1).gather(1, ids_BL[0, first:, None])[:, 0]
    return float((found - torch.tensor(rollout.logprobs)).abs().mean())


def played(example: TextExample, prompt: Sequence[int], answer: Answer) -> Played:
    """One turn."""
    return Played(Episode(example), list(prompt), False, list(answer.tokens), [Turn(answer, 0, [])])


def test_the_plan_of_a_rollout_is_where_memory_was_inserted(build: Build, rule: InsertionRule) -> None:
    """The forward pass under it gives the log-probabilities that the tokens were drawn with; without it, it does not."""
    example = TextExample("a", "?", "", "1")
    made = rolled_out(played(example, [4, 5], Answer([6, 7, 8], logprobs=[0.0] * 3, inserted=[0, 2], is_ended=True)))
    assert made.extra == {"plan_BL": [NONE, PROMPT, NONE, INFERENCE, NONE]} and made.numbers == {"rl/insertions": 2.0}
    model, prompts = build(), some_ids(5, 9)
    sampling = Sampling(24, 0.7, 1.0, 0, 0.0, stop=(), seed=0)
    answers = generate(model, prompts, rule, sampling, [1, 2], is_tempered=True)
    for rollout in (rolled_out(played(example, prompt, answer)) for prompt, answer in zip(prompts, answers, strict=True)):
        plan = rollout.extra["plan_BL"]
        assert rollout.numbers["rl/insertions"] > 1
        assert _apart(model, rollout, plan, 0.7) < 1e-4 < 1e-3 < _apart(model, rollout, [NONE] * len(plan), 0.7)
