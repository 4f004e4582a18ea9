"""stage=adapt: each proposed self-edit is tried: the model is trained on its task, answers it, and is put back.

    adapt(config, ranks, signals, folder)     # writes trials.jsonl, outcomes.jsonl, final_results.json, submission.json

One line for each trial, kept as it is made: the same command goes on after a kill. With launch.shards=N a shard tries the
self-edits of its tasks, and the whole merges the trials and writes the rest. Test outputs of training tasks are the reward.
"""

from __future__ import annotations

from arclab.config.seal_fewshot_schema import SealFewshotConfig, SealStage
from arclab.methods.seal.fewshot.models import adapted_of, model_inputs, remarks, tried_tasks
from arclab.methods.seal.fewshot.proposals import PROPOSALS, read_proposals
from arclab.methods.seal.fewshot.published import RESULTS, SUBMISSION, answers_of, write_results, write_submission
from arclab.methods.seal.fewshot.records import OUTCOMES, outcomes_of, write_outcomes
from arclab.methods.seal.fewshot.trials import TRIAL_ITEMS, TRIALS, Trials
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.solvers.shards import begin_stage, made_by_shard, tasks_of_stage


def adapt(config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    proposals = config.folder_of(SealStage.propose.value, config.round) / PROPOSALS
    tasks = tasks_of_stage(tried_tasks(config), config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        begin_stage(config, run.path, {TRIALS: TRIAL_ITEMS})
        drawn = read_proposals(proposals, tasks)
        trials = Trials(config, adapted_of(config, config.round), run.path / TRIALS, progress)
        wanted = [(task, each.edit(config)) for task in tasks for each in drawn[task.id] if each.is_ok]
        found = trials.of(wanted)
        if config.launch.shard is not None:
            return made_by_shard(config, len(tasks))
        outcomes = outcomes_of(drawn, found, config.round, config.seed)
        write_outcomes(run.path / OUTCOMES, outcomes)
        write_results(run.path, drawn, found)
        write_submission(run.path, tasks, answers_of(tasks, drawn, found))
        counts = {
            "proposals": float(len(outcomes)), "trials": float(len(found)),
            "not_trained": float(sum(bool(trial.record.problem or trial.record.skipped) for trial in found.values())),
            "successful": sum(each.reward for each in outcomes),
            "tasks_with_success": float(len({each.task for each in outcomes if each.reward})),
        }  # fmt: skip
        message = (
            f"{counts['successful']:.0f} of {len(outcomes)} proposals solved their task ({len(found)} different ones tried), "
            f"of {counts['tasks_with_success']:.0f} of {len(tasks)} tasks"
        )
        made = [run.path / TRIALS] if found else []  # no file without a trial
        outputs = [*made, *(run.path / name for name in (OUTCOMES, RESULTS, SUBMISSION))]
        return Made(outputs=outputs, counts=counts, message=message, notes=remarks(config))

    inputs = {"proposals": proposals, **model_inputs(config, config.round)}
    return make_stage(config, ranks, signals, folder, inputs, len(tasks), work)
