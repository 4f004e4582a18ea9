"""Tree search as a solver: tasks in, ranked answers out, a tree of each task in a file.

    solver = TreeSearch(model, sandbox, setting, folder=run_folder, settings=settings)
    attempts = solver.solve(tasks, Budget())

Finished programs vote as in arclab.programs.voting: grouped by the tuple of all their test answers, those that reproduce every
demonstration first; for each test input the first two different answers are the attempts. Three numbers are told apart: tasks
for which any program answers all tests right (tree/coverage, which needs the truth and is for reports), tasks for which some
program reproduces every demonstration (programs/tasks_with_right), and the score of two attempts (ARC/pass@2). Test outputs are
used for the first alone, after the search.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arclab.data.tasks import ArcTask
from arclab.lm.language_model import LanguageModel
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.engine import Engine, Values
from arclab.methods.tree_search.prompts import Example, shown_prompts
from arclab.methods.tree_search.search import TaskSearch, TreeFile
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import Ending, Node, NodeKind, Tree
from arclab.programs.outcomes import Outcome
from arclab.programs.rewards import RewardKind, reward, score_tests
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.voting import vote
from arclab.results.attempts import Attempts, Budget
from arclab.runs.console import progress_bar
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.solvers.answers import candidates, written_programs

REASONS = ("rollouts", "programs", "draws", "tokens", "seconds", "exhausted", "enough")


class TreeSearch:
    """folder: of the trees, with the settings that decide them; None: they are not kept. hints: by task id. values: a reward
    model (see engine.py). progress: hears of tasks that are done, and may end the search."""

    def __init__(
        self, model: LanguageModel, sandbox: Sandbox, setting: Setting, *, folder: Path | None = None,
        settings: Mapping[str, Any] | None = None, examples: Sequence[tuple[Example, ...]] = (),
        hints: Mapping[str, str] | None = None, values: Values | None = None, show_progress: bool = False,
        progress: WorkProgress | None = None,
    ) -> None:  # fmt: skip
        assert setting.has_values == (values is not None)
        self._model, self._sandbox, self._setting, self._folder, self._settings = (
            model,
            sandbox,
            setting,
            folder,
            settings or {},
        )
        self._steps = Steps.of(setting.solver.steps)
        self._examples, self._hints, self._values = examples, hints, values
        self._show_progress, self._progress = show_progress, progress
        self._num_done = 0
        self.trees: dict[str, Tree] = {}

    def solve(self, tasks: Sequence[ArcTask], budget: Budget) -> Attempts:
        """Candidates by votes of programs, and the statistics tree/*, programs/* and reward/*. budget: not used, the search has
        its own. ValueError: the model or the sandbox cannot be used. ToldToEnd: the progress said so; trees are kept as far as
        they were grown."""
        begun_s, self._num_done = time.monotonic(), 0
        engine = Engine(
            self._model, self._sandbox, branching=self._setting.search.branching,
            trees_at_once=self._setting.solver.trees_at_once, values=self._values, check=self._require_going_on,
        )  # fmt: skip
        found: dict[str, TaskSearch] = {}
        with progress_bar(total=len(tasks), desc="searching programs", unit="task", disable=not self._show_progress) as bar:
            for search in engine.run(self._searches(tasks)):
                found[search.task.id] = search
                bar.update()
                self._num_done += 1
                if self._progress is not None:
                    self._progress.report(self._num_done)
        self.trees = {task.id: found[task.id].tree for task in tasks}
        attempts = answers(tasks, self.trees, {id_: search.skipped for id_, search in found.items() if search.skipped})
        attempts.statistics |= speed(list(found.values()), engine, time.monotonic() - begun_s)
        return attempts

    def _searches(self, tasks: Sequence[ArcTask]) -> Iterator[TaskSearch]:
        """One after the other, as there is room for them."""
        for task in tasks:
            shown = shown_prompts(
                task, self._setting.solver, self._examples, None if self._hints is None else self._hints[task.id]
            )
            file = None if self._folder is None else TreeFile(self._folder, task, self._steps, self._settings)
            yield TaskSearch(task, self._setting, shown, file)

    def _require_going_on(self) -> None:
        if self._progress is not None and self._progress.is_told and self._num_done < self._progress.num_steps:
            raise ToldToEnd(f"{self._num_done} of {self._progress.num_steps} tasks are searched, and the trees of others begun")


def answers(tasks: Sequence[ArcTask], trees: Mapping[str, Tree], skipped: Mapping[str, str]) -> Attempts:
    """What trees answer, and what became of their nodes. skipped: task id -> why it could not be tried."""
    attempts = Attempts({}, skipped=dict(skipped))
    finished: dict[str, list[Outcome]] = {}
    for task in tasks:
        outcomes = [node.outcome for node in trees[task.id].programs() if node.outcome is not None and node.outcome.answers]
        finished[task.id] = outcomes
        groups = vote(outcomes, len(task.tests))
        ranked = candidates(groups, len(task.tests))
        attempts.candidates |= {(task.id, number): ranked[number] for number in range(len(task.tests))}
        attempts.programs[task.id] = written_programs(groups)
    ends = [tree.end for tree in trees.values() if tree.end is not None]
    attempts.not_sent = dict(Counter(setting for end in ends for setting in end.not_sent))
    attempts.statistics = statistics(tasks, trees, finished, len(skipped))
    return attempts


def statistics(
    tasks: Sequence[ArcTask], trees: Mapping[str, Tree], finished: Mapping[str, list[Outcome]], num_skipped: int
) -> dict[str, float]:
    """The metrics tree/*, programs/* and reward/*. Shares of nodes are over all draws of all tasks, reward/* over finished
    programs."""
    all_trees = [trees[task.id] for task in tasks]
    num_drawn = sum(tree.num_attempts for tree in all_trees)
    found = {
        "programs/count": float(sum(tree.num_programs for tree in all_trees)),
        "tree/draws": float(num_drawn),
        **_tokens(all_trees),
        "programs/tasks_skipped": float(num_skipped),
        "programs/tasks_with_right": float(np.mean([tree.root.num_passing > 0 for tree in all_trees])),
        "tree/programs_passing": float(np.mean([tree.root.num_passing for tree in all_trees])),
        **_coverage(tasks, finished),
    }
    if not num_drawn:
        return found
    nodes = [node for tree in all_trees for node in tree.drawn()]
    endings = Counter(node.ending for node in nodes)
    found |= {
        "tree/nodes": len(nodes) / len(all_trees),
        "tree/depth": float(np.mean([max([node.depth for node in tree.drawn()] or [0]) for tree in all_trees])),
        "tree/duplicate_share": sum(len(tree.duplicates) for tree in all_trees) / num_drawn,
        "tree/invalid_share": sum(not node.valid for node in nodes) / num_drawn,
        "tree/refinement_share": sum(node.kind is NodeKind.refinement for node in nodes) / num_drawn,
        **{f"tree/ended_{kind.value}": endings[kind] / num_drawn for kind in Ending if kind is not Ending.open},
        **_ends(all_trees),
    }
    outcomes = [outcome for task in tasks for outcome in finished[task.id]]
    ran = [node.outcome for node in nodes if node.outcome is not None]
    found["programs/run"] = float(len(ran))
    if ran:
        found["programs/cpu_s"] = float(np.mean([outcome.cpu_s for outcome in ran]))
        found["programs/nondeterministic_share"] = float(np.mean([outcome.nondeterministic for outcome in ran]))
    if outcomes:
        rewards = [reward(RewardKind.smooth, outcome).components for outcome in outcomes]
        found |= {name: float(np.mean([components[name] for components in rewards])) for name in rewards[0]}
    return found


def _tokens(trees: Sequence[Tree]) -> dict[str, float]:
    """Nothing where a server does not tell them."""
    drawn = [item for tree in trees for item in (*tree.drawn(), *tree.duplicates)]
    is_told = all(item.num_tokens is not None or (isinstance(item, Node) and item.is_unwritten) for item in drawn)
    return {"programs/tokens": float(sum(tree.num_tokens for tree in trees))} if is_told else {}


def _coverage(tasks: Sequence[ArcTask], finished: Mapping[str, list[Outcome]]) -> dict[str, float]:
    """Over the tasks whose test outputs are known; nothing if none are."""
    known = [task for task in tasks if all(test.output is not None for test in task.tests)]
    hits = [any(score_tests(task, outcome) is True for outcome in finished[task.id]) for task in known]
    return {"tree/coverage": float(np.mean(hits))} if known else {}


def _ends(trees: Sequence[Tree]) -> dict[str, float]:
    """Shares of the searched tasks by why the search ended."""
    ends = [tree.end for tree in trees if tree.end is not None]
    if not ends:
        return {}
    counts = Counter(end.reason for end in ends)
    return {
        "tree/rollouts": float(np.mean([end.num_rollouts for end in ends])),
        **{f"tree/over_{reason}": counts[reason] / len(ends) for reason in REASONS},
    }


def speed(searches: Sequence[TaskSearch], engine: Engine, seconds: float) -> dict[str, float]:
    """Of what this process drew; what came from files took no time."""
    num_drawn = sum(search.num_drawn for search in searches)
    if not num_drawn:
        return {}
    found = {
        "timing/nodes_per_s": num_drawn / max(seconds, 1e-9),
        "timing/tokens_per_s": sum(search.num_tokens for search in searches) / max(seconds, 1e-9),
        "timing/sandbox_wait_share": engine.waiting_s / max(seconds, 1e-9),
    }
    if num_drawn == sum(search.tree.num_attempts for search in searches):
        found["timing/solve_s"] = seconds
    return found
