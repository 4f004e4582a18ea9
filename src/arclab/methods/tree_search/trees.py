"""The tree of one task: its nodes, what outcomes were backed up through them, and the file that it is kept in.

    tree = load_tree(Path("runs/tree_search/m/a/trees/0a1b2c3d.jsonl"))
    node = tree.nodes["0.0.3.1"]                 # the second child of the fourth child of the first prompt
    node.q, node.visits, node.children, node.reward, tree.source(node)
    for node in tree.nodes.values(): ...         # in the order of their creation; node.rollout says in which rollout

The root "0" stands for the task, its children for the prompts that it is shown in ("0.0", "0.1", ...), all below them for steps
of programs. A finished program (a terminal node) has a reward, which is backed up once, when it is created, to itself and all
nodes above it: visits counts these outcomes, q is their mean. So visits and q follow from the nodes in their order, and are not
written down. Drawn steps that a sibling has already are no nodes; they are in tree.duplicates and count as attempts.

A file is a worklist (arclab.runs.worklist): settings with the version, then one line a node as it is created. Test answers are
what programs answered; nothing here knows whether they are right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from arclab.data.tasks import Grid
from arclab.files import Kind, is_kind
from arclab.methods.tree_search.steps import Steps
from arclab.programs.outcomes import Outcome, PairOutcome
from arclab.programs.sandbox.execution import GridResult, Status
from arclab.runs.worklist import ItemKind, Line, read_items

VERSION = 1
ROOT, END = "0", "end"
TREE_KIND = ItemKind(id_key="id", holds="nodes drawn", again="its expansion is drawn again")
_LONGEST_STEM = 200


class NodeKind(Enum):
    """task: the root. prompt: the task in one prompt. step: goes on where its parent ends (a whole program, where these are
    drawn at once). refinement: a program written anew, with its parent's and what is wrong with it in the prompt."""

    task = "task"
    prompt = "prompt"
    step = "step"
    refinement = "refinement"


class Ending(Enum):
    """Why a node is terminal. open: it is not. program_end, turn_end: the model ended the program, or its turn. max_depth,
    max_tokens: the program is as long as it may be. invalid: it does not compile, or raises on the first demonstration. cut:
    the step, or whole program, had no end within its limit. empty: a step of nothing. context: the prompt with the program so
    far leaves no room in the model's context. refused: by a server's filter."""

    open = "open"
    program_end = "program_end"
    turn_end = "turn_end"
    max_depth = "max_depth"
    max_tokens = "max_tokens"
    invalid = "invalid"
    cut = "cut"
    empty = "empty"
    context = "context"
    refused = "refused"


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """tag: that of the parent and its number among the children. attempt: which draw from the parent it was. text: as the model
    wrote it, markers included. num_tokens, logprob (nats, temperature 1): of the text; None where a server does not tell.
    asked: digest of the prompt that it was drawn from. value: what a reward model thinks of an open node. reward: of a terminal
    one, -1 to 1. outcome: on the first demonstration, of a terminal node on all and on test inputs; None: nothing ran.
    examples, hinted: of a prompt.

    Live: visits and value_sum of backed-up rewards; num_attempts drawn from here; num_passing programs below that reproduce all
    demonstrations; virtual: walks under way; is_pending: being drawn from; is_closed: its prompt has no room, or is refused;
    is_exhausted: nothing is left to draw below."""

    tag: str
    parent: Node | None = field(repr=False)
    kind: NodeKind
    depth: int
    rollout: int = 0
    attempt: int = 0
    text: str = ""
    written: str = ""  # all text from the beginning of the reply
    num_tokens: int | None = None
    logprob: float | None = None
    temperature: float | None = None
    asked: str = ""
    prompt_id: str = ""
    examples: tuple[str, ...] = ()
    hinted: bool = False
    ending: Ending = Ending.open
    valid: bool = True
    value: float | None = None
    reward: float | None = None
    outcome: Outcome | None = field(default=None, repr=False)
    children: list[Node] = field(default_factory=list, repr=False)
    visits: int = 0
    value_sum: float = 0.0
    num_attempts: int = 0
    num_passing: int = 0
    virtual: int = 0
    is_pending: bool = False
    is_closed: bool = False
    is_exhausted: bool = False

    @property
    def q(self) -> float:
        """Mean of the outcomes below; a reward model's value counts as one of them. Without any: 0."""
        known = self.visits + (self.value is not None)
        return (self.value_sum + (self.value or 0.0)) / known if known else 0.0

    @property
    def is_terminal(self) -> bool:
        return self.ending is not Ending.open

    @property
    def is_unwritten(self) -> bool:
        """Nothing could be drawn, so that it stands for the lack of it."""
        return self.ending in (Ending.context, Ending.refused)

    @property
    def passes(self) -> bool:
        """A finished program that reproduces every demonstration."""
        return self.is_terminal and self.outcome is not None and self.outcome.is_right

    @property
    def total_tokens(self) -> int:
        """Generated tokens of the program so far."""
        before = self.parent.total_tokens if self.parent is not None and self.kind is NodeKind.step else 0
        return before + (self.num_tokens or 0)

    def path(self) -> Iterator[Node]:
        """This node and all above it."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A draw whose text a sibling has. asked and the rest: as of a node."""

    of: str
    parent: str
    attempt: int
    rollout: int
    num_tokens: int | None
    logprob: float | None
    temperature: float | None
    asked: str


