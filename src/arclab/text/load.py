"""From the configuration group dataset to the examples.

    splits = load_text(config.dataset)        # TextSplits(train, validation, test, notes)

The same configuration gives the same examples in the same order. It does not tokenise, train or score.
"""

from __future__ import annotations

import random
from dataclasses import replace

from arclab.config.text_schema import ArcTextConfig, ArithmeticConfig, Gsm8kConfig, RecallConfig, TextDatasetConfig
from arclab.text.arc import arc_splits
from arclab.text.arithmetic import Draws, Problem, word_problems
from arclab.text.examples import TextExample, TextSplits, boxed, separated, with_instruction
from arclab.text.gsm8k import gsm8k_splits
from arclab.text.recall import Recall, RecallItem, recall_items


def load_text(config: TextDatasetConfig) -> TextSplits:
    """ValueError, in one sentence: data that is missing or damaged, an empty split, problems that cannot be generated."""
    if isinstance(config, ArithmeticConfig):
        return _arithmetic_splits(config)
    if isinstance(config, Gsm8kConfig):
        return gsm8k_splits(config)
    if isinstance(config, RecallConfig):
        return _recall_splits(config)
    assert isinstance(config, ArcTextConfig), type(config)
    return arc_splits(config)


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
