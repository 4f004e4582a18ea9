"""The pages of program edits that a command writes: several searches in one table, and a curriculum over time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from arclab.config.compose import ConfigError
from arclab.files import DamagedFile
from arclab.methods.program_edit.curriculum import (
    Curriculum,
    TaskRecord,
    TaskState,
    new_curriculum,
    observe,
    with_moment,
    write_curriculum,
)
from arclab.methods.program_edit.curriculum_page import (
    read_snapshots,
    render_curriculum,
    shown_tasks,
    visit_line,
)
from arclab.methods.program_edit.table_page import read_arms, render_table
from arclab.pages.analyse import main
from arclab.programs.sandbox.pool import Sandbox

from .test_evolution import SINGLE, TREE, TWO_STEPS, wanderer
from .test_solver import TURNED, evaluated


def test_searches_stand_in_one_table_with_what_they_took(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path
) -> None:
    evaluated(monkeypatch, sandbox, tmp_path / "a", wanderer(), *TREE, tasks=TWO_STEPS)
    evaluated(monkeypatch, sandbox, tmp_path / "b", wanderer(), *TREE, "prompt.report=false", tasks=TWO_STEPS)
    evaluated(monkeypatch, sandbox, tmp_path / "c", wanderer(), *SINGLE, "solver.max_tokens=150", tasks=TWO_STEPS)
    arms = read_arms([tmp_path / name for name in "abc"])
    assert [arm.label for arm in arms] == ["tree", "tree, no report", "single"] and [arm.score.n for arm in arms[::2]] == [2, 0]
    assert main(["edits", *(str(tmp_path / name) for name in "abc")]) == 0
    page = (tmp_path / "a/edits.html").read_text()
    assert "2/2" in page and "0/2" in page and "tree, no report" in page and page.count("<figure>") == 3
    tokens = sum(each.tokens or 0 for each in arms[2].drawn)
    assert f"{tokens / 2:,.0f}" in page and "Score by thinking" in page
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path / "a", copied)
    pair = read_arms([tmp_path / "a", copied])
    assert pair[0].label != pair[1].label and all(arm.label.startswith("tree, ") for arm in pair)
    evaluated(monkeypatch, sandbox, tmp_path / "d", wanderer(), *TREE, tasks=(TURNED,))
    with pytest.raises(ConfigError, match="scored different tasks"):
        read_arms([tmp_path / "a", tmp_path / "d"])
    with pytest.raises(ConfigError, match="does not exist"):
        read_arms([tmp_path / "nothing"])
    arms[0] = replace(arms[0], label="<b>", stamps=("<i>said</i>",))
    assert "<b></th>" not in (escaped := render_table(arms)) and "&lt;b&gt;" in escaped and "<i>said" not in escaped


def learned(steps: int) -> Curriculum:
    """Of three tasks one is learned, one is hard, one was never drawn."""
    curriculum = new_curriculum(["done", "<b>hard", "never"], data="d")
    for step in range(1, steps + 1):
        curriculum = observe(curriculum, "done", [step > 4] * 4, step)
        curriculum = with_moment(observe(curriculum, "<b>hard", [False] * 4, step), step)
    return curriculum


def test_a_curriculum_is_shown_over_all_of_its_drawings(tmp_path: Path) -> None:
    for name, steps in (("checkpoints/step_00000003", 3), ("checkpoints/step_00000024", 24), (".", 30)):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        write_curriculum(tmp_path / name / "curriculum.json", learned(steps))
    snapshots = read_snapshots(tmp_path)
    assert [each.step for each in snapshots] == [3, 24, 30]
    past = snapshots[-1].curriculum.past  # of every drawing, not of the checkpoints alone
    assert [each.step for each in past] == list(range(1, 31)) and (past[0].hard, past[2].hard, past[-1].saturated) == (0, 2, 1)
    assert all(each.active + each.saturated + each.hard + each.given_up == 3 for each in past)
    assert past[-1].mean == pytest.approx(sum(snapshots[-1].curriculum.tasks[id_].mean for id_ in ("done", "<b>hard")) / 2)
    tasks = shown_tasks(snapshots)
    assert [task.state for task in tasks] == ["hard", "learning", "saturated"] and tasks[1].visits == {}
    done = tasks[-1].visits
    assert done[1] == 0.0 and done[5] == 1.0 and max(done) == 30 and 4 not in done  # older visits are those of older files
    assert tasks[-1].line.count("M") == 2 + done_gaps(done)
    assert main(["curriculum", str(tmp_path)]) == 0
    page = (tmp_path / "curriculum.html").read_text()
    assert "&lt;b&gt;hard" in page and "<b>hard" not in page and "not visited" in page and page.count("<figure>") == 2
    assert "nothing left to learn" not in page
    one = read_snapshots(tmp_path / "curriculum.json")
    assert len(one) == 1 and "States of the tasks" in render_curriculum(tmp_path, one)


def done_gaps(visits: dict[int, float]) -> int:
    """Pieces of a line whose visits follow one another, beside the two lines at 0 and 1 that every picture has."""
    return sum(number - 1 not in visits for number in visits)


def test_all_saturated_is_said_and_a_line_has_gaps(tmp_path: Path) -> None:
    done = TaskRecord(9, 0.9, 0.0, 9, TaskState.saturated, 0.0, 0, 5, (0.9,))
    write_curriculum(tmp_path / "curriculum.json", Curriculum("d", MappingProxyType({"a": done})))
    assert "nothing left to learn" in render_curriculum(tmp_path, read_snapshots(tmp_path))
    assert visit_line({}) == "" and str(visit_line({1: 0.0, 2: 1.0, 7: 0.5})).count("L") == 1


def test_what_is_no_curriculum_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no curriculum\.json; give the folder of stage=grpo"):
        read_snapshots(tmp_path)
    write_curriculum(tmp_path / "curriculum.json", learned(3))
    (tmp_path / "other").mkdir()
    write_curriculum(tmp_path / "other/curriculum.json", new_curriculum(["x"], data="e"))
    with pytest.raises(ConfigError, match="are of different data"):
        read_snapshots(tmp_path)
    (tmp_path / "other/curriculum.json").write_text(json.dumps({"data": "d", "tasks": {}, "version": "one"}))
    with pytest.raises(DamagedFile, match="version"):
        read_snapshots(tmp_path)
