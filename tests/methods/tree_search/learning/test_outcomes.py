"""Solutions and preference pairs of a tree that is built by hand, node by node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arclab.config.schema import SplitName
from arclab.config.tree_learning_schema import CollectConfig
from arclab.data.tasks import Grid
from arclab.methods.tree_search.learning.outcomes import labels_of, mean_q, pairs_of, solutions_of
from arclab.methods.tree_search.learning.records import PreferencePair, Solution, read_records, write_records
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import Ending, Node, NodeKind, Tree
from arclab.programs.outcomes import Outcome, PairOutcome
from arclab.programs.sandbox.execution import GridResult, Status

from ..common import TASKS, without_tests

TASK = TASKS[0]
STEPS = Steps(program_begin="", root="def solve(I):", step_end="#;", program_end="#.")
CONFIG = CollectConfig(split=SplitName.train, max_tasks=None, min_margin=0.4, min_outcomes=2, max_pairs=64)
LEARNED = {TASK.id}


def outcome(*, demos: bool, tests: bool) -> Outcome:
    assert TASK.tests[0].output is not None
    wrong: Grid = np.zeros((1, 1), np.uint8)
    shown = tuple(PairOutcome(Status.ok, pair.output if demos else wrong, "", demos, float(demos)) for pair in TASK.demos)
    return Outcome("", shown, (GridResult(Status.ok, TASK.tests[0].output if tests else wrong),), 0.0)


class Grown:
    """tree.add with fewer words."""

    def __init__(self) -> None:
        self.tree = Tree(TASK.id, STEPS)
        shown = Node(
            tag="0.0", parent=self.tree.root, kind=NodeKind.prompt, depth=0, prompt_id="plain", asked="digest of the prompt"
        )
        self.tree.add(shown)
        self.shown = shown

    def step(self, parent: Node, *, text: str = "", ends: str = "", value: float | None = None) -> Node:
        """ends: right, lucky (right on demonstrations alone), wrong, invalid; empty: open."""
        place = len(parent.children)
        node = Node(
            tag=f"{parent.tag}.{place}", parent=parent, kind=NodeKind.step, depth=parent.depth + 1,
            text=text or f"\n    x = {parent.tag.count('.')}{place} {'#.' if ends else '#;'}", temperature=0.5, num_tokens=3,
        )  # fmt: skip
        node.written = parent.written + node.text
        if ends:
            node.ending = Ending.program_end
            node.outcome = outcome(demos=ends in ("right", "lucky"), tests=ends == "right")
            node.valid, node.reward = ends != "invalid", 1.0 if ends in ("right", "lucky") else -1.0
        self.tree.add(node)
        return node


@pytest.fixture
def grown() -> Grown:
    """Below the prompt: a (3 right, 1 wrong), b (2 wrong), c (1 right, 1 wrong: on no side), d (1 wrong: too few), e (open)."""
    grown = Grown()
    a, b, c, d = (grown.step(grown.shown) for _ in range(4))
    grown.step(grown.shown)
    for parent, ends in ((a, "right right right wrong"), (b, "wrong lucky"), (c, "right wrong"), (d, "wrong")):
        for end in ends.split():
            grown.step(parent, ends=end)
    return grown


def test_labels_count_what_hidden_outputs_say(grown: Grown) -> None:
    counts = labels_of(TASK, grown.tree, LEARNED)
    found = {tag: (counts[tag].right, counts[tag].wrong) for tag in ("0", "0.0", "0.0.0", "0.0.1", "0.0.1.1", "0.0.4")}
    assert found == {"0": (4, 5), "0.0": (4, 5), "0.0.0": (3, 1), "0.0.1": (0, 2), "0.0.1.1": (0, 1), "0.0.4": (0, 0)}


def test_solutions_are_those_that_pass_and_say_whether_they_are_right(grown: Grown) -> None:
    found = solutions_of(TASK, grown.tree, 3, LEARNED)
    assert [(each.tag, each.right) for each in found] == [
        ("0.0.0.0", True), ("0.0.0.1", True), ("0.0.0.2", True), ("0.0.1.1", False), ("0.0.2.0", True),
    ]  # fmt: skip
    first = found[0]
    assert first.q_values == [0.5, 1.0] and first.mean_q == 0.75 and first.temperatures == [0.5, 0.5]
    assert first.number == 3 and first.prompt == "plain" and first.asked == "digest of the prompt" and first.num_tokens == 6
    assert first.written == "def solve(I):\n    x = 10 #;\n    x = 20 #." and mean_q(grown.tree.nodes["0.0.0.3"]) == -0.25
    replaced = grown.tree.nodes["0.0.0.0"]
    assert replaced.outcome is not None
    replaced.outcome = replace(replaced.outcome, nondeterministic=True)
    assert "0.0.0.0" not in {each.tag for each in solutions_of(TASK, grown.tree, 3, LEARNED)}


def test_pairs_of_steps_and_of_programs(grown: Grown) -> None:
    pairs = pairs_of(TASK, grown.tree, CONFIG, LEARNED)
    steps = {(pair.chosen_tag, pair.rejected_tag) for pair in pairs if pair.kind == "step"}
    # a against b: Q 0.5 and 0.0. d has one outcome, c as many of both kinds, e none. A finished program is its own outcome;
    # below a two better ones against the only wrong one would be four at most; b has no right one.
    assert steps == {
        ("0.0.0", "0.0.1"), ("0.0.0.0", "0.0.0.3"), ("0.0.0.1", "0.0.0.3"), ("0.0.0.2", "0.0.0.3"), ("0.0.2.0", "0.0.2.1"),
    }  # fmt: skip
    top = next(pair for pair in pairs if pair.chosen_tag == "0.0.0")
    assert (top.chosen_right, top.chosen_wrong, top.rejected_right, top.rejected_wrong) == (3, 1, 0, 2)
    assert top.prefix == "def solve(I):" and top.chosen == "\n    x = 10 #;" and (top.chosen_q, top.rejected_q) == (0.5, 0.0)
    traces = [pair for pair in pairs if pair.kind == "trace"]
    # The three best by mean Q against the three worst; what is right on demonstrations alone is a wrong one.
    assert [pair.chosen_tag for pair in traces[::3]] == ["0.0.0.0", "0.0.0.1", "0.0.0.2"]
    assert [pair.rejected_tag for pair in traces[:3]] == ["0.0.3.0", "0.0.1.0", "0.0.2.1"]
    assert all(pair.prefix + pair.chosen == grown.tree.nodes[pair.chosen_tag].written for pair in pairs)


def test_margin_outcomes_and_number_are_limits(grown: Grown) -> None:
    def tags(**changes: float) -> list[tuple[str, str]]:
        return [
            (pair.chosen_tag, pair.rejected_tag) for pair in pairs_of(TASK, grown.tree, replace(CONFIG, **changes), LEARNED)
        ]

    assert ("0.0.0", "0.0.1") not in tags(min_margin=0.6) and ("0.0.0.0", "0.0.0.3") in tags(min_margin=0.6)
    assert ("0.0.0", "0.0.3") in tags(min_outcomes=1) and len(tags(max_pairs=4)) == 4


def test_labels_are_refused_outside_of_training(grown: Grown) -> None:
    for call in (lambda: solutions_of(TASK, grown.tree, 0, set()), lambda: pairs_of(TASK, grown.tree, CONFIG, set())):
        with pytest.raises(ValueError, match="is no training task, so its hidden test outputs must label nothing"):
            call()
    with pytest.raises(ValueError, match="has hidden test outputs, so nothing can be labelled"):
        solutions_of(without_tests([TASK])[0], grown.tree, 0, LEARNED)


def test_records_come_back_from_their_files(grown: Grown, tmp_path: Path) -> None:
    solutions, pairs = solutions_of(TASK, grown.tree, 0, LEARNED), pairs_of(TASK, grown.tree, CONFIG, LEARNED)
    write_records(tmp_path / "s.jsonl", solutions)
    write_records(tmp_path / "p.jsonl", pairs)
    assert read_records(tmp_path / "s.jsonl", Solution) == solutions
    assert read_records(tmp_path / "p.jsonl", PreferencePair) == pairs
    with pytest.raises(ValueError, match="is damaged"):
        read_records(tmp_path / "s.jsonl", PreferencePair)
