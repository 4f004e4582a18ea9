"""What is learned is what the search asks for, token by token, and tasks count alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arclab.config.compose import compose_run
from arclab.config.llm_schema import HfModelConfig
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.lm.chat_template import plain_ids
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.language_model import prompt_digest
from arclab.lm.training.rows import IGNORED
from arclab.lm.training.sft import ROW_WEIGHT
from arclab.methods.tree_search.archive import Archive, Setting
from arclab.methods.tree_search.learning.records import Curated
from arclab.methods.tree_search.learning.teaching import (
    Lesson,
    lessons_of,
    shown_as,
    shuffled,
    split_of,
    step_rows,
    taught_rows,
)
from arclab.methods.tree_search.prompts import shown_prompts
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import Node, NodeKind, Tree
from arclab.programs.toy import STEPS_ROOT, solution_steps

from ..common import TASKS

BY_ID = {task.id: task for task in TASKS}


def config_of(*overrides: str) -> TreeLearningConfig:
    return compose_run("self_improve_tree_search", ["experiment=search_quickstart", "name=t", "scratch=null", *overrides])


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> HfModel:
    config = config_of(f"lm.name={tiny_lm}").lm
    assert isinstance(config, HfModelConfig)
    return load_hf(config)


def written(task_id: str, steps: Steps) -> str:
    *before, last = solution_steps(BY_ID[task_id])
    text = "".join(f"\n    {line} {steps.step_end}" for line in before) + f"\n    {last} {steps.program_end}"
    return steps.program_begin + STEPS_ROOT + text


def entry(task_id: str, steps: Steps, weight: float = 1.0) -> Curated:
    return Curated(task_id, task_id, 0, "plain", written(task_id, steps), 1.0, weight, "")


# Roots behind which a step begins with a token of its own, and in the middle of one (a line break and the spaces after it).
@pytest.mark.parametrize("root", [STEPS_ROOT, "def solve(I):\n"])
def test_every_step_is_learned_behind_the_tokens_that_the_search_shows(root: str, model: HfModel) -> None:
    config = config_of("search.num_draws=40", "search.branching=1")
    config.solver.steps.root = root
    steps, task = Steps.of(config.solver.steps), TASKS[0]
    shown = shown_prompts(task, config.solver, [], None)
    lines = ["    m = {}", *[f"    {line}" for line in solution_steps(task)]]
    texts = [f"\n{line} {steps.step_end}" for line in lines[:-1]] + [f"\n{lines[-1]} {steps.program_end}"]
    texts = texts[1:] if root == STEPS_ROOT else [texts[0].removeprefix("\n"), *texts[1:]]
    lesson = lessons_of(config, [Curated(task.id, task.id, 0, "plain", root + "".join(texts), 1.0, 1.0, "")], BY_ID)[0]
    rows = step_rows(model, lesson.prompt, lesson.written, steps)
    archive = Archive(task, Setting(config.solver, config.search, config.seed), shown, Tree(task.id, steps))
    node = archive.prompts[0]
    for number, text in enumerate(texts):
        expansion = archive.expand(node, rollout=0, temperature=1.0)
        assert expansion is not None
        asked = model.prompt_ids(expansion.prompt)
        drawn = plain_ids(model.tokenizer, text)
        assert any(
            row["input_ids"][: len(asked)] == asked and row["labels"][len(asked) :][: len(drawn)] == drawn for row in rows
        ), f"step {number} is learned behind other tokens"
        node.is_pending = False
        child = Node(tag=f"{node.tag}.0", parent=node, kind=NodeKind.step, depth=number + 1, text=text)
        archive.tree.add(child)
        node = child
    learned = [token for row in rows for token in row["labels"] if token != IGNORED]
    every = [token for text in texts for token in plain_ids(model.tokenizer, text)]
    assert learned == [*every, model.reply_ids("")[-1]], "each step is learned once, and the end of the turn"
    assert len(rows) == (1 if root == STEPS_ROOT else 2)
    # And as a text: the prompt of the search, then the program.
    assert model.tokenizer.decode(rows[0]["input_ids"]).startswith(
        model.tokenizer.decode(model.prompt_ids(shown[0].prompt)) + root
    )


def test_a_prompt_that_the_settings_do_not_make_is_refused() -> None:
    config = config_of()
    shown = shown_as(config, TASKS[0], "plain:hinted")
    assert shown.id == "plain" and shown_as(config, TASKS[0], "plain", prompt_digest(shown.prompt)) == shown
    other = config_of("solver.prompt.grid_format=spaced")
    for make in (
        lambda: shown_as(other, TASKS[0], "plain", prompt_digest(shown.prompt)),
        lambda: shown_as(config, TASKS[0], "a+b"),
    ):
        with pytest.raises(ValueError, match=r"was searched with a prompt .* that these settings do not make"):
            make()


def test_weights_are_those_of_tasks_and_do_not_cancel(model: HfModel) -> None:
    """Task 0 has one program, task 1 has three. By hand: weights 1 and 1/3 each, mean 1/2, so 2 and 2/3."""
    config, ids = config_of(), [TASKS[0].id, TASKS[1].id]
    steps = Steps.of(config.solver.steps)
    entries = [entry(ids[0], steps), *[entry(ids[1], steps, 1 / 3) for _ in range(3)]]
    rows = taught_rows(model, lessons_of(config, entries, BY_ID), steps)
    assert [row[ROW_WEIGHT][0] for row in rows] == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
    assert rows[0]["input_ids"] != rows[1]["input_ids"] and len(rows) == 4
    tight = replace(model.config, max_context=40)
    with pytest.raises(ValueError, match="more than the model's context of 40"):
        taught_rows(load_hf(tight), lessons_of(config, entries, BY_ID), steps)


def test_the_twin_has_the_same_prompts_and_programs_of_other_tasks() -> None:
    steps = Steps.of(config_of().solver.steps)
    lessons = lessons_of(config_of(), [entry(task.id, steps) for task in TASKS], BY_ID)
    twin = shuffled(lessons, 0)
    assert [each.prompt for each in twin] == [each.prompt for each in lessons] and shuffled(lessons, 0) == twin
    assert all(a.written != b.written for a, b in zip(twin, lessons, strict=True))
    assert {each.written for each in twin} <= {each.written for each in lessons}
    assert shuffled(lessons[:1], 0) == lessons[:1]  # there is no other


def test_held_out_lessons_are_whole_tasks_or_examples_of_known_ones() -> None:
    lessons = [Lesson(f"{task}+{n}", str(task), (), f"{n}", 1.0) for task in range(40) for n in range(5)]
    split = split_of(lessons, 0.25, 0.25, seed=1)
    held = {each.origin for each in split.tasks}
    assert 3 < len(held) < 20 and len(split.tasks) == 5 * len(held) and len(split.examples) > 5
    assert held.isdisjoint({each.origin for each in split.taught})
    assert {each.origin for each in split.examples} <= {each.origin for each in split.taught}
    assert len(split.taught) + len(split.tasks) + len(split.examples) == len(lessons)
    again = split_of(lessons[::-1], 0.25, 0.0, seed=1)
    assert {each.origin for each in again.tasks} == held  # whatever their order
    assert split_of(lessons[:5], 0.9, 0.0, seed=1).taught == lessons[:5]  # never all


def test_marks_become_tokens_that_begin_as_the_mean_of_what_they_were(model: HfModel) -> None:
    fresh = load_hf(model.config)
    table = fresh._model.get_input_embeddings().weight
    pieces = plain_ids(fresh.tokenizer, "<step!>")
    mean, before = table[pieces].mean(0), fresh.tokenizer.encode("a b", add_special_tokens=False)
    assert len(pieces) > 1 and fresh.add_tokens(["<step!>"]) == 1 and fresh.add_tokens(["<step!>"]) == 0
    ids = plain_ids(fresh.tokenizer, "x = 1 <step!>\n")
    (new,) = plain_ids(fresh.tokenizer, "<step!>")
    assert new in ids and fresh.tokenizer.decode(ids) == "x = 1 <step!>\n"
    torch.testing.assert_close(fresh._model.get_input_embeddings().weight[new], mean)
    assert fresh.tokenizer.encode("a b", add_special_tokens=False) == before and fresh.was_trained
