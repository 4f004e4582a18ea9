"""The state of a run: model, optimiser, averages, rows in flight and progress; starting, saving and restoring it.

training, folder = start_training(config, model, parts, run, ranks, stamps)      # fresh, or from the newest checkpoint
save_checkpoint(config, training, folder, ranks)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arclab.config.compose import config_hash, identity
from arclab.config.schema import ExperimentConfig, OptimizerKind
from arclab.data.record import NO_RECORD, TASKS_FILE, DataRecord, record_of, require_same_data
from arclab.data.sampler import Part, start_cursors
from arclab.files import difference, naming
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.layers import Linear
from arclab.methods.recursive.model import Carry, RecursiveModel
from arclab.methods.recursive.saved import fill_model, load_record, other_settings
from arclab.methods.recursive.training.checkpoint import (
    TrainingProgress,
    carry_tensors,
    progress_from,
    split_carry,
)
from arclab.methods.recursive.training.optim import AdamATan2, Muon
from arclab.metrics.best import best_score
from arclab.runs.checkpoints import CheckpointFolder, load_tensors, read_state, save_tensors
from arclab.runs.folder import RunDir
from arclab.runs.ranks import Ranks
from arclab.runs.reduction import GradientReduction, start_reduction

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Training:
    """Everything that changes during a run, on one rank. parts: what a batch is made of. carries: one for each micro-batch of
    each part, None before the first step. reduction: sums gradients over ranks during the backward pass; None: after it.
    record: of the training tasks, without which nothing can be saved."""

    parts: Sequence[Part]
    model: RecursiveModel
    optimizer: AdamATan2
    ema: Ema
    carries: list[Carry] | None
    progress: TrainingProgress
    reduction: GradientReduction | None = None
    record: DataRecord | None = None


def build_optimizer(config: ExperimentConfig, model: RecursiveModel) -> AdamATan2:
    """Two groups, "decoder" and "encoder" (with its adapter), each with its own rate, decay and freeze. Tables: sign-SGD."""
    groups = [{"params": list(model.decoder.parameters()), "name": "decoder", "optim": config.decoder.optim}]
    if model.encoder is not None and model.adapter is not None:
        params = [*model.encoder.parameters(), *model.adapter.parameters()]
        groups.append({"params": params, "name": "encoder", "optim": config.encoder.optim})
    for group in groups:
        group["weight_decay"] = group["optim"].weight_decay
    betas = (config.trainer.beta1, config.trainer.beta2)
    if config.trainer.optimizer is OptimizerKind.adam_atan2:
        return AdamATan2(groups, lr=0.0, betas=betas, weight_decay=0.0)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and layer is not model.decoder.lm_head]
    return Muon(groups, [layer.weight for layer in layers], lr=0.0, betas=betas, weight_decay=0.0)


@contextmanager
def averaged_weights(model: RecursiveModel, ema: Ema) -> Iterator[RecursiveModel]:
    """The model with its parameters exchanged for their averages; they are exchanged back at the end."""
    parameters = dict(model.named_parameters())

    def exchange() -> None:
        for name, shadow in ema.shadow.items():
            ema.shadow[name], parameters[name].data = parameters[name].data, shadow

    exchange()
    try:
        yield model
    finally:
        exchange()


def start_training(
    config: ExperimentConfig, model: RecursiveModel, parts: Sequence[Part], run: RunDir, ranks: Ranks, stamps: list[str]
) -> tuple[Training, CheckpointFolder]:
    """A fresh start, or the newest checkpoint of the run folder. Everyone gets rank 0's weights."""
    folder = CheckpointFolder(run.checkpoints, config.trainer.keep_last)
    trainer = config.trainer
    ema = Ema(model, trainer.ema_decay, warmup=trainer.ema_warmup)
    run_id = ranks.gather_objects(run.run_id if ranks.is_main else None)[0]
    assert run_id is not None
    progress = TrainingProgress(0, start_cursors(parts, config.seed), 0, 0.0, run_id, identity(config), stamps, None, None)
    optimizer = build_optimizer(config, model)
    reduction = start_reduction([group["params"] for group in optimizer.param_groups], ranks)
    training = Training(parts, model, optimizer, ema, None, progress, reduction, record_of(parts[0].data))
    steps = folder.steps()
    if steps:
        _restore(training, folder.path(steps[-1]), config, ranks)
        best = best_score(run.metrics, config.selection_metric, until=steps[-1])  # the criterion may be another one now
        if best is not None:
            training.progress = replace(training.progress, best_score=best.value, best_step=best.step)
        log.info("continuing from step %d of %s", steps[-1], run.path)
    ranks.broadcast_([*model.state_dict().values(), *ema.shadow.values()])
    return training, folder


