"""The search of one task, from its first draw to its end, kept in a file as it goes.

    search = TaskSearch(task, setting, shown, TreeFile(folder, task, steps, settings))
    while expansions := search.advance():                # what the model is asked for now
        for expansion in expansions:
            jobs = search.archive.take(expansion, reply) # run them, then
            search.archive.judge(expansion, outcomes)
            search.finish(expansion)                     # the last one lets advance() go on

What is in the file is not drawn again: a search that was killed goes through the same choices with the recorded draws, and goes
on where they end, to the tree that it would have grown without the kill. A file with its end is not searched again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arclab.data.tasks import ArcTask
from arclab.methods.tree_search.archive import Archive, Expansion, Setting
from arclab.methods.tree_search.policies import grower_for
from arclab.methods.tree_search.prompts import ShownPrompt
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import (
    END,
    TREE_KIND,
    VERSION,
    Duplicate,
    End,
    Ending,
    Item,
    Node,
    Tree,
    duplicate_record,
    end_record,
    node_from,
    parse_item,
    put_item,
    record_of,
    tree_path,
)
from arclab.runs.worklist import Worklist


class TreeFile:
    """The file of one task, which need not be there yet. settings: all that decides the tree, beside the task. Of that a digest
    stands in the file, without test outputs: these decide nothing."""

    def __init__(self, folder: Path, task: ArcTask, steps: Steps, settings: Mapping[str, Any]) -> None:
        own = {"version": VERSION, "task": task.id, "task (content)": _digest(task), "steps": asdict(steps)}
        self.settings = {**own, **settings}
        self._worklist = Worklist(tree_path(folder, task.id), self.settings, TREE_KIND)

    @property
    def path(self) -> Path:
        return self._worklist.path

    def check(self) -> None:
        """ConfigError: made with other settings."""
        self._worklist.check()

    def load(self) -> dict[str, Item]:
        """What is there by id; a half-written end is cut off."""
        return self._worklist.load(parse_item)

    def add(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        self._worklist.add_all(records, is_synced=END in records)


class TaskSearch:
    """file None: nothing is kept. num_drawn, num_tokens: drawn by this process, those from the file left out. problem: why a
    prompt got no reply, the first time; skipped: the same if no prompt of the task got any, so that it was not tried."""

    def __init__(self, task: ArcTask, setting: Setting, shown: Sequence[ShownPrompt], file: TreeFile | None = None) -> None:
        self.task, self._file, self.skipped, self.problem = task, file, "", ""
        items = {} if file is None else file.load()
        tree = Tree(task.id, Steps.of(setting.solver.steps), None if file is None else file.settings)
        self.num_drawn = self.num_tokens = 0
        self._missing: set[Expansion] = set()
        end = items.get(END)
        self.is_done = isinstance(end, End)
        if isinstance(end, End):
            self.skipped = end.skipped
            for item in items.values():
                put_item(tree, item)
            self.archive = Archive(task, setting, (), tree)
            return
        self.archive = Archive(task, setting, shown, tree)
        self._recorded = {(_parent_of(item), _attempt_of(item)): item for item in items.values() if not isinstance(item, End)}
        self._keep({node.tag: record_of(node) for node in self.archive.prompts if node.tag not in items})
        self._grower = grower_for(self.archive)
        self._tick: list[Expansion] = []  # what the grower asked for; asked: of that, what was not in the file
        self._asked: list[Expansion] = []

    @property
    def tree(self) -> Tree:
        return self.archive.tree

    def advance(self) -> list[Expansion]:
        """What has to be drawn now; empty: the search is over. Only after everything of the last time is finished."""
        assert not self._missing, "draws are under way"
        while not self.is_done:
            self._tick = self._grower.next()
            if not self._tick:
                self._end()
                break
            self._missing = {expansion for expansion in self._tick if not self._replay(expansion)}
            self._asked = [expansion for expansion in self._tick if expansion in self._missing]
            if self._asked:
                return self._asked
            self._put(())
        return []

    def finish(self, expansion: Expansion) -> bool:
        """An expansion was judged; whether it was the last one of its time, so that advance() goes on."""
        self._missing.remove(expansion)
        self.num_drawn += len(expansion.drawn)
        self.num_tokens += sum(item.num_tokens or 0 for item in expansion.drawn)
        if self._missing:
            return False
        self._put(self._asked)
        return True

    def _put(self, new: Sequence[Expansion]) -> None:
        """Everything of this time into the tree, in the order in which it was asked for; what is new into the file."""
        for expansion in self._tick:
            self.archive.put(expansion)
        self._grower.done(self._tick)
        records: dict[str, Mapping[str, Any]] = {}
        for item in (item for expansion in new for item in expansion.drawn):
            if isinstance(item, Node):
                records[item.tag] = record_of(item)
            else:
                id_, record = duplicate_record(item)
                records[id_] = record
        self._keep(records)

    def _replay(self, expansion: Expansion) -> bool:
        """Whether the file holds all of its draws, from the same prompt; if so they are taken."""
        found: list[Node | Duplicate] = []
        for attempt in range(expansion.first, expansion.first + expansion.count):
            item = self._recorded.get((expansion.parent.tag, attempt))
            if item is None or _asked_of(item) != expansion.asked:
                return False
            found.append(item if isinstance(item, Duplicate) else node_from(item, expansion.parent, self.tree))
            if isinstance(item, dict) and item["ending"] in (Ending.context.value, Ending.refused.value):
                break
        tags = [node.tag for node in found if isinstance(node, Node)]
        num_before = len(expansion.parent.children)
        if tags != [f"{expansion.parent.tag}.{num_before + number}" for number in range(len(tags))]:
            return False
        expansion.drawn = found
        return True

    def _end(self) -> None:
        self.is_done = True
        drawn = list(self.tree.drawn())
        if drawn and all(node.is_unwritten for node in drawn):
            self.skipped = self.problem or "no prompt of it could be answered"
        unsent = tuple(sorted(self.archive.not_sent))
        self.tree.end = End(self._grower.reason, self._grower.num_rollouts, self.archive.seconds, self.skipped, unsent)
        self._keep({END: end_record(self.tree.end)})

    def _keep(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        if self._file is not None and records:
            self._file.add(records)


def _digest(task: ArcTask) -> str:
    shown = [[pair.input.tolist(), None if pair.output is None else pair.output.tolist()] for pair in task.demos]
    return hashlib.sha256(json.dumps([shown, [test.input.tolist() for test in task.tests]]).encode()).hexdigest()[:16]


def _parent_of(item: Item) -> str:
    assert not isinstance(item, End)
    return item.parent if isinstance(item, Duplicate) else item["parent"]


def _attempt_of(item: Item) -> int:
    assert not isinstance(item, End)
    return item.attempt if isinstance(item, Duplicate) else item["attempt"]


def _asked_of(item: Item) -> str:
    assert not isinstance(item, End)
    return item.asked if isinstance(item, Duplicate) else item["asked"]