@dataclass(frozen=True, slots=True)
class End:
    """Why the search of a task ended (see REASONS of solver.py), and what it took."""

    reason: str
    num_rollouts: int
    seconds: float
    skipped: str = ""  # why the task could not be tried
    not_sent: tuple[str, ...] = ()  # settings that the server took no value of


class Tree:
    """nodes: by tag, in the order of creation. steps: how texts become programs. settings: the first line of the file."""

    def __init__(self, task_id: str, steps: Steps, settings: Mapping[str, Any] | None = None) -> None:
        self.task_id, self.steps, self.settings = task_id, steps, dict(settings or {})
        self.root = Node(tag=ROOT, parent=None, kind=NodeKind.task, depth=0)
        self.nodes: dict[str, Node] = {ROOT: self.root}
        self.duplicates: list[Duplicate] = []
        self.num_programs = 0  # finished ones, wrong ones and duplicates included
        self.num_tokens = 0  # generated, those of duplicates included
        self.end: End | None = None

    @property
    def num_attempts(self) -> int:
        """Programs and steps that were drawn, duplicates included."""
        return self.root.num_attempts

    def add(self, node: Node) -> None:
        """Put a new node below its parent, and back its reward up if it has one."""
        assert node.parent is not None and node.tag not in self.nodes, node.tag
        parent, self.nodes[node.tag] = node.parent, node
        assert node.tag == f"{parent.tag}.{len(parent.children)}", node.tag
        parent.children.append(node)
        if node.kind is NodeKind.prompt:
            node.written = self.steps.opening
            return
        node.written = (self.steps.opening if node.kind is NodeKind.refinement else parent.written) + node.text
        self._count(parent, node.num_tokens)
        self.num_programs += node.is_terminal
        parent.is_closed |= node.is_unwritten
        if node.reward is not None:
            for above in node.path():
                above.visits += 1
                above.value_sum += node.reward
                above.num_passing += node.passes

    def add_duplicate(self, duplicate: Duplicate) -> None:
        self.duplicates.append(duplicate)
        self._count(self.nodes[duplicate.parent], duplicate.num_tokens)
        self.num_programs += self.nodes[duplicate.of].is_terminal

    def _count(self, parent: Node, num_tokens: int | None) -> None:
        self.num_tokens += num_tokens or 0
        parent.num_attempts += 1
        if parent is not self.root:
            self.root.num_attempts += 1

    def source(self, node: Node) -> str:
        """The program so far."""
        return self.steps.source(node.written)

    def drawn(self) -> Iterator[Node]:
        """Nodes that were drawn: all but the task and its prompts."""
        return (node for node in self.nodes.values() if node.kind in (NodeKind.step, NodeKind.refinement))

    def programs(self) -> list[Node]:
        """Finished programs that ran, in the order of their creation."""
        return [node for node in self.drawn() if node.is_terminal and node.outcome is not None]


