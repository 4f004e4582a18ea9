"""stage=evaluate: the two-attempt score of what a round has trained, on tasks that nobody learned from.

    evaluate(config, ranks, signals, folder)      # writes the files of every evaluation, scores.json and metrics.jsonl

The search is that of the run, with the same seed and number of programs for every policy. The first round also scores the
policy that it began with (start/), and with sft.twin the twin (twin/), which was taught with programs of other tasks. All are
compared task by task: learned/wins is judged by the run's criterion. With evaluate.baselines the trained policy is scored by
the search without its reward model (search/) and by plain sampling (sampling/) as well, and in the first round that of the
start with the reward model (start_valued/) and by plain sampling (start_sampling/); these are no part of learned/wins.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from arclab.config.compose import flat
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.config.tree_search_schema import SearchConfig
from arclab.data.tasks import ArcTask
from arclab.files import read_object, write_atomically
from arclab.methods.tree_search.learning.policy import (
    MODEL,
    TWIN,
    named_tasks,
    policy_inputs,
    policy_of,
    sampling_of,
    searched,
)
from arclab.methods.tree_search.learning.values import is_used, value_inputs, values_for
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.pages.publish import publish
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.results.attempts import Attempts
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share, truth_ranks
from arclab.results.writing import Evaluation, Subject
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

log = logging.getLogger(__name__)
START, SCORES = "start", "scores.json"
SEARCH, SAMPLING = "search", "sampling"  # the trained policy without its reward model, and without the search
START_VALUED, START_SAMPLING = "start_valued", "start_sampling"  # that of the start with the reward model, and by sampling
_COUNTED = ("tree/coverage", "programs/tasks_with_right", "programs/count", "programs/tokens")
_CONTROLS = (START, TWIN)
_ATTEMPTS = 2
_SURE = 0.05  # McNemar's p below which the twin has gained, too
Solved = dict[str, bool]


def evaluate(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    tasks = named_tasks(config, config.evaluate.split.value, "evaluate.split", config.evaluate.max_tasks)
    following = config.round + 1
    inputs = policy_inputs(config, following) | value_inputs(config, following)
    if config.round > 0:
        inputs["scores of the start"] = config.folder_of("evaluate", 0) / SCORES

    def work(run: RunDir, progress: WorkProgress) -> Made:
        with open_sandbox(config.sandbox) as sandbox:
            scorer = _Scorer(config, tasks, sandbox, progress, run)
            scores: dict[str, Solved] = {}
            if config.round == 0:
                scores[START] = scorer.solved(0, MODEL, run.path / START)
            else:
                scores[START] = read_scores(inputs["scores of the start"])[START]
            if config.sft.twin:
                scores[TWIN] = scorer.solved(following, TWIN, run.path / TWIN)
            counts: dict[str, float] = {}
            for name, (number, is_valued) in _baselines(config).items():
                values_of = following if is_valued else None
                scores[name] = scorer.solved(
                    number, MODEL, run.path / name, values_of=values_of, is_sampled=name in (SAMPLING, START_SAMPLING)
                )
                counts |= {f"learned/{name}_{what}": scorer.statistics[f"programs/{what}"] for what in ("count", "tokens")}
            scores[MODEL] = scorer.solved(following, MODEL, run.path, values_of=following)
            statistics, isolation = scorer.statistics | counts, sandbox.isolation.name
        write_atomically(run.path / SCORES, json.dumps(scores) + "\n")
        found = compared(scores)
        with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
            logger.write(config.round, statistics | found)
        message = f"{', '.join(f'{name} {_share(solved)}' for name, solved in scores.items())}"
        if result := judged(config, run, run):
            message += f"; {result}"
        return Made(outputs=[run.path / SCORES], counts=statistics | found, message=message, isolation=isolation)

    return make_stage(config, ranks, signals, folder, inputs, len(tasks), work)


def _share(solved: Solved) -> Share:
    return Share(sum(solved.values()), len(solved))


class _Scorer:
    """Scores policies on the same tasks. statistics: of the last one."""

    def __init__(
        self, config: TreeLearningConfig, tasks: tuple[ArcTask, ...], sandbox: Sandbox, progress: WorkProgress, run: RunDir
    ) -> None:
        self._config, self._tasks, self._sandbox, self._progress, self._run = config, tasks, sandbox, progress, run
        self.statistics: dict[str, float] = {}

    def solved(
        self, number: int, which: str, folder: Path, *, values_of: int | None = None, is_sampled: bool = False
    ) -> Solved:  # fmt: skip
        """{task id: every test input right within two attempts} of the policy that a round begins with; its files go into the
        folder. values_of: the round whose search asks the reward model, if there is one; None: it is not asked. is_sampled:
        whole programs are drawn, without a search."""
        config, search = self._config, search_of(self._config)
        policy = policy_of(config, number, which)
        values, asked = values_for(config, values_of) if values_of is not None else (None, {})
        if is_sampled:
            search = sampling_of(search)
        found = searched(
            config, policy, self._tasks, folder, self._sandbox, self._progress, search=search, values=values, asked=asked
        )
        publish(self._evaluation(found.attempts, number, which, search, has_values=values is not None), folder)
        ranks = truth_ranks(self._tasks, found.attempts)
        result = {id_: all(place is not None and place < _ATTEMPTS for place in places) for id_, places in ranks.items()}
        self.statistics = {
            "ARC/solved@2": float(_share(result).value), "ARC/tasks": float(len(result)), **{
                name: found.attempts.statistics[name] for name in _COUNTED if name in found.attempts.statistics
            },
        }  # fmt: skip
        return result

    def _evaluation(
        self, attempts: Attempts, number: int, which: str, search: SearchConfig, *, has_values: bool
    ) -> Evaluation:  # fmt: skip
        config = self._config
        what = {MODEL: "trained policy", TWIN: "twin taught with programs of other tasks"}[which]
        what = "policy of the start" if number == 0 else f"{what} of round {number - 1}"
        facts = {
            "dataset": f"{config.dataset.name} / {config.evaluate.split.value}", "search": search.kind, "policy": what,
            "reward model": "asked" if has_values else "not asked", "isolation": self._sandbox.isolation.name,
            "seed": str(config.seed),
        }  # fmt: skip
        record = {
            "split": config.evaluate.split.value, "dataset": config.dataset.name, "solver": "tree_search",
            "search": search.kind, "model": what, "num_programs": search.num_programs,
            "seed": config.seed, "isolation": self._sandbox.isolation.name,
        }  # fmt: skip
        subject = Subject((config.experiment_name, config.name), facts, {"folder": str(self._run.path)}, record, flat(config))
        return Evaluation(subject, self._tasks, attempts, stamps=(), notes=(), provenance=provenance())


def _baselines(config: TreeLearningConfig) -> dict[str, tuple[int, bool]]:
    """{name: (the round whose policy it is, whether the reward model is asked)}."""
    if not config.evaluate.baselines:
        return {}
    found = {SEARCH: (config.round + 1, False), SAMPLING: (config.round + 1, False)}
    if config.round == 0:
        found |= {START_SAMPLING: (0, False)}
        found |= {START_VALUED: (0, True)} if is_used(config, 1) else {}
    return found


def search_of(config: TreeLearningConfig) -> SearchConfig:
    """The search of an evaluation. With baselines programs alone limit it, so that all of them finish as many."""
    wished = config.evaluate
    search = replace(config.search, num_programs=wished.num_programs or config.search.num_programs)
    return replace(search, num_draws=None) if wished.baselines else search


def read_scores(path: Path) -> dict[str, Solved]:
    """Policy -> {task id: solved}."""
    return read_object(path, {START: dict[str, bool], MODEL: dict[str, bool]})


def compared(scores: Mapping[str, Solved]) -> dict[str, float]:
    """The trained policy against the stronger of its controls, task by task: metrics learned/*."""
    trained = scores[MODEL]
    controls = [scores[name] for name in _CONTROLS if name in scores]
    found = {f"learned/{name}_solved": float(_share(solved).value) for name, solved in scores.items() if name != MODEL}
    best = max(controls, key=lambda solved: sum(solved.values()))
    paired = _paired(trained, best)
    found |= {"learned/discordant": float(paired.discordant), "learned/p_value": paired.p_value}
    if paired.discordant:
        has_twin_gained = TWIN in scores and _has_gained(scores[TWIN], scores[START])
        found["learned/wins"] = 0.0 if has_twin_gained else paired.only_first / paired.discordant
    if TWIN in scores:
        found["learned/twin_p_value"] = _paired(scores[TWIN], scores[START]).p_value
    return found


def _paired(first: Solved, second: Solved) -> PairedTest:
    return PairedTest.count("tasks", [(first[id_], second[id_]) for id_ in first])


def _has_gained(first: Solved, second: Solved) -> bool:
    paired = _paired(first, second)
    return paired.only_first > paired.only_second and paired.p_value < _SURE


def judged(config: TreeLearningConfig, measured: RunDir, run: RunDir) -> str:
    """What the criterion says of an evaluation, written to criterion.json of the run; empty without one."""
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(measured.metrics))
    write_criterion(result, run)
    log.info("%s", result)
    return str(result)
