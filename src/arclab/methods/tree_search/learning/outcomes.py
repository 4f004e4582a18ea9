"""What a tree teaches: programs that solve their task, and pairs of steps of which one leads to better ends.

    solutions = solutions_of(task, tree, 0, learned)
    pairs = pairs_of(task, tree, config.collect, learned)

A finished program is right if it reproduces every demonstration and every hidden test output. These outputs are looked at for
tasks that are trained on alone (learned: their ids); for any other task both functions refuse. Pure functions of a tree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from arclab.config.tree_learning_schema import CollectConfig
from arclab.data.tasks import ArcTask
from arclab.files import short
from arclab.methods.tree_search.learning.records import PreferencePair, Solution
from arclab.methods.tree_search.trees import Node, NodeKind, Tree
from arclab.programs.rewards import score_tests

_STEP_SIDE, _TRACE_SIDE = 2, 3  # of each side of a pair, best and worst first


@dataclass(frozen=True, slots=True)
class Counts:
    """Finished programs at and below a node, by their label."""

    right: int
    wrong: int

    @property
    def total(self) -> int:
        return self.right + self.wrong


def labels_of(task: ArcTask, tree: Tree, learned: Collection[str]) -> dict[str, Counts]:
    """By tag. ValueError: the task is not trained on, or its test outputs are not there."""
    if task.id not in learned:
        raise ValueError(
            f"task {short(task.id)} is no training task, so its hidden test outputs must label nothing; collect from training "
            "tasks only."
        )
    found: dict[str, Counts] = {}
    for node in reversed(tree.nodes.values()):  # children come after their parents
        below = [found[child.tag] for child in node.children]
        right, wrong = sum(each.right for each in below), sum(each.wrong for each in below)
        if node.is_terminal and node.kind in (NodeKind.step, NodeKind.refinement):
            is_right = is_solution(task, node)
            right, wrong = right + is_right, wrong + (not is_right)
        found[node.tag] = Counts(right, wrong)
    return found


def is_solution(task: ArcTask, node: Node) -> bool:
    if node.outcome is None or not node.passes:
        return False
    label = score_tests(task, node.outcome)
    if label is None:
        raise ValueError(f"task {short(task.id)} has hidden test outputs, so nothing can be labelled; use tasks with answers.")
    return label


def is_unstable(node: Node) -> bool:
    """Run again, it may answer something else."""
    return node.outcome is not None and node.outcome.nondeterministic


def solutions_of(task: ArcTask, tree: Tree, number: int, learned: Collection[str]) -> list[Solution]:
    """The programs that reproduce every demonstration, in the order of their creation, each labelled."""
    labels_of(task, tree, learned)
    return [_solution(task, tree, node, number) for node in tree.programs() if node.passes and not is_unstable(node)]


def _solution(task: ArcTask, tree: Tree, node: Node, number: int) -> Solution:
    steps, shown = path_of(node), prompt_of(node)
    return Solution(
        task=task.id, tag=node.tag, number=number, prompt=shown.prompt_id, asked=shown.asked, written=node.written,
        right=is_solution(task, node), mean_q=mean_q(node), q_values=[step.q for step in steps],
        temperatures=[step.temperature or 0.0 for step in steps], num_tokens=node.total_tokens,
    )  # fmt: skip


def path_of(node: Node) -> list[Node]:
    """The nodes that wrote the program, from its first step."""
    return [above for above in node.path() if above.kind in (NodeKind.step, NodeKind.refinement)][::-1]


def prompt_of(node: Node) -> Node:
    return next(above for above in node.path() if above.kind is NodeKind.prompt)


def mean_q(node: Node) -> float:
    values = [step.q for step in path_of(node)]
    return sum(values) / len(values)


def pairs_of(task: ArcTask, tree: Tree, config: CollectConfig, learned: Collection[str]) -> list[PreferencePair]:
    """Steps first, from the root downwards, then whole programs; at most max_pairs."""
    counts = labels_of(task, tree, learned)
    pairs = [*_step_pairs(task, tree, config, counts), *_trace_pairs(task, tree, counts)]
    return pairs[: config.max_pairs]


def _step_pairs(task: ArcTask, tree: Tree, config: CollectConfig, counts: dict[str, Counts]) -> Iterator[PreferencePair]:
    for parent in tree.nodes.values():
        children = [child for child in parent.children if child.kind is NodeKind.step and child.valid]
        # A child with ends of both kinds is on the side of the majority.
        sure = [child for child in children if child.is_terminal or counts[child.tag].total >= config.min_outcomes]
        better = sorted((c for c in sure if counts[c.tag].right > counts[c.tag].wrong), key=lambda node: -node.q)
        worse = sorted((c for c in sure if counts[c.tag].wrong > counts[c.tag].right), key=lambda node: node.q)
        for chosen, rejected in _crossed(better, worse, _STEP_SIDE):
            if chosen.q - rejected.q >= config.min_margin:
                yield _pair(task, tree, "step", parent.written, chosen, rejected, counts)


def _trace_pairs(task: ArcTask, tree: Tree, counts: dict[str, Counts]) -> Iterator[PreferencePair]:
    """Of one prompt each. Programs that were written as a correction have another one."""
    for shown in (node for node in tree.nodes.values() if node.kind is NodeKind.prompt):
        ends = [
            node for node in tree.programs()
            if node.valid and prompt_of(node) is shown and all(step.kind is NodeKind.step for step in path_of(node))
        ]  # fmt: skip
        better = sorted((node for node in ends if counts[node.tag].right), key=lambda node: -mean_q(node))
        worse = sorted((node for node in ends if not counts[node.tag].right), key=mean_q)
        for chosen, rejected in _crossed(better, worse, _TRACE_SIDE):
            yield _pair(task, tree, "trace", tree.steps.opening, chosen, rejected, counts)


def _crossed(better: Sequence[Node], worse: Sequence[Node], side: int) -> Iterator[tuple[Node, Node]]:
    """side x side of both ends; where one side has a single node, up to as many pairs with it."""
    first, second = side, side
    if len(better) == 1:
        second = side * side
    elif len(worse) == 1:
        first = side * side
    return ((chosen, rejected) for chosen in better[:first] for rejected in worse[:second])


def _pair(
    task: ArcTask, tree: Tree, kind: str, prefix: str, chosen: Node, rejected: Node, counts: dict[str, Counts]
) -> PreferencePair:
    shown = prompt_of(chosen)
    return PreferencePair(
        task=task.id, kind=kind, prompt=shown.prompt_id, asked=shown.asked, prefix=prefix,
        chosen=chosen.written.removeprefix(prefix), rejected=rejected.written.removeprefix(prefix),
        chosen_tag=chosen.tag, rejected_tag=rejected.tag, chosen_q=chosen.q, rejected_q=rejected.q,
        chosen_right=counts[chosen.tag].right, chosen_wrong=counts[chosen.tag].wrong,
        rejected_right=counts[rejected.tag].right, rejected_wrong=counts[rejected.tag].wrong,
    )  # fmt: skip
