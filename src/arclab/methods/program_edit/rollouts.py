"""Edits as rollouts of reinforcement learning: drawn token by token, executed, and worth what they add to their program.

    roll_out = EditRollouts(config, model, sandbox, noted)
    drawer = Drawer((None,), roll_out, REWARDS, settings, config.seed, choose=practice.choose)

The reward is the delta of edit_reward; its parts are logged. Programs run in the sandbox's pool, all of a drawing at once. With
think, tokens that were put in (arclab.methods.program_edit.budget) are no policy: Rollout.is_policy is False there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.config.schema import SplitName
from arclab.lm.hf import DrawnTokens, HfModel
from arclab.lm.language_model import Completion, FinishReason, Prompt, Sampling
from arclab.lm.training.rollouts import Reward, Rollout
from arclab.lm.training.served import Server, open_server
from arclab.methods.program_edit.budget import CLOSE, OPEN, WAIT, think_tokens, to_budget
from arclab.methods.program_edit.editing import reward_of
from arclab.methods.program_edit.starts import Start, thinking_tokens_of
from arclab.programs.edits import parse_edit, render_edit_prompt
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.rewards import Reward as Earned
from arclab.programs.sandbox.pool import Sandbox

# Part of the reward -> the component of an edit's reward that it is. The first one counts, the others are logged.
_PARTS = {
    "delta": "reward/value", "program": "reward/program", "right": "reward/solved", "code": "reward/code",
    "syntax": "reward/syntax", "shape": "reward/shape", "cells": "reward/cells", "changed_cells": "edits/changed_cells",
    "cost": "reward/cost",
}  # fmt: skip


_SERVER_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A start program as it is shown. task: the id in the curriculum. prompt_ids: up to where the reply begins."""

    task: str
    start: Start
    prompt: Prompt
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of a rollout."""

    shown: Shown
    source: str | None
    outcome: Outcome
    earned: Earned

    @property
    def is_right(self) -> bool:
        return self.outcome.is_right


def shown(model: HfModel, start: Start, config: ProgramEditConfig) -> Shown:
    prompt = render_edit_prompt(start.task, start.outcome, config.prompt)
    return Shown(start.task.id, start, prompt, model.prompt_ids(prompt))


def room_for_reply(model: HfModel, config: ProgramEditConfig) -> int | None:
    """The longest prompt, in tokens, that leaves room for a reply; None: there is no limit."""
    if model.max_context is None:
        return None
    wanted = config.grpo.max_new_tokens
    if config.think is not None:
        put_in = len(model.reply_ids(OPEN + WAIT * config.think.num_waits + f"\n{CLOSE}"))
        wanted += config.think.max_tokens + put_in
    return model.max_context - wanted


@dataclass(frozen=True, slots=True)
class _Reply:
    ids: list[int]
    logprobs: list[float]
    is_policy: list[bool] | None
    completion: Completion
    numbers: dict[str, float]


class EditRollouts:
    """See the module. noted: is told of every group: the curriculum's task, and which of its edits are right. ValueError: there
    is no server at grpo.vllm_url."""

    def __init__(
        self, config: ProgramEditConfig, model: HfModel, sandbox: Sandbox, noted: Callable[[str, list[bool]], None]
    ) -> None:
        self._config, self._model, self._sandbox, self._noted = config, model, sandbox, noted
        url = config.grpo.vllm_url
        self._server = None if url is None else open_server("grpo.vllm_url", url, _SERVER_TIMEOUT_S)

    def __call__(self, prompts: Sequence[Shown], seeds: Sequence[int]) -> list[Rollout]:
        config, begun = self._config, time.monotonic()
        replies = self._replies(prompts, seeds)
        edits = [
            parse_edit(reply.completion, each.start.program.source, config.prompt)
            for each, reply in zip(prompts, replies, strict=True)
        ]
        runs = [
            ProgramRun(each.start.task, edit.source, config.prompt.entry, with_tests=True, seed=config.seed)
            for each, edit in zip(prompts, edits, strict=True)
        ]
        asked = time.monotonic()
        outcomes = list(run_jobs(self._sandbox, runs))
        waited = {"timing/sandbox_wait_share": (time.monotonic() - asked) / max(time.monotonic() - begun, 1e-9)}
        rollouts = []
        for each, reply, edit, outcome in zip(prompts, replies, edits, outcomes, strict=True):
            thinking = thinking_tokens_of(reply.completion, edit.thinking)
            earned = reward_of(each.start, outcome, thinking, config, SplitName.train)
            rollouts.append(
                Rollout(
                    prompt=each, prompt_ids=each.prompt_ids, completion_ids=reply.ids, logprobs=reply.logprobs,
                    is_ended=reply.completion.finish_reason is FinishReason.stop,
                    numbers=reply.numbers | waited | {"rl/thinking_tokens": float(thinking)}, is_policy=reply.is_policy,
                    record=Drawn(each, edit.source, outcome, earned),
                )
            )  # fmt: skip
        size = config.grpo.group_size
        for first in range(0, len(rollouts), size):
            group = rollouts[first : first + size]
            self._noted(prompts[first].task, [row.record.is_right for row in group])
        return rollouts

    def _replies(self, prompts: Sequence[Shown], seeds: Sequence[int]) -> list[_Reply]:
        config, model = self._config, self._model
        sampling = Sampling(config.grpo.max_new_tokens, config.grpo.temperature, 1.0, 0, 0.0, (), config.seed)
        samplings = [replace(sampling, seed=seed) for seed in seeds]
        rows = [each.prompt_ids for each in prompts]
        if config.think is None:
            return [
                _Reply(drawn.ids, drawn.logprobs, None, _completion(drawn.text, len(drawn.ids), is_ended=drawn.is_ended), {})
                for drawn in (
                    model.draw_tokens(rows, samplings) if self._server is None else self._served(self._server, rows, seeds)
                )
            ]
        return [
            _Reply(
                forced.ids, forced.logprobs, forced.is_drawn,
                _completion(forced.text, sum(forced.is_drawn), is_ended=forced.is_ended),
                {"rl/waits": float(forced.num_waits), "rl/capped_share": float(forced.is_capped)},
            )
            for forced in think_tokens(model, rows, samplings, to_budget(config.think))
        ]  # fmt: skip

    def _served(self, server: Server, rows: Sequence[list[int]], seeds: Sequence[int]) -> list[DrawnTokens]:
        wished, found = self._config.grpo, list[DrawnTokens]()
        answers = server.complete(rows, seeds, max_new_tokens=wished.max_new_tokens, temperature=wished.temperature)
        for answer in answers:
            is_ended = self._model.is_end(answer.token_ids[-1])
            text = self._model.text_of(answer.token_ids[:-1] if is_ended else answer.token_ids)
            found.append(DrawnTokens(answer.token_ids, answer.logprobs, text, is_ended))
        return found


def _completion(text: str, num_tokens: int, *, is_ended: bool) -> Completion:
    return Completion(text, FinishReason.stop if is_ended else FinishReason.length, num_tokens, None)


def _part(component: str) -> Reward:
    def values(rollouts: Sequence[Rollout]) -> list[float]:
        # A reply without a program has no cells of which any could be right.
        return [row.record.earned.components.get(component, 0.0) for row in rollouts]

    return values


REWARDS: Mapping[str, tuple[float, Reward]] = {
    name: (1.0 if name == "delta" else 0.0, _part(component)) for name, component in _PARTS.items()
}
