"""What a MemGen run is about: the reasoner with its tokenizer, the rule of insertions, and the examples as tokens.

    language = load_reasoner(config.lm)                           # frozen, with its end and padding tokens
    rule = insertion_rule(language, config.memgen.weaver)         # with memory at every delimiter
    rows = training_rows(language, examples, rule, weaver)                # input_ids, labels and plan of each example

Prompts go through the chat template of the tokenizer, up to the assistant's header; the loss is on the reply and its end token.
Examples that are longer than the context are refused, never cut.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.llm_schema import TRAINED_TRIGGERS, HfModelConfig
from arclab.config.memgen_schema import LoraConfig, MemGenConfig, WeaverConfig
from arclab.lm.chat_template import conversation_ids, next_turn_ids, plain_ids
from arclab.lm.hf_loading import end_tokens, load_model, load_tokenizer, model_identity, turn_end
from arclab.lm.language_model import Message
from arclab.lm.switched import LoraSettings
from arclab.lm.training.rows import IGNORED, Row
from arclab.methods.memgen.generation import InsertionRule
from arclab.methods.memgen.insertions import InsertionLimits, delimiter_table, plan_of, thinned
from arclab.methods.memgen.model import MemGenModel, MemGenSettings
from arclab.methods.memgen.trigger import Trigger, always
from arclab.methods.memgen.trigger_model import TriggerSettings
from arclab.methods.memgen.weaver import WeaverSizes
from arclab.text.examples import TextExample


@dataclass(frozen=True, slots=True)
class Language:
    """A reasoner and how it reads and ends. identity: of its weights, whatever its folder is called. limit: tokens of its
    context; None: it names none."""

    config: HfModelConfig
    model: Any
    tokenizer: Any
    end: int
    ends: frozenset[int]
    pad_id: int
    limit: int | None
    identity: str

    def prompt_ids(self, question: str) -> list[int]:
        return conversation_ids(self.tokenizer, self.config.name, (Message("user", question),), thinking=self.config.thinking)

    def reply_ids(self, reply: str) -> list[int]:
        return [*plain_ids(self.tokenizer, reply), self.end]

    def next_turn_ids(self, told: str, last: int) -> list[int]:
        """What stands between a reply that ended with the token `last` and the next reply: told is a user's turn."""
        ids = next_turn_ids(self.tokenizer, self.config.name, told, thinking=self.config.thinking)
        return ids[1:] if ids[0] == last else ids

    def turns_of(self, example: TextExample) -> list[tuple[list[int], list[int]]]:
        """What is read and what is said in each turn of a worked example."""
        read, said = self.prompt_ids(example.question), self.reply_ids(example.reply)
        found = [(read, said)]
        for told, reply in example.turns:
            read, said = [*read, *said, *self.next_turn_ids(told, said[-1])], self.reply_ids(reply)
            found.append((read, said))
        return found

    def cut(self, text: str, num_tokens: int) -> str:
        """The text, or its beginning and three dots if it is longer than so many tokens."""
        ids = plain_ids(self.tokenizer, text)
        if len(ids) <= num_tokens:
            return text
        return self.tokenizer.decode(ids[:num_tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False) + "..."

    def text(self, tokens: Sequence[int]) -> str:
        """Without the end token."""
        spoken = tokens[:-1] if tokens and tokens[-1] in self.ends else tokens
        return self.tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load_reasoner(config: HfModelConfig) -> Language:
    """ValueError, in one sentence: a model that cannot be had, or without a chat template."""
    tokenizer, model = load_tokenizer(config), load_model(config)
    if config.adapter is not None:
        raise ValueError(
            f"lm.adapter={config.adapter} is not supported by a reasoner with memory, whose adapter is the weaver's; merge it "
            "into the model first, or set lm.adapter=null."
        )
    end = turn_end(config, tokenizer)
    limits = [config.max_context, getattr(model.config.get_text_config(), "max_position_embeddings", None)]
    return Language(
        config=config,
        model=model.requires_grad_(False).eval(),
        tokenizer=tokenizer,
        end=end,
        ends=frozenset(end_tokens(model, tokenizer) | {end}),
        pad_id=end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        limit=min((limit for limit in limits if limit is not None), default=None),
        identity=model_identity(config.name),
    )


def insertion_rule(language: Language, config: WeaverConfig, trigger: Trigger = always) -> InsertionRule:
    vocab_size = language.model.get_input_embeddings().weight.shape[0]
    return InsertionRule(
        delimiter_table(language.tokenizer, vocab_size, language.ends),
        InsertionLimits(config.max_prompt_aug_num, config.max_inference_aug_num),
        language.ends,
        language.pad_id,
        trigger,
    )


def memgen_settings(config: WeaverConfig) -> MemGenSettings:
    return MemGenSettings(
        WeaverSizes(config.prompt_latents_len, config.inference_latents_len),
        _lora(config.lora),
        config.fast,
        config.adapt_reasoner,
    )


def build_memgen(language: Language, config: MemGenConfig, seed: int) -> MemGenModel:
    """The reasoner with a fresh weaver, and a fresh trigger if it is one that is trained: the same for every call with this
    seed. ValueError: target modules that it lacks, a weaver model that cannot be had."""
    weaver, trigger, other = config.weaver, config.trigger, None
    if weaver.model is not None:
        other = load_model(HfModelConfig(**{**_fields(language.config), "name": weaver.model, "adapter": None}))
    lora = None if trigger.lora is None else _lora(trigger.lora)
    decides = TriggerSettings(trigger.width, lora) if trigger.kind in TRAINED_TRIGGERS else None
    return MemGenModel(language.model, memgen_settings(weaver), seed=seed, weaver_model=other, trigger=decides)


def _lora(config: LoraConfig) -> LoraSettings:
    return LoraSettings(config.rank, config.alpha, config.dropout, tuple(config.target_modules))


def _fields(config: HfModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def training_rows(language: Language, examples: Sequence[TextExample], rule: InsertionRule, weaver: WeaverConfig) -> list[Row]:
    """input_ids, labels and plan of each turn of each example: as in generation, memory of earlier turns is not there.
    ValueError names an example that has no reply, or does not fit, latents included."""
    rows = []
    for example in examples:
        if not example.reply:
            raise ValueError(
                f"example {example.id} has no worked reply to learn from; use trainer=grpo with trainer.sft_steps=0, or data "
                "that have some."
            )
        taught = replace(example, reply=example.woven or example.reply)
        for number, (prompt, reply) in enumerate(language.turns_of(taught)):
            plan = plan_of(prompt + reply, len(prompt), rule.delimiters_V, rule.of_turn(number).limits)
            plan = thinned(plan, example.inserts) if example.inserts else plan
            require_room(language, example, len(prompt) + len(reply), weaver, "shorten it, or drop it from the data")
            rows.append({"input_ids": prompt + reply, "labels": [IGNORED] * len(prompt) + reply, "plan_BL": plan})
    return rows


def require_room(language: Language, example: TextExample, num_tokens: int, weaver: WeaverConfig, remedy: str) -> None:
    """ValueError unless num_tokens and all latents that may come to them fit into the context."""
    latents = most_latents(weaver)
    if language.limit is not None and num_tokens + latents > language.limit:
        raise ValueError(
            f"example {example.id} has {num_tokens} tokens, which with {latents} latents is more than the context of "
            f"{language.limit} tokens (lm.name={language.config.name}); {remedy}."
        )


def most_latents(weaver: WeaverConfig) -> int:
    """Of one prompt and its answer."""
    inside = weaver.max_inference_aug_num * weaver.inference_latents_len
    return bool(weaver.max_prompt_aug_num) * weaver.prompt_latents_len + inside


def shuffled_targets(examples: Sequence[TextExample], seed: int) -> list[TextExample]:
    """Every question with the reply of another one: the control that learns the form of replies and nothing about questions."""
    order = list(range(len(examples)))
    random.Random(f"{seed} targets").shuffle(order)
    other = {place: order[(number + 1) % len(order)] for number, place in enumerate(order)}
    return [
        TextExample(example.id, example.question, examples[other[number]].reply, examples[other[number]].answer)
        for number, example in enumerate(examples)
    ]


def reasoner_folder(folder: Path) -> Path:
    """Where a run keeps the reasoner that it has made itself."""
    return folder / "reasoner"
