"""Which nodes of a tree are drawn from next: the kinds of search, as ways to grow one archive.

    grower = grower_for(archive)
    while expansions := grower.next():       # drawn, run and put into the archive, all of them; then
        grower.done(expansions)

A grower is asked again only when everything that it asked for is in the tree; parallel_leaves of one tree are drawn from at the
same time (walks under way count as outcomes of -1, so that they spread). It ends with an empty list, and `reason` says why.

Walks (mcts, pwmcts, custom, bootstrap) go down from a prompt by the PUCT rule, Q + c P sqrt(N) / (1 + n): P is the model's own
probability of a step, per token, among its siblings; a node without an outcome has its parent's Q less fpu_reduction. Where a
node may be drawn from they stop, and go on from its children until they meet an end. They differ in where a node may be drawn
from. Nodes below which nothing is left to draw are exhausted, and not walked into; when the root is, the search is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from arclab.config.tree_search_schema import (
    BeamConfig,
    BootstrapConfig,
    CustomConfig,
    MctsConfig,
    PwMctsConfig,
    SampleRefineConfig,
    StepSearchConfig,
)
from arclab.methods.tree_search.archive import Archive, Expansion
from arclab.methods.tree_search.schedules import temperature
from arclab.methods.tree_search.trees import Node, NodeKind


class Grower(Protocol):
    """reason: why it ended. num_rollouts: begun so far."""

    reason: str
    num_rollouts: int

    def next(self) -> list[Expansion]:
        """What to draw now; empty: the search of this task is over."""
        ...

    def done(self, expansions: Sequence[Expansion]) -> None:
        """Everything that it asked for is in the tree."""
        ...


def grower_for(archive: Archive) -> Grower:
    """Of the kind that the settings name."""
    search = archive.setting.search
    if isinstance(search, BeamConfig):
        return Beam(archive, search)
    if isinstance(search, MctsConfig):
        return Walks(archive, search)
    if isinstance(search, SampleRefineConfig):
        return SampleRefine(archive, search)
    return Samples(archive)


# May a node be drawn from again; is it, at this visit, rather than walked through.
Rule = Callable[[Node, Archive], bool]


def may_expand(node: Node, archive: Archive) -> bool:
    """Whether the rule of the search leaves a node anything to draw. Attempts count, duplicates included: a model that always
    says the same has said it."""
    search = archive.setting.search
    if node.is_closed or node.is_terminal:
        return False
    if isinstance(search, PwMctsConfig):
        return node.num_attempts < math.ceil(search.branching * max(1, node.visits) ** search.widening_exponent)
    if isinstance(search, CustomConfig):
        return node.num_passing <= search.max_successes
    return isinstance(search, BootstrapConfig) or node.num_attempts == 0


def expands_now(node: Node, archive: Archive) -> bool:
    """Of a node that may be drawn from, with children to go on to."""
    search = archive.setting.search
    if isinstance(search, BootstrapConfig) and node.num_attempts:
        return bool(archive.rng.random() < search.regeneration_probability)
    return True


def priors(children: Sequence[Node]) -> list[float]:
    """What the model thinks of each among its siblings: softmax of the log-probability of a token. Equal where it does not
    tell."""
    if any(child.logprob is None or child.num_tokens is None for child in children):
        return [1 / len(children)] * len(children)
    rates = np.array([(child.logprob or 0.0) / max(1, child.num_tokens or 0) for child in children])
    weights = np.exp(rates - rates.max())
    return (weights / weights.sum()).tolist()


def puct(node: Node, search: MctsConfig) -> list[float]:
    """The score of each child."""
    total = node.visits + search.virtual_loss * node.virtual
    scores = []
    for child, prior in zip(node.children, priors(node.children), strict=True):
        scores.append(
            _value(child, search)
            + search.c_puct * prior * math.sqrt(max(1.0, total)) / (1 + child.visits + search.virtual_loss * child.virtual)
        )
    return scores


def _value(node: Node, search: MctsConfig) -> float:
    """Q with the walks under way as losses; the parent's less a reduction where nothing is known."""
    known, lost = node.visits + (node.value is not None), search.virtual_loss * node.virtual
    if known:
        return (node.q * known - lost) / (known + lost)
    above = node.parent
    assumed = _plain_q(above) - search.fpu_reduction if above is not None else 0.0
    return (assumed - lost) / (1 + lost)


def _plain_q(node: Node) -> float:
    """Q, or that of the nearest node above that has one."""
    while node.visits == 0 and node.value is None and node.parent is not None:
        node = node.parent
    return node.q


