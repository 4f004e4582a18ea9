"""A tiny whole language model that is trained by reinforcement: what the tests of grpo.py share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arclab.config.run import DeviceChoice
from arclab.lm.training.grpo import GrpoSettings, grpo
from arclab.lm.training.health import RlRules
from arclab.lm.training.life import AllWeights
from arclab.lm.training.rollouts import Drawer, Reward, Rollout, RolloutSettings
from arclab.lm.training.sft import Where
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.runs.folder import RunDir
from arclab.runs.monitor import HealthMonitor
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks, start_ranks

from .test_sft import Cadence

SETTINGS = GrpoSettings(
    grad_accumulation=1, lr=1e-3, warmup_steps=0, schedule="constant_with_warmup", weight_decay=0.0, clip_norm=None, seed=0,
    prompts_per_step=2, updates_per_rollout=1, max_new_tokens=5, temperature=1.0, beta=0.0, clip_low=0.2, clip_high=0.2,
    loss="dapo", scale_rewards="group",
)  # fmt: skip
GROUPS = RolloutSettings(group_size=4, refills=1, mask_truncated=False, shuffle_rewards=False)
PROMPTS = ((5, 6, 7), (9,), (11, 12), (13, 14, 15, 16))
END = range(100)  # a fifth of the vocabulary ends an answer, so that answers end at different places


def is_even(rollouts: Sequence[Rollout]) -> list[float]:
    """About half of all answers are right: those whose first token is even."""
    return [float(row.completion_ids[0] % 2 == 0) for row in rollouts]


class Sampler:
    """Draws answers token by token, without a cache. wrong_by: added to the log-probabilities that it tells. length: of an
    answer, by how often it was called; None: to its end token or 5. is_cut: it says so of all of them."""

    def __init__(
        self, model: Any, temperature: float = 1.0, wrong_by: float = 0.0, length: Any = None, is_cut: bool = False
    ) -> None:
        self.model, self.temperature, self.wrong_by, self.length = model, temperature, wrong_by, length
        self.is_cut = is_cut
        self.calls = 0

    @torch.no_grad()
    def __call__(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> list[Rollout]:
        assert not self.model.training, "rollouts are drawn without dropout"
        self.calls += 1
        return [self._answer(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _answer(self, prompt: tuple[int, ...], seed: int) -> Rollout:
        generator, tokens, logprobs = torch.Generator().manual_seed(seed), list[int](), list[float]()
        most = self.length(self.calls) if self.length is not None else 5
        while len(tokens) < most and (self.length is not None or not tokens or tokens[-1] not in END):
            logits_V = self.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float() / self.temperature
            tokens.append(int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator)))
            logprobs.append(float(logits_V.log_softmax(-1)[tokens[-1]]) + self.wrong_by)
        return Rollout(prompt, list(prompt), tokens, logprobs, is_ended=tokens[-1] in END and not self.is_cut)


def train(
    tiny_lm: Path, folder: Path, settings: GrpoSettings = SETTINGS, cadence: Cadence | None = None, *,
    groups: RolloutSettings = GROUPS, reward: Reward = is_even, ranks: Ranks | None = None, sampler: dict[str, Any] | None = None,
    prepare: Any = None, num_prompts: int = 4, reference: Any = nullcontext,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The weights after cadence.steps; metrics are in folder/metrics.jsonl. prepare: done to the model first."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_lm)
    if prepare is not None:
        prepare(model)
    ranks, run, cadence = ranks or start_ranks(DeviceChoice.cpu), RunDir(folder), cadence or Cadence()
    folder.mkdir(exist_ok=True, parents=True)
    sampled = Sampler(model, settings.temperature, **(sampler or {}))
    drawer = Drawer(PROMPTS[:num_prompts], sampled, {"right": (1.0, reward)}, groups, settings.seed)
    known = read_rows(run.metrics)
    done = known[-1]["_step"] if known else 0
    with MetricLogger(run.metrics, None, resume_step=10**6, runtime_s=0.0) as logger:
        where = Where(
            cadence=cadence, run=run, ranks=ranks, stop=StopRequest(run, ranks, None), logger=logger if ranks.is_main else None,
            monitor=HealthMonitor(RlRules(), cadence.health_every, known, done) if ranks.is_main else None, title="t",
            keep_last=9,
        )  # fmt: skip
        grpo(
            model, drawer, settings, where, pad_id=0, weights=AllWeights(model), evaluate=None, record={},
            tokenizer=AutoTokenizer.from_pretrained(tiny_lm), reference=reference,
        )  # fmt: skip
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / "metrics.jsonl")


def measured(folder: Path) -> list[dict[str, Any]]:
    """The rows without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("_run", "_time", "timing/"))}
        for row in rows_of(folder)
    ]


def same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in mine.items())
