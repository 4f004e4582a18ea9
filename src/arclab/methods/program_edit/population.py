"""The programs that edits begin with and end in: programs.jsonl.

    population = Population.read(path)                    # or Population()
    population.add(program)                               # False: it is there already, or one that does the same
    starts = population.draw(task.id, 4, Random(0))       # unsolved programs, from every level of value in turn
    population.write(path)

Two programs are the same if their syntax trees are, comments, docstrings and names of variables aside, or if they answer the
same to every demonstration of their task; the one that came first stays. It runs nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from random import Random

from arclab.files import DamagedFile, read_lines, write_atomically
from arclab.programs.outcomes import Outcome

# Values at which a level begins: runs, the right shape, some cells, many, nearly all.
_LEVELS = (0.05, 0.15, 0.25, 0.5, 0.9)
_KINDS = {
    "task": str, "source": str, "origin": str, "generation": int, "parents": list[str], "value": float, "solved": list[bool],
    "signature": str, "changes": list[str],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ValueLevel:
    """What programs are worth that belong together: from low to less than high."""

    number: int
    low: float
    high: float


def level_of(value: float) -> ValueLevel:
    number = sum(value >= low for low in _LEVELS)
    ends = (0.0, *_LEVELS, 1.2)
    return ValueLevel(number, ends[number], ends[number + 1])


class Origin(Enum):
    """identity: gives back its input. draft: a model's, from nothing. mutant: a changed reference program. child: an edit."""

    identity = "identity"
    draft = "draft"
    mutant = "mutant"
    child = "child"


@dataclass(frozen=True, slots=True)
class Program:
    """value: see rewards.edit_value. solved: of each demonstration. signature: of its answers. parents: shas of the programs
    that it was made from. generation: edits since a program that was none. changes: of a mutant."""

    task: str
    source: str
    origin: Origin
    generation: int
    parents: tuple[str, ...]
    value: float
    solved: tuple[bool, ...]
    signature: str
    changes: tuple[str, ...] = ()

    @property
    def sha(self) -> str:
        return program_sha(self.source)

    @property
    def is_solved(self) -> bool:
        return bool(self.solved) and all(self.solved)


def program_sha(source: str) -> str:
    """Equal for programs that differ in comments, layout and names of variables alone. A program that does not parse goes by
    its text."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _digest(source.strip())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    names: dict[str, str] = {}
    for name in _variables(tree):
        names.setdefault(name, f"v{len(names)}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = names.get(node.arg, node.arg)
            node.annotation = None
    return _digest(ast.dump(tree))


def _variables(tree: ast.AST) -> Iterator[str]:
    """In order; functions and what is imported keep their names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def signature_of(outcome: Outcome) -> str:
    """Equal for programs that do the same on every demonstration."""
    parts = [
        f"{demo.status.name} {demo.message}" if demo.grid is None else f"{demo.grid.shape} {demo.grid.tobytes().hex()}"
        for demo in outcome.demos
    ]
    return _digest("\n".join(parts))


def program_of(
    task: str, outcome: Outcome, origin: Origin, value: float, *, parent: Program | None = None, changes: Sequence[str] = ()
) -> Program:  # fmt: skip
    assert outcome.source is not None
    return Program(
        task, outcome.source, origin, parent.generation + 1 if parent else 0, (parent.sha,) if parent else (), value,
        tuple(demo.is_right for demo in outcome.demos), signature_of(outcome), tuple(changes),
    )  # fmt: skip


class Population:
    """Programs by task, each once. by_answers=False: programs that are written differently are two, whatever they answer."""

    def __init__(self, *, by_answers: bool = True) -> None:
        self._by_answers = by_answers
        self._programs: dict[str, list[Program]] = {}
        self._known: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return sum(map(len, self._programs.values()))

    def of(self, task: str) -> list[Program]:
        """In the order in which they came."""
        return list(self._programs.get(task, ()))

    def add(self, program: Program) -> bool:
        """False: it, or one that does the same, is there already."""
        keys = {(program.task, program.sha), *([(program.task, program.signature)] if self._by_answers else [])}
        if keys & self._known:
            return False
        self._known |= keys
        self._programs.setdefault(program.task, []).append(program)
        return True

    def draw(self, task: str, count: int, rng: Random) -> list[Program]:
        """Up to `count` different programs that are not right yet. Levels of value take turns, so that few good programs are
        not lost among many bad ones; which begins, and which program of a level, is drawn."""
        levels: dict[int, list[Program]] = {}
        for program in self.of(task):
            if not program.is_solved:
                levels.setdefault(level_of(program.value).number, []).append(program)
        groups = [levels[level] for level in sorted(levels)]
        rng.shuffle(groups)
        for group in groups:
            rng.shuffle(group)
        dealt = [group[turn] for turn in range(max(map(len, groups), default=0)) for group in groups if turn < len(group)]
        return dealt[:count]

    def write(self, path: Path) -> None:
        lines = [
            json.dumps({**asdict(program), "origin": program.origin.value, "sha": program.sha})
            for programs in self._programs.values()
            for program in programs
        ]
        write_atomically(path, "".join(line + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> Population:
        """DamagedFile: a line is not what was written."""
        found, origins = cls(), {origin.value: origin for origin in Origin}
        for number, row in enumerate(read_lines(path, _KINDS), start=1):
            if row["origin"] not in origins:
                raise DamagedFile(path, f"origin is none of {', '.join(origins)}", line=number)
            given = row["task"], row["source"], origins[row["origin"]], row["generation"], tuple(row["parents"]), row["value"]
            found.add(Program(*given, tuple(row["solved"]), row["signature"], tuple(row["changes"])))
        return found


def _digest(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