def tree_path(folder: Path, task_id: str) -> Path:
    """The file of a task in an output folder; another one for every id."""
    stem = quote(task_id, safe=" +,()=@")
    if len(stem) > _LONGEST_STEM or stem.startswith("."):
        stem = f"{stem[:100].lstrip('.')}~{hashlib.sha256(task_id.encode()).hexdigest()[:16]}"
    return folder / "trees" / f"{stem}.jsonl"


def load_tree(path: Path) -> Tree:
    """The tree in a file, as far as it was grown. DamagedFile: it is none, or one of another version; damaged lines, and what
    stands below them, are left out with a warning."""
    settings, items = read_items(path, parse_item, TREE_KIND)
    if settings.get("version") != VERSION:
        line = Line(path, 1, f"read it with the version of the project that wrote it, or {TREE_KIND.file_remedy}")
        raise line.damaged(f"it is a tree of version {settings.get('version')}, and this is version {VERSION}")
    line = Line(path, 1, TREE_KIND.file_remedy)
    line.require(settings, {"task": str, "steps": dict})
    line.require(settings["steps"], {each.name: str for each in fields(Steps)})
    tree = Tree(settings["task"], Steps(**{each.name: settings["steps"][each.name] for each in fields(Steps)}), settings)
    for item in items.values():
        put_item(tree, item)
    return tree


Item = dict[str, Any] | Duplicate | End


def put_item(tree: Tree, item: Item) -> None:
    """One line of a file into the tree; nothing where its parent is missing."""
    if isinstance(item, End):
        tree.end = item
    elif isinstance(item, Duplicate):
        if item.parent in tree.nodes:
            tree.add_duplicate(item)
    elif (parent := tree.nodes.get(item["parent"])) is not None and item["id"] == f"{parent.tag}.{len(parent.children)}":
        tree.add(node_from(item, parent, tree))


_NODE: dict[str, Kind] = {
    "id": str,
    "parent": str,
    "kind": str,
    "rollout": int,
    "attempt": int,
    "text": str,
    "tokens": int | None,
    "logprob": float | None,
    "temperature": float | None,
    "asked": str,
    "prompt": str,
    "examples": list[str],
    "hinted": bool,
    "ending": str,
    "valid": bool,
    "value": float | None,
    "reward": float | None,
    "outcome": dict | None,
}
_DUPLICATE: dict[str, Kind] = {
    "duplicate_of": str,
    "parent": str,
    "attempt": int,
    "rollout": int,
    "tokens": int | None,
    "logprob": float | None,
    "temperature": float | None,
    "asked": str,
}
_OUTCOME: dict[str, Kind] = {"demos": list, "answers": list, "cpu_s": float, "nondeterministic": bool}


def parse_item(record: dict[str, Any], line: Line) -> Item:
    """What a line holds; a node as its record, checked. DamagedFile: none of these."""
    if record["id"] == END:
        line.require(record, {"reason": str, "rollouts": int, "seconds": float, "skipped": str, "not_sent": list[str]})
        return End(record["reason"], record["rollouts"], record["seconds"], record["skipped"], tuple(record["not_sent"]))
    if "duplicate_of" in record:
        line.require(record, _DUPLICATE)
        return Duplicate(
            record["duplicate_of"],
            record["parent"],
            record["attempt"],
            record["rollout"],
            record["tokens"],
            record["logprob"],
            record["temperature"],
            record["asked"],
        )
    line.require(record, _NODE)
    if record["kind"] not in NodeKind.__members__ or record["ending"] not in Ending.__members__:
        raise line.damaged(f"kind={record['kind']} or ending={record['ending']} is not known")
    if record["outcome"] is not None:
        line.require(record["outcome"], _OUTCOME)
        if not all(map(_is_answer, [*record["outcome"]["demos"], *record["outcome"]["answers"]])):
            raise line.damaged("an answer of the program is none")
    return record


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("status") not in Status.__members__:
        return False
    grid, cells = value.get("grid"), value.get("cells", 0.0)
    is_grid = grid is None or (
        is_kind(grid, list[str]) and bool(grid) and len({len(row) for row in grid}) == 1 and "".join(grid).isdecimal()
    )
    return is_grid and is_kind(value.get("message"), str) and is_kind(cells, float) and 0 <= cells <= 1


