"""A trained MemGen run as a language model, for every solver that takes one: prompts in, replies out.

    python evaluate.py solver=program_sampling lm=memgen lm.name=runs/memgen/a dataset=arc1
    model = load_with_memory(config)                     # conf/lm/memgen.yaml; memory=off and random are the controls

So ARC tasks are answered with memory by the same prompts, sandbox, votes and scores as without it. A sample is drawn by (seed,
prompt, sample), whatever else is in the batch. Stop strings are not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from arclab.config.llm_schema import MemGenModelConfig, Memory
from arclab.lm.chat_template import conversation_ids
from arclab.lm.hf import draw_seed
from arclab.lm.language_model import Completion, FinishReason, OnReply, Prompt, Reply, Samplings, ignore, sampling_of_each
from arclab.methods.memgen.generation import Answer, decided_plan, generate
from arclab.methods.memgen.saved import SavedMemGen, load_memgen
from arclab.methods.memgen.setting import insertion_rule, most_latents


def load_with_memory(config: MemGenModelConfig) -> MemoryLanguageModel:
    """ValueError, in one sentence: no such run, or one whose checkpoint does not fit."""
    return MemoryLanguageModel(config, load_memgen(Path(config.name), config.device, config.memory))


class MemoryLanguageModel:
    """See arclab.lm.language_model.LanguageModel."""

    def __init__(self, config: MemGenModelConfig, saved: SavedMemGen) -> None:
        self._config, self._saved, self._is_off = config, saved, config.memory is Memory.off
        self._language, weaver = saved.language, saved.config.memgen.weaver
        trigger = saved.trigger(config.trigger, "lm.trigger")
        self._rule, self._latents = insertion_rule(self._language, weaver, trigger), most_latents(weaver)
        limits = [limit for limit in (config.max_context, self._language.limit) if limit is not None]
        self._limit = min(limits, default=None)

    @property
    def name(self) -> str:
        return self._config.name

    def num_prompts(self, num_samples: int) -> int:
        return max(1, self._config.batch_size // num_samples)

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        ids = [self._ids(prompt) for prompt in prompts]
        each = sampling_of_each(sampling, len(prompts))
        found: dict[int, Reply] = {}
        drawn: dict[int, dict[int, Completion]] = {number: {} for number in range(len(prompts))}
        for number, tokens in enumerate(ids):
            if problem := self._too_long(len(tokens), each[number].max_new_tokens):
                found[number] = Reply((), len(tokens), problem)
                on_reply(number, found[number])
        wanted = [(number, sample) for number in range(len(ids)) if number not in found for sample in range(num_samples)]
        wanted.sort(key=lambda item: -len(ids[item[0]]))
        for start in range(0, len(wanted), self._config.batch_size):
            batch = wanted[start : start + self._config.batch_size]
            seeds = [draw_seed(each[number].seed, ids[number], sample) for number, sample in batch]
            with self._saved.model.memory_off(self._is_off):
                answers = generate(
                    self._saved.model,
                    [ids[number] for number, _ in batch],
                    self._rule,
                    [each[number] for number, _ in batch],
                    seeds,
                )
            for (number, sample), answer in zip(batch, answers, strict=True):
                drawn[number][sample] = self._completion(answer)
            for number in dict.fromkeys(number for number, _ in batch):
                if len(drawn[number]) == num_samples:
                    completions = tuple(drawn[number][sample] for sample in range(num_samples))
                    found[number] = Reply(completions, len(ids[number]))
                    on_reply(number, found[number])
        return [found[number] for number in range(len(prompts))]

    @torch.no_grad()
    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        """One row at a time, with memory where a first sample of seed 0 with this text has it. ValueError: one does not fit."""
        scores = []
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            shown, reply = self._ids(prompt), self._language.reply_ids(text)
            if problem := self._too_long(len(shown), len(reply)):
                raise ValueError(f"prompt {number} with its reply: {problem}")
            ids_BL = torch.tensor([shown + reply], device=self._language.model.device)
            with self._saved.model.memory_off(self._is_off):
                plan = decided_plan(self._saved.model, shown + reply, len(shown), self._rule, draw_seed(0, shown, 0))
                plan_BL = torch.tensor([plan], device=ids_BL.device)
                logits_LV = self._saved.model(ids_BL, None, plan_BL=plan_BL).logits[0, len(shown) - 1 : -1].float()
            scores.append(logits_LV.log_softmax(-1).gather(1, ids_BL[0, len(shown) :, None])[:, 0].tolist())
        return scores

    def _ids(self, prompt: Prompt) -> list[int]:
        language = self._language
        return conversation_ids(language.tokenizer, language.config.name, prompt, thinking=language.config.thinking)

    def _completion(self, answer: Answer) -> Completion:
        reason = FinishReason.stop if answer.is_ended else FinishReason.length
        return Completion(self._language.text(answer.tokens), reason, len(answer.tokens), float(sum(answer.logprobs)))

    def _too_long(self, num_prompt: int, num_reply: int) -> str:
        if self._limit is None or num_prompt + num_reply + self._latents <= self._limit:
            return ""
        return (
            f"the prompt has {num_prompt} tokens, which with {num_reply} for the reply and {self._latents} latents is more "
            f"than the context of {self._limit} tokens (lm.name={self.name}); shorten it, or lower sampling.max_new_tokens."
        )
