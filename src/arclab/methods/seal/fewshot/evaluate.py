"""stage=evaluate: what the trained model proposes for unseen tasks, and whether it is better than what is to be had without.

    evaluate(config, ranks, signals, folder)     # writes scores.json, table.md, outcomes.jsonl, submission.json, ...

The model proposes evaluate.num_edits self-edits for each task, and every one is tried. Beside it: the model that the first
round began with, the twin, and the baselines. With launch.shards=N a shard does so for its tasks, and the whole merges what was
drawn and tried, and writes the rest. seal/wins is judged by the run's criterion. Shares have intervals over tasks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.seal_fewshot_schema import AdaptedModel, SealFewshotConfig, SealStage
from arclab.data.tasks import ArcTask
from arclab.files import read_object, write_atomically
from arclab.lm.models import load_language_model
from arclab.methods.seal.fewshot.baselines import (
    CONSTANT_ROW,
    DEFAULT_ROW,
    ORACLE_ROW,
    PLAIN_ROW,
    RANDOM_ROW,
    Baselines,
    Successes,
    baselines,
    constant_note,
    modal_share,
    rows_of,
    share_of,
    signs,
    successes_of,
)
from arclab.methods.seal.fewshot.edits import edit_prompt
from arclab.methods.seal.fewshot.models import (
    MODEL,
    TWIN,
    adapted_of,
    asked_of_scored,
    model_inputs,
    proposer_of,
    remarks,
    scored_tasks,
    tried_tasks,
)
from arclab.methods.seal.fewshot.proposals import PROPOSAL_ITEMS, PROPOSALS, Proposal, proposal_settings, propose_for
from arclab.methods.seal.fewshot.published import (
    CONFIGS,
    RESULTS,
    SUBMISSION,
    answers_of,
    write_configs,
    write_results,
    write_submission,
)
from arclab.methods.seal.fewshot.records import OUTCOMES, Outcome, outcomes_of, write_outcomes
from arclab.methods.seal.fewshot.trials import TRIAL_ITEMS, TRIALS, Key, Trial, Trials
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.results.attempts import Attempts
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.results.scoring import score
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import Worklist
from arclab.solvers.shards import begin_stage, made_by_shard, tasks_of_stage

log = logging.getLogger(__name__)
START, SCORES, TABLE = "start", "scores.json", "table.md"
_SURE = 0.05  # p below which the twin has gained, too
_SHARES = {
    "start_share": START, "twin_share": TWIN, "plain_share": PLAIN_ROW, "default_share": DEFAULT_ROW,
    "random_share": RANDOM_ROW, "constant_share": CONSTANT_ROW, "oracle_share": ORACLE_ROW,
}  # fmt: skip


def evaluate(config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    tasks, following = tasks_of_stage(scored_tasks(config), config), config.round + 1
    inputs = {**model_inputs(config, following), **{f"{key} before": path for key, path in model_inputs(config, 0).items()}}
    if config.round > 0:
        inputs["scores of the start"] = config.folder_of(SealStage.evaluate.value, 0) / SCORES

    def work(run: RunDir, progress: WorkProgress) -> Made:
        begin_stage(config, run.path, {f"*/{PROPOSALS}": PROPOSAL_ITEMS, f"*/{TRIALS}": TRIAL_ITEMS})
        scorer = _Scorer(config, tasks, run, progress)
        found: dict[str, Successes] = {}
        if config.round == 0:
            found[START] = scorer.scored(0, START, MODEL).successes
        else:
            found[START] = read_scores(inputs["scores of the start"])[START]
        if config.restem.twin:
            found[TWIN] = scorer.scored(following, TWIN, TWIN).successes
        trained = scorer.scored(following, MODEL, MODEL)
        found[MODEL] = trained.successes
        others = baselines(config, scorer.trials(following, MODEL), tasks, _training_share(config))
        if config.launch.shard is not None:
            return made_by_shard(config, len(tasks))
        found |= others.rows
        _publish(run, tasks, trained)
        write_atomically(run.path / SCORES, json.dumps(found) + "\n")
        metrics = metrics_of(found, trained, tasks)
        note = _note(found, trained, others)
        notes = [*remarks(config), *([note] if note else [])]
        write_atomically(run.path / TABLE, table(found, config.seed, notes))
        with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
            logger.write(config.round, metrics)
        message = (
            f"{MODEL} {100 * share_of(found[MODEL]):.1f} % of proposals succeed, {START} {100 * share_of(found[START]):.1f} %"
        )
        said = [message, *notes, *filter(None, [judged(config, run, run)])]
        outputs = [run.path / name for name in (SCORES, TABLE, OUTCOMES, CONFIGS, RESULTS, SUBMISSION)]
        return Made(outputs=outputs, counts=metrics, message="; ".join(said), notes=notes)

    return make_stage(config, ranks, signals, folder, inputs, len(tasks), work)


def _training_share(config: SealFewshotConfig) -> tuple[ArcTask, ...]:
    """On which this process tries the self-edits of the grid; there may be fewer tasks than shards."""
    tasks, launch = tried_tasks(config), config.launch
    return tasks if launch.shard is None else tasks[launch.shard :: launch.shards]


@dataclass(frozen=True, slots=True)
class Scored:
    """Proposals of a model for the scored tasks, and what became of them."""

    drawn: Mapping[str, Sequence[Proposal]]
    trials: Mapping[Key, Trial]
    outcomes: list[Outcome]
    successes: Successes


class _Scorer:
    """Lets models propose for the same tasks, each in a folder of its own, and tries what they propose."""

    def __init__(self, config: SealFewshotConfig, tasks: Sequence[ArcTask], run: RunDir, progress: WorkProgress) -> None:
        self._config, self._run, self._progress = config, run, progress
        asked = {task.id for task in asked_of_scored(config)}
        self._scored, self._tasks = tasks, [task for task in tasks if task.id in asked]
        self._trials: dict[str, Trials] = {}

    def scored(self, number: int, name: str, which: str) -> Scored:
        """Of the model that a round begins with. name: of the folder. which: see proposer_of. Where nothing is proposed for a
        task, all that was to be has failed."""
        config, folder = self._config, self._run.path / name
        chosen = proposer_of(config, number, which)
        worklist = Worklist(folder / PROPOSALS, proposal_settings(config, chosen), PROPOSAL_ITEMS)
        model = load_language_model(chosen)
        drawn = propose_for(model, self._tasks, config, config.evaluate.num_edits, worklist, self._progress)
        if name == MODEL:
            prompts = {task.id: edit_prompt(task, config.solver.text) for task in self._tasks}
            write_configs(self._run.path, drawn, prompts, model)
        found = self.trials(number, which).of(
            [(task, each.edit(config)) for task in self._tasks for each in drawn[task.id] if each.is_ok]
        )
        outcomes = outcomes_of(drawn, found, config.round, config.seed)
        unasked = [task.id for task in self._scored if task.id not in drawn]
        failed = {id_: [0.0] * config.evaluate.num_edits for id_ in unasked}
        successes = successes_of(outcomes, self._tasks) | failed
        return Scored({**drawn, **{id_: [] for id_ in unasked}}, found, outcomes, successes)

    def trials(self, number: int, which: str) -> Trials:
        """Of the model that is adapted where that one proposes."""
        config = self._config
        adapted = adapted_of(config, number, which)
        if adapted.name not in self._trials:
            stages = [config.folder_of(SealStage.adapt.value, config.round) / TRIALS]
            if config.round > 0 and config.adapted is AdaptedModel.first:
                stages.append(config.folder_of(SealStage.evaluate.value, 0) / "first" / TRIALS)
            name = "first" if config.adapted is AdaptedModel.first else f"{which}_{number}"
            known = [path for path in stages if path.is_file()]
            self._trials[adapted.name] = Trials(config, adapted, self._run.path / name / TRIALS, self._progress, known)
        return self._trials[adapted.name]


def _publish(run: RunDir, tasks: Sequence[ArcTask], trained: Scored) -> None:
    write_outcomes(run.path / OUTCOMES, trained.outcomes)
    write_results(run.path, trained.drawn, trained.trials)
    write_submission(run.path, tasks, _answers(tasks, trained))


def _answers(tasks: Sequence[ArcTask], trained: Scored) -> Attempts:
    return answers_of(tasks, trained.drawn, trained.trials)


def read_scores(path: Path) -> dict[str, dict[str, list[float]]]:
    """Name -> {task id: successes}."""
    return read_object(path, {START: dict[str, list[float]], MODEL: dict[str, list[float]]})


def metrics_of(found: Mapping[str, Successes], trained: Scored, tasks: Sequence[ArcTask]) -> dict[str, float]:
    """The metrics seal/*."""
    outcomes = trained.outcomes
    solved = score(tasks, _answers(tasks, trained))["ARC/solved@2"]
    result: dict[str, Any] = {
        "ARC/tasks": len(tasks), "seal/proposals": len(outcomes), "seal/successful_share": share_of(found[MODEL]),
        "seal/ok_share": sum(each.verdict == "ok" for each in outcomes) / max(1, len(outcomes)),
        "seal/solved_share": solved.value, "seal/modal_share": modal_share(outcomes),
        **{f"seal/{name}": share_of(found[row]) for name, row in _SHARES.items() if row in found},
    }  # fmt: skip
    controls = {name: found[name] for name in (START, TWIN) if name in found}
    best = max(controls.values(), key=share_of)
    against = signs(found[MODEL], best)
    result |= {"seal/discordant": against.discordant, "seal/p_value": against.p_value}
    gained = signs(found[TWIN], found[START]) if TWIN in found else None
    if gained is not None:
        result["seal/twin_p_value"] = gained.p_value
    if against.discordant:
        has_twin_gained = gained is not None and gained.more > gained.fewer and gained.p_value < _SURE
        result["seal/wins"] = 0.0 if has_twin_gained else against.more / against.discordant
    if CONSTANT_ROW in found:
        constant = signs(found[MODEL], found[CONSTANT_ROW])
        result |= {"seal/constant_wins": constant.more, "seal/constant_losses": constant.fewer}
    return {name: float(value) for name, value in result.items()}


def _note(found: Mapping[str, Successes], trained: Scored, others: Baselines) -> str:
    against = signs(found[MODEL], found[CONSTANT_ROW]) if CONSTANT_ROW in found else None
    return constant_note(trained.outcomes, others.constant, against)


NAMES = {
    START: "before the first round", TWIN: "shuffled rewards", MODEL: "trained", PLAIN_ROW: "no training on the task",
    DEFAULT_ROW: "hand-made self-edit", RANDOM_ROW: "random self-edit of the grid",
    CONSTANT_ROW: "best on the training tasks, for all", ORACLE_ROW: "best for each task (oracle)",
}  # fmt: skip


def table(found: Mapping[str, Successes], seed: int, notes: Sequence[str]) -> str:
    """Markdown. notes: what is said below it."""
    lines = ["| self-edits of | successful | share | 95 % over tasks | tasks with a success |", "|---" * 5 + "|"]
    for row in rows_of(found, seed):
        interval = "" if row.interval is None else f"{100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f} %"
        lines.append(
            f"| {NAMES[row.name]} | {row.num_successes:g}/{row.num_trials} | {100 * row.share:.1f} % | {interval} | "
            f"{row.num_any}/{row.num_tasks} |"
        )
    said = [line for note in notes for line in ("", f"{note[0].upper()}{note[1:]}.")]
    return "\n".join([*lines, *said, ""])


def judged(config: SealFewshotConfig, measured: RunDir, run: RunDir) -> str:
    """What the criterion says of an evaluation, written to criterion.json of the run; empty without one."""
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(measured.metrics))
    write_criterion(result, run)
    log.info("%s", result)
    return str(result)
