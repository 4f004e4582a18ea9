"""stage=sft: the model that drew the edits learns those that were kept and not rejected.

    sft_stage(config, ranks, signals, folder)       # writes model/ (a model folder) and trained.json
    stage=twin_sft is the control: as many of the sampled edits, drawn at random, whatever they do

A row is the prompt of the edit, then <think> reasoning </think> and the program; the loss is on the reply alone. With
sft.weight_beta rows count by what their edit gained (advantage_weights). All weights are trained, in float32. One process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig
from arclab.config.program_edit_schema import EditSftConfig, EditStage, ProgramEditConfig, SelectRule
from arclab.files import write_atomically
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import Message
from arclab.lm.training.finetune import require_float32, tokenised
from arclab.lm.training.life import AllWeights
from arclab.lm.training.rows import Row
from arclab.lm.training.sft import ROW_WEIGHT, SftSettings, StageCadence, Where, advantage_weights, sft
from arclab.methods.program_edit.editing import read_records
from arclab.methods.program_edit.replies import Taught, accepted, read_review, read_taught, taught
from arclab.methods.program_edit.sample import EDITS, MODEL, TRAINED, begun_with, made_model, maker_of
from arclab.methods.program_edit.select import SFT, review_path
from arclab.methods.program_edit.selection import select_edits
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder, read_state
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RecordFailure, RunFolder, finish
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, require_inputs, require_same_inputs, write_manifest


def sft_stage(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    run, is_twin = folder.run, config.stage is EditStage.twin_sft
    inputs = {"edits": config.file_of("select", config.round, SFT), "review": review_path(config)}
    if is_twin:
        inputs = {"edits": config.file_of("sample", config.round, EDITS)}
    inputs |= begun_with(config, config.round, twin=is_twin)
    with folder.building():
        require_inputs(config, inputs)
        rows = _drawn(config, inputs["edits"]) if is_twin else _learned(inputs["edits"], inputs["review"])
        with folder.held(config, ()) as is_finished:
            if is_finished:
                require_same_inputs(run, inputs)
                return State.done
            with RecordFailure(run):
                model = load_trainable(config, maker_of(config, config.round, twin=is_twin))
                step = _train(config, model, rows, run, ranks, StopRequest(run, ranks, signals))

                def conclude() -> str:
                    save_trained(model, run)
                    made = Made(outputs=[run.path / TRAINED], counts={"rows": len(rows), "steps": step}, message="")
                    write_manifest(config, run, inputs, made)
                    return f"learned from {len(rows)} edits: {run.path / MODEL}"

                return finish(config, run, ranks, step, conclude)


def _learned(edits: Path, review: Path) -> list[Taught]:
    rows = read_taught(edits)
    left = accepted(rows, read_review(review, {row.id for row in rows}))
    if not left:
        raise ConfigError(f"{review} rejects all {len(rows)} edits, so there is nothing to learn; accept some.")
    return left


def _drawn(config: ProgramEditConfig, edits: Path) -> list[Taught]:
    """As many edits as select.rule=best keeps, drawn at random."""
    return taught(select_edits(read_records(edits), replace(config.select, rule=SelectRule.random), config.seed).kept)


def load_trainable(config: ProgramEditConfig, maker: tuple[str, int] | None) -> HfModel:
    """maker: the stage and the round that made it; None: it is given. ValueError: weights in which steps would be lost."""
    given = config.lm if maker is None else made_model(config, maker)
    assert isinstance(given, HfModelConfig), "the schema refuses others"
    model = load_hf(replace(given, device=config.device))
    require_float32(model)
    return model


def rows_of(model: HfModel, learned: Sequence[Taught], config: EditSftConfig) -> list[Row]:
    """ValueError: a row does not fit into the context."""
    rows = tokenised(model, [((Message("user", row.prompt),), row.reply) for row in learned])
    if config.weight_beta is not None:
        weights = advantage_weights([row.delta for row in learned], config.weight_beta, config.max_weight)
        rows = [row | {ROW_WEIGHT: [weight]} for row, weight in zip(rows, weights, strict=True)]
    return rows


def _train(
    config: ProgramEditConfig, model: HfModel, learned: Sequence[Taught], run: RunDir, ranks: Ranks, stop: StopRequest
) -> int:  # fmt: skip
    wished, rows = config.sft, rows_of(model, learned, config.sft)
    record = {"rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}
    done = _steps_done(run, record)
    settings = SftSettings(
        batch_size=wished.batch_size, grad_accumulation=1, lr=wished.lr, warmup_steps=wished.warmup_steps, schedule="cosine",
        weight_decay=wished.weight_decay, clip_norm=1.0, seed=config.seed, key="sft",
    )  # fmt: skip
    cadence = StageCadence(wished.steps, config.num_threads, config.device, wished.log_every, wished.checkpoint_every)
    with MetricLogger(run.metrics, None, resume_step=done or -1, runtime_s=0.0) as logger, model.trainable() as network:
        where = Where(
            cadence=cadence, run=run, ranks=ranks, stop=stop, logger=logger, monitor=None, title=f"sft, round {config.round}",
            keep_last=1,
        )  # fmt: skip
        return sft(
            network, rows, settings, where, pad_id=model.pad_id, weights=AllWeights(network), evaluate=None, record=record,
            tokenizer=model.tokenizer, divergence_remedy="lower sft.lr",
        )  # fmt: skip


def _steps_done(run: RunDir, record: dict[str, Any]) -> int:
    """ConfigError: the checkpoint that is there learned from other rows."""
    checkpoints = CheckpointFolder(run.checkpoints, 1)
    steps = checkpoints.steps()
    if steps and read_state(checkpoints.path(steps[-1])).get("rows") != record["rows"]:
        raise ConfigError(
            f"{run.path} has begun to learn from other edits than those that are accepted now; remove it to begin again."
        )
    return steps[-1] if steps else 0


def save_trained(model: HfModel, run: RunDir) -> None:
    """The model folder, whole or not at all, and trained.json, which names its content."""
    target, building = run.path / MODEL, run.path / f".{MODEL}"
    for folder in (target, building):
        if folder.is_dir():
            shutil.rmtree(folder)
    model.save(building)
    os.replace(building, target)
    write_atomically(run.path / TRAINED, json.dumps({"model": MODEL, "content": folder_digest(target)}) + "\n")
