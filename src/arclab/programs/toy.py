"""The program behind a toy task, written from its rule: solutions to train and to test program writers on.

    solution(task)      # "def solve(I):\n    I = I[::-1]\n    return [[[4, 3, 0][c] for c in r] for r in I]\n"
    solution_steps(task)        # ["I = I[::-1]", "m[0] = 4", "m[1] = 3", "m[2] = 0", "return [[m[c] for c in r] for r in I]"]

One line for each step of the rule (view, shift, crop, lines, colour map), in plain Python, without helpers. It exists for tasks
of arclab.data.synthetic only: a task without a rule is refused, for no program of a real task is known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from arclab.data.tasks import ArcTask

# Dihedral views as numbered in arclab.data.augment.
_VIEWS = {
    0: "I",
    1: "[list(r) for r in zip(*I)][::-1]",
    2: "[r[::-1] for r in I[::-1]]",
    3: "[list(r)[::-1] for r in zip(*I)]",
    4: "[r[::-1] for r in I]",
    5: "I[::-1]",
    6: "[list(r) for r in zip(*I)]",
    7: "[list(r)[::-1] for r in zip(*I)][::-1]",
}
_STEPS = {"n": (1, 0), "ne": (1, -1), "e": (0, -1), "se": (-1, -1), "s": (-1, 0), "sw": (-1, 1), "w": (0, 1), "nw": (1, 1)}


def solution(task: ArcTask) -> str:
    """A program whose function solve answers every pair of the task. ValueError for a task that was not generated."""
    if task.rule is None:
        raise ValueError(f"task {task.id} of {task.source} has no rule to write a program from; use toy: sources.")
    steps = list(_steps(task.rule))
    body = [f"I = {step}" for step in steps[:-1]] + [f"return {steps[-1]}"]
    return "def solve(I):\n" + "".join(f"    {line}\n" for line in body)


# What stands above the steps.
STEPS_ROOT = "def solve(I):\n    m = {}"


def solution_steps(task: ArcTask) -> list[str]:
    """The same program in more and smaller steps, to stand below STEPS_ROOT: a colour map colour by colour. Every beginning of
    it runs. ValueError as of solution."""
    solution(task)  # refuses other tasks
    assert task.rule is not None
    found: list[str] = []
    for word in task.rule.split():
        if match := re.fullmatch(r"colors=(\d+)", word):
            found += [f"m[{color}] = {other}" for color, other in enumerate(match[1])]
        elif word != "identity":
            found.append(f"I = {_step(word)}")
    is_mapped = bool(found) and found[-1].startswith("m[")
    return [*found, "return [[m[c] for c in r] for r in I]" if is_mapped else "return I"]


def _steps(rule: str) -> Iterator[str]:
    """An expression in I for each word of the rule; identity only where nothing else is left."""
    words = [word for word in rule.split() if word != "identity"] or ["view0"]
    for word in words:
        yield _step(word)


def _step(word: str) -> str:
    if match := re.fullmatch(r"view(\d)", word):
        return _VIEWS[int(match[1])]
    if match := re.fullmatch(r"colors=(\d+)", word):
        return f"[[[{', '.join(match[1])}][c] for c in r] for r in I]"
    if match := re.fullmatch(r"shift([+-]\d)([+-]\d)", word):
        cell = _cell(f"y - {int(match[1])}", f"x - {int(match[2])}")
        return f"[[{cell} for x in range(len(I[0]))] for y in range(len(I))]"
    if match := re.fullmatch(r"window_(\d+)_(\d+)_(\d+)_(\d+)", word):
        row, column, height, width = map(int, match.groups())
        return f"[r[{column}:{column + width}] for r in I[{row}:{row + height}]]"
    if match := re.fullmatch(r"box(?:_of_(\d))?", word):
        return _box("c > 0" if match[1] is None else f"c == {match[1]}")
    if match := re.fullmatch(r"line_(\w+)_(\d)", word):
        down, right = _STEPS[match[1]]
        seen = f"any({_cell(f'y + k * {down}', f'x + k * {right}')} for k in range(1, len(I)))"
        return f"[[c or ({match[2]} if {seen} else 0) for x, c in enumerate(r)] for y, r in enumerate(I)]"
    raise AssertionError(f"no program for the rule {word}")


def _cell(row: str, column: str) -> str:
    """The cell there, 0 outside the grid."""
    return f"(I[{row}][{column}] if 0 <= {row} < len(I) and 0 <= {column} < len(I[0]) else 0)"


def _box(wanted: str) -> str:
    rows = f"[y for y, r in enumerate(I) for c in r if {wanted}]"
    columns = f"[x for r in I for x, c in enumerate(r) if {wanted}]"
    return f"(lambda R, C: [r[min(C):max(C) + 1] for r in I[min(R):max(R) + 1]])({rows}, {columns})"
