"""A language model for tests that says what it was told to say.

    ScriptedModel(lambda prompt, sample: f"reply {sample}")
    ScriptedModel(["first sample", "second sample"])                    # the same for every prompt, in turn
    ScriptedModel({"task_1": "reply", "task_2": ["one", "two"]})        # by a word of the prompt's last question

A script that is a function sees a reply that was begun as the prompt's last message, and says what comes next. It has no
tokens: what a reply is split into by white space counts as such, plus one for its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from arclab.lm.language_model import (
    Completion,
    FinishReason,
    OnReply,
    Prompt,
    Reply,
    Sampling,
    Samplings,
    begun_reply,
    cut_after_stop,
    ignore,
    sampling_of_each,
)

SeededScript = Callable[[Prompt, int, Sampling], str]  # what it says may depend on the seed, as a real model's draws do
Script = Callable[[Prompt, int], str] | Mapping[str, str | Sequence[str]] | Sequence[str]


class ScriptedModel:
    """calls: the prompts of every call of generate. finish_reason: of all replies, or what decides it for a prompt and sample.

    seeded: in place of replies. too_long: prompts for which it is true get no reply. num_parallel: prompts that it says it
    answers at once. logprobs: what logprobs() answers for a prompt and a text.
    """

    def __init__(
        self, replies: Script = (), *, name: str = "scripted", seeded: SeededScript | None = None, num_parallel: int = 1,
        finish_reason: FinishReason | Callable[[Prompt, int], FinishReason] = FinishReason.stop,
        too_long: Callable[[Prompt], bool] = lambda prompt: False, logprobs: Callable[[Prompt, str], list[float]] | None = None,
    ) -> None:  # fmt: skip
        self.name, self._replies, self._finish_reason, self._is_too_long, self._logprobs = (
            name,
            replies,
            finish_reason,
            too_long,
            logprobs,
        )
        self._seeded, self._num_parallel = seeded, num_parallel
        self.calls: list[tuple[Prompt, ...]] = []
        self.num_completions = 0

    def num_prompts(self, num_samples: int) -> int:
        return self._num_parallel

    @property
    def num_calls(self) -> int:
        return len(self.calls)

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        self.calls.append(tuple(prompts))
        each = sampling_of_each(sampling, len(prompts))
        replies = [self._reply(prompt, num_samples, one) for prompt, one in zip(prompts, each, strict=True)]
        for number, reply in enumerate(replies):
            on_reply(number, reply)
        return replies

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        assert self._logprobs is not None, "this ScriptedModel was given no logprobs"
        return [self._logprobs(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def _reply(self, prompt: Prompt, num_samples: int, sampling: Sampling) -> Reply:
        num_tokens = sum(len(message.content.split()) for message in prompt)
        if self._is_too_long(prompt):
            return Reply((), num_tokens, f"the prompt has {num_tokens} tokens, more than the script allows; shorten it.")
        self.num_completions += num_samples
        return Reply(tuple(self._completion(prompt, sample, sampling) for sample in range(num_samples)), num_tokens)

    def _completion(self, prompt: Prompt, sample: int, sampling: Sampling) -> Completion:
        said = self._text(prompt, sample) if self._seeded is None else self._seeded(prompt, sample, sampling)
        text, _ = cut_after_stop(said, sampling.stop)
        reason = self._finish_reason
        return Completion(
            text, reason if isinstance(reason, FinishReason) else reason(prompt, sample), len(text.split()) + 1, None
        )

    def _text(self, prompt: Prompt, sample: int) -> str:
        script = self._replies
        if callable(script):
            return script(prompt, sample)
        if isinstance(script, Mapping):
            question = begun_reply(prompt)[0][-1].content
            found = [reply for word, reply in script.items() if word in question]
            assert found, f"the script has no reply for {question[:200]!r}"
            script = found[0]
        return script if isinstance(script, str) else script[sample % len(script)]
