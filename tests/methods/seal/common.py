"""A stand-in for the model of test-time training, whose replies and probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from arclab.lm.hf import Likely
from arclab.lm.language_model import Completion, FinishReason, Prompt, Reply, Sampling


class Stub:
    """As HfModel. replies: {view number: texts with probabilities}, of each prompt in the order asked; scores: of a text."""

    name = "stub"

    def __init__(
        self, replies: Sequence[Sequence[tuple[str, float]]], scores: Callable[[Prompt, str], float], limit: int | None = None
    ) -> None:
        self.replies, self.scores, self.max_context = replies, scores, limit
        self.samplings: list[tuple[int, Sampling]] = []
        self.asked: list[Prompt] = []
        self.thresholds: list[tuple[float, int]] = []

    def opened(self, prompt: Prompt) -> str:
        return ""

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return list(prompt[-1].content.encode())

    def marked_tokens(self, prompt: Prompt, spans: Sequence[tuple[int, int]]) -> list[bool]:
        return [any(low <= at < high for low, high in spans) for at in range(len(self.prompt_ids(prompt)))]

    def reply_ids(self, text: str) -> list[int]:
        return [*text.encode(), 0]

    def replies_above(self, prompts: Sequence[Prompt], threshold: float, max_new_tokens: int) -> list[Likely]:
        self.asked += prompts
        self.thresholds.append((threshold, max_new_tokens))
        return [
            Likely(tuple((text, math.log(p)) for text, p in each if p >= threshold), 1, 5)
            for each in self.replies[: len(prompts)]
        ]

    def generate(self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling) -> list[Reply]:
        self.asked += prompts
        self.samplings.append((num_samples, sampling))
        cut = Completion("1 1", FinishReason.length, 9, -1.0)
        return [
            Reply((*(Completion(text, FinishReason.stop, 3, math.log(p)) for text, p in each), cut)[:num_samples], 1)
            for each in self.replies[: len(prompts)]
        ]

    def shared_logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        return [[self.scores(prompt, text)] for prompt, text in zip(prompts, texts, strict=True)]
