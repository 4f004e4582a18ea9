"""A task as a conversation: demonstrations and a test input are asked, the reply is the output grid.

    prompt = question(task.demos, test.input, config.text)          # one message of the user
    row = training_row(model, task, config.text, LossTokens.outputs)       # tokens and labels; the prompt's ids come first
    grid = read_grid(completion.text, config.text.grid_format)      # None: it is no grid

Prompt and training text are written by the model that answers (HfModel.prompt_ids, reply_ids), so that the ids of a prompt are
the beginning of those that are trained on, begin-of-text mark included, with any tokenizer that has a chat template. A token
that belongs to two parts of the text is learned if one of them is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from arclab.config.llm_schema import GridFormat
from arclab.config.seal_schema import GridTextConfig, LossTokens
from arclab.data.tasks import MAX_SIDE, ArcTask, Grid, Pair
from arclab.lm.hf import HfModel
from arclab.lm.language_model import Message, Prompt
from arclab.lm.training.rows import IGNORED, Row
from arclab.programs.prompts import format_grid

_INSTRUCTIONS = (
    "Every pair of grids below follows one hidden rule, which turns the first grid, above the line with >, into the second. "
    "The cells of a grid are colours, written as whole numbers 0 to 9. Find the rule, apply it to the last grid, and answer "
    "with the grid that follows, in the same form, and with nothing else."
)


def question(demos: Sequence[Pair], test_input: Grid, config: GridTextConfig) -> Prompt:
    """One message of the user. (Not every chat template knows a system role.)"""
    return (Message("user", "".join(text for text, _ in _parts(demos, test_input, config))),)


def _parts(demos: Sequence[Pair], test_input: Grid, config: GridTextConfig) -> Iterator[tuple[str, bool]]:
    """The message in pieces, and whether each is an output."""
    if config.instructions:
        yield _INSTRUCTIONS + "\n\n", False
    yield from pair_texts(demos, config)
    yield format_grid(test_input, config.grid_format) + "\n>", False


def pair_texts(demos: Sequence[Pair], config: GridTextConfig) -> Iterator[tuple[str, bool]]:
    """Demonstrations in pieces, and whether each is an output."""
    for demo in demos:
        yield format_grid(demo.input, config.grid_format) + "\n>\n", False
        yield format_grid(output_of(demo), config.grid_format) + "\n", True
        yield "\n", False


def output_of(pair: Pair) -> Grid:
    assert pair.output is not None, "a demonstration has its output"
    return pair.output


def training_row(model: HfModel, task: ArcTask, config: GridTextConfig, loss: LossTokens) -> Row | None:
    """input_ids and labels of a task whose one test output is known; None if it does not fit into the context. ValueError: a
    tokenizer that does not tell where outputs stand, for loss=outputs."""
    (test,) = task.tests
    prompt = question(task.demos, test.input, config)
    shown, reply = model.prompt_ids(prompt), model.reply_ids(format_grid(output_of(test), config.grid_format))
    if model.max_context is not None and len(shown) + len(reply) > model.max_context:
        return None
    if loss is LossTokens.last_output:
        learned = [False] * len(shown)
    elif loss is LossTokens.all:
        learned = [True] * len(shown)
    else:
        learned = model.marked_tokens(prompt, _output_spans(task.demos, test.input, config))
    labels = [token if is_learned else IGNORED for token, is_learned in zip(shown, learned, strict=True)]
    return {"input_ids": shown + reply, "labels": labels + reply}


def _output_spans(demos: Sequence[Pair], test_input: Grid, config: GridTextConfig) -> list[tuple[int, int]]:
    spans, start = [], 0
    for text, is_output in _parts(demos, test_input, config):
        spans += [(start, start + len(text))] if is_output else []
        start += len(text)
    return spans


def most_answer_tokens(model: HfModel, config: GridTextConfig) -> int:
    """Of a reply with the largest grid there is."""
    return len(model.reply_ids(format_grid(np.zeros((MAX_SIDE, MAX_SIDE), np.uint8), config.grid_format)))


def read_grid(text: str, grid_format: GridFormat) -> Grid | None:
    """The grid that a reply is, but for white space around it; None for anything else: another form, rows of different lengths,
    more than 30 rows or columns, words before or after it."""
    written = text.strip()
    rows = [re.findall("[0-9]", row) for row in re.split("]" if grid_format is GridFormat.json else "\n", written)]
    rows = [row for row in rows if row]
    if not rows or len({len(row) for row in rows}) > 1 or max(len(rows), len(rows[0])) > MAX_SIDE:
        return None
    grid = np.array(rows, dtype=np.uint8)
    return grid if format_grid(grid, grid_format) == written else None
