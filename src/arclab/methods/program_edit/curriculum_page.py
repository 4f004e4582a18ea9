"""The page of a curriculum over time: how many tasks are learned, hard or done, and how each task went, visit by visit.

    python -m arclab.pages curriculum FOLDER [--output FILE]      # FOLDER: of stage=grpo, or a curriculum.json

Reads every curriculum.json in the folder: the newest one, and those of the checkpoints, which tell earlier visits of a task.
Writes
FOLDER/curriculum.html. A training that is still running can be looked at, too. It decides nothing.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from markupsafe import Markup

from arclab.config.compose import ConfigError
from arclab.files import read_object, write_atomically
from arclab.methods.program_edit.curriculum import Curriculum, TaskRecord, TaskState, read_curriculum
from arclab.pages.edit_pictures import share_layers, share_lines
from arclab.pages.templating import page
from arclab.results.writing import ResultPicture
from arclab.runs.console import setup_logging

log = logging.getLogger(__name__)
FILE, PAGE = "curriculum.json", "curriculum.html"
_SHOWN_TASKS = 400
_WIDTH, _HEIGHT = 120, 32  # of the line of a task, px
# In the order of the page: what needs a look comes first.
_WORDS = {
    TaskState.hard: "hard", TaskState.active: "learning", TaskState.given_up: "given up", TaskState.saturated: "saturated",
}  # fmt: skip
_COLORS = {"hard": "#d1332e", "learning": "#2f6fdb", "given up": "#6b7078", "saturated": "#2a9d5c"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A curriculum as it was when `step` was the last step that a task was visited at."""

    step: int
    curriculum: Curriculum


@dataclass(frozen=True, slots=True)
class ShownTask:
    """visits: number of the visit, counted from 1 -> share of its group that succeeded; of those that are known."""

    id: str
    state: str
    record: TaskRecord
    visits: dict[int, float]
    line: Markup


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m arclab.pages curriculum", description="A curriculum over time.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of stage=grpo, or a curriculum.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"where to write (default: FOLDER/{PAGE})")
    arguments = parser.parse_args(argv)
    setup_logging()
    snapshots, folder = read_snapshots(arguments.folder), arguments.folder
    output = arguments.output or (folder.parent if folder.is_file() else folder) / PAGE
    write_atomically(output, render_curriculum(folder.resolve(), snapshots))
    log.info("wrote %s", output)
    return 0


def read_snapshots(path: Path) -> list[Snapshot]:
    """By step, the newest last; of one step the same once. ConfigError: there are none, or they are of different data.
    DamagedFile: one is not what was written."""
    files = [path] if path.is_file() else sorted(path.rglob(FILE))
    if not files:
        raise ConfigError(f"{path} has no {FILE}; give the folder of stage=grpo, or the file.")
    found: dict[int, Snapshot] = {}
    first: tuple[Path, str] | None = None
    for file in files:
        told = read_object(file, {"data": str, "tasks": dict})
        curriculum = read_curriculum(file, told["data"], told["tasks"])
        first = first or (file, curriculum.data)
        if curriculum.data != first[1]:
            raise ConfigError(f"{first[0]} and {file} are of different data; give the folder of one training.")
        step = max((task.last_step for task in curriculum.tasks.values()), default=0)
        found[step] = Snapshot(step, curriculum)
    return [found[step] for step in sorted(found)]


def render_curriculum(path: Path, snapshots: Sequence[Snapshot]) -> str:
    newest = snapshots[-1].curriculum.tasks
    counts = Counter(_WORDS[task.state] for task in newest.values())
    facts = {
        "tasks": str(len(newest)), **{word: str(counts[word]) for word in _WORDS.values() if counts[word]},
        "visits": f"{sum(task.num_groups for task in newest.values()):,}", "last step": f"{snapshots[-1].step:,}",
    }  # fmt: skip
    tasks = shown_tasks(snapshots)
    return page(
        "curriculum.html.j2", title=(path.parent.name, path.name), facts=facts, pictures=_pictures(snapshots[-1].curriculum),
        tasks=tasks[:_SHOWN_TASKS], num_left_out=max(0, len(tasks) - _SHOWN_TASKS),
        is_all_saturated=snapshots[-1].curriculum.is_all_saturated,
    )  # fmt: skip


def _pictures(curriculum: Curriculum) -> list[ResultPicture]:
    past, num_tasks = curriculum.past, len(curriculum.tasks)
    if not past:
        return []
    steps = [each.step for each in past]
    layers = {word: [asdict(each)[state.value] / num_tasks for each in past] for state, word in reversed(_WORDS.items())}
    layers = {word: values for word, values in layers.items() if any(values)}
    note = "Share of the tasks in each state, drawing by drawing."
    found = [
        ResultPicture("States of the tasks", share_layers(steps, layers, [_COLORS[word] for word in layers], "drawing"), note)
    ]
    if len(steps) > 1:
        text = "Running mean of the share of a group that reproduces every demonstration, over all tasks visited so far."
        found.append(ResultPicture("Success", share_lines({"": [(each.step, each.mean) for each in past]}, "drawing"), text))
    return found


def shown_tasks(snapshots: Sequence[Snapshot]) -> list[ShownTask]:
    """All tasks, hard ones first, of each state those that go worst."""
    order, found = list(_WORDS), []
    for id_, record in snapshots[-1].curriculum.tasks.items():
        visits: dict[int, float] = {}
        for snapshot in snapshots:
            if (task := snapshot.curriculum.tasks.get(id_)) is not None:
                begin = task.num_groups - len(task.history) + 1
                visits |= {begin + place: share for place, share in enumerate(task.history)}
        found.append(ShownTask(id_, _WORDS[record.state], record, visits, visit_line(visits)))
    return sorted(found, key=lambda task: (order.index(task.record.state), task.record.mean, task.id))


def visit_line(visits: Mapping[int, float]) -> Markup:
    """Success from visit to visit as a line, 0 below and 1 above; a gap where visits are not known any more. A visit alone is a
    dot."""
    if not visits:
        return Markup("")
    first, last = min(visits), max(visits)
    width, height, edge = _WIDTH - 8, _HEIGHT - 8, 4
    places = {n: (edge + width * (n - first) / max(1, last - first), edge + height * (1 - visits[n])) for n in sorted(visits)}
    path = "".join(f"{'L' if n - 1 in places else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in places.items())
    x, y = places[last]
    ends = f"M0 {edge + height}h{_WIDTH}M0 {edge}h{_WIDTH}"
    return Markup(
        f'<svg class="visits" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="success at visits {first} to {last}"><path class="zero" d="{ends}"/>'
        f'<path class="line" d="{path}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/></svg>'
    )
