"""Programs as rows of supervised training: the tokens that the search reads, and a loss on those that it draws.

    rows = taught_rows(model, [Lesson(id="a", origin="a", prompt=prompt, written=written, weight=1.0)], steps)

The search asks for a step with everything before it as one text, and a model reads that text in tokens which may cross the
place where the step begins. So a program becomes as few rows as show every one of its steps behind exactly the tokens that the
search would show: one, where no token crosses. Prompts have no loss. A row counts by its lesson's weight, divided by the mean
weight of all lessons, so that weights do not cancel in a step of few rows, and a step is as large as without them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.data.tasks import ArcTask
from arclab.files import short
from arclab.lm.chat_template import plain_ids
from arclab.lm.hf import HfModel
from arclab.lm.language_model import Prompt, prompt_digest
from arclab.lm.training.rows import IGNORED, Row
from arclab.lm.training.sft import ROW_WEIGHT
from arclab.methods.tree_search.learning.curation import split_steps
from arclab.methods.tree_search.learning.generated import task_of
from arclab.methods.tree_search.learning.policy import examples_of
from arclab.methods.tree_search.learning.records import Curated
from arclab.methods.tree_search.prompts import ShownPrompt, continued, shown_prompts
from arclab.methods.tree_search.steps import Steps

_DRAWS = 100  # of a program of another task


@dataclass(frozen=True, slots=True)
class Lesson:
    """A program behind its prompt. id: of the task that it is taught with; origin: of the one whose rule that is."""

    id: str
    origin: str
    prompt: Prompt
    written: str
    weight: float


def lessons_of(config: TreeLearningConfig, entries: Sequence[Curated], tasks: Mapping[str, ArcTask]) -> list[Lesson]:
    """The curated programs behind the prompts that the search shows without a hint."""
    found: list[Lesson] = []
    for entry in entries:
        shown = shown_as(config, task_of(entry, tasks), entry.prompt)
        found.append(Lesson(entry.task, entry.origin, shown.prompt, entry.written, entry.weight))
    return found


def shown_as(config: TreeLearningConfig, task: ArcTask, prompt_id: str, asked: str | None = None) -> ShownPrompt:
    """The prompt of that id, without its hint. asked: the digest that it must have. ValueError: the search showed another."""
    wanted = prompt_id.removesuffix(":hinted")
    for shown in shown_prompts(task, config.solver, examples_of(config), None):
        if shown.id == wanted and asked in (None, prompt_digest(shown.prompt)):
            return shown
    raise ValueError(
        f"task {short(task.id)} was searched with a prompt (solver.prompt, solver.examples or its grids) that these settings "
        "do not make; use those that it was collected with."
    )


def shuffled(lessons: Sequence[Lesson], seed: int) -> list[Lesson]:
    """The same prompts with the programs of other tasks, where there are others: the control."""
    rng, found = random.Random(f"{seed} programs of other tasks"), list[Lesson]()
    for lesson in lessons:
        drawn = (rng.choice(lessons) for _ in range(_DRAWS))
        others = (other for other in drawn if other.origin != lesson.origin and other.written != lesson.written)
        found.append(replace(lesson, written=next(others, lesson).written))
    return found


@dataclass(frozen=True, slots=True)
class Split:
    """taught: learned from. tasks: held out with all programs of their origin. examples: of origins that are learned from."""

    taught: list[Lesson]
    tasks: list[Lesson]
    examples: list[Lesson]


def split_of(lessons: Sequence[Lesson], task_share: float, example_share: float, seed: int) -> Split:
    """By chance that belongs to the task and the program, not to their order. A task always keeps one lesson."""
    split = Split([], [], [])
    known = {lesson.origin for lesson in lessons}
    held = {origin for origin in known if random.Random(f"{seed} {origin}").random() < task_share}
    held = held if len(held) < len(known) else set()
    seen: set[str] = set()
    for lesson in lessons:
        if lesson.origin in held:
            split.tasks.append(lesson)
        elif lesson.origin in seen and random.Random(f"{seed} {lesson.id} {lesson.written}").random() < example_share:
            split.examples.append(lesson)
        else:
            seen.add(lesson.origin)
            split.taught.append(lesson)
    return split


def taught_rows(model: HfModel, lessons: Sequence[Lesson], steps: Steps) -> list[Row]:
    """ValueError: a program does not fit into the context."""
    mean = sum(lesson.weight for lesson in lessons) / len(lessons)
    rows: list[Row] = []
    for lesson in lessons:
        own = step_rows(model, lesson.prompt, lesson.written, steps)
        longest = max(len(row["input_ids"]) for row in own)
        if model.max_context is not None and longest > model.max_context:
            raise ValueError(
                f"a program of task {short(lesson.id)} has {longest} tokens with its prompt, more than the model's context of "
                f"{model.max_context}; search with a shorter solver.prompt, or use a model with a longer context."
            )
        rows += [row | {ROW_WEIGHT: [lesson.weight / mean]} for row in own]
    return rows


def step_rows(model: HfModel, prompt: Prompt, written: str, steps: Steps) -> list[Row]:
    rows: list[Row] = []
    before, texts = steps.opening, split_steps(written, steps)
    for number, text in enumerate(texts):
        is_last = number == len(texts) - 1
        drawn = model.reply_ids(text) if is_last else plain_ids(model.tokenizer, text)
        shown = model.prompt_ids(continued(prompt, before))
        if rows and rows[-1]["input_ids"] == shown:
            rows[-1]["input_ids"] += drawn
            rows[-1]["labels"] += drawn
        else:
            rows.append({"input_ids": shown + drawn, "labels": [IGNORED] * len(shown) + drawn})
        before += text
    return rows
