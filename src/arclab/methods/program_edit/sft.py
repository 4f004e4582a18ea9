"""stage=sft: the model that drew the edits learns those that were kept and not rejected.

    sft_stage(config, ranks, signals, folder)       # writes model/ (a model folder) and trained.json
    stage=twin_sft is the control: as many of the sampled edits, drawn at random, whatever they do

A row is the prompt of the edit, then <think> reasoning </think> and the program; the loss is on the reply alone. With
sft.weight_beta rows count by what their edit gained (advantage_weights). All weights are trained, in float32, or with sft.lora
an adapter, which is merged into them at the end. One process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig
from arclab.config.program_edit_schema import EditSftConfig, EditStage, ProgramEditConfig, SelectRule
from arclab.files import write_atomically
from arclab.lm.hf import HfModel
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import Message
from arclab.lm.training.finetune import tokenised
from arclab.lm.training.model_folder import FolderTraining, stage_training, train_folder
from arclab.lm.training.rows import Row
from arclab.lm.training.sft import ROW_WEIGHT, advantage_weights
from arclab.methods.program_edit.editing import read_records
from arclab.methods.program_edit.replies import Taught, accepted, read_review, read_taught, taught
from arclab.methods.program_edit.sample import EDITS, MODEL, TRAINED, begun_with, made_model, maker_of
from arclab.methods.program_edit.select import SFT, review_path
from arclab.methods.program_edit.selection import select_edits
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage


def sft_stage(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError: nothing is left to learn. ValueError: a row does not fit into the context, a training that diverges."""
    is_twin = config.stage is EditStage.twin_sft
    inputs = {"edits": config.file_of("select", config.round, SFT), "review": review_path(config)}
    if is_twin:
        inputs = {"edits": config.file_of("sample", config.round, EDITS)}
    inputs |= begun_with(config, config.round, twin=is_twin)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        learned = _drawn(config, inputs["edits"]) if is_twin else _learned(inputs["edits"], inputs["review"])
        if not (run.path / MODEL).is_dir():
            given = given_model(config, maker_of(config, config.round, twin=is_twin))
            rows = partial(rows_of, learned=learned, config=config.sft)
            train_folder(given, run, MODEL, _training(config), rows, ranks=ranks, stop=StopRequest(run, ranks, signals))
        write_trained(run)
        return Made(
            outputs=[run.path / TRAINED], counts={"rows": len(learned), "steps": config.sft.steps},
            message=f"learned from {len(learned)} edits: {run.path / MODEL}",
        )  # fmt: skip

    return make_stage(config, ranks, signals, folder, inputs, config.sft.steps, work)


def _learned(edits: Path, review: Path) -> list[Taught]:
    rows = read_taught(edits)
    left = accepted(rows, read_review(review, {row.id for row in rows}))
    if not left:
        raise ConfigError(f"{review} rejects all {len(rows)} edits, so there is nothing to learn; accept some.")
    return left


def _drawn(config: ProgramEditConfig, edits: Path) -> list[Taught]:
    """As many edits as select.rule=best keeps, drawn at random."""
    return taught(select_edits(read_records(edits), replace(config.select, rule=SelectRule.random), config.seed).kept)


def given_model(config: ProgramEditConfig, maker: tuple[str, int] | None) -> HfModelConfig:
    """What a training begins with. maker: the stage and the round that made it; None: it is given."""
    given = config.lm if maker is None else made_model(config, maker)
    assert isinstance(given, HfModelConfig), "the schema refuses others"
    return replace(given, device=config.device)


def rows_of(model: HfModel, learned: Sequence[Taught], config: EditSftConfig) -> list[Row]:
    """ValueError: a row does not fit into the context."""
    rows = tokenised(model, [((Message("user", row.prompt),), row.reply) for row in learned])
    if config.weight_beta is not None:
        weights = advantage_weights([row.delta for row in learned], config.weight_beta, config.max_weight)
        rows = [row | {ROW_WEIGHT: [weight]} for row, weight in zip(rows, weights, strict=True)]
    return rows


def _training(config: ProgramEditConfig) -> FolderTraining:
    return stage_training(
        config.sft, config, key="sft", what=config.stage.value, learned="edits than those that are accepted now"
    )


def write_trained(run: RunDir) -> None:
    """trained.json, which names the content of the model folder."""
    write_atomically(run.path / TRAINED, json.dumps({"model": MODEL, "content": folder_digest(run.path / MODEL)}) + "\n")
