"""Habits of SEAL's published code that change its numbers, repeated by compat=seal_paper. For replication only.

    row = published_row(model, task, config.text, loss)     # begun twice, and with the header of a reply that nobody writes
    rows = padded_rows(rows, model.pad_id)                  # as long as the longest, with loss on the padding
    asked = asked_tasks(tasks, 12)                          # of 12 test inputs, not tasks
    scored = scored_tasks(tasks, 11)                        # of 11 test inputs that are drawn

A training text passes through the tokenizer with the template's begin-of-text mark in it, and gets another one; questions have
one. It goes on behind the answer with the header of the next reply, which is learned. All rows of a training are as long as its
longest, and padding is learned like text. Of the tasks that are named some are dropped, in other places of the code by other
counts, so that a task can be scored for which nothing was proposed. Where a tokenizer adds no mark of its own, the first of
these changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from arclab.config.seal_schema import GridTextConfig, LossTokens
from arclab.data.tasks import ArcTask
from arclab.lm.hf import HfModel
from arclab.lm.training.rows import IGNORED, Row
from arclab.methods.seal.task_text import training_row

# Test inputs that the published commands score, of training tasks and of others.
SCORED_TRAINING, SCORED_OTHERS = 11, 9
REMARK = (
    "A REPLICATION, compat=seal_paper: with loss on padding, two begin-of-text marks, a header behind the answer and tasks "
    "dropped as in the published code; do not compare these numbers with any that were made without it"
)


def published_row(model: HfModel, task: ArcTask, config: GridTextConfig, loss: LossTokens) -> Row | None:
    """As training_row; None if it does not fit into the context."""
    row = training_row(model, task, config, loss)
    if row is None:
        return None
    before, after = model.added_before(), model.after_reply_ids()
    ids = before + row["input_ids"][:-1] + after
    if model.max_context is not None and len(ids) > model.max_context:
        return None
    labels = (before if loss is LossTokens.all else [IGNORED] * len(before)) + row["labels"][:-1] + after
    return {"input_ids": ids, "labels": labels}


def padded_rows(rows: Sequence[Row], pad_id: int) -> list[Row]:
    """All as long as the longest. Padding is not attended to, but learned."""
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    found: list[Row] = []
    for row in rows:
        length = len(row["input_ids"])
        padding = [pad_id] * (longest - length)
        mask = [1] * length + [0] * len(padding)
        found.append(row | {"input_ids": row["input_ids"] + padding, "labels": row["labels"] + padding, "attention_mask": mask})
    return found


def asked_tasks(tasks: Sequence[ArcTask], num_tests: int | None) -> tuple[ArcTask, ...]:
    """The tasks whose first test input is among the first num_tests of all test inputs; None: all."""
    before = accumulate((len(task.tests) for task in tasks), initial=0)
    return tuple(task for task, number in zip(tasks, before, strict=False) if num_tests is None or number < num_tests)


def scored_tasks(tasks: Sequence[ArcTask], num_tests: int) -> tuple[ArcTask, ...]:
    """The tasks of the first num_tests test inputs after these were put in an order that NumPy's old generator draws with seed
    0. (Of the published tasks both test inputs stay where there are two.)"""
    names = [task.id for task in tasks for _ in task.tests]
    np.random.RandomState(0).shuffle(names)
    kept = set(names[:num_tests])
    return tuple(task for task in tasks if task.id in kept)
