"""The tiny model that is taught to write grids: what it is shown, and that its folder is a model like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.config.llm_schema import GridFormat
from arclab.config.seal_schema import GridTextConfig
from arclab.data.sources import load_source
from arclab.lm.hf import load_hf
from arclab.methods.seal.task_text import question, read_grid
from arclab.methods.seal.transduction import TransductionSizes, tiny_config, train_transduction, transduction_rows

TASKS = load_source("toy:color_map?tasks=40&side=3&colors=3&palette=6&demos=3")
TEXT = GridTextConfig(grid_format=GridFormat.digits, instructions=False)


def test_it_is_shown_one_to_all_demonstrations_and_the_right_answers() -> None:
    rows = transduction_rows(TASKS, TEXT, seed=0)
    counts = [prompt[-1].content.count(">") - 1 for prompt, _ in rows]
    assert set(counts) == {1, 2, 3} and rows == transduction_rows(TASKS, TEXT, seed=0) != transduction_rows(TASKS, TEXT, seed=1)
    for task, count, (prompt, reply) in zip(TASKS, counts, rows, strict=True):
        assert prompt == question(task.demos[:count], task.tests[0].input, TEXT)
        found = read_grid(reply, TEXT.grid_format)
        assert found is not None and found.tolist() == task.tests[0].output.tolist()  # pyright: ignore[reportOptionalMemberAccess]


def test_the_folder_is_a_model_and_the_same_call_leaves_it(tmp_path: Path) -> None:
    sizes = TransductionSizes(num_layers=1, width=32, num_heads=2, context=256, steps=3, batch_size=4)
    folder = train_transduction(tmp_path, TASKS, TEXT, 0, sizes)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert load_hf(tiny_config(folder)).max_context == 256
    assert train_transduction(tmp_path, TASKS, TEXT, 0, sizes) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="was trained with"):
        train_transduction(tmp_path, TASKS, TEXT, 1, sizes)
