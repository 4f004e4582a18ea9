"""compat=seal_paper: each habit of the published code as ids and labels, next to what is done without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.config.seal_schema import LossTokens
from arclab.lm.hf import HfModel
from arclab.lm.training.inner import InnerAdapter, batch_loss
from arclab.lm.training.rows import IGNORED, Row, collate
from arclab.methods.seal.fewshot import models, restem
from arclab.methods.seal.fewshot.select import Lesson
from arclab.methods.seal.replication import asked_tasks, padded_rows, published_row, scored_tasks
from arclab.methods.seal.solver import TaskTrainer
from arclab.methods.seal.task_text import training_row

from .test_task_text import TASK, TEXT

MARK = "<|pad|>"  # what the tokenizer is made to begin texts with


@pytest.fixture
def marking(model: HfModel) -> HfModel:
    """Template and tokenizer both write a begin-of-text mark, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = model.tokenizer
    tokenizer.chat_template = MARK + tokenizer.chat_template
    marks = [(MARK, tokenizer.convert_tokens_to_ids(MARK))]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{MARK} $A", pair=None, special_tokens=marks)
    return model


@pytest.mark.parametrize("loss", list(LossTokens))
def test_a_text_is_begun_twice_and_goes_on_behind_its_answer(marking: HfModel, loss: LossTokens) -> None:
    """Two marks, of which loss=all learns one more; behind the end mark the header of a reply that nobody writes, learned."""
    own, row = training_row(marking, TASK, TEXT, loss), published_row(marking, TASK, TEXT, loss)
    assert own is not None and row is not None
    mark = marking.tokenizer.convert_tokens_to_ids(MARK)
    assert own["input_ids"][:1] == [mark] != own["input_ids"][1:2] and row["input_ids"][:2] == [mark, mark]
    header = marking.tokenizer.encode("\n<|im_start|>assistant\n", add_special_tokens=False)
    assert row["input_ids"] == [mark, *own["input_ids"], *header]
    assert row["labels"] == [mark if loss is LossTokens.all else IGNORED, *own["labels"], *header]


def test_where_a_tokenizer_adds_no_mark_there_is_one(model: HfModel) -> None:
    own, row = training_row(model, TASK, TEXT, LossTokens.all), published_row(model, TASK, TEXT, LossTokens.all)
    assert own is not None and row is not None and row["input_ids"][: len(own["input_ids"])] == own["input_ids"]


def test_a_text_that_its_header_makes_too_long_is_none(model: HfModel) -> None:
    row = published_row(model, TASK, TEXT, LossTokens.all)
    assert row is not None
    model.max_context = len(row["input_ids"])
    assert published_row(model, TASK, TEXT, LossTokens.all) == row
    model.max_context -= 1
    assert published_row(model, TASK, TEXT, LossTokens.all) is None
    assert training_row(model, TASK, TEXT, LossTokens.all) is not None


