"""stage=collect: search the training tasks with the policy of the round, and write down what the trees teach.

    collect(config, ranks, signals, folder)      # writes trees/*.jsonl, solutions.jsonl and preference_pairs.jsonl

The same command goes on after a kill; tasks that are done are not searched again. Hidden test outputs label the programs, so
it works on training tasks alone. What is written depends on the trees, not on when they were grown. With launch.shards=N a
shard grows the trees of its tasks, and the whole merges them and writes the rest.
"""

from __future__ import annotations

import numpy as np

from arclab.config.compose import ConfigError
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.methods.tree_search.learning.outcomes import pairs_of, solutions_of
from arclab.methods.tree_search.learning.policy import policy_inputs, policy_of, searched, training_tasks
from arclab.methods.tree_search.learning.records import PAIRS, SOLUTIONS, PreferencePair, Solution, write_records
from arclab.methods.tree_search.learning.values import value_inputs, values_for
from arclab.methods.tree_search.trees import TREE_KIND
from arclab.programs.sandbox.pool import open_sandbox
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.solvers.shards import begin_stage, made_by_shard, tasks_of_stage

_COUNTED = ("tree/coverage", "tree/nodes", "programs/count", "programs/tokens", "programs/tasks_with_right", "tree/ended_cut")


def collect(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError: no training tasks, or none that could be searched."""
    tasks = tasks_of_stage(training_tasks(config), config)
    inputs = policy_inputs(config, config.round) | value_inputs(config, config.round)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        begin_stage(config, run.path, {"trees/*.jsonl": TREE_KIND})
        values, asked = values_for(config, config.round)
        with open_sandbox(config.sandbox) as sandbox:
            policy = policy_of(config, config.round)
            found = searched(config, policy, tasks, run.path, sandbox, progress, values=values, asked=asked)
            isolation = sandbox.isolation.name
        if config.launch.shard is not None:
            return made_by_shard(config, len(tasks))
        if len(found.attempts.skipped) == len(tasks):
            first = next(iter(found.attempts.skipped.values()))
            raise ConfigError(f"none of the {len(tasks)} training tasks could be searched; the first one: {first}")
        learned = {task.id for task in tasks}
        solutions = [s for task in tasks for s in solutions_of(task, found.trees[task.id], config.round, learned)]
        pairs = [p for task in tasks for p in pairs_of(task, found.trees[task.id], config.collect, learned)]
        write_records(run.path / SOLUTIONS, solutions)
        write_records(run.path / PAIRS, pairs)
        counts = {"tasks": float(len(tasks)), "tasks_skipped": float(len(found.attempts.skipped)), **_counts(solutions, pairs)}
        counts |= {name: found.attempts.statistics[name] for name in _COUNTED if name in found.attempts.statistics}
        return Made(
            outputs=[run.path / SOLUTIONS, run.path / PAIRS],
            counts=counts,
            message=f"{counts['right']:.0f} right programs of {counts['solved']:.0f} of {len(tasks)} tasks, {len(pairs)} pairs",
            isolation=isolation,
            notes=["labelled by the hidden test outputs of training tasks"],
        )

    return make_stage(config, ranks, signals, folder, inputs, len(tasks), work)


def _counts(solutions: list[Solution], pairs: list[PreferencePair]) -> dict[str, float]:
    right = [solution for solution in solutions if solution.right]
    margins = [pair.chosen_q - pair.rejected_q for pair in pairs]
    return {
        "passing": float(len(solutions)),
        "right": float(len(right)),
        "solved": float(len({solution.task for solution in right})),
        "step_pairs": float(sum(pair.kind == "step" for pair in pairs)),
        "trace_pairs": float(sum(pair.kind == "trace" for pair in pairs)),
        "mean_margin": float(np.mean(margins)) if margins else 0.0,
    }