def update_exhausted(node: Node, archive: Archive) -> None:
    """From a node that was drawn from up to the root."""
    for above in node.path():
        is_root = above.parent is None
        may_grow = above.is_pending or (not is_root and may_expand(above, archive))
        above.is_exhausted = not may_grow and all(child.is_exhausted or child.is_terminal for child in above.children)


class _Rollouts:
    """What growers have in common: prompts in turn, the temperature, and why it ended."""

    def __init__(self, archive: Archive, num_rollouts: int) -> None:
        self.archive, self.max_rollouts = archive, num_rollouts
        self.num_rollouts, self.reason = 0, ""

    def is_over(self) -> bool:
        """Nothing new is to be drawn; reason says why."""
        self.reason = self.reason or ("enough" if self.archive.has_enough() else self.archive.spent())
        return bool(self.reason)

    def temperature(self, rollout: int) -> float:
        search, period = self.archive.setting.search, len(self.archive.prompts)
        return temperature(search.temperature, rollout=rollout, num_rollouts=self.max_rollouts, period=period)

    def prompt(self, rollout: int) -> Node | None:
        """The prompt that a rollout begins at: of those with something left, in turn or at random; None: nothing is left."""
        hinted = self._is_hinted(rollout)  # once: it may be drawn
        nodes = [node for node in self.archive.prompts if node.hinted == hinted]
        turn = rollout
        if not self.archive.setting.solver.examples.rotate:
            turn = int(self.archive.rng.integers(len(nodes)))
        ordered = [*nodes[turn % len(nodes) :], *nodes[: turn % len(nodes)]]
        others = [node for node in self.archive.prompts if node not in ordered]
        return next((n for n in [*ordered, *others] if not (n.is_exhausted or n.is_closed)), None)

    def _is_hinted(self, rollout: int) -> bool:
        search = self.archive.setting.search
        if not isinstance(search, BootstrapConfig):
            return False
        is_last = search.last_hinted is not None and rollout >= search.last_hinted
        return not is_last and (rollout < search.hinted_rollouts or bool(self.archive.rng.random() >= search.unhinted_share))


@dataclass(slots=True, eq=False)
class _Walk:
    """Where a rollout stands. is_fresh: its node was drawn from just now, and is not drawn from again."""

    rollout: int
    node: Node
    temperature: float
    is_fresh: bool = False


class Walks(_Rollouts):
    """mcts, pwmcts, custom, bootstrap."""

    def __init__(self, archive: Archive, search: MctsConfig) -> None:
        super().__init__(archive, search.num_rollouts)
        self._search = search
        self._walks: list[_Walk] = []

    def next(self) -> list[Expansion]:
        found: list[Expansion] = []
        for walk in list(self._walks):
            self._go_on(walk, found)
        while not found or len(self._walks) < self._search.parallel_leaves:
            walk = self._begin()
            if walk is None:
                break
            num_found = len(found)
            self._go_on(walk, found)
            if len(found) == num_found and found:
                break  # it waits for another walk
        return found

    def _begin(self) -> _Walk | None:
        if self.is_over():
            return None
        if self.num_rollouts >= self.max_rollouts:
            self.reason = "" if self._walks else "rollouts"
            return None
        node = self.prompt(self.num_rollouts)
        if node is None:
            self.reason = "" if self._walks else "exhausted"
            return None
        walk = _Walk(self.num_rollouts, node, self.temperature(self.num_rollouts))
        self.num_rollouts += 1
        self._walks.append(walk)
        return walk

    def _go_on(self, walk: _Walk, found: list[Expansion]) -> None:
        """Down to a node that is drawn from, which is added to found. A walk that can go nowhere is over, unless it waits for
        another one's draws."""
        while True:
            node = walk.node
            places = [n for n, child in enumerate(node.children) if not (child.is_exhausted or child.is_terminal)]
            free = [n for n in places if not node.children[n].is_pending]
            may = not walk.is_fresh and not node.is_pending and may_expand(node, self.archive)
            if may and (not free or expands_now(node, self.archive)):
                self._expand(walk, found)
                return
            if not free:
                if not (places or node.is_pending) or not any(other is not walk for other in self._walks):
                    self._walks.remove(walk)
                return
            scores = puct(node, self._search)
            walk.node, walk.is_fresh = node.children[max(free, key=lambda n: scores[n])], False

    def _expand(self, walk: _Walk, found: list[Expansion]) -> None:
        expansion = None
        if not self.is_over():
            expansion = self.archive.expand(walk.node, rollout=walk.rollout, temperature=walk.temperature)
        if expansion is None:
            self._walks.remove(walk)
            return
        for above in walk.node.path():
            above.virtual += 1
        found.append(expansion)

    def done(self, expansions: Sequence[Expansion]) -> None:
        by_rollout = {walk.rollout: walk for walk in self._walks}
        for expansion in expansions:
            by_rollout[expansion.rollout].is_fresh = True
            for above in expansion.parent.path():
                above.virtual -= 1
        for expansion in expansions:
            update_exhausted(expansion.parent, self.archive)


