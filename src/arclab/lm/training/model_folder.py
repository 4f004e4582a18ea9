"""A model folder that is made of another one by supervised fine-tuning: it is there whole, or not at all.

    train_folder(given, run, "model", wished, rows_of, ranks=ranks, stop=stop)         # <run>/model
    with opened(model, lora, seed) as network:                                         # for a training of another kind
        ...
        save_opened(model, network, lora, run, "model")

Training is that of arclab.lm.training.sft, in a hidden folder beside the result with checkpoints of its own: the same call goes
on after a kill. For stages that train (arclab.runs.stages); a run that is nothing but a training calls sft itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig
from arclab.config.memgen_schema import LoraConfig
from arclab.config.sft_schema import AdapterSftConfig
from arclab.config.stages_schema import StagedConfig
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.training.finetune import require_float32
from arclab.lm.training.life import Evaluate, TrainedWeights
from arclab.lm.training.rows import Row
from arclab.lm.training.sft import SftSettings, StageCadence, Where, sft
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder, read_state
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest, ToldToEnd
from arclab.runs.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTraining:
    """lora: an adapter that is merged into the weights at the end; None: all weights are trained, in float32. title: of the
    progress bar. learned: what the rows are, for messages. keeps_metrics: the log of the training becomes the run's."""

    settings: SftSettings
    cadence: StageCadence
    lora: LoraConfig | None
    title: str
    learned: str
    keeps_metrics: bool


def stage_training(
    wished: AdapterSftConfig, config: StagedConfig, *, key: str, what: str, learned: str, keeps_metrics: bool = True,
    grad_accumulation: int = 1, clip_norm: float | None = 1.0, eval_every: int = 0,
) -> FolderTraining:  # fmt: skip
    """Of a stage of self_improve.py, with a cosine schedule. key: of `wished` in the configuration, for messages. what: is
    made, for the progress bar. The rest: see FolderTraining."""
    settings = SftSettings(
        batch_size=wished.batch_size, grad_accumulation=grad_accumulation, lr=wished.lr, warmup_steps=wished.warmup_steps,
        schedule="cosine", weight_decay=wished.weight_decay, clip_norm=clip_norm, seed=config.seed, key=key,
    )  # fmt: skip
    cadence = StageCadence(
        wished.steps, config.num_threads, config.device, wished.log_every, wished.checkpoint_every, eval_every=eval_every
    )
    return FolderTraining(
        settings=settings, cadence=cadence, lora=wished.lora, title=f"{what}, round {config.round}", learned=learned,
        keeps_metrics=keeps_metrics,
    )  # fmt: skip


def train_folder(
    given: HfModelConfig, run: RunDir, which: str, wished: FolderTraining, rows_of: Callable[[HfModel], list[Row]], *,
    ranks: Ranks, stop: StopRequest, prepare: Callable[[HfModel], None] = lambda model: None,
    evaluate: Callable[[HfModel], Evaluate] | None = None,
) -> None:  # fmt: skip
    """Make <run>/<which> out of the given model. prepare: what is done to it first. evaluate: measures it on the way, as often
    as the cadence says. ToldToEnd: it is saved as far as it came. ValueError: rows that do not fit, a training that diverges,
    a training that was begun with other rows."""
    making, steps = RunDir(run.path / f".making-{which.lstrip('.')}", run), wished.cadence.steps
    model = load_hf(given)
    if wished.lora is None:
        require_float32(model)
    prepare(model)
    rows = rows_of(model)
    making.path.mkdir(parents=True, exist_ok=True)
    with opened(model, wished.lora, wished.settings.seed) as network:
        step = _fit(model, network, rows, wished, making, ranks, stop, evaluate)
        if step < steps:
            raise ToldToEnd(f"{which} is saved at step {step} of {steps}")
        if wished.keeps_metrics:
            os.replace(making.metrics, run.metrics)
        save_opened(model, network, wished.lora, run, which)
    shutil.rmtree(making.path)


def save_opened(model: HfModel, network: Any, lora: LoraConfig | None, run: RunDir, which: str) -> None:
    """<run>/<which> becomes the model as it is now, an adapter merged into the weights; whole, or not at all."""
    target, building = run.path / which, run.path / f".saving-{which.lstrip('.')}"
    for folder in (target, building):
        if folder.is_dir():
            shutil.rmtree(folder)
    if lora is not None:
        network.save_pretrained(building / "adapter")
        model = load_hf(model.config)  # with an adapter of its own, if it has one
        model.merge(building / "adapter")
    model.save(building / "finished")
    os.replace(building / "finished", target)
    shutil.rmtree(building)


@contextmanager
def opened(model: HfModel, lora: LoraConfig | None, seed: int) -> Iterator[Any]:
    """The network of the model, to be trained: all weights, or a fresh adapter alone (lora)."""
    if lora is None:
        with model.trainable() as network:
            yield network
    else:
        with model.new_adapter(
            rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, dropout=lora.dropout, seed=seed,
        ) as network:  # fmt: skip
            yield network


def _fit(
    model: HfModel, network: Any, rows: Sequence[Row], wished: FolderTraining, making: RunDir, ranks: Ranks, stop: StopRequest,
    evaluate: Callable[[HfModel], Evaluate] | None,
) -> int:  # fmt: skip
    record = {"rows": hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]}
    checkpoints = CheckpointFolder(making.checkpoints, 1)
    steps = checkpoints.steps()
    if steps and read_state(checkpoints.path(steps[-1])).get("rows") != record["rows"]:
        raise ConfigError(f"{making.path.parent} has begun to learn from other {wished.learned}; remove it to begin again.")
    logger = MetricLogger(making.metrics, None, resume_step=steps[-1] if steps else -1, runtime_s=0.0)
    with logger if ranks.is_main else nullcontext():
        where = Where(
            cadence=wished.cadence, run=making, ranks=ranks, stop=stop, logger=logger, monitor=None, title=wished.title,
            keep_last=1,
        )  # fmt: skip
        return sft(
            network, rows, wished.settings, where, pad_id=model.pad_id, weights=TrainedWeights(network),
            evaluate=None if evaluate is None else evaluate(model), record=record, tokenizer=model.tokenizer,
            divergence_remedy=f"lower {wished.settings.key}.lr={wished.settings.lr:g}",
        )  # fmt: skip