def _restore(training: Training, path: Path, config: ExperimentConfig, ranks: Ranks) -> None:
    state = read_state(path)
    progress = progress_from(state)
    _require_same_run(path, state, config, training.progress.run_id)
    record = load_record(path, state)
    assert training.record is not None
    if record is None:
        log.warning("note: %s; the next checkpoint keeps those of today", NO_RECORD)
    else:
        require_same_data(record, training.record, path)
    training.progress = replace(progress, run_id=training.progress.run_id, settings=training.progress.settings)
    fill_model(training.model, load_tensors(path, "model.safetensors", state), path)
    shadow = load_tensors(path, "ema.safetensors", state)
    training.ema.shadow = {name: shadow[name].to(t.device) for name, t in training.ema.shadow.items()}
    training.ema.num_updates = training.progress.ema_updates
    moments = load_tensors(path, "optimizer.safetensors", state)
    for name, p in training.model.named_parameters():
        if f"step.{name}" in moments:
            names = (key for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in moments)
            kept = {key: moments[f"{key}.{name}"].to(p.device) for key in names}
            training.optimizer.state[p] = {"step": int(moments[f"step.{name}"]), **kept}
    carry_files = sorted((n for n in state["files"] if n.startswith("carry_rank")), key=lambda n: int(n[10:].split(".")[0]))
    if carry_files and config.trainer.save_carry:
        files = [load_tensors(path, name, state) for name in carry_files]
        _require_same_parts(files, training.parts, config, ranks)
        training.carries = split_carry(files, ranks.rows, config.trainer.grad_accumulation, ranks.device)


def _require_same_run(path: Path, state: dict[str, Any], config: ExperimentConfig, run_id: str) -> None:
    """ValueError if the checkpoint was made by another run than the one of this folder, whose W&B id is run_id.

    Keys that the checkpoint does not have were added since: config.yaml of the folder answers for them. An older checkpoint has
    a hash of its settings alone, which changes with every new key: then the seed of its cursors and its run_id tell.
    """
    if state.get("settings") is not None:
        why = other_settings(state, config)
    elif state.get("config_hash") == config_hash(config):
        why = ""
    elif (seed := state["cursors"][0]["seed"]) != config.seed:
        why = f"was made with {difference({'seed': seed}, {'seed': config.seed})}"
    else:
        why = (
            ""
            if state["run_id"] == run_id
            else f"belongs to the W&B run {state['run_id']}, and this folder to {run_id} (file run_id)"
        )
    if why:
        raise ValueError(
            f"checkpoint {path} {why}: it is of another run; continue that run, or remove the checkpoint (another run can "
            "start from its weights with decoder_init=pretrained)."
        )


def _require_same_parts(files: list[dict[str, Tensor]], parts: Sequence[Part], config: ExperimentConfig, ranks: Ranks) -> None:
    """With trainer.canvas=bucketed the rows of a canvas are a multiple of ranks x pieces, so that another number of them means
    other rows."""
    saved = [sum(len(file[f"{part}.steps"]) for file in files) for part in range(len(parts)) if f"{part}.steps" in files[0]]
    now = [part.num_rows for part in parts]
    if saved != now:
        raise ValueError(
            f"this run has {saved} rows of its canvases in flight, saved by {len(files)} rank(s), but {ranks.world_size} "
            f"rank(s) with trainer.grad_accumulation={config.trainer.grad_accumulation} share out {now}; continue with "
            f"launch.* for {len(files)} rank(s), or start a run with another name."
        )


def save_checkpoint(config: ExperimentConfig, training: Training, folder: CheckpointFolder, ranks: Ranks) -> None:
    """All ranks take part: each writes its carry, rank 0 the rest and the commit."""
    temporary = folder.begin(training.progress.step) if ranks.is_main else None
    temporary = ranks.gather_objects(temporary)[0]
    assert temporary is not None
    if config.trainer.save_carry and training.carries is not None:
        save_tensors(carry_tensors(training.carries, len(training.parts)), temporary / f"carry_rank{ranks.rank}.safetensors")
    ranks.barrier()
    if ranks.is_main:
        training.progress.ema_updates = training.ema.num_updates
        save_tensors(training.model.state_dict(), temporary / "model.safetensors")
        save_tensors(training.ema.shadow, temporary / "ema.safetensors")
        save_tensors(_moments(training), temporary / "optimizer.safetensors")
        assert training.record is not None
        with naming(temporary / TASKS_FILE):
            (temporary / TASKS_FILE).write_text(training.record.text(), encoding="utf-8")
        folder.commit(temporary, asdict(training.progress), best_step=training.progress.best_step)
    ranks.barrier()


def _moments(training: Training) -> dict[str, Tensor]:
    tensors = {}
    for name, p in training.model.named_parameters():
        for key, value in training.optimizer.state.get(p, {}).items():
            tensors[f"{key}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors
