"""One task's tree while it grows: what may still be drawn, what a reply becomes, and what outcomes are backed up.

    expansion = archive.expand(node, rollout=3, temperature=0.8)     # None: the budget is used up
    jobs = archive.take(expansion, reply)                            # programs to run, of what the model drew
    archive.judge(expansion, outcomes)                               # rewards; expansion.open are the nodes to go on from
    archive.put(expansion)                                           # into the tree

Which nodes are expanded is for policies.py to say. A tree depends on the settings, the seed and the task alone: an expansion is
drawn with a seed of its own, and put into the tree in the order in which expansions were asked for. Test outputs are not used.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from arclab.config.tree_search_schema import SearchConfig, StepSearchConfig, TerminalReward, TreeSearchConfig
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Completion, Prompt, Reply, Sampling, prompt_digest
from arclab.methods.tree_search.prompts import ShownPrompt, continued, correction
from arclab.methods.tree_search.trees import Duplicate, Ending, Node, NodeKind, Tree
from arclab.programs.outcomes import Outcome, ProgramRun
from arclab.programs.rewards import RewardKind, reward
from arclab.programs.sandbox.execution import Status

RUNS = (Status.ok, Status.bad_output)  # no error: an unfinished program returns no grid


@dataclass(frozen=True, slots=True)
class Setting:
    """What all trees of a search have in common. has_values: a reward model judges open nodes."""

    solver: TreeSearchConfig
    search: SearchConfig
    seed: int
    has_values: bool = False

    @property
    def entry(self) -> str:
        return self.solver.prompt.entry


@dataclass(slots=True, eq=False)
class Expansion:
    """count draws from a node: attempts first, first + 1, ... prompt: what the model sees. drawn: what became of each, in
    order; of a prompt without room one node that says so."""

    task: ArcTask
    parent: Node
    kind: NodeKind
    first: int
    count: int
    rollout: int
    prompt: Prompt
    asked: str
    sampling: Sampling
    drawn: list[Node | Duplicate] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        return [item for item in self.drawn if isinstance(item, Node)]

    @property
    def open(self) -> list[Node]:
        """New nodes that programs can go on from: neither finished nor wrong."""
        return [node for node in self.nodes if not node.is_terminal]


class Archive:
    """shown: the prompts of the task, by id in the tree. rng: of choices, in the order in which they are made. num_pending:
    draws that are asked for and not yet in the tree. not_sent: settings that the server took no value of."""

    def __init__(self, task: ArcTask, setting: Setting, shown: Sequence[ShownPrompt], tree: Tree) -> None:
        self.task, self.setting, self.tree = task, setting, tree
        self.steps = tree.steps
        self.shown = {prompt.id: prompt for prompt in shown}
        self.rng = np.random.default_rng(_seed(setting.seed, task.id, "choices"))
        self.num_pending = 0
        self.not_sent: set[str] = set()
        self._answers: set[tuple[tuple[tuple[int, ...], bytes] | None, ...]] = set()
        self._begun_s = time.monotonic()
        for number, prompt in enumerate(shown):
            tree.add(
                Node(
                    tag=f"{tree.root.tag}.{number}",
                    parent=tree.root,
                    kind=NodeKind.prompt,
                    depth=0,
                    prompt_id=prompt.id,
                    examples=prompt.examples,
                    hinted=prompt.hinted,
                    asked=prompt_digest(prompt.prompt),
                )
            )

    @property
    def prompts(self) -> list[Node]:
        """The nodes of the task's prompts."""
        return self.tree.root.children[: len(self.shown)]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun_s

    def spent(self) -> str:
        """The budget that is used up; empty while there is some left."""
        search = self.setting.search
        if self._num_finished() >= search.num_programs:
            return "programs"
        if search.num_draws is not None and self.tree.num_attempts + self.num_pending >= search.num_draws:
            return "draws"
        if search.max_tokens is not None and self.tree.num_tokens >= search.max_tokens:
            return "tokens"
        if search.max_s is not None and self.seconds >= search.max_s:
            return "seconds"
        return ""

    def _num_finished(self) -> int:
        """Programs that count: whole ones as soon as they are asked for, since every draw is one."""
        is_whole = not isinstance(self.setting.search, StepSearchConfig)
        return self.tree.num_programs + (self.num_pending if is_whole else 0)

    def has_enough(self) -> bool:
        """Programs that reproduce every demonstration give so many different answers that more add nothing."""
        wanted = self.setting.search.stop_groups
        return wanted is not None and self.num_groups() >= wanted

    def num_groups(self) -> int:
        """Different answers to all test inputs, of programs that reproduce every demonstration."""
        return len(self._answers)

    def expand(self, node: Node, *, rollout: int, temperature: float, is_correction: bool = False) -> Expansion | None:
        """As many draws as the search branches, or as are left; None: nothing is left."""
        assert not node.is_pending and not node.is_closed, node.tag
        search = self.setting.search
        if self.spent():
            return None
        count = min(search.branching, search.num_programs - self._num_finished())
        if search.num_draws is not None:
            count = min(count, search.num_draws - self.tree.num_attempts - self.num_pending)
        shown = self.shown[self._prompt_of(node).prompt_id].prompt
        if is_correction:
            assert node.outcome is not None
            prompt = correction(shown, self.task, node.written, node.outcome, self.setting.solver, self.steps)
        else:
            prompt = continued(shown, node.written)
        node.is_pending = True
        self.num_pending += count
        return Expansion(
            self.task,
            node,
            NodeKind.refinement if is_correction else NodeKind.step,
            node.num_attempts,
            count,
            rollout,
            prompt,
            prompt_digest(prompt),
            self._sampling(node, temperature),
        )

    def _prompt_of(self, node: Node) -> Node:
        return next(above for above in node.path() if above.kind is NodeKind.prompt)

    def _sampling(self, node: Node, temperature: float) -> Sampling:
        solver, search = self.setting.solver, self.setting.search
        is_whole = not isinstance(search, StepSearchConfig)
        return Sampling(
            search.max_program_tokens if is_whole else search.max_step_tokens,
            temperature,
            solver.top_p,
            solver.top_k,
            solver.min_p,
            self.steps.stops(whole=is_whole),
            _seed(self.setting.seed, self.task.id, f"{node.tag}#{node.num_attempts}"),
        )

    def take(self, expansion: Expansion, reply: Reply) -> list[ProgramRun]:
        """What was drawn, as nodes that are not in the tree yet, and the programs to run, one for each that runs."""
        self.not_sent |= set(reply.not_sent)
        if reply.problem:
            ending = Ending.context if reply.too_long else Ending.refused
            expansion.drawn = [self._node(expansion, len(expansion.parent.children), 0, "", None, None, ending)]
        else:
            self._require_counts(reply)
            texts = {child.text: child.tag for child in expansion.parent.children}
            for number, completion in enumerate(reply.completions):
                expansion.drawn.append(self._drawn(expansion, number, completion, texts))
        return [self._job(node) for node in expansion.nodes if self._runs(node)]

    def _require_counts(self, reply: Reply) -> None:
        """ValueError: tokens are to be limited, and a server does not tell them."""
        if self.setting.search.max_tokens is not None and any(c.num_tokens is None for c in reply.completions):
            raise ValueError(
                f"search.max_tokens={self.setting.search.max_tokens} needs the number of tokens of each reply, which the "
                "server does not tell; set search.max_tokens=null and limit search.num_programs."
            )

    def _drawn(self, expansion: Expansion, number: int, completion: Completion, texts: dict[str, str]) -> Node | Duplicate:
        """texts: those that the parent has, with their tags; the new one is added."""
        if (known := texts.get(completion.text)) is not None:
            return Duplicate(
                known,
                expansion.parent.tag,
                expansion.first + number,
                expansion.rollout,
                completion.num_tokens,
                completion.logprob,
                expansion.sampling.temperature,
                expansion.asked,
            )
        node = self._node(
            expansion, len(texts), number, completion.text, completion.num_tokens, completion.logprob, self._ending(completion)
        )
        texts[completion.text] = node.tag
        search = self.setting.search
        if not node.is_terminal and isinstance(search, StepSearchConfig) and node.depth >= search.max_depth:
            node.ending = Ending.max_depth
        if not node.is_terminal and node.total_tokens >= search.max_program_tokens:
            node.ending = Ending.max_tokens
        return node

    def _node(
        self,
        expansion: Expansion,
        place: int,
        number: int,
        text: str,
        num_tokens: int | None,
        logprob: float | None,
        ending: Ending,
    ) -> Node:
        parent, kind = expansion.parent, expansion.kind
        before = self.steps.opening if kind is NodeKind.refinement else parent.written
        return Node(
            tag=f"{parent.tag}.{place}",
            parent=parent,
            kind=kind,
            depth=parent.depth + 1,
            rollout=expansion.rollout,
            attempt=expansion.first + number,
            text=text,
            written=before + text,
            num_tokens=num_tokens,
            logprob=logprob,
            temperature=expansion.sampling.temperature,
            asked=expansion.asked,
            prompt_id=self._prompt_of(parent).prompt_id,
            ending=ending,
        )

    def _ending(self, completion: Completion) -> Ending:
        if self.steps.is_cut(completion):
            return Ending.cut
        if self.steps.ends_program(completion):
            return Ending.program_end
        if not isinstance(self.setting.search, StepSearchConfig) or not self.steps.ends_step(completion):
            return Ending.turn_end
        return Ending.empty if self.steps.is_empty(completion.text) else Ending.open

    def _runs(self, node: Node) -> bool:
        """A step without an end, or of nothing, is not run; a correction that nobody wrote neither."""
        is_missing = node.kind is NodeKind.refinement and node.is_unwritten
        return node.ending not in (Ending.cut, Ending.empty) and not is_missing

    def _job(self, node: Node) -> ProgramRun:
        source = self.steps.source(node.written)
        if node.is_terminal:
            return ProgramRun(self.task, source, self.setting.entry, with_tests=True)
        return ProgramRun(self.task, self.steps.prefix(source), self.setting.entry, with_tests=False, num_demos=1)

    def judge(self, expansion: Expansion, outcomes: Sequence[Outcome]) -> None:
        """outcomes: of the programs that take() gave, in order."""
        found = iter(outcomes)
        for node in expansion.nodes:
            if not self._runs(node):
                is_written = node.ending in (Ending.cut, Ending.empty)
                node.valid, node.reward = False, -1.0 if is_written else None
                continue
            node.outcome = replace(next(found), source=self.steps.source(node.written))
            node.valid = node.outcome.demos[0].status in RUNS
            if not node.valid and not node.is_terminal:
                node.ending = Ending.invalid
            if node.is_terminal:
                node.reward = terminal_reward(node.outcome, node.valid, self.setting.search.reward)

    def put(self, expansion: Expansion) -> None:
        """Into the tree, in the order of the draws, after its earlier expansions."""
        expansion.parent.is_pending = False
        self.num_pending -= expansion.count
        for item in expansion.drawn:
            if isinstance(item, Node):
                self.tree.add(item)
                if item.passes and item.outcome is not None:
                    self._answers.add(tuple(_key(answer.grid) for answer in item.outcome.answers))
            else:
                self.tree.add_duplicate(item)


def terminal_reward(outcome: Outcome, valid: bool, kind: TerminalReward) -> float:
    """-1 to 1; see TerminalReward. All demonstrations count, whichever of them is wrong."""
    if not valid:
        return -1.0
    if kind is TerminalReward.binary:
        return 1.0 if outcome.is_right else -1.0
    share = reward(RewardKind.percent_correct, outcome).value
    return 1.0 if outcome.is_right else share - 1.0


def _key(grid: np.ndarray | None) -> tuple[tuple[int, ...], bytes] | None:
    return None if grid is None else (grid.shape, grid.tobytes())


def _seed(seed: int, task_id: str, what: str) -> int:
    """62 bits that belong to one thing of one task."""
    return int.from_bytes(hashlib.sha256(repr((seed, task_id, what)).encode()).digest()[:8], "little") >> 2
