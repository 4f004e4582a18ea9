"""From the configuration group dataset to the examples.

    splits = load_text(config.dataset)        # TextSplits(train, validation, test, notes)

The same configuration gives the same examples in the same order. It does not tokenise, train or score.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

from arclab.config.text_schema import (
    ArcTextConfig,
    ArithmeticConfig,
    CodeWordsConfig,
    GpqaConfig,
    Gsm8kConfig,
    KodCodeConfig,
    RecallConfig,
    TextDatasetConfig,
    TriviaQaConfig,
)
from arclab.files import parse_json, write_atomically
from arclab.text.arc import arc_splits
from arclab.text.arithmetic import Draws, Problem, word_problems
from arclab.text.examples import TextExample, TextSplits, boxed, separated, with_instruction
from arclab.text.gpqa import gpqa_splits
from arclab.text.gsm8k import gsm8k_splits
from arclab.text.kodcode import kodcode_splits
from arclab.text.recall import Recall, RecallItem, recall_items
from arclab.text.triviaqa import code_word_splits, triviaqa_splits

_MOST_LEAKS = 0.5  # of the questions may hold their answer by chance, as small numbers do


def load_text(config: TextDatasetConfig, *, needs_replies: bool = True) -> TextSplits:
    """needs_replies: training examples without a worked reply are left out; False where only reward is learned from.
    ValueError, in one sentence: data that is missing or damaged, an empty split, problems that cannot be generated."""
    splits = _loaded(config, needs_replies)
    leaks = [] if config.shows_its_answer else [each for each in splits.train if holds_its_answer(each)]
    count = len(splits.train)
    if any(_is_told(each) for each in leaks) or len(leaks) > _MOST_LEAKS * count:
        told = (
            f"{len(leaks)} of {count} training questions hold their own answer (for example {leaks[0].id}), so it can be copied"
        )
        splits = replace(splits, notes=(*splits.notes, told))
    return splits


def _loaded(config: TextDatasetConfig, needs_replies: bool) -> TextSplits:
    match config:
        case ArithmeticConfig():
            return _arithmetic_splits(config)
        case Gsm8kConfig():
            return gsm8k_splits(config)
        case GpqaConfig():
            return gpqa_splits(config)
        case KodCodeConfig():
            return kodcode_splits(config)
        case TriviaQaConfig():
            return triviaqa_splits(config, needs_replies)
        case CodeWordsConfig():
            return code_word_splits(config)
        case RecallConfig():
            return _recall_splits(config)
    assert isinstance(config, ArcTextConfig), type(config)
    return arc_splits(config, needs_replies)


def holds_its_answer(example: TextExample) -> bool:
    """Is the reply, or the answer as words of their own, in the question?"""
    return _is_told(example) or _stands_in(_short_answer(example), example.question)


def _is_told(example: TextExample) -> bool:
    """The whole reply, or the answer in its box: that is no chance."""
    return any(text and text in example.question for text in (example.reply.strip(), f"\\boxed{{{example.answer}}}"))


def _short_answer(example: TextExample) -> str:
    """The shortest right name of a list; empty for what is no short answer."""
    names = parse_json(example.answer, Path(example.id)) if example.answer.startswith('["') else [example.answer]
    return min(names, key=len)


def _stands_in(answer: str, question: str) -> bool:
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", question, re.IGNORECASE) is not None


def write_ids(splits: TextSplits, path: Path) -> None:
    """Which examples are in which split, as JSON: the same configuration gives the same ones."""
    ids = {name: [example.id for example in splits.named(name)] for name in ("train", "validation", "test")}
    write_atomically(path, json.dumps(ids, indent=1) + "\n")


def _arithmetic_splits(config: ArithmeticConfig) -> TextSplits:
    draws = Draws(tuple(config.families), config.digits, config.min_steps, config.max_steps, config.seed)
    made: dict[str, list[TextExample]] = {}
    for split, count in config.limits.items():
        assert count is not None, "checked with the configuration"
        problems = enumerate(word_problems(draws, split, count))
        made[split] = [_example(problem, f"{split}_{number:05d}", config) for number, problem in problems]
    made["train"] = _partly_guessed(made["train"], config)
    return separated(config, made["train"], made["validation"], made["test"])


def _example(problem: Problem, name: str, config: ArithmeticConfig) -> TextExample:
    """Its id begins with the family."""
    answer = str(problem.answer)
    question = with_instruction(problem.question, config.instruction)
    return TextExample(f"{problem.family.name}_{name}", question, boxed(problem.solution, answer), answer)


def _partly_guessed(examples: list[TextExample], config: ArithmeticConfig) -> list[TextExample]:
    """Some of them with a wrong answer, of another one, as their whole reply. Their own answer stays the right one."""
    found = []
    for number, example in enumerate(examples):
        draw = random.Random(f"{config.seed} guessed {number}")
        wrong = sorted({other.answer for other in draw.sample(examples, min(8, len(examples)))} - {example.answer})
        is_guessed = draw.random() < config.guessed_share and wrong
        found.append(replace(example, reply=boxed("", draw.choice(wrong)).strip()) if is_guessed else example)
    return found


def _recall_splits(config: RecallConfig) -> TextSplits:
    made = {}
    for split, count in config.limits.items():
        assert count is not None, "checked with the configuration"
        items = recall_items(Recall(config.words, config.seed), split, count)
        made[split] = [_recalled(item, f"recall_{split}_{number:05d}") for number, item in enumerate(items)]
    return separated(config, made["train"], made["validation"], made["test"])


def _recalled(item: RecallItem, name: str) -> TextExample:
    reply, woven = (boxed(item.solution(digits), digits) for digits in (item.taught, item.woven))
    return TextExample(name, item.question, reply, item.answer, woven, item.inserts)
