"""A task as text and tokens: which tokens are learned, that a prompt begins what is trained on, and what counts as a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arclab.config.llm_schema import GridFormat, HfModelConfig
from arclab.config.seal_schema import GridTextConfig, LossTokens
from arclab.data.tasks import ArcTask
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.smollm2 import FOLDER, INSTALL
from arclab.lm.training.rows import IGNORED
from arclab.methods.seal.task_text import most_answer_tokens, question, read_grid, training_row
from arclab.programs.prompts import format_grid

from ...conftest import ROOT

TASK = ArcTask.from_json(
    {
        "train": [{"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}, {"input": [[5, 6]], "output": [[6, 5]]}],
        "test": [{"input": [[7, 8]], "output": [[8, 7]]}],
    }
)
TEXT = GridTextConfig(grid_format=GridFormat.spaced, instructions=True)
SMOLLM2 = pytest.param(
    str(ROOT / FOLDER), marks=pytest.mark.skipif(not (ROOT / FOLDER).is_dir(), reason=f"{FOLDER} is not there; run: {INSTALL}")
)


def learned(model: HfModel, config: GridTextConfig, loss: LossTokens) -> str:
    row = training_row(model, TASK, config, loss)
    assert row is not None
    shown = len(model.prompt_ids(question(TASK.demos, TASK.tests[0].input, config)))
    assert row["input_ids"][:shown] == model.prompt_ids(question(TASK.demos, TASK.tests[0].input, config))
    assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    return model.tokenizer.decode([label for label in row["labels"] if label != IGNORED])


@pytest.mark.parametrize("name", [None, SMOLLM2])
@pytest.mark.parametrize("grid_format", list(GridFormat))
def test_what_is_learned_is_the_segments_and_the_end_mark(
    lm_config: Callable[..., HfModelConfig], name: str | None, grid_format: GridFormat
) -> None:
    """Prompt ids begin the training ids; loss=outputs decodes to every output, loss=last_output to the answer alone."""
    model = load_hf(lm_config() if name is None else lm_config(name=name))
    config, end = replace(TEXT, grid_format=grid_format), model.tokenizer.decode(model.reply_ids("")[-1:])
    outputs = [format_grid(pair.output, grid_format) for pair in TASK.pairs if pair.output is not None]
    assert learned(model, config, LossTokens.last_output) == outputs[-1] + end
    # A token that holds the line break after an output and the empty line behind it belongs to both.
    assert learned(model, config, LossTokens.outputs).replace("\n\n", "\n") == "\n".join(outputs) + end
    everything = learned(model, config, LossTokens.all)
    assert everything.startswith("<|im_start|>") and all(output in everything for output in outputs)


def test_a_tokenizer_that_begins_texts_itself_does_so_once(model: HfModel) -> None:
    """The template writes the begin-of-text mark; the tokenizer would add one more to every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer, mark = model.tokenizer, "<|pad|>"
    tokenizer.chat_template = mark + tokenizer.chat_template
    id_ = tokenizer.convert_tokens_to_ids(mark)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{mark} $A", pair=None, special_tokens=[(mark, id_)])
    assert tokenizer.encode("0 1")[0] == id_
    row = training_row(model, TASK, TEXT, LossTokens.outputs)
    assert row is not None and row["input_ids"][0] == id_ and row["input_ids"].count(id_) == 1


def test_a_task_longer_than_the_context_is_none(lm_config: Callable[..., HfModelConfig], model: HfModel) -> None:
    row = training_row(model, TASK, TEXT, LossTokens.outputs)
    assert row is not None
    length = len(row["input_ids"])
    assert training_row(load_hf(lm_config(max_context=length)), TASK, TEXT, LossTokens.outputs) is not None
    assert training_row(load_hf(lm_config(max_context=length - 1)), TASK, TEXT, LossTokens.outputs) is None
    assert most_answer_tokens(model, TEXT) == 30 * 59 + 29 + 1


def test_a_tokenizer_without_places_is_refused_for_outputs_alone(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match=r"loss=last_output"):
        training_row(model, TASK, TEXT, LossTokens.outputs)
    assert training_row(model, TASK, TEXT, LossTokens.last_output) is not None


def test_a_tokenizer_without_chat_template_is_refused(
    seal_lm: Path, lm_config: Callable[..., HfModelConfig], tmp_path: Path
) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(seal_lm, tmp_path / "copy"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no chat template"):
        load_hf(lm_config(name=str(folder)))


GRIDS = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(10, size=drawn[:2]).astype(np.uint8)
)


@given(GRIDS, st.sampled_from(list(GridFormat)))
def test_every_grid_comes_back(grid: np.ndarray, grid_format: GridFormat) -> None:
    found = read_grid("\n" + format_grid(grid, grid_format) + " \n", grid_format)
    assert found is not None and found.dtype == np.uint8 and np.array_equal(found, grid)


@given(st.text(alphabet="0123456789 \n|[],-.a٣", max_size=40), st.sampled_from(list(GridFormat)))
def test_nothing_else_is_a_grid(text: str, grid_format: GridFormat) -> None:
    """It never raises; what it takes for a grid is the text of that grid."""
    found = read_grid(text, grid_format)
    assert found is None or format_grid(found, grid_format) == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "0 1\n2", "0 12\n3 4", "0  1", "0 1\n\n2 3", "The answer: 0 1", "0 1 >", "01", "-1 0", "0 1,", "٣ 1", " ".join("0" * 31), "\n".join("0" * 31)],
)  # fmt: skip
def test_near_misses_are_no_grids(text: str) -> None:
    assert read_grid(text, GridFormat.spaced) is None
