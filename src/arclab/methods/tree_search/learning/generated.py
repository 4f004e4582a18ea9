"""Generated examples of training tasks (RE-ARC), and the tasks that they make.

    pairs, notes = generated_pairs(config, tasks, 4)              # {task id: pairs}; notes: why there are none
    entries = pseudo_tasks(task, programs, pairs)                 # curated records with examples of their own

An example belongs to the first of a task's programs that solves it, so that each program is taught with what it explains. As
many of them as the task has demonstrations and tests make a pseudo-task; what is left over is dropped. Generators cut
themselves off (arclab.data.rearc). Pairs are made for training tasks alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.data.rearc import PREFIX, PairRule, load_rearc
from arclab.data.rearc_package import INSTALL, package_folder
from arclab.data.sources import REARC_ORIGINALS, load_source
from arclab.data.tasks import MAX_SIDE, ArcTask, Grid, Pair, PairStream
from arclab.files import parse_object
from arclab.methods.tree_search.learning.records import AUGMENTED, Curated

STAMP = "pairs of RE-ARC are generated from the rules of training tasks, and of these alone"


def generated_pairs(
    config: TreeLearningConfig, tasks: Sequence[ArcTask], count: int
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Pairs 0, 1, ... of each task that has a generator, those that a task shows already left out. ValueError: the source is a
    folder that is none, or damaged."""
    streams = {task.id: task.stream for task in tasks if task.stream is not None}
    wanted = {task.id for task in tasks if task.source == REARC_ORIGINALS and task.stream is None}
    if not count or not (wanted or streams):
        return {}, [] if not count else ["the tasks have no generated examples: these are there for ARC-1 training tasks alone"]
    if wanted and config.augment.source == "rearc:" and package_folder() is None:
        return {}, [f"no generated examples: the package of RE-ARC is not installed ({INSTALL})"]
    if wanted:
        settings = config.dataset.rearc
        rule = PairRule(
            settings.min_difficulty, settings.max_difficulty, config.dataset.max_side or MAX_SIDE, settings.timeout_s
        )
        found = load_rearc(config.augment.source, rule, load_source(REARC_ORIGINALS), wanted)
        streams |= {task.id.removeprefix(PREFIX): task.stream for task in found if task.stream is not None}
    pairs = {task.id: fresh_pairs(task, streams[task.id], count) for task in tasks if task.id in streams}
    missing = len(tasks) - len(pairs)
    return pairs, [STAMP, *([f"{missing} of {len(tasks)} tasks have no generator"] if missing else [])]


def fresh_pairs(task: ArcTask, stream: PairStream, count: int) -> list[Pair]:
    """Up to count pairs, each once, none of them shown by the task."""
    known = {_key(pair) for pair in task.pairs}
    found: list[Pair] = []
    for number in range(2 * count + len(task.pairs)):
        pair = stream.pair(number)
        if _key(pair) not in known and len(found) < count:
            known.add(_key(pair))
            found.append(pair)
    return found


def _key(pair: Pair) -> tuple[tuple[int, ...], bytes]:
    return pair.input.shape, pair.input.tobytes()


def assigned(programs: Sequence[Curated], pairs: Sequence[Pair], answers: Sequence[Sequence[Grid | None]]) -> list[list[Pair]]:
    """For each program the pairs that it is the first to solve. answers: of each program, for every pair."""
    found: list[list[Pair]] = [[] for _ in programs]
    for place, pair in enumerate(pairs):
        for number, given in enumerate(answers):
            grid = given[place]
            if grid is not None and pair.output is not None and np.array_equal(grid, pair.output):
                found[number].append(pair)
                break
    return found


def pseudo_tasks(task: ArcTask, programs: Sequence[Curated], pairs: Sequence[Sequence[Pair]]) -> list[Curated]:
    """The programs with the task itself, then with each pseudo-task of the pairs that they solve; all weigh 1 together."""
    entries, size = list(programs), len(task.pairs)
    for program, own in zip(programs, pairs, strict=True):
        for number in range(len(own) // size):
            chunk = own[number * size : (number + 1) * size]
            examples = json.dumps({"train": _json(chunk[: len(task.demos)]), "test": _json(chunk[len(task.demos) :])})
            name = f"{task.id}+{len(entries) - len(programs)}"
            entries.append(replace(program, task=name, examples=examples))
    return [replace(entry, weight=1 / len(entries)) for entry in entries]


def _json(pairs: Sequence[Pair]) -> list[dict[str, list[list[int]]]]:
    return [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in pairs if pair.output is not None]


def task_of(entry: Curated, tasks: Mapping[str, ArcTask]) -> ArcTask:
    """The task that an entry is taught with."""
    if not entry.examples:
        return tasks[entry.origin]
    return ArcTask.from_json(parse_object(entry.examples, Path(AUGMENTED)), entry.task)
