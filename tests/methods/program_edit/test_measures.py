"""What is counted of edits: shares by tokens and by thinking, steep cells, pass@k, difficulty, and an evaluation without
training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.files import read_object
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import Prompt
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_edit import evaluate as evaluate_module
from arclab.methods.program_edit.editing import EditRecord
from arclab.methods.program_edit.measures import (
    Drawn,
    difficulty_rows,
    measured,
    pass_at_ks,
    read_drawn,
    right_by_thinking,
    search_statistics,
    share_rows,
    solved_by_tokens,
    write_drawn,
)
from arclab.methods.program_edit.population import Origin, Program
from arclab.methods.program_edit.results import exhibits_of, lineage, pictures_of
from arclab.methods.program_edit.starts import Start
from arclab.metrics.names import REGISTRY, count_of
from arclab.programs.outcomes import Outcome
from arclab.runs.stages import read_counts

from .conftest import TOY


def drawn(task: str, tokens: int | None, is_right: bool, thinking: int = 0, **fields: Any) -> Drawn:
    return Drawn(**{"task": task, "level": 0, "tokens": tokens, "thinking_tokens": thinking, "value": 0.5, "delta": None,
                    "solves_demos": is_right, "solves_tests": is_right, **fields})  # fmt: skip


def record(number: int, **fields: Any) -> EditRecord:
    base: dict[str, Any] = {
        "id": f"t/a/0/{number}", "task": "t", "root": "a", "turn": 0, "parent": "a", "parent_source": "x", "prompt": "p", "thinking": "", "source": "y", "problem": "none",
        "is_cut": False, "statuses": ["ok"], "solved": [False], "shares": [0.5], "grids": [None], "r0": 0.1, "r1": 0.2, "delta": 0.1, "cost": 0.0, "signature": "s",
        "tokens": 10, "thinking_tokens": 4, "seed": 0, "sample": number, "tests_solved": False,
    }  # fmt: skip
    return EditRecord(**{**base, **fields})


def test_tasks_are_right_by_the_tokens_that_they_had_taken(tmp_path: Path) -> None:
    rows = [drawn("a", 10, False), drawn("a", 20, True), drawn("a", 30, True), drawn("b", 15, False), drawn("c", 5, True)]
    assert solved_by_tokens(rows, 4) == [(0, 0.0), (5, 0.25), (30, 0.5), (60, 0.5)]
    assert solved_by_tokens([*rows, drawn("d", None, True)], 4) == []
    half = drawn("a", 1, True, solves_tests=False)
    assert not half.is_right and drawn("a", 1, True, solves_tests=None).is_right
    write_drawn(tmp_path / "drawn.jsonl", rows)
    assert read_drawn(tmp_path / "drawn.jsonl") == rows


def test_thinking_is_put_in_bins_of_about_equal_numbers() -> None:
    rows = [drawn("a", 1, length >= 6, thinking=length) for length in range(12)]
    bins = right_by_thinking(rows, 3)
    assert sum(each.right.total for each in bins) == 12 and [(each.low, each.high) for each in bins] == [
        (0, 3),
        (4, 7),
        (8, 11),
    ]
    assert [each.right.n for each in bins] == [0, 2, 4] and bins[0].mean == 1.5
    (one,) = right_by_thinking([drawn("a", 1, False, thinking=7)] * 5)
    assert (one.low, one.high, one.right.total) == (7, 7, 5) and right_by_thinking([]) == []


def test_the_best_edit_of_a_start_program_says_its_cells_and_pass_is_of_the_first_turn() -> None:
    right = {"solved": [True], "shares": [1.0], "r1": 1.2, "tests_solved": True}
    records = [
        record(0), record(1, **right), record(2), record(3), record(4, turn=1, **right),
        *(record(number, root="b", shares=[0.9], tokens=30) for number in range(4)),
    ]  # fmt: skip
    found = measured(records, 2)
    assert found["edits/cell_share"] == pytest.approx((1.0 + 0.9) / 2)
    assert found["edits/steep_cell_share"] == pytest.approx((1.0 + 0.9**10) / 2)
    assert (
        found["edits/solved_per_1000_tokens"] == pytest.approx(1000 / (5 * 10 + 4 * 30)) and found["edits/thinking_tokens"] == 4
    )
    assert found["edits/pass@1"] == pytest.approx(0.125) and found["edits/pass@2"] == pytest.approx(0.25)
    assert "edits/pass@5" not in found and pass_at_ks([]) == measured([], 0) == {}
    only_demos = record(0, solved=[True], tests_solved=False)
    assert pass_at_ks([only_demos]) == {"edits/pass@1": 0.0}
    assert found.keys() <= REGISTRY.keys() and count_of("edits/pass@2", {"edits/starts": 2, "edits/count": 9}) == 2
    assert measured([record(0, shares=[])], 1)["edits/cell_share"] == 0.0


def test_success_is_told_by_changes_and_by_worth() -> None:
    def begun(sha: str, changes: tuple[str, ...], value: float) -> Start:
        program = Program(
            "t",
            "def solve(I):\n    return I\n",
            Origin.mutant if changes else Origin.identity,
            0,
            (),
            value,
            (False,),
            sha,
            changes,
        )
        return Start(ArcTask("t", (), (), "train"), program, Outcome(program.source, (), (), 0.0), root=sha)

    starts = [begun("a", (), 0.2), begun("b", ("x",), 0.95), begun("c", ("x", "y"), 0.95)]
    rows = difficulty_rows(starts, [record(0, root="b", solved=[True]), record(1, root="c")])
    assert {name: (share.n, share.total) for name, share in rows.items()} == {
        "identity": (0, 1), "mutant, 1 change": (1, 1), "mutant, 2 changes": (0, 1), "worth 0.15 or more, less than 0.25": (0, 1),
        "worth 0.9 or more, less than 1.2": (1, 2),
    }  # fmt: skip
    assert share_rows(rows)[1][:3] == ("mutant, 1 change", "1/1", "100.0\N{NO-BREAK SPACE}%")


def test_a_search_is_summed_over_its_tasks(toy_tasks: tuple[ArcTask, ...]) -> None:
    tasks = toy_tasks[:3]
    a, b = tasks[0].id, tasks[1].id
    rows = [
        drawn(a, 10, True),
        drawn(a, 10, False),
        drawn(a, 10, False),
        drawn(b, 5, True, solves_tests=False),
        drawn(b, 5, False),
    ]
    found = search_statistics(rows, [], tasks, num_alike=2)
    assert found["programs/count"] == 5 and found["programs/tokens"] == 40 and found["edits/tasks"] == 3
    assert found["programs/tasks_with_right"] == pytest.approx(2 / 3) and found["edits/coverage"] == pytest.approx(1 / 3)
    assert found["programs/pass@1"] == pytest.approx(0.5 / 3) and found["programs/pass@2"] == pytest.approx(1 / 3)
    assert "programs/pass@1" not in search_statistics(rows, [], tasks, num_alike=0)
    assert "programs/tokens" not in search_statistics([*rows, drawn(a, None, False)], [], tasks, num_alike=0)


def test_a_lineage_goes_back_to_what_was_no_edit() -> None:
    from arclab.methods.program_edit.population import program_sha

    first, second = "def solve(I):\n    return I[::-1]", "def solve(I):\n    return I[::-1][:2]"
    chain = [
        record(0, source=first),
        record(1, turn=1, parent=program_sha(first), source=second),
        record(2, turn=1, source=first),
    ]
    last = record(3, turn=2, parent=program_sha(second), source="def solve(I):\n    return 1")
    assert lineage([*chain, last], last) == [chain[0], chain[1], last]


def test_pictures_have_a_line_for_each_search_and_nothing_of_it_is_markup() -> None:
    rows = [drawn("a", 10, True, thinking=3), drawn("a", 20, False, thinking=30)]
    both = pictures_of({"<b>tree": rows, "single": rows[1:]}, {"<b>tree": 1, "single": 1})
    assert [picture.title for picture in both] == ["Tasks with a right program, by tokens", "Right programs, by thinking"]
    assert all("&lt;b&gt;tree" in picture.svg and "<b>tree" not in picture.svg and "single" in picture.svg for picture in both)
    assert len(pictures_of({"": [drawn("a", None, True)]}, {"": 1})) == 1  # no tokens, no line
    assert exhibits_of([]).tables == () and exhibits_of(rows).tables[0].rows[0][1] == "1/2"


def test_a_given_model_is_scored_without_any_stage_and_all_its_edits_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two wrong programs outvote a right one, unless they fail on the demonstrations; the page says how hard it was."""
    (task,) = load_source(TOY)[:1]
    from arclab.programs.toy import solution

    def reply(prompt: Prompt, number: int) -> str:
        source = solution(task) if number == 0 else "def solve(I):\n    return [[1]]"
        return f"<think>\n<i>so</i>\n</think>\n```python\n{source}\n```"

    loaded = []
    monkeypatch.setattr(started, "load_language_model", lambda config: loaded.append(config.name) or ScriptedModel(reply))
    monkeypatch.setattr(evaluate_module, "_scored_tasks", lambda config: (task,))
    command = [
        "method=program_edit", "lm=tiny", "lm.name=some/model", "dataset=toy", f"runs_dir={tmp_path}", "name=a", "stage=evaluate", "evaluate.model=given", "device=cpu",
        "sandbox.num_workers=1", "num_threads=1", "prompt.instructions=false", "starts.mutants=3", "starts.per_task=2", "evaluate.num_samples=3", "launch=local",
    ]  # fmt: skip
    assert start("self_improve.py", command) == 0
    folder = tmp_path / "program_edit/a/round_0/evaluate"
    counts = read_counts(folder)
    assert loaded == ["some/model"] and read_object(folder / "manifest.json")["inputs"] == {}
    assert counts["two_attempts"] == counts["pass@2"] / counts["pass@2"] == 1.0 and counts["tasks"] == 1.0
    assert counts["pass@1"] == pytest.approx(1 / 3) and counts["steep_cell_share"] == counts["cell_share"] == 1.0
    page = (folder / "chains.html").read_text()
    assert "Start programs put right" in page and "Right programs, by thinking" in page and "mutant, 1 change" in page
    assert "&lt;i&gt;so" in page and "<i>so" not in page
    assert np.isfinite(counts["solved_per_1000_tokens"])