def test_padding_is_learned_and_as_long_as_the_longest_row_of_all(model: HfModel) -> None:
    rows: list[Row] = [{"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORED, 6, 7, 8, 9]}, {"input_ids": [5, 6], "labels": [IGNORED, 6]}]  # fmt: skip
    padded = padded_rows(rows, 3)
    assert padded[0] == rows[0] | {"attention_mask": [1] * 5}
    assert padded[1] == {"input_ids": [5, 6, 3, 3, 3], "labels": [IGNORED, 6, 3, 3, 3], "attention_mask": [1, 1, 0, 0, 0]}
    own, batch = collate(rows, 3), collate(padded, 3)
    assert batch["attention_mask"].tolist() == own["attention_mask"].tolist()
    assert batch["input_ids"].tolist() == own["input_ids"].tolist()
    assert own["labels"][1].tolist() == [IGNORED, 6, IGNORED, IGNORED, IGNORED]
    assert batch_loss(model.network, batch) != batch_loss(model.network, own)
    assert collate(padded[1:], 3)["input_ids"].shape == (1, 5) != collate(rows[1:], 3)["input_ids"].shape


@pytest.mark.parametrize("is_replication", [False, True])
def test_training_on_a_task_learns_such_rows(model: HfModel, is_replication: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the switch the rows are those of every other training."""
    seen: list[Row] = []
    fit = InnerAdapter.fit

    def noting(inner: InnerAdapter, rows: list[Row], *given: Any) -> Any:
        seen.extend(rows)
        return fit(inner, [], *given)

    monkeypatch.setattr(InnerAdapter, "fit", noting)
    solver = composed().solver
    wanted = replace(
        solver, pseudo_tasks=replace(solver.pseudo_tasks, max_count=4), max_new_tokens=2, views=replace(solver.views, count=1)
    )
    TaskTrainer(model, 0, is_replication=is_replication).answered(TASK, TASK, wanted, lambda: None)
    lengths = {len(row["input_ids"]) for row in seen}
    assert (len(lengths) == 1) is is_replication and all(("attention_mask" in row) is is_replication for row in seen)
    header = model.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    longest = max(seen, key=lambda row: len(row["input_ids"]) if "attention_mask" not in row else sum(row["attention_mask"]))
    assert (longest["input_ids"][-len(header) :] == header) is is_replication


def composed(*more: str) -> SealFewshotConfig:
    config = compose_run("self_improve_seal_fewshot", ["method=seal_fewshot", "lm=tiny", "dataset=arc1_seal", "name=a", *more])
    assert isinstance(config, SealFewshotConfig)
    return config


REPLICATED = ("compat=seal_paper", "evaluate.split=validation")


def test_self_edits_are_learned_with_their_padding(model: HfModel) -> None:
    tasks = {each.id: each for each in (TASK, replace(TASK, demos=TASK.demos[:1]))}
    lessons = [Lesson("a", TASK.id, "k", reply, 1.0) for reply in ("0 1", "0")]
    own = restem.rows_of_lessons(model, lessons, tasks, composed())
    rows = restem.rows_of_lessons(model, lessons, tasks, composed(*REPLICATED))
    assert len(own[1]["input_ids"]) < len(rows[1]["input_ids"]) == len(rows[0]["input_ids"]) == len(own[0]["input_ids"])
    assert rows[1]["labels"][-1] == model.pad_id and rows[1]["labels"][: len(own[1]["labels"])] == own[1]["labels"]


def test_the_published_tasks_are_dropped_where_they_were() -> None:
    """Proposed for: 11 and 9 tasks. Scored: 10 and 8, of which one has no proposals and can only fail."""
    config, own = composed(*REPLICATED), composed("evaluate.split=validation")
    assert [len(models.training_tasks(own)), len(models.tried_tasks(own)), len(models.scored_tasks(own))] == [12, 12, 10]
    assert models.asked_of_scored(own) == models.scored_tasks(own)
    every = {task.id for task in models.training_tasks(own)}
    assert every - {task.id for task in models.training_tasks(config)} == {"8e1813be"}
    assert every - {task.id for task in models.tried_tasks(config)} == {"8e1813be", "5bd6f4ac"}
    scored = {task.id for task in models.scored_tasks(config)}
    assert {task.id for task in models.scored_tasks(own)} - scored == {"358ba94e", "af24b4cc"}
    assert scored - {task.id for task in models.asked_of_scored(config)} == {"ce8d95cc"}


def test_counts_are_of_test_inputs() -> None:
    one = replace(TASK, tests=TASK.tests[:1])
    tasks = [replace(one, id=str(number), tests=one.tests * count) for number, count in enumerate((2, 1, 3, 1))]
    assert [each.id for each in asked_tasks(tasks, 3)] == ["0", "1"] and [each.id for each in asked_tasks(tasks, 4)] == [
        "0",
        "1",
        "2",
    ]
    assert len(asked_tasks(tasks, None)) == len(scored_tasks(tasks, 7)) == 4 and len(scored_tasks(tasks, 1)) == 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dataset.name=toy", "dataset=toy has others; use dataset=arc1_seal"),
        ("solver.adaptation.kind=full", "use solver.adaptation.kind=lora, or compat=null"),
        ("compat=other", "other"),
    ],
)
def test_a_replication_of_something_else_is_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        composed(*REPLICATED, override)
