"""A language model that transformers runs in this process, on one device.

    model = load_hf(config)                                       # conf/lm/tiny.yaml, qwen3_0_6b.yaml
    replies = model.generate(prompts, num_samples=8, sampling=sampling)
    with model.adapter(folder): ...                               # a LoRA adapter, in this block only
    with model.new_adapter(rank=8, alpha=16) as trainable: ...    # a fresh one to train; the base stays as it is

Prompts go through the chat template of the tokenizer, and are sorted by length and padded on the left in batches. All settings
come from Sampling; the model's own generation_config is only read for its end tokens. A token is drawn with one number that
belongs to (seed, prompt, sample, position), so a sample does not depend on what else is in the batch - up to the rounding of
logits, which differs with the padding: in bfloat16 two nearly equal candidates may change places.

It does not share the prompt's pass between samples, does not spread a model over devices, and does not run code from the hub.

Shapes: B sequences of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arclab.config.llm_schema import HfModelConfig
from arclab.files import naming
from arclab.lm.adapters import fresh_adapter, loaded_adapter, merge_adapter
from arclab.lm.chat_template import conversation_ids, marked_tokens, opened_thinking, plain_ids
from arclab.lm.depth_first import depth_first
from arclab.lm.drawing import Drawing, Ending
from arclab.lm.hf_loading import end_tokens, load_model, load_tokenizer, turn_end
from arclab.lm.language_model import (
    Completion,
    OnReply,
    Prompt,
    Reply,
    Sampling,
    Samplings,
    begun_reply,
    ignore,
    sampling_of_each,
)

if TYPE_CHECKING:
    from peft import PeftModel


def load_hf(config: HfModelConfig) -> HfModel:
    """ValueError, in one sentence: what cannot be had as the configuration asks for it."""
    tokenizer = load_tokenizer(config)
    model = load_model(config)
    if config.adapter is not None:
        model = merge_adapter(model, Path(config.adapter))
    return HfModel(config, model, tokenizer)


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """What follows a row of tokens. ids: as drawn, end mark or stop string included. logprobs: of each, at the temperature that
    it was drawn at. text: without end mark, with the stop string. is_ended: by one of these; else it was cut."""

    ids: list[int]
    logprobs: list[float]
    text: str
    is_ended: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A sample to be generated: which prompt's, which one, its tokens, and how it is drawn."""

    prompt: int
    sample: int
    ids: list[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Likely:
    """replies: texts with their log-probability (nats), the likeliest first. num_cut: beginnings that are likely enough and had
    no end within max_new_tokens. num_tokens: that were computed."""

    replies: tuple[tuple[str, float], ...]
    num_cut: int
    num_tokens: int


class HfModel:
    """See LanguageModel. model: eval mode, no parameter needs a gradient."""

    def __init__(self, config: HfModelConfig, model: Any, tokenizer: Any) -> None:
        from transformers import GenerationConfig

        self.config, self.tokenizer = config, tokenizer
        self._model = model.requires_grad_(False).eval()
        self._end = turn_end(config, tokenizer)
        self._ends = end_tokens(model, tokenizer) | {self._end}
        self._pad = self._end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)  # masked: any token does
        # generate() fills what a request leaves open from here: with nothing in it, nothing is inherited.
        model.generation_config = GenerationConfig()
        limits = [config.max_context, getattr(model.config.get_text_config(), "max_position_embeddings", None)]
        self.max_context: int | None = min((limit for limit in limits if limit is not None), default=None)
        self._forward_takes = set(inspect.signature(model.forward).parameters)
        self._adapted = False
        self.was_trained = False  # its weights are no longer those of config.name

    @property
    def name(self) -> str:
        return self.config.name

    def num_prompts(self, num_samples: int) -> int:
        return max(1, self.config.batch_size // num_samples)

    @property
    def num_parameters(self) -> int:
        """Of the network as it is loaded, those of adapters included."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def network(self) -> Any:
        """The transformers model itself, in eval mode and without gradients. Who changes it puts it back."""
        return self._model

    @property
    def pad_id(self) -> int:
        return self._pad

    @property
    def device(self) -> torch.device:
        return self._model.device

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The prompt as the chat template writes it, up to where the reply begins."""
        return conversation_ids(self.tokenizer, self.name, prompt, thinking=self.config.thinking)

    def marked_tokens(self, prompt: Prompt, spans: Sequence[tuple[int, int]]) -> list[bool]:
        """Which of prompt_ids(prompt) lie in spans of the last message, as (first character, one past the last one)."""
        return marked_tokens(self.tokenizer, self.name, prompt, spans, thinking=self.config.thinking)

    def opened(self, prompt: Prompt) -> str:
        """What the chat template itself opens the reply with, if that is thinking; see opened_thinking."""
        asked, begun = begun_reply(prompt)
        return "" if begun else opened_thinking(self.tokenizer, self.name, asked, thinking=self.config.thinking)

    def text_of(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def is_end(self, token: int) -> bool:
        """Does this token end a reply?"""
        return token in self._ends

    def reply_ids(self, text: str) -> list[int]:
        """A reply and its end mark."""
        return [*plain_ids(self.tokenizer, text), self._end]

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        each = sampling_of_each(sampling, len(prompts))
        too_long = [self._too_long(len(tokens), one.max_new_tokens) for tokens, one in zip(ids, each, strict=True)]
        wanted = [
            _Sequence(prompt, sample, tokens, each[prompt])
            for prompt, tokens in enumerate(ids)
            if not too_long[prompt]
            for sample in range(num_samples)
        ]
        wanted.sort(key=lambda sequence: -len(sequence.ids))  # the longest first: what does not fit into memory shows at once
        opened = [self.opened(prompt) for prompt in prompts]
        drawn: list[dict[int, Completion]] = [{} for _ in prompts]
        replies = {number: Reply((), len(ids[number]), problem) for number, problem in enumerate(too_long) if problem}
        for number, reply in replies.items():
            on_reply(number, reply)
        for start in range(0, len(wanted), self.config.batch_size):
            batch = wanted[start : start + self.config.batch_size]
            for sequence, completion in zip(batch, self._generate_batch(batch), strict=True):
                drawn[sequence.prompt][sequence.sample] = replace(completion, opened=opened[sequence.prompt])
            for number in dict.fromkeys(sequence.prompt for sequence in batch):
                if len(drawn[number]) == num_samples:
                    completions = tuple(drawn[number][sample] for sample in range(num_samples))
                    replies[number] = Reply(completions, len(ids[number]))
                    on_reply(number, replies[number])
        return [replies[number] for number in range(len(prompts))]

    def draw_tokens(self, rows: Sequence[list[int]], samplings: Sequence[Sampling]) -> list[DrawnTokens]:
        """What follows each row, for training: tokens as they were drawn. Equal rows are computed once. samplings: of each;
        they may differ in their number of tokens and in their seed. ValueError: a row leaves no room for its tokens."""
        for ids, sampling in zip(rows, samplings, strict=True):
            if problem := self._too_long(len(ids), sampling.max_new_tokens):
                raise ValueError(problem)
        order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
        first: dict[tuple[int, ...], int] = {}
        found: dict[int, DrawnTokens] = {}
        for start in range(0, len(order), self.config.batch_size):
            numbers = order[start : start + self.config.batch_size]
            most = max(samplings[number].max_new_tokens for number in numbers)
            batch = [
                _Sequence(first.setdefault(tuple(rows[n]), n), 0, rows[n], replace(samplings[n], max_new_tokens=most))
                for n in numbers
            ]
            ending, tokens, logprobs = self._draw_batch(batch, is_tempered=True)
            for row, number in enumerate(numbers):
                limit = samplings[number].max_new_tokens
                length = ending.length(row)
                is_ended = length is not None and length <= limit
                kept = length if length is not None and is_ended else limit
                ids = tokens[row][:kept]
                found[number] = DrawnTokens(ids, logprobs[row][:kept], ending.spoken(row, ids, is_ended=is_ended), is_ended)
        return [found[number] for number in range(len(rows))]

    def replies_above(self, prompts: Sequence[Prompt], threshold: float, max_new_tokens: int) -> list[Likely]:
        """For every prompt all replies whose probability (at temperature 1, the end mark included) is at least the threshold.
        ValueError: a prompt without room for max_new_tokens, and as in generate."""
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        for number, tokens in enumerate(ids):
            if problem := self._too_long(len(tokens), max_new_tokens):
                raise ValueError(f"prompt {number}: {problem}")
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        result: dict[int, Likely] = {}
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            inputs = self._padded([ids[number] for number in batch])
            with self._inference():
                found = depth_first(
                    self._model, inputs, ends=self._ends, log_threshold=math.log(threshold), max_new_tokens=max_new_tokens,
                    num_at_once=self.config.batch_size,
                )  # fmt: skip
            for number, each in zip(batch, found, strict=True):
                texts = [(self.tokenizer.decode(tokens, skip_special_tokens=True), value) for tokens, value in each.replies]
                result[number] = Likely(tuple(texts), each.num_cut, each.num_tokens)
        return [result[number] for number in range(len(prompts))]

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        """The end mark's log-probability comes last, so that the sum is the reply's as a whole. ValueError: one does not
        fit."""
        pairs = [(self.prompt_ids(prompt), self.reply_ids(text)) for prompt, text in zip(prompts, texts, strict=True)]
        for number, (prompt, reply) in enumerate(pairs):
            if problem := self._too_long(len(prompt), len(reply)):
                raise ValueError(f"prompt {number} with its reply: {problem}")
        order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number][0] + pairs[number][1]))
        result: list[list[float]] = [[] for _ in pairs]
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            for number, values in zip(batch, self._score_batch([pairs[number] for number in batch]), strict=True):
                result[number] = values
        return result

    @contextmanager
    def trainable(self) -> Iterator[Any]:
        """The transformers model with all of its weights open to training, inside the block only; what it learned stays."""
        assert not self._adapted, "an adapter is in place; leave its block first"
        self.was_trained = True
        try:
            yield self._model.requires_grad_(True).train()
        finally:
            self._model.requires_grad_(False).eval()

    def add_tokens(self, texts: Sequence[str]) -> int:
        """Each text becomes a token of its own, wherever it stands; its embedding begins as the mean of those that it was
        written with. Texts that are a token already stay. Returns how many are new."""
        from tokenizers import AddedToken

        pieces = {text: plain_ids(self.tokenizer, text) for text in texts}
        new = [text for text, ids in pieces.items() if len(ids) > 1]
        self.tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in new])
        tables = [self._model.get_input_embeddings(), self._model.get_output_embeddings()]
        if len(self.tokenizer) > tables[0].weight.shape[0]:
            self._model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            tables = [self._model.get_input_embeddings(), self._model.get_output_embeddings()]
        self.was_trained |= bool(new)
        with torch.no_grad():
            for table in tables if tables[0].weight is not tables[1].weight else tables[:1]:
                for text in new:
                    table.weight[plain_ids(self.tokenizer, text)[0]] = table.weight[pieces[text]].mean(0)
        return len(new)

    def save(self, folder: Path) -> None:
        """Weights and tokenizer as an ordinary model folder. Nothing of sampling is written down with them."""
        with naming(folder):
            self._model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def merge(self, folder: Path) -> None:
        """A LoRA adapter from its folder becomes part of the weights."""
        assert not self._adapted, "an adapter is in place; leave its block first"
        self._model, self.was_trained = merge_adapter(self._model, folder), True

    @contextmanager
    def adapter(self, folder: Path) -> Iterator[None]:
        """A LoRA adapter from its folder, applied inside the block only."""
        with self._one_at_a_time(), loaded_adapter(self._model, folder):
            yield

    @contextmanager
    def new_adapter(
        self,
        *,
        rank: int,
        alpha: float,
        target_modules: str | Sequence[str] = "all-linear",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> Iterator[PeftModel]:
        """A fresh LoRA adapter, applied inside the block only. Only its parameters need a gradient; at first it changes
        nothing.

        Train what is yielded; generate() and logprobs() use it as it then is, trainable.save_pretrained(folder) keeps it.
        """
        targets = target_modules if isinstance(target_modules, str) else list(target_modules)
        with self._one_at_a_time(), fresh_adapter(self._model, rank, alpha, targets, dropout, seed) as trainable:
            yield trainable

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        assert not self._adapted, "an adapter is in place already; leave its block first"
        self._adapted = True
        try:
            yield
        finally:
            self._adapted = False
            self._model.requires_grad_(False).eval()

    def _too_long(self, num_prompt: int, num_reply: int) -> str:
        if self.max_context is None or num_prompt + num_reply <= self.max_context:
            return ""
        return (
            f"the prompt has {num_prompt} tokens, which with {num_reply} for the reply is more than the context of "
            f"{self.max_context} tokens (lm.max_context={self.config.max_context}, name={self.name}); shorten the prompt "
            "or lower sampling.max_new_tokens."
        )

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Tokens and mask (B, T), padded on the left so that the last token of every row is real."""
        longest = max(map(len, rows))
        ids_BT = torch.tensor([[self._pad] * (longest - len(row)) + row for row in rows], device=self.device)
        mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return {"input_ids": ids_BT, "attention_mask": mask_BT}

    def _generate_batch(self, batch: Sequence[_Sequence]) -> list[Completion]:
        ending, tokens, logprobs = self._draw_batch(batch, is_tempered=False)
        return [ending.completion(row, *each) for row, each in enumerate(zip(tokens, logprobs, strict=True))]

    @torch.no_grad()
    def _draw_batch(
        self, batch: Sequence[_Sequence], *, is_tempered: bool
    ) -> tuple[Ending, list[list[int]], list[list[float]]]:  # fmt: skip
        """How each row ended, its tokens, and their log-probabilities; see Drawing."""
        samplings = [sequence.sampling for sequence in batch]
        inputs = self._padded([sequence.ids for sequence in batch])
        num_prompt = inputs["input_ids"].shape[1]
        seeds = [draw_seed(sequence.sampling.seed, sequence.ids, sequence.sample) for sequence in batch]
        drawing = Drawing(samplings, seeds, is_tempered=is_tempered)
        ending = Ending(self.tokenizer, samplings[0], self._ends, num_prompt, len(batch))
        with self._inference():
            tokens_BT = self._model.generate(
                **inputs,
                **self._read_once(batch, inputs),
                generation_config=self._greedy(samplings[0].max_new_tokens),
                logits_processor=[drawing],
                stopping_criteria=[ending],
            )[:, num_prompt:]
        logprobs_BT = torch.stack(drawing.logprobs, dim=1).tolist()
        if any(math.isnan(value) for row in logprobs_BT for value in row):
            raise ValueError(
                f"lm.name={self.name} in lm.dtype={self.config.dtype.value} computed what is not a number; use "
                "lm.dtype=bfloat16 or float32, or check its weights."
            )
        return ending, tokens_BT.tolist(), logprobs_BT

    def _read_once(self, batch: Sequence[_Sequence], inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The cache of all prompts but their last token, each prompt computed once however many samples it has in the batch."""
        first = {sequence.prompt: row for row, sequence in reversed(list(enumerate(batch)))}
        num_known = inputs["input_ids"].shape[1] - 1
        if len(first) == len(batch) or num_known == 0:
            return {}
        rows = list(first.values())
        prompts = {name: value[rows] for name, value in inputs.items()}
        optional = {"position_ids": (prompts["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, :num_known], "logits_to_keep": 1}
        optional = {name: value for name, value in optional.items() if name in self._forward_takes}
        shown = {name: value[:, :num_known] for name, value in prompts.items()}
        cache = self._model(**shown, **optional, use_cache=True).past_key_values
        place = {row: number for number, row in enumerate(rows)}
        cache.batch_select_indices(torch.tensor([place[first[sequence.prompt]] for sequence in batch], device=self.device))
        return {"past_key_values": cache}

    def _greedy(self, max_new_tokens: int) -> Any:
        """transformers takes the best token; Drawing has made it the drawn one. Nothing else of generate() is in use."""
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=max_new_tokens, min_new_tokens=0, do_sample=False, num_beams=1, num_return_sequences=1,
            repetition_penalty=1.0, use_cache=True, pad_token_id=self._pad, eos_token_id=None, bos_token_id=None,
        )  # fmt: skip

    @torch.no_grad()
    def _score_batch(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        inputs = self._padded([prompt + reply for prompt, reply in pairs])
        num_kept = max(len(reply) for _, reply in pairs)
        optional = {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0), "logits_to_keep": num_kept + 1}
        inputs |= {name: value for name, value in optional.items() if name in self._forward_takes}
        with self._inference():
            logits_BTV = self._model(**inputs, use_cache=False).logits[:, -num_kept - 1 : -1]
        targets_BT = inputs["input_ids"][:, -num_kept:]
        result = []
        for logits_TV, target_T, (_, reply) in zip(logits_BTV, targets_BT, pairs, strict=True):  # a row at a time: V is large
            logprobs_TV = logits_TV[-len(reply) :].float().log_softmax(-1)
            result.append(logprobs_TV.gather(1, target_T[-len(reply) :, None])[:, 0].tolist())
        return result

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No dropout, also between two steps of training an adapter."""
        was_training = self._model.training
        self._model.eval()
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{str(error).splitlines()[0]} Lower lm.batch_size={self.config.batch_size}, or shorten the prompts."
            ) from error
        finally:
            self._model.train(was_training)


def draw_seed(seed: int, prompt_ids: Sequence[int], sample: int) -> int:
    """What a sample's draws begin with."""
    digest = hashlib.sha256(repr((seed, sample, list(prompt_ids))).encode()).digest()
    return int.from_bytes(digest[:16], "little")