class Beam(_Rollouts):
    """Depth by depth; each rollout is a beam of its own, over the same archive."""

    def __init__(self, archive: Archive, search: BeamConfig) -> None:
        super().__init__(archive, search.num_rollouts)
        self._search = search
        self._frontier: list[Node] = []
        self._rollout = 0

    def next(self) -> list[Expansion]:
        if not self.is_over() and not self._frontier:
            self._begin()
        if self.reason:
            return []
        expansions = [
            self.archive.expand(node, rollout=self._rollout, temperature=self.temperature(self._rollout))
            for node in self._frontier
        ]
        return [expansion for expansion in expansions if expansion is not None]

    def _begin(self) -> None:
        node = self.prompt(self.num_rollouts) if self.num_rollouts < self.max_rollouts else None
        if node is None:
            self.reason = "rollouts" if self.num_rollouts >= self.max_rollouts else "exhausted"
            return
        self._rollout, self._frontier = self.num_rollouts, [node]
        self.num_rollouts += 1

    def done(self, expansions: Sequence[Expansion]) -> None:
        found = [child for e in expansions for child in e.parent.children if not (child.is_terminal or child.is_closed)]
        order = self.archive.rng.permutation(len(found))
        shuffled = [found[place] for place in order]
        if self.archive.setting.has_values:
            shuffled.sort(key=lambda node: -(node.value or 0.0))
        self._frontier = shuffled[: self._search.beam_width]


class Samples(_Rollouts):
    """Whole programs, drawn from the prompts in turn."""

    def __init__(self, archive: Archive) -> None:
        search = archive.setting.search
        super().__init__(archive, math.ceil(search.num_programs / search.branching))

    def next(self) -> list[Expansion]:
        return [] if self.is_over() else self._sampled(1)

    def _sampled(self, count: int) -> list[Expansion]:
        found: list[Expansion] = []
        while len(found) < count and not self.archive.spent():
            node = self.prompt(self.num_rollouts)
            if node is None:
                self.reason = "exhausted"
            if node is None or node.is_pending:
                break
            expansion = self.archive.expand(node, rollout=self.num_rollouts, temperature=self.temperature(self.num_rollouts))
            if expansion is None:
                break
            self.num_rollouts += 1
            found.append(expansion)
        return found

    def done(self, expansions: Sequence[Expansion]) -> None:
        pass


class SampleRefine(Samples):
    """num_first programs, then corrections of those that ran and are wrong, chosen by Thompson sampling on one island after
    the other."""

    def __init__(self, archive: Archive, search: SampleRefineConfig) -> None:
        super().__init__(archive)
        self._search = search

    def next(self) -> list[Expansion]:
        if self.is_over():
            return []
        if self.archive.tree.num_attempts < self._search.num_first:
            return self._sampled(self._search.parallel_leaves)
        found: list[Expansion] = []
        while len(found) < self._search.parallel_leaves and (node := self._pick()) is not None:
            rollout = self.num_rollouts
            expansion = self.archive.expand(node, rollout=rollout, temperature=self.temperature(rollout), is_correction=True)
            if expansion is None:
                break
            self.num_rollouts += 1
            found.append(expansion)
        return found or self._sampled(1)

    def _pick(self) -> Node | None:
        """The largest of one draw from each program's distribution; attempts count as soon as they are asked for."""
        wrong = [node for node in self.archive.tree.programs() if node.valid and not node.passes]
        free = [node for node in wrong if not (node.is_pending or node.is_closed)]
        if not free:
            return None
        islands = sorted({self._island(node) for node in free})
        turn = self.num_rollouts % self._search.num_islands
        island = next((each for each in islands if each >= turn), islands[0])  # that of this turn, or the next with any
        free = [node for node in free if self._island(node) == island]
        return free[int(np.argmax([self._draw(node) for node in free]))]

    def _island(self, node: Node) -> int:
        """That of the first program which led to it."""
        first = [above for above in node.path() if above.kind is NodeKind.step][-1]
        return first.attempt % self._search.num_islands

    def _draw(self, node: Node) -> float:
        assert node.outcome is not None
        share, weight = node.outcome.demo_share, self._search.thompson_c
        return float(self.archive.rng.beta(1 + weight * share, 1 + weight * (1 - share) + node.num_attempts))


def picks_at_random(search: object, has_values: bool) -> bool:
    """A beam without a reward model has nothing to choose by."""
    return isinstance(search, BeamConfig) and not has_values


def is_stepwise(search: object) -> bool:
    return isinstance(search, StepSearchConfig)
