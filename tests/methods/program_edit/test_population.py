"""programs.jsonl: each program once, also under other names, and start programs of every level of value."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from arclab.data.tasks import Grid
from arclab.files import DamagedFile
from arclab.methods.program_edit.population import Origin, Population, Program, program_of, program_sha, signature_of
from arclab.programs.outcomes import Outcome, compare
from arclab.programs.sandbox.execution import GridResult, Status

TRUTH = np.array([[1, 2], [3, 4]], np.uint8)


def outcome(source: str, *grids: Grid | None) -> Outcome:
    answers = [
        GridResult(Status.exception, None, "ValueError: (line 2)") if grid is None else GridResult(Status.ok, grid)
        for grid in grids
    ]
    return Outcome(source, tuple(compare(answer, TRUTH) for answer in answers), (), 0.0)


def test_programs_that_differ_in_words_alone_are_the_same() -> None:
    source = "def solve(I):\n    x = I[0]\n    return [x, 5]\n"
    for same in (
        '"""Doc."""\ndef solve(grid):\n    """What."""\n    # a comment\n    row = grid[0]\n\n    return [row, 5]',
        "def solve(I: list) :\n  y=I[0]\n  return [y,5]",
    ):
        assert program_sha(same) == program_sha(source)
    for other in (
        source.replace("5", "6"),
        source.replace("I[0]", "I[1]"),
        source.replace("solve", "transform"),
        source.replace("[x, 5]", "[I, 5]"),
        source.replace("I[0]", "f(I)"),
    ):
        assert program_sha(other) != program_sha(source)
    assert program_sha("def solve(:") == program_sha(" def solve(:\n") != program_sha("def solve(: 1")


def test_what_answers_the_same_is_there_once(tmp_path: Path) -> None:
    population = Population()
    first = program_of("a", outcome("def solve(I):\n    return I", TRUTH, TRUTH.T), Origin.identity, 0.7)
    assert population.add(first) and first.solved == (True, False) and not first.is_solved and first.generation == 0
    assert not population.add(
        program_of("a", outcome("def solve(I):\n    return [r for r in I]", TRUTH, TRUTH.T), Origin.draft, 0.7)
    )
    child = program_of("a", outcome("def solve(I):\n    return I[::-1]", TRUTH, None), Origin.child, 0.6, parent=first)
    assert population.add(child) and child.parents == (first.sha,) and child.generation == 1
    assert population.add(
        program_of("b", outcome("def solve(I):\n    return I", TRUTH), Origin.identity, 1.2, changes=("line: x",))
    )
    assert (
        signature_of(outcome("x", TRUTH)) != signature_of(outcome("x", TRUTH.reshape(1, 4))) != signature_of(outcome("x", None))
    )
    population.write(tmp_path / "programs.jsonl")
    read = Population.read(tmp_path / "programs.jsonl")
    assert read.of("a") == population.of("a") == [first, child] and read.of("b") == population.of("b") and len(read) == 3
    (tmp_path / "programs.jsonl").write_text((tmp_path / "programs.jsonl").read_text().replace('"child"', '"grandchild"'))
    with pytest.raises(DamagedFile, match=r"programs\.jsonl.*line 2.*origin is none of identity"):
        Population.read(tmp_path / "programs.jsonl")


def test_start_programs_are_of_every_level_and_none_is_right() -> None:
    population = Population()
    for number in range(60):
        value = 0.0 if number < 50 else (0.7 if number < 58 else 1.2 if number == 59 else 1.0)
        population.add(
            Program("a", f"def solve(I):\n    return {number}", Origin.draft, 0, (), value, (value == 1.2,), f"s{number}")
        )
    drawn = [population.draw("a", 3, Random(seed)) for seed in range(30)]
    assert all(len({program.sha for program in each}) == 3 and {p.value for p in each} == {0.0, 0.7, 1.0} for each in drawn)
    first = Counter(program.source for each in drawn for program in each if program.value == 0.0)
    assert len(first) > 10 and [p.sha for p in population.draw("a", 3, Random(1))] == [p.sha for p in drawn[1]]
    assert len(population.draw("a", 100, Random(0))) == 59 and population.draw("b", 3, Random(0)) == []
