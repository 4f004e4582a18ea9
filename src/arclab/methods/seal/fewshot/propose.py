"""stage=propose: the model of the round says, for each training task, how it is to be trained on it.

propose(config, ranks, signals, folder)     # writes proposals.jsonl and final_configs_and_indices.json
"""

from __future__ import annotations

from arclab.config.compose import ConfigError
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.lm.endpoint.started import drawn_by, opened_model
from arclab.methods.seal.fewshot.edits import edit_prompt
from arclab.methods.seal.fewshot.models import model_inputs, proposer_of, remarks, training_tasks
from arclab.methods.seal.fewshot.proposals import PROPOSAL_ITEMS, PROPOSALS, proposal_settings, propose_for, verdict_counts
from arclab.methods.seal.fewshot.published import CONFIGS, write_configs
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import Worklist


def propose(config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    inputs = {key: path for key, path in model_inputs(config, config.round).items() if key == "model"}
    tasks = training_tasks(config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        chosen = proposer_of(config, config.round)
        settings = proposal_settings(config, chosen) | {"round": config.round, **drawn_by(config.launch)}
        worklist = Worklist(run.path / PROPOSALS, settings, PROPOSAL_ITEMS)
        with opened_model(chosen, config.launch, run.path) as model:
            drawn = propose_for(model, tasks, config, config.propose.num_edits, worklist, progress)
        if not any(drawn.values()):
            raise ConfigError(
                f"none of the {len(tasks)} tasks could be asked about: their prompts are too long for the model; choose tasks "
                "of smaller grids (dataset.max_side), or a model with a longer context."
            )
        write_configs(run.path, drawn, {task.id: edit_prompt(task, config.solver.text) for task in tasks}, model)
        counts = verdict_counts([each for proposals in drawn.values() for each in proposals])
        message = f"{sum(counts.values()):.0f} replies for {len(tasks)} tasks, {counts['ok']:.0f} of them self-edits to try"
        return Made(outputs=[run.path / PROPOSALS, run.path / CONFIGS], counts=counts, message=message, notes=remarks(config))

    return make_stage(config, ranks, signals, folder, inputs, len(tasks), work)
