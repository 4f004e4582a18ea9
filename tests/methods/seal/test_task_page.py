"""The pages of test-time training: they hold what the answers and the settings say, and nothing of a task's id gets out of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.seal_schema import EvaluateTestTimeTrainingConfig
from arclab.data.sources import load_source
from arclab.methods.seal.solver import TaskRecord, record_as_json, worklist_in
from arclab.methods.seal.task_page import losses_svg
from arclab.pages.analyse import main
from arclab.results.attempts import Candidate
from arclab.runs.folder import open_run

TOY = "toy:color_map?tasks=3&side=3&colors=3&palette=6&demos=3"
SETTINGS = [
    "solver=test_time_training", "lm=tiny", "dataset=toy", f'dataset.eval_sources=["{TOY}&split=test"]', "dataset.validation_sources=[]",
    f'dataset.train_sources=["{TOY}&split=train"]', "max_tasks=2",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks: one answered right second, by its votes first; one that was not tried."""
    out = tmp_path / "out"
    config = compose_run("evaluate_test_time_training", [*SETTINGS, f"output_dir={out}"])
    assert isinstance(config, EvaluateTestTimeTrainingConfig)
    open_run(config)
    first, second = load_source(f"{TOY}&split=test")[:2]
    truth = np.asarray(first.tests[0].output)
    wrong = truth.copy()
    wrong[0, 0] = (wrong[0, 0] + 1) % 10
    record = TaskRecord(
        "d", tests=((Candidate(wrong, 2, 0.25, -3.25), Candidate(truth, 5, 0.75, -4.5)),), losses=(2.0, 1.0, 0.5), num_rows=250,
        num_made=432, num_replies=9, num_no_grid=2,
    )  # fmt: skip
    worklist = worklist_in(out, {})
    worklist.add(first.id, record_as_json(record))
    worklist.add(second.id, record_as_json(TaskRecord("d", skipped="its prompt is <too> long")))
    worklist.add("gone", record_as_json(replace(record, problem="step 3 of 9 was not finite")))
    return out


def test_a_page_shows_candidates_losses_and_pseudo_tasks(folder: Path) -> None:
    assert main(["test_time_training", str(folder)]) == 0
    pages = {path.name: path.read_text() for path in (folder / "pages").iterdir()}
    assert sorted(pages) == ["index.html", "task_0000.html", "task_0001.html", "task_0002.html"]
    text = pages["task_0000.html"]
    cells = [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", text, re.DOTALL)]
    assert cells == ["", "2", "0.250", "-3.250", "1 of 9 cells wrong", "", "5", "0.750", "-4.500", ""]
    assert "24 of the 250 that were trained on" in text and text.count('class="card"') == 24
    assert "asks " in text and "loss of 3 steps, from 2.000 to 0.500" in text and "250 of 432" in text
    for page in pages.values():
        assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page and "<link" not in page
    skipped, gone = pages["task_0001.html"], pages["task_0002.html"]
    assert "It was not tried: its prompt is &lt;too&gt; long" in skipped and "Pseudo-tasks</h2>" not in skipped
    assert "Inputs and truth are missing" in gone and "step 3 of 9 was not finite" in gone
    rows = re.findall(r"<tr><th scope.*?</tr>", pages["index.html"], re.DOTALL)
    assert [row.count("<td") for row in rows] == [9, 9, 9]
    assert ">wrong<" in rows[0] and ">not tried<" in rows[1] and ">truth not known<" in rows[2]


def test_a_folder_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tasks\.jsonl"):
        main(["test_time_training", str(tmp_path)])


def test_a_curve_needs_two_losses() -> None:
    assert losses_svg([1.0]) == losses_svg([]) == "" and "nan" not in losses_svg([0.0, 0.0])
