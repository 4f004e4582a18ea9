"""evaluate.py solver=program_edit: programs are written, edited in turns, and vote; scored as every solver's answers are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError
from arclab.data.tasks import ArcTask, Pair
from arclab.files import read_object
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_edit.budget import CLOSE, WAIT
from arclab.methods.program_edit.editing import read_records
from arclab.programs.sandbox.pool import Sandbox
from arclab.solvers import evaluation

GRIDS = [np.array([[1, 1, 1], [2, 2, 2], [c, c, 4]], np.uint8) for c in (3, 5, 6)]
PAIRS = tuple(Pair(grid, grid[::-1, ::-1].copy()) for grid in GRIDS)  # turned; with the rows alone 7 of 9 cells are right
TURNED = ArcTask("turned", PAIRS[:2], PAIRS[2:], "test")
COPIED = ArcTask("copied", tuple(Pair(grid.T, grid.T) for grid in GRIDS[:2]), (Pair(GRIDS[2].T, GRIDS[2].T),), "test")
ROWS, BOTH, FIRST = (
    "def solve(I):\n    return I[::-1]",
    "def solve(I):\n    return [r[::-1] for r in I[::-1]]",
    "def solve(I):\n    return I[:1]",
)


class Editor(ScriptedModel):
    """First the rows, then the rest: it needs two turns. Notes how it was asked."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.asked: list[tuple[str, int]] = []

    def num_prompts(self, num_samples: int) -> int:
        return 50

    def answer(self, prompt: Prompt, number: int) -> str:
        text = prompt[0].content
        if "## The program so far" not in text:
            return f"```python\n{FIRST}\n```"
        return f"<think>\nturn\n</think>\n```python\n{FIRST if number else BOTH if ROWS in text else ROWS}\n```"

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
    ) -> list[Reply]:
        self.asked += [(prompt[0].content, sampling.seed) for prompt in prompts]
        return super().generate(prompts, num_samples, sampling, on_reply)


def evaluated(
    monkeypatch: pytest.MonkeyPatch,
    sandbox: Sandbox,
    folder: Path,
    model: ScriptedModel,
    *more: str,
    tasks: tuple[ArcTask, ...] = (TURNED, COPIED),
) -> dict[str, float]:
    with monkeypatch.context() as patch:
        patch.setattr(started, "load_language_model", lambda config: model)
        patch.setattr(evaluation, "open_sandbox", lambda config: nullcontext(sandbox))
        patch.setattr(evaluation, "scored_tasks", lambda config: (tasks, len(tasks), ()))
        start(
            "evaluate.py",
            [
                "solver=program_edit",
                "lm=tiny",
                "dataset=toy",
                f"output_dir={folder}",
                "solver.drafts=1",
                "solver.turns=3",
                "solver.num_samples=2",
                *more,
            ],
        )
    found = read_object(folder / "metrics.json")
    return {name: share["value"] for name, share in found["scores"].items()} | found["statistics"]


def test_the_best_programs_are_edited_until_two_answers_are_right(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path
) -> None:
    model = Editor()
    scores = evaluated(monkeypatch, sandbox, tmp_path / "a", model, "solver.enough_right=1")
    assert scores["ARC/pass@2"] == scores["ARC/pass@1"] == 1.0
    records = read_records(tmp_path / "a/edits.jsonl")
    assert {record.task for record in records} == {"turned"}  # the identity solves the other one: nothing to edit
    assert [record.turn for record in records].count(0) == 4 and max(record.turn for record in records) == 1
    edits = [(text, seed) for text, seed in model.asked if "## The program so far" in text]
    assert {seed for _, seed in edits} == {0, 1} and not any(
        "4 3 3" in text and "Test" in text.split("4 3 3")[0][-80:] for text, _ in edits
    )
    right = next(record for record in records if record.is_right)
    assert right.parent_source == ROWS and right.tests_solved and scores["edits/solved_share"] < 1


def test_fewer_turns_or_no_edits_do_not_get_there(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path) -> None:
    one = evaluated(monkeypatch, sandbox, tmp_path / "a", Editor(), "solver.turns=1", tasks=(TURNED,))
    none = evaluated(monkeypatch, sandbox, tmp_path / "b", Editor(), "solver.turns=0", tasks=(TURNED,))
    kept = evaluated(monkeypatch, sandbox, tmp_path / "c", Editor(), "solver.num_kept=1", "solver.turns=2", tasks=(TURNED,))
    assert one["ARC/pass@2"] == none["ARC/pass@2"] == 0.0 and kept["ARC/pass@2"] == 1.0
    assert len(read_records(tmp_path / "c/edits.jsonl")) == 4 and not (tmp_path / "b/edits.jsonl").exists()


def test_it_goes_on_with_what_is_kept_and_prompts_may_be_silent(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path
) -> None:
    first, second = Editor(), Editor()
    scores = [evaluated(monkeypatch, sandbox, tmp_path / "a", model, "prompt.report=false") for model in (first, second)]
    assert scores[0] == scores[1] and first.asked and not second.asked
    assert not any("examples are right" in text for text, _ in first.asked)
    with pytest.raises(ConfigError, match="num_samples=2, now"):
        evaluated(monkeypatch, sandbox, tmp_path / "a", Editor(), "prompt.report=false", "solver.num_samples=3")


def test_a_budget_of_thinking_holds_for_edits(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path) -> None:
    """The model closes its thinking at once: Wait is put in, once, and then it edits."""

    def reply(prompt: Prompt, number: int) -> str:
        if "## The program so far" not in prompt[0].content:
            return f"```python\n{FIRST}\n```"
        return f"```python\n{ROWS}\n```" if CLOSE in prompt[-1].content else f"turn{CLOSE}"

    think = "think={min_tokens: 9, max_tokens: 20, num_waits: 1}"
    evaluated(monkeypatch, sandbox, tmp_path / "a", ScriptedModel(reply), think, "solver.turns=1", tasks=(TURNED,))
    records = read_records(tmp_path / "a/edits.jsonl")
    assert records and {record.thinking for record in records} == {f"turn{WAIT}turn"}
    assert {record.source for record in records} == {ROWS}


def test_what_cannot_be_tried_or_asked_for_is_said(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path) -> None:
    long = ScriptedModel(["def solve(I): return I"], too_long=lambda prompt: True)
    with pytest.raises(ConfigError, match="none of the 1 tasks could be tried"):
        evaluated(monkeypatch, sandbox, tmp_path / "a", long, tasks=(TURNED,))
    for wrong, said in (
        ("reward.use_tests=true", "reward.use_tests=true is for tasks that are trained on"),
        ("solver.turns=-1", "turns=-1 must be at least 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            evaluated(monkeypatch, sandbox, tmp_path / "b", Editor(), wrong)
    with pytest.raises(ConfigError, match="no program would be written"):
        evaluated(monkeypatch, sandbox, tmp_path / "b", Editor(), "solver.turns=0", "solver.drafts=0")