def record_of(node: Node) -> dict[str, Any]:
    """The line of a node, without its id."""
    assert node.parent is not None
    return {
        "parent": node.parent.tag,
        "kind": node.kind.value,
        "rollout": node.rollout,
        "attempt": node.attempt,
        "text": node.text,
        "tokens": node.num_tokens,
        "logprob": node.logprob,
        "temperature": node.temperature,
        "asked": node.asked,
        "prompt": node.prompt_id,
        "examples": list(node.examples),
        "hinted": node.hinted,
        "ending": node.ending.value,
        "valid": node.valid,
        "value": node.value,
        "reward": node.reward,
        "outcome": _outcome_record(node.outcome),
    }


def duplicate_record(duplicate: Duplicate) -> tuple[str, dict[str, Any]]:
    """Its id and its line."""
    return f"{duplicate.parent}#{duplicate.attempt}", {
        "duplicate_of": duplicate.of,
        "parent": duplicate.parent,
        "attempt": duplicate.attempt,
        "rollout": duplicate.rollout,
        "tokens": duplicate.num_tokens,
        "logprob": duplicate.logprob,
        "temperature": duplicate.temperature,
        "asked": duplicate.asked,
    }


def end_record(end: End) -> dict[str, Any]:
    return {
        "reason": end.reason,
        "rollouts": end.num_rollouts,
        "seconds": end.seconds,
        "skipped": end.skipped,
        "not_sent": list(end.not_sent),
    }


def node_from(record: Mapping[str, Any], parent: Node, tree: Tree) -> Node:
    """The node of a checked record."""
    kind = NodeKind(record["kind"])
    node = Node(
        tag=record["id"],
        parent=parent,
        kind=kind,
        depth=parent.depth + (kind is not NodeKind.prompt),
        rollout=record["rollout"],
        attempt=record["attempt"],
        text=record["text"],
        num_tokens=record["tokens"],
        logprob=record["logprob"],
        temperature=record["temperature"],
        asked=record["asked"],
        prompt_id=record["prompt"],
        examples=tuple(record["examples"]),
        hinted=record["hinted"],
        ending=Ending(record["ending"]),
        valid=record["valid"],
        value=record["value"],
        reward=record["reward"],
    )
    if record["outcome"] is not None:
        written = (tree.steps.opening if kind is NodeKind.refinement else parent.written) + node.text
        node.outcome = _outcome_from(record["outcome"], tree.steps.source(written))
    return node


def _outcome_record(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    demos = [{**_answer_record(demo), "cells": demo.cell_share, "shape": demo.has_right_shape} for demo in outcome.demos]
    answers = [_answer_record(answer) for answer in outcome.answers]
    return {"demos": demos, "answers": answers, "cpu_s": outcome.cpu_s, "nondeterministic": outcome.nondeterministic}


def _answer_record(answer: PairOutcome | GridResult) -> dict[str, Any]:
    return {"status": answer.status.name, "grid": _rows(answer.grid), "message": answer.message}


def _outcome_from(record: Mapping[str, Any], source: str) -> Outcome:
    demos = tuple(
        PairOutcome(Status[each["status"]], _grid(each["grid"]), each["message"], bool(each["shape"]), float(each["cells"]))
        for each in record["demos"]
    )
    answers = tuple(GridResult(Status[each["status"]], _grid(each["grid"]), each["message"]) for each in record["answers"])
    return Outcome(source, demos, answers, record["cpu_s"], record["nondeterministic"])


def _rows(grid: Grid | None) -> list[str] | None:
    """A text of digits for each row: a cell has one of ten colours."""
    return None if grid is None else ["".join(map(str, row)) for row in grid.tolist()]


def _grid(rows: list[str] | None) -> Grid | None:
    return None if rows is None else np.array([[int(cell) for cell in row] for row in rows], np.uint8)
