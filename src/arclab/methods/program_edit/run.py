"""self_improve.py method=program_edit: edits of programs are sampled, selected, learned from and scored, in rounds.

    python self_improve.py method=program_edit lm=tiny dataset=toy name=a stage=sample sample.proposer=reference
    python self_improve.py method=program_edit lm=tiny dataset=toy name=a rounds=2
    python self_improve.py experiment=edit_quickstart name=a

Each stage is a run of its own in <runs_dir>/<experiment_name>/<name>/round_<number>/<stage>. One process, but for stage=grpo,
which torchrun or launch.gpus may start in several.
"""

from __future__ import annotations

import os

from arclab.config.compose import ConfigError
from arclab.config.program_edit_schema import EditStage, ProgramEditConfig
from arclab.methods.program_edit.evaluate import evaluate, judged
from arclab.methods.program_edit.grpo import grpo_stage
from arclab.methods.program_edit.sample import sample
from arclab.methods.program_edit.select import select
from arclab.methods.program_edit.sft import sft_stage
from arclab.methods.program_edit.start import start_stage
from arclab.runs.folder import RunDir
from arclab.runs.stages import read_counts, run_stages

_STAGES = {
    "start": start_stage, "sample": sample, "select": select, "sft": sft_stage, "grpo": grpo_stage, "twin_sft": sft_stage,
    "twin_grpo": grpo_stage, "evaluate": evaluate,
}  # fmt: skip


def improve(config: ProgramEditConfig, given: RunDir | None = None) -> int:
    """Run the stage that the configuration names, or all of them; the exit status. given: see arclab.runs.lifecycle."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and config.stage not in (EditStage.grpo, EditStage.twin_grpo):
        raise ConfigError(
            f"stage={config.stage.value} of method=program_edit runs in one process, but "
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without torchrun, or stage=grpo alone with it."
        )
    return run_stages(config, given, _STAGES, _conclude)


def _conclude(config: ProgramEditConfig, run: RunDir) -> str:
    shares = [read_counts(config.folder_of("evaluate", number)).get("solved_share") for number in range(config.rounds)]
    told = ", ".join("none" if share is None else f"{100 * share:.1f} %" for share in shares)
    result = judged(config, RunDir(config.folder_of("evaluate", config.rounds - 1)), run)
    return f"start programs put right, by round: {told}" + (f"; {result}" if result else "")
